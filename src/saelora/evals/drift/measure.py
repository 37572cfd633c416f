"""How far from the clean base the residual stream runs, layer by layer, and what the SAEs' latents see of it.

Everything is of replaced positions (the token mask) alone. Only the base's layer outputs of one batch are held.

Shapes: B rows of a batch, S tokens, D width, F latents; N replaced positions of a batch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelora.config import Configuration
from saelora.core.cross_layer import Ahead
from saelora.core.numerics import wide
from saelora.core.partial import activations
from saelora.core.splice import Splice, TokenMask
from saelora.core.students import CLEAN, Students
from saelora.evals.batches import Batch
from saelora.evals.drift.result import AWAY, Drift, Layer
from saelora.evals.firing import Firing, Seen
from saelora.evals.intervals import ratios
from saelora.evals.loss_sums import check_any
from saelora.evals.spliced import SplicedModel
from saelora.evals.subject import Subject
from saelora.evals.variant import Variant
from saelora.models.anatomy import Anatomy, anatomy_of
from saelora.models.hookpoints import Hookpoint, ReadPoint

Watched = dict[Hookpoint, tuple[Seen, Tensor]]  # what an SAE saw and did, and which positions [batch, seq] it replaces
MEASURES = ("l2", "relative_l2", "cosine_distance")


def measure_drift(
    subject: SplicedModel,
    rows: Tensor,
    *,
    batch_rows: int = 1,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> Drift:
    """Distances of every layer's output from the clean base's, and the latents' firing, on rows [n_rows, context].

    Where the adapted model's SAEs were trained, its latents are set against those of the SAEs as they were. A layer's
    output is what the next layer gets: after replacement, where an SAE sits at its resid_post.

    Raises:
        InputError: no position of the rows is replaced by the SAE.
    """
    check_any(subject.token_mask(rows))
    anatomy = anatomy_of(subject.model)
    distances = Distances(anatomy.n_layers)
    firing = {hookpoint: Firing(len(rows)) for hookpoint in subject.spliced.saes}
    plan = {variant: subject.student(variant) for variant in (Variant.BASE, *AWAY)}
    students = subject.students(plan.values())
    with subject.batches(students, rows, batch_rows, progress) as each:
        for batch in each:
            base: dict[int, Tensor] = {}
            with students.only(plan[Variant.BASE]), watching(anatomy, base.__setitem__):
                _forward(anatomy, batch.input_ids)
            clean = clean_latents(subject.spliced, subject.token_mask, students, batch)
            distances.begin(base, batch.mask)
            for variant in AWAY:
                # spliced is observed too: an SAE may reconstruct by other steps, to other bits, where nobody watches
                watched = observed(subject.splice_of(variant))
                with batch.running_as(plan[variant]), distances.of(anatomy, variant), watched as found:
                    _forward(anatomy, batch.input_ids)
                if variant is Variant.ADAPTED:
                    add(firing, batch.start, clean, found)
    original = subject.spliced.reads if subject.spliced.replacement.mode == "parallel" else {}
    latents = {
        str(hookpoint): own.compute(True if hookpoint in original else None) for hookpoint, own in firing.items()
    }
    return Drift(int(sum(distances.n)), distances.compute(), latents)


def _forward(anatomy: Anatomy, input_ids: Tensor) -> None:
    anatomy.body(input_ids=input_ids, use_cache=False)


@contextmanager
def watching(anatomy: Anatomy, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call see(layer, output) with every layer's output, as it is after any splice, while the context is open."""

    def watch(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            see(layer, output if isinstance(output, Tensor) else output[0])

        return hook

    handles = [layer.register_forward_hook(watch(i)) for i, layer in enumerate(anatomy.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def observed(spliced: Splice) -> Iterator[Watched]:
    """Yields what every SAE that runs while the context is open sees and does."""
    found: Watched = {}

    def observer(hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
        found[hookpoint] = (x, latents, recon), mask

    with spliced.observed_by(observer):
        yield found


def clean_latents(spliced: Splice, token_mask: TokenMask, students: Students, batch: Batch) -> Watched:
    """What an observer would see of clean activations, by the very steps of a splice, so that bits compare."""
    with students.only(CLEAN):
        points: list[Hookpoint | ReadPoint] = [*spliced.saes, *spliced.reads.values()]
        clean = activations(students.model, batch.input_ids, None, points)
    found: Watched = {}
    ahead = Ahead()
    for hookpoint in sorted(spliced.saes):
        x, read = clean[hookpoint], clean[spliced.reads.get(hookpoint, hookpoint)]
        mask = token_mask.replaced(hookpoint, x, batch.mask)
        latents, recon = spliced.made(hookpoint, spliced.given(hookpoint, read, mask), mask, x.dtype, ahead)
        found[hookpoint] = (spliced.seen(hookpoint, x), latents, recon), mask
    return found


def add(firing: Mapping[Hookpoint, Firing], start: int, base: Watched, other: Watched) -> None:
    """Add a batch, the first row of which is ``start``: positions that are replaced under both models count."""
    for hookpoint, (seen, mask) in other.items():
        clean, replaced = base[hookpoint]
        firing[hookpoint].update(start, replaced & mask, clean, seen)


@dataclass
class Distances:
    """Per-row sums over replaced positions, for each layer, variant and measure."""

    n_layers: int
    n: list[float] = field(default_factory=list)
    sums: dict[tuple[int, Variant, str], list[float]] = field(default_factory=dict)
    _base: dict[int, Tensor] = field(default_factory=dict)
    _mask: Tensor | None = None

    def begin(self, base: dict[int, Tensor], mask: Tensor) -> None:
        """A new batch: the base's layer outputs [batch, seq, d_model], and which positions count [batch, seq]."""
        self._base, self._mask = base, mask
        self.n += mask.sum(1).tolist()

    def of(self, anatomy: Anatomy, variant: Variant) -> AbstractContextManager[None]:
        """Add the distances of one variant's forward pass, run while this context is open."""

        def see(layer: int, output: Tensor) -> None:
            for measure, value_BS in distances(output, self._base[layer]).items():
                kept = torch.where(self._mask.to(value_BS.device), value_BS, 0.0)  # type: ignore[union-attr]
                self.sums.setdefault((layer, variant, measure), []).extend(kept.sum(1).tolist())

        return watching(anatomy, see)

    def compute(self) -> list[Layer]:
        """Means with intervals, layer by layer."""
        kept = np.array(self.n) > 0
        sums = {key: np.array(values)[kept] for key, values in self.sums.items()}
        for layer in range(self.n_layers):
            for measure in ("l2", "cosine_distance"):
                gained = sums[layer, Variant.ADAPTED, measure] - sums[layer, Variant.SPLICED, measure]
                sums[layer, Variant.ADAPTED, f"{measure} gained"] = gained
        keys = list(sums)
        n_KR = np.broadcast_to(np.array(self.n)[kept], (len(keys), kept.sum()))
        found = dict(zip(keys, ratios(np.stack([sums[key] for key in keys]), n_KR), strict=True))
        return [
            Layer(
                layer,
                **{measure: {v: found[layer, v, measure] for v in AWAY} for measure in MEASURES},
                l2_difference=found[layer, Variant.ADAPTED, "l2 gained"],
                cosine_difference=found[layer, Variant.ADAPTED, "cosine_distance gained"],
            )
            for layer in range(self.n_layers)
        ]


def distances(x_BSD: Tensor, base_BSD: Tensor) -> dict[str, Tensor]:
    """MEASURES at every position [batch, seq], in float64."""
    x, base = wide(x_BSD), wide(base_BSD)
    l2, norm = (x - base).norm(dim=-1), base.norm(dim=-1)
    # half the squared distance of the unit vectors is 1 - cos, and exactly 0 where nothing differs
    apart = nn.functional.normalize(x, dim=-1) - nn.functional.normalize(base, dim=-1)
    return {"l2": l2, "relative_l2": l2 / norm.clamp(min=1e-30), "cosine_distance": apart.square().sum(-1) / 2}


def run(subject: Subject, config: Configuration) -> Drift:
    """Distances of every layer's output from the original's, and whether the latents fire as before."""
    with subject.console.progress("drift", subject.rows.numel()) as bar:
        found = measure_drift(subject, subject.rows, progress=bar.advance)
    return replace(found, trained=subject.trained)
