"""Groups of a sweep's points, run side by side: one model, its SAEs and its rows for all of them."""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelora.assemble import Assembled, SAECache, assemble, autocast_dtype, load_frozen, read_rows, validation_rows
from saelora.config import to_dict, updated
from saelora.console import Console
from saelora.core.group import ALONE
from saelora.core.lora import layers_of
from saelora.core.splice import Splice, TokenMask
from saelora.core.spread import FIGURES
from saelora.core.students import Student
from saelora.errors import InputError, out_of_memory
from saelora.evals.loss import evaluate_branches
from saelora.evals.loss_result import LossResult, RunResult
from saelora.files import writing
from saelora.identity import measured_on
from saelora.jobs import adapt
from saelora.jobs.student_folder import save_run
from saelora.jobs.students import add_adapter
from saelora.jobs.sweep_plan import SAES, Point, SweepSpec, adapter_folder, split
from saelora.jobs.training import repeat_collection, train
from saelora.jobs.training_options import recipe_of, with_batch_rows
from saelora.manifest import describe, environment, read_json, write_json
from saelora.models.anatomy import anatomy_of
from saelora.models.layout import widths
from saelora.models.loading import LoadedModel
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.fitting import fit_step
from saelora.reporting.outcome import DIVERGED, DONE, outcome
from saelora.reporting.sweep_point import SweepPoint
from saelora.train.memory import free_bytes

POINTS, ROWS = "points.json", "rows.json"  # of a group: what it trains, and until they are published its results
BYTES_PER_WEIGHT = 16  # an adapter's weight, its gradient and AdamW's two moments, in float32


@dataclass
class Runner:
    """Runs groups one after another; keeps the model, its SAEs and its rows while the next group needs the same."""

    save_adapters: bool
    recipe: SweepSpec
    folder: Path
    saes: str
    console: Console
    memory_share: float  # of what is free: for adapters with optimisers, and again for what backward passes hold
    loaded: LoadedModel | None = None
    model_key: Any = None
    cache: SAECache = field(default_factory=dict)
    rows: dict[Any, Tensor] = field(default_factory=dict)

    def run(self, points: list[Point]) -> None:
        """Run one group, in as many parts as memory asks for."""
        first = points[0].config
        key = (first.model, first.revision, first.device, first.dtype)
        if self.loaded is None or key != self.model_key:
            self.loaded, self.cache, self.rows = None, {}, {}
            self.console.say(f"loading {first.model}")
            self.loaded, self.model_key = load_frozen(first), key
        begun, rest = self._begun(points)
        parts = [*begun, *(split(rest, self._limit(points)) if rest else [])]
        while parts:
            part = parts.pop(0)
            try:
                self._run_part(part)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise InputError(
                        f"one point alone does not fit memory: {part[0].values}; lower batch_rows"
                    ) from error
                self.console.say(f"{len(part)} points at once do not fit memory; in halves then")
                torch.cuda.empty_cache()
                parts = [*split(part, -(-len(part) // 2)), *parts]

    def _begun(self, points: list[Point]) -> tuple[list[list[Point]], list[Point]]:
        """Parts that an earlier process left checkpoints of, as it had cut them, whatever memory is free now."""
        left, found = {point.id: point for point in points}, []
        for file in sorted((self.folder / "groups").glob(f"*/{POINTS}")):
            ids = json.loads(file.read_text())
            if set(ids) <= left.keys() and any((file.parent / "checkpoints").glob("step-*")):
                found.append([left.pop(point_id) for point_id in ids])
        return found, list(left.values())

    def _limit(self, points: list[Point]) -> int:
        """Points whose adapters and optimisers fit side by side; what backward passes hold is fitted later."""
        assert self.loaded is not None
        anatomy = anatomy_of(self.loaded.model)
        linears = [layer.get_submodule(name) for layer in anatomy.layers for name in anatomy.linears()]
        per_rank = sum(sum(widths(linear)) for linear in linears)  # weights that rank 1 in all layers would have
        most = max(point.config.rank for point in points) * per_rank * BYTES_PER_WEIGHT
        return max(1, int(self.memory_share * free_bytes(self.loaded.model.device) / most))

    def _run_part(self, points: list[Point]) -> None:
        """Adapt and measure points side by side, and write their rows."""
        assert self.loaded is not None
        model: Any = None
        first = with_batch_rows(points[0].config, self.loaded.model.device.type)
        rows, heldout = self._read(first)
        assembled = {point.id: assemble(self._with_saes(point), self.loaded, self.cache) for point in points}
        try:
            for point in points:
                model = add_adapter(model, point.config, assembled[point.id], f"p{point.id}")
            with ExitStack() as stack:
                splices = list(_splices(model, points, assembled, stack))
                branches = [
                    Branch(f"p{point.id}", spliced, recipe_of(point.config))
                    for point, spliced in zip(points, splices, strict=True)
                ]
                autocast = autocast_dtype(self.loaded)
                objective = Distill(
                    model, branches, n_rows=len(rows), autocast=autocast, graph=first.graph, say=self.console.say
                )
                fit_step(objective, rows[: first.batch_rows], self.console.say, ALONE, self.memory_share)
                part = rows[: objective.rows_at_once or first.batch_rows]
                objective.fit(part, int(self.memory_share * free_bytes(objective.device)))
                seconds = self._train(points, first, objective, rows)
                students = {p.id: Student(s, f"p{p.id}") for p, s in zip(points, splices, strict=True)}
                with self.console.progress("evaluating", heldout.numel()) as bar:
                    found = evaluate_branches(
                        model,
                        students,
                        _token_mask(each.token_mask for each in assembled.values()),
                        heldout,
                        arms=self.recipe.arms,
                        autocast=autocast,
                        progress=bar.advance,
                    )
            shared: dict[str, object] = {
                "n_tokens_trained": rows.numel(),
                "seconds_group": round(seconds, 2),
                "n_branches": len(points),
            }
            shared["environment"] = environment()
            if objective.rows_at_once is not None:
                shared["rows_at_once"] = objective.rows_at_once
            made = {}
            for run, point in zip(objective.runs, points, strict=True):
                about = measured_on(describe(assembled[point.id]), heldout, autocast)
                more = {**shared, "about": about}
                row = _row(point, assembled[point.id], found[point.id], more, failed=run.failed)
                made[point.id] = row
                if self.save_adapters and row.status == DONE:
                    results = RunResult.model_validate({**found[point.id].to_json(), **more})
                    target = adapter_folder(self.folder, point)
                    save_run(model, f"p{point.id}", self._with_saes(point), assembled[point.id], results, target)
            write_json(_group_folder(self.folder, points) / ROWS, made)  # all of the group, or none
            _publish(self.folder, _group_folder(self.folder, points) / ROWS)
        finally:
            if model is not None:
                model.unload()

    def _with_saes(self, point: Point) -> adapt.Config:
        """The point's options with the folder of the recipe's own SAEs put in."""
        return updated(point.config, {"sae": [ref.replace(SAES, self.saes) for ref in point.config.sae]})

    def _read(self, config: adapt.Config) -> tuple[Tensor, Tensor]:
        """Training and held-out rows; the last ones read are kept."""
        assert self.loaded is not None
        data = (config.data, config.subset, config.split, config.text_column, config.validation_fraction)
        train = ("train", *data, config.context, config.tokens, config.seed)
        held = ("validation", *data, config.eval_context or config.context, config.eval_tokens)
        old, self.rows = self.rows, {}
        if train in old:
            self.rows[train] = old[train]
        else:
            self.rows[train] = read_rows(config, self.loaded, config.tokens, "train", config.seed).input_ids
        self.rows[held] = old[held] if held in old else validation_rows(config, self.loaded)
        return self.rows[train], self.rows[held]

    def _train(self, points: list[Point], config: adapt.Config, objective: Distill, rows: Tensor) -> float:
        """Seconds of training by a configuration's loop; an interrupted part goes on from its checkpoint."""
        folder = _group_folder(self.folder, points)
        write_json(folder / POINTS, [point.id for point in points])
        state = train(
            objective,
            rows,
            config,
            folder,
            self.console,
            device=objective.device,
            label=f"adapting {len(points)} branches",
            note=lambda row: f"mean KL {row['loss']:.4f}",
            advice=repeat_collection("group"),
        )
        return state.seconds


def _token_mask(masks: Iterable[TokenMask]) -> TokenMask:
    """A group's token policy, with the limits at all of its points' hookpoints if it spares massive positions."""
    first, *others = masks
    massive = first.massive
    for other in others:
        if massive is not None and other.massive is not None:
            massive = massive.with_limits(dict(other.massive.limits))
    return replace(first, massive=massive)


def _splices(
    model: nn.Module, points: list[Point], assembled: dict[str, Assembled], stack: ExitStack
) -> Iterator[Splice]:
    """Each point's open splice; points with the same SAEs share one."""
    opened: dict[Any, Splice] = {}
    for point in points:
        found = assembled[point.id]
        key = (found.replacement, *((hookpoint, id(sae)) for hookpoint, sae in found.saes.items()))
        if key not in opened:
            opened[key] = stack.enter_context(found.splice(model))
        yield opened[key]


def _row(
    point: Point, assembled: Assembled, found: LossResult, more: Mapping[str, object], *, failed: bool
) -> SweepPoint:
    """One row of the table: what the point is, and what was measured.

    Args:
        more: what it cost, and what it was measured on.
    """
    config, saes = point.config, found.saes
    layers = sorted(layers_of(config.placement, assembled.saes, assembled.anatomy.n_layers))
    mean: dict[str, float] = {
        k: sum(getattr(s, k) for s in saes.values()) / len(saes) for k in ("fvu", *FIGURES, "l0", "dead_frac")
    }
    if assembled.token_mask.massive is not None:
        mean["n_massive"] = sum(s.n_massive or 0 for s in saes.values())
    frozen = [p for name, p in assembled.loaded.model.named_parameters() if "lora_" not in name]
    about = {
        "id": point.id,
        "status": DIVERGED if failed or outcome(found) == DIVERGED else DONE,
        "model": config.model,
        "n_parameters": sum(p.numel() for p in frozen),
        "sae": config.sae,
        "hookpoint": [str(hookpoint) for hookpoint in assembled.saes],
        "layer": min(hookpoint.layer for hookpoint in assembled.saes),
        "n_saes": len(assembled.saes),
        "d_sae": max(sae.d_sae for sae in assembled.saes.values()),
        **mean,
        "rank": config.rank,
        "alpha": config.rank if config.alpha is None else config.alpha,
        "placement": config.placement,
        "adapted_layer": layers[0] if len(layers) == 1 else None,
        "n_adapted_layers": len(layers),
        "lr": config.lr,
        "seed": config.seed,
    }
    losses = {key: value for key, value in found.to_json().items() if key != "saes"}
    return SweepPoint.model_validate({**about, **losses, "config": to_dict(config), **more}).finite()


def publish(folder: Path, ids: Collection[str] | None = None) -> None:
    """Publish groups that were finished by a process that was killed before it had done so.

    Args:
        ids: only groups of these points, which no other process is at; None: all.
    """
    for file in sorted((folder / "groups").glob(f"*/{ROWS}")):
        if ids is None or {*json.loads((file.parent / POINTS).read_text())} <= {*ids}:
            _publish(folder, file)


def _publish(folder: Path, rows: Path) -> None:
    """Give every point of a finished group its own file, and drop the group's checkpoints."""
    for point_id, row in read_json(rows).items():
        write_json(folder / "points" / f"{point_id}.json", row)
    shutil.rmtree(rows.parent / "checkpoints", ignore_errors=True)
    rows.unlink()


def _group_folder(folder: Path, points: list[Point]) -> Path:
    """Where points that are trained side by side have their metrics and checkpoints."""
    name = hashlib.sha256("".join(point.id for point in points).encode()).hexdigest()[:12]
    made = folder / "groups" / name
    with writing(made):
        made.mkdir(parents=True, exist_ok=True)
    return made
