"""All latents of a run on held-out text: how often and how strongly each fires, where, what adaptation does there."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.files import write_whole, writing
from saelora.models.assets import cache_dir
from saelora.models.hookpoints import Hookpoint
from saelora.use.exports.activations import Activations
from saelora.use.run import LoadedRun
from saelora.use.scores import compared

_CONTEXT = 256  # tokens of a row at most
_MOST = 20_000_000  # activations that are kept; of SAEs with very many active latents fewer rows are read
_TOKENS_AT_ONCE = {"cpu": 1}  # in one pass: on CPUs several rows take as long, and others wait for a pass to end
_MORE_AT_ONCE, _LOGITS_AT_ONCE = 2048, 2**27  # elsewhere
_VERSION = 1
LEAST = 10  # times that a latent fires before its effect is ranked


@dataclass
class Census:
    """What was counted.

    Args:
        rows: the held-out rows that were read, [n_rows, context].
        activations: hookpoint -> every activation that is not zero, in the variant that the run is by default.
        fired_spliced: hookpoint -> at how many positions each latent fires in the spliced model, [d_sae].
        kl: KL(original || spliced) and KL(original || default variant) of what is predicted at each position, nats,
            [2, n_rows, context]; nan at the last one of a row.
    """

    rows: Tensor
    activations: dict[Hookpoint, Activations]
    fired_spliced: dict[Hookpoint, Any]
    kl: Any
    _found: dict[Hookpoint, Summary] = field(default_factory=dict)

    def summary(self, hookpoint: Hookpoint) -> Summary:
        """Figures of each latent."""
        if hookpoint not in self._found:
            self._found[hookpoint] = _summary(self, hookpoint)
        return self._found[hookpoint]


@dataclass(frozen=True)
class Summary:
    """Of each latent [d_sae].

    Args:
        density, density_spliced: the share of replaced positions at which it fires.
        most: its largest activation.
        n: positions at which it fires and something is predicted.
        effect: mean of KL(original || default) - KL(original || spliced) over these, nats; nan where there is none.
    """

    density: Any
    density_spliced: Any
    most: Any
    n: Any
    effect: Any


def _summary(census: Census, hookpoint: Hookpoint) -> Summary:
    seen = census.activations[hookpoint]
    latents, size = seen.fired[:, 2], seen.d_sae
    change = (census.kl[1] - census.kl[0])[seen.fired[:, 0], seen.fired[:, 1]]
    there = ~np.isnan(change)
    n = np.bincount(latents[there], minlength=size)
    total = np.bincount(latents[there], weights=change[there], minlength=size)
    most = np.zeros(size, dtype=np.float32)
    np.maximum.at(most, latents, seen.values)
    tokens = max(1, seen.n_tokens)
    with np.errstate(invalid="ignore"):
        effect = total / n
    density = np.bincount(latents, minlength=size) / tokens
    return Summary(density, census.fired_spliced[hookpoint] / tokens, most, n, effect)


def held_out_rows(run: LoadedRun, n_tokens: int) -> Tensor:
    """Rows of the text that the run held out; from any thread.

    Raises:
        InputError: the run names no text, or it is not to be had.
    """
    from saelora.assemble import VALIDATION_SEED, read_rows
    from saelora.config import build
    from saelora.options import DataConfig

    then: Any = run.run.training if run.run.manifest is None else run.run.manifest.config
    values = {name: then[name] for name in DataConfig.model_fields if (then or {}).get(name) is not None}
    config = build(DataConfig, values, "the run's recorded configuration")
    if not config.data:
        raise InputError("the run does not say what text it was made on, so that its latents cannot be shown in text")
    context = min(config.eval_context or config.context, _CONTEXT)
    own = replace(run.loaded, tokenizer=copy.deepcopy(run.tokenizer))  # two threads may not share one
    return read_rows(config, own, max(n_tokens, context), "validation", VALIDATION_SEED, context).input_ids


def count(run: LoadedRun, rows: Tensor, done: Callable[[Census | None, int], None]) -> Iterator[None]:
    """Count in steps of one pass each, outside all contexts between them.

    Args:
        done: is told how many rows are done, and at the end the census.
    """
    last = "adapted" if run.default_name == "adapted" else "spliced"
    kept: dict[str, dict[Hookpoint, list[Any]]] = {name: {h: [] for h in run.hookpoints} for name in ("spliced", last)}
    tokens, kl, n_rows = dict.fromkeys(run.hookpoints, 0), np.full((2, *rows.shape), np.nan, dtype=np.float32), 0
    for part in rows.split(_rows_at_once(run.device.type, rows.shape[1], run.n_embedded)):
        with run.original():
            clean = run.logits(part)[:, :-1]
        yield
        for name in kept:
            watch = _watch(kept[name], n_rows, tokens if name == last else {})
            with run.as_variant(name), run.watched(watch) as model:
                logits = model(input_ids=part.to(run.device)).logits[:, :-1].float()
            for i, row in enumerate(part):  # one at a time: each needs several times the memory of its logits
                values = compared(logits[i], clean[i], row[1:].to(logits.device))[2].cpu().numpy()
                kl[1, n_rows + i, :-1] = values
                if name == "spliced":
                    kl[0, n_rows + i, :-1] = values
            yield
        n_rows += len(part)
        done(None, n_rows)
        if sum(len(values) for parts in kept[last].values() for _, values in parts) > _MOST:
            break
    rows, kl = rows[:n_rows], kl[:, :n_rows]
    activations = {
        h: Activations(run, rows, run.sizes[h], tokens[h], *map(np.concatenate, zip(*parts, strict=True)))
        for h, parts in kept[last].items()
    }
    fired = {
        h: np.bincount(np.concatenate([where[:, 2] for where, _ in parts]), minlength=run.sizes[h])
        for h, parts in kept["spliced"].items()
    }
    for each in activations.values():
        each.firing()  # puts them in order, before others see them
    done(Census(rows, activations, fired, kl), n_rows)


def _rows_at_once(device: str, context: int, vocab: int) -> int:
    """Rows of a pass: as many as keep it short and its logits small."""
    tokens = _TOKENS_AT_ONCE.get(device, _MORE_AT_ONCE)
    return max(1, min(tokens // context, _LOGITS_AT_ONCE // (context * vocab)))


def _watch(kept: dict[Hookpoint, list[Any]], row: int, tokens: dict[Hookpoint, int]) -> Any:
    def watch(hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
        there = torch.where(mask.unsqueeze(-1), latents, 0)
        where = there.nonzero()
        values = there[tuple(where.T)].float().cpu().numpy()
        kept[hookpoint].append(((where + where.new_tensor([row, 0, 0])).int().cpu().numpy(), values))
        if hookpoint in tokens:
            tokens[hookpoint] += int(mask.sum())

    return watch


def cache_file(run: LoadedRun, rows: Tensor) -> Path:
    """Where the census of this model, these SAEs, this adapter and these rows is kept."""
    about = json.dumps([_VERSION, run.about.to_json(), run.variants, str(run.replacement)], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode() + rows.numpy().tobytes()).hexdigest()[:24]
    return cache_dir() / "latents" / f"{digest}.safetensors"


def save(census: Census, path: Path) -> None:
    """Write it atomically.

    Raises:
        InputError: the disk is full or not writable.
    """
    from safetensors.numpy import save as written

    found = {"rows": census.rows.numpy(), "kl": census.kl}
    for hookpoint, seen in census.activations.items():
        found |= {f"{hookpoint}.fired": np.ascontiguousarray(seen.fired), f"{hookpoint}.values": seen.values}
        found |= {f"{hookpoint}.n": np.array([seen.n_tokens]), f"{hookpoint}.spliced": census.fired_spliced[hookpoint]}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, written(found))


def load(run: LoadedRun, path: Path) -> Census | None:
    """What was kept there; None where nothing is, or it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
        rows = torch.from_numpy(found["rows"])
        activations, spliced = {}, {}
        for h in run.hookpoints:
            n = int(found[f"{h}.n"][0])
            activations[h] = Activations(run, rows, run.sizes[h], n, found[f"{h}.fired"], found[f"{h}.values"])
            spliced[h] = found[f"{h}.spliced"]
        return Census(rows, activations, spliced, found["kl"])
    except (OSError, KeyError, SafetensorError, ValueError):
        return None
