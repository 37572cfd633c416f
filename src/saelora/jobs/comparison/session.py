"""What the runs of a comparison share: the model, held-out rows with their clean pass, one way to train and count."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saelora.assemble import Assembled, autocast_dtype, load_frozen, token_mask_of, validation_rows
from saelora.config import build, updated
from saelora.console import Console
from saelora.core.splice import TokenMask
from saelora.core.students import Student
from saelora.errors import InputError
from saelora.evals.cached import CachedEvaluator
from saelora.evals.loss_sums import LossSums
from saelora.identity import About, SAEId
from saelora.jobs import train_sae
from saelora.jobs.comparison.plan import Run
from saelora.jobs.comparison.recipe import ComparisonRecipe, JobConfig
from saelora.jobs.students import add_student
from saelora.jobs.training import evenly, repeat_collection, train
from saelora.jobs.training_options import StudentConfig
from saelora.manifest import describe_model, read_json
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import LoadedModel
from saelora.objectives.distill import Distill
from saelora.reporting.comparison.run import ComparisonRun, CurvePoint, Start
from saelora.train.cost import Costed
from saelora.train.loop import LoopState, Objective, Rows


@dataclass
class ComparisonSession:
    """The setting of a comparison, kept from run to run."""

    recipe: ComparisonRecipe
    runs: list[Run]
    folder: Path
    console: Console
    _evaluators: dict[Any, CachedEvaluator] = field(default_factory=dict)
    _spliced: dict[Any, LossSums] = field(default_factory=dict)

    @cached_property
    def loaded(self) -> LoadedModel:
        config = build(train_sae.Config, self.recipe.base)
        self.console.say(f"loading {config.model}")
        return load_frozen(config)

    def token_mask(self, config: JobConfig, hookpoint: Hookpoint) -> TokenMask:
        """The model must be bare when it is first asked for at a hookpoint."""
        return token_mask_of(config.exempt, config, self.loaded, [hookpoint])

    def about(self, config: JobConfig, hookpoint: Hookpoint, saes: list[SAEId]) -> About:
        """What identifies the model, these SAEs and the token policy."""
        policy = self.token_mask(config, hookpoint).record()
        return About(model=describe_model(self.loaded), saes=saes, token_policy=policy)

    def evaluator(self, config: JobConfig, hookpoint: Hookpoint, *, tuning: bool = False) -> CachedEvaluator:
        """The held-out rows that are reported, or those that learning rates are chosen on; no row is in both.

        The model must be bare when they are first asked for.
        """
        mask = self.token_mask(config, hookpoint)
        n_tuning = self.recipe.tune.eval_tokens if self.recipe.tune else 0
        about = (config.data, config.subset, config.split, config.text_column, config.validation_fraction)
        context = config.eval_context or config.context
        key = (about, context, config.eval_tokens, mask, hookpoint, tuning)
        if key not in self._evaluators:
            n_reported = max(1, config.eval_tokens // context)
            every = updated(config, {"eval_tokens": config.eval_tokens + n_tuning})
            rows = validation_rows(every, self.loaded)
            part = rows[n_reported:] if tuning else rows[:n_reported]
            autocast = autocast_dtype(self.loaded)
            self._evaluators[key] = CachedEvaluator(self.loaded.model, mask, part, [hookpoint], autocast=autocast)
        return self._evaluators[key]

    def spliced_losses(self, config: JobConfig, assembled: Assembled) -> LossSums:
        """What the frozen SAE costs before any method, on the reported rows; the model must be bare."""
        ((hookpoint, sae),) = assembled.saes.items()
        evaluator = self.evaluator(config, hookpoint)
        key = (sae.fingerprint, hookpoint, id(evaluator), assembled.replacement)
        if key not in self._spliced:
            with assembled.splice(self.loaded.model) as spliced:
                self._spliced[key] = evaluator.losses(self.loaded.model, Student(spliced))
        return self._spliced[key]

    def sae_folder(self, run_id: str, share: float) -> Path:
        """Where an SAE run's checkpoint is."""
        return self.folder / "saes" / run_id / f"at-{share:g}"

    def train(
        self,
        name: str,
        objective: Objective,
        rows: Rows,
        config: JobConfig,
        points: int = 1,
        also_at: Iterable[int] = (),
        evaluate: Callable[[int], dict[str, float]] | None = None,
    ) -> tuple[LoopState, Costed]:
        """Train to the end of the rows, or go on where an interruption left it.

        Args:
            name: of the folder under work/ that holds metrics and checkpoints.
            config: options of the run's job, for batch_rows, context and checkpoint_seconds.
            points: evaluations, evenly along the run.
            also_at: steps after which to evaluate besides.
            evaluate: told of the steps done; called before the first, too.

        Returns:
            The loop's state, whose history has "step" besides what ``evaluate`` gave, and the costs.
        """
        costed = Costed(objective, self.loaded.model.device)
        folder = self.folder / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        at = evenly(len(rows), config.batch_rows or 1, points) if evaluate else set()
        state = train(
            costed,
            rows,
            config,
            folder,
            self.console,
            device=self.loaded.model.device,
            label="training",
            note=_shown,
            advice=repeat_collection("run"),
            evaluate=evaluate and (lambda step: {"step": float(step), **evaluate(step)}),
            evaluate_at={*at, *also_at},
        )
        return state, costed


def start_of(session: ComparisonSession, run: Run) -> tuple[Start, str]:
    """Where a method's run begins, with what had been spent until there, and the SAE as ``--sae`` takes it.

    Raises:
        InputError: the SAE's own run is not done yet.
    """
    if run.start_run is None:
        return Start(ref=str(run.start_ref)), str(run.start_ref)
    file = session.folder / "runs" / f"{run.start_run}.json"
    if not file.exists():
        raise InputError(f"{run.entry.name} starts from an SAE whose run is not done: run that one first")
    remedy = "delete it and repeat with --resume"
    sae = ComparisonRun.read(read_json(file), file, remedy)
    spent = next((each for each in sae.checkpoints if each.share == run.start_share), None)
    if spent is None:
        raise InputError(f"{file} has no checkpoint of share {run.start_share}: {remedy}")
    start = Start.model_validate({"name": sae.name, "run": run.start_run, **spent.to_json()})
    return start, str(session.sae_folder(run.start_run, spent.share))


@contextmanager
def students(
    session: ComparisonSession, configs: Sequence[StudentConfig], assembled: Assembled, n_rows: int
) -> Iterator[tuple[Any, Distill]]:
    """The model with a student for each configuration, and their objective; bare again afterwards."""
    model: Any = None
    with ExitStack() as stack:
        try:
            branches = []
            for i, config in enumerate(configs):
                model, branch = add_student(model, config, assembled, f"student{i}", stack)
                branches.append(branch)
            yield (
                model,
                Distill(
                    model,
                    branches,
                    n_rows=n_rows,
                    autocast=autocast_dtype(session.loaded),
                    graph=configs[0].graph,
                    say=session.console.say,
                ),
            )
        finally:
            if model is not None and model is not session.loaded.model:
                model.unload()


def _shown(row: dict[str, float]) -> str:
    return f"ce {row['ce']:.4f}" if "ce" in row else f"loss {row['loss']:.4f}" if "loss" in row else ""


def curve(state: LoopState, costed: Costed, n_steps: int) -> list[CurvePoint]:
    """A run's evaluations: share of its tokens, what was spent on training until then, ce and kl."""
    return [
        CurvePoint(
            share=row["step"] / n_steps,
            n_tokens=int(row["n_tokens"]),
            seconds=row["seconds"],
            model_flops=row["n_tokens"] * costed.flops_per_token,
            ce=row["ce"],
            kl=row["kl"],
        )
        for row in state.history
        if "ce" in row
    ]


def means(losses: LossSums) -> dict[str, float]:
    """ce and kl per counted prediction."""
    n = sum(losses.n)
    return {name: sum(losses.sums[name]) / n for name in ("ce", "kl")}
