"""Interventions on an SAE's latents, and cross entropies of a model's variants under them.

Each intervention is an SAE around the SAE, so that a splice can hold it. All variants of a batch share the clean pass
(``saelora.core.students``), and all are scored on the same predictions: those whose input position the token mask
counts.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelora.core.eval_mode import eval_mode
from saelora.core.head import Head
from saelora.core.kl_head import chunk_size
from saelora.core.numerics import wide
from saelora.core.splice import SAE, Observer, Splice, TokenMask
from saelora.core.students import Shared, Student, Students
from saelora.evals.intervals import UNDEFINED, Estimate, ratio
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint


class Ablated(nn.Module):
    """An SAE with some of its latents set to 0."""

    def __init__(self, sae: SAE, latents: Tensor):
        super().__init__()
        self.sae, self.latents = sae, latents

    def encode(self, x: Tensor) -> Tensor:
        acts = self.sae.encode(x)
        return acts.index_fill(-1, self.latents.to(acts.device), 0)

    def decode(self, feature_acts: Tensor) -> Tensor:
        return self.sae.decode(feature_acts)


class Shuffle:
    """One draw of which position's latents each counted position gets; every SAE and every variant uses the same."""

    def __init__(self) -> None:
        self.order, self.n = torch.empty(0, dtype=torch.long), 0

    def draw(self, mask_BS: Tensor, generator: torch.Generator) -> None:
        """A random cycle through a batch's counted positions: none keeps its own latents, unless it is the only one."""
        counted = mask_BS.flatten().cpu().nonzero()[:, 0]
        order = counted[torch.randperm(len(counted), generator=generator)]
        self.order, self.n = order.to(mask_BS.device), mask_BS.numel()

    def source(self, spared_N: Tensor | None = None) -> Tensor:
        """Where each position's latents come from [batch * seq]: its own where it is not counted, or is spared."""
        order = self.order if spared_N is None else self.order[~spared_N[self.order]]
        source_N = torch.arange(self.n, device=order.device)
        source_N[order] = order.roll(1)
        return source_N


class Shuffled(nn.Module):
    """An SAE whose latents, and with them reconstructions, change places between counted positions.

    What each latent does on average stays as it was; what it says about its own position is gone. It is the
    reconstruction that moves, so that SAEs that keep a position's scale between encode and decode move that too.
    Positions that are counted and spared all the same, as massive ones are, stay out of it: a splice shows its SAE the
    same number everywhere there (``Splice.given``), which no activation is.
    """

    def __init__(self, sae: SAE, shuffle: Shuffle):
        super().__init__()
        self.sae, self.shuffle, self.spared_N = sae, shuffle, torch.empty(0)

    def encode(self, x: Tensor) -> Tensor:
        self.spared_N = (x == x[..., :1]).all(-1).flatten()
        return self.sae.encode(x)

    def decode(self, feature_acts: Tensor) -> Tensor:
        recon = self.sae.decode(feature_acts)
        return recon.flatten(0, 1)[self.shuffle.source(self.spared_N)].view_as(recon)


@dataclass
class LatentMass:
    """Each latent's activation x norm of its decoder row, summed over the counted positions: hookpoint -> [d_sae]."""

    saes: Mapping[Hookpoint, SAE]
    sums: dict[Hookpoint, Tensor] = field(default_factory=dict)

    def __call__(self, hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
        """The observer of a splice."""
        new = wide(latents[mask].abs().sum(0)).cpu()
        self.sums[hookpoint] = self.sums.get(hookpoint, 0) + new * decoder_norms(self.saes[hookpoint], len(new))


def decoder_norms(sae: Any, d_sae: int) -> Tensor:
    """What an activation of 1 adds to the reconstruction, in length: [d_sae]; 1 where the SAE holds no W_dec."""
    weight = getattr(sae, "W_dec", None)
    if weight is None or getattr(getattr(sae, "cfg", None), "rescale_acts_by_decoder_norm", False):
        return torch.ones(d_sae, dtype=torch.float64)  # rescaled activations hold the norm already
    return wide(weight.detach().norm(dim=-1)).cpu()


def top_latents(mass_S: Tensor, k: int) -> Tensor:
    """The k latents of most mass."""
    return mass_S.topk(k).indices


def random_order(mass_S: Tensor, generator: torch.Generator) -> Tensor:
    """The latents that fired at all, in random order; its first k are k random ones."""
    alive = mass_S.nonzero()[:, 0]
    return alive[torch.randperm(len(alive), generator=generator)]


@dataclass
class CrossEntropies:
    """Each row's sum of cross entropies over its counted predictions, for each variant, in nats."""

    n: list[float] = field(default_factory=list)  # counted predictions of each row
    ce: dict[str, list[float]] = field(default_factory=dict)

    def row_sums(self, *names: str) -> np.ndarray:
        """[n_rows], summed over the variants named."""
        return np.sum([self.ce[name] for name in names], axis=0)

    def at(self, rows: Sequence[int]) -> "CrossEntropies":
        """Those of some of the rows."""
        return CrossEntropies([self.n[i] for i in rows], {k: [v[i] for i in rows] for k, v in self.ce.items()})

    def mean(self, sums_R: np.ndarray, n_variants: int = 1) -> Estimate:
        """A sum of each row -> the mean per prediction, with its interval by bootstrap over rows."""
        return ratio(sums_R.tolist(), (n_variants * np.asarray(self.n)).tolist())

    def share(self, part_R: np.ndarray, whole_R: np.ndarray) -> Estimate:
        """Sum of ``part`` / sum of ``whole``, paired by row; undefined unless the whole is clearly above 0."""
        low = self.mean(whole_R)["low"]
        return ratio(part_R.tolist(), whole_R.tolist()) if low is not None and low > 0 else UNDEFINED.copy()


def cross_entropies(
    model: nn.Module,
    variants: Mapping[str, Student],
    token_mask: TokenMask,
    rows: Tensor,
    *,
    others: Sequence[Splice] = (),
    observers: Mapping[str, Observer] | None = None,
    before: Callable[[Tensor], None] = lambda mask_BS: None,
    batch_rows: int = 2,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> CrossEntropies:
    """Run variants of a model on packed rows [n_rows, context]; one without splice and adapter is the clean model.

    Args:
        token_mask: which predictions count: those from the positions that it replaces.
        others: further splices that are open on the model, to be kept out of it.
        observers: variant -> what sees its SAEs at work.
        before: called with each batch's token mask before its variants run.
    """
    found, device = CrossEntropies(), device_of(model)
    found.ce = {name: [] for name in variants}
    students = Students(model, [v for v in variants.values() if v.splice or v.adapter], others)
    for start in range(0, len(rows), batch_rows):
        ids = rows[start : start + batch_rows].to(device)
        mask = token_mask(ids)
        before(mask)
        found.n += mask[:, :-1].sum(1).double().tolist()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(eval_mode(model))
            if autocast is not None:
                stack.enter_context(torch.autocast(device.type, autocast))
            shared = students.teacher(ids)
            for name, variant in variants.items():
                hidden = _hidden(students, variant, shared, (observers or {}).get(name))
                found.ce[name] += _row_sums(hidden, ids, mask, students.head(variant))
        progress(ids.numel())
    return found


def _hidden(students: Students, variant: Student, shared: Shared, observer: Observer | None) -> Tensor:
    if variant.splice is None:
        return students.hidden(variant, shared) if variant.adapter else shared.clean.hidden
    with variant.splice.observed_by(observer or variant.splice.observer):
        return students.hidden(variant, shared)


def _row_sums(hidden_BSD: Tensor, ids_BS: Tensor, mask_BS: Tensor, head: Head) -> list[float]:
    """Each row's sum of cross entropies over its counted predictions; logits are formed a chunk at a time."""
    counted = mask_BS[:, :-1]
    h_ND, label_N = hidden_BSD[:, :-1][counted], ids_BS[:, 1:][counted]
    row_N = counted.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(ids_BS), dtype=torch.float64)
    chunk = chunk_size(len(head.weight), head.weight.device.type)
    for h_CD, label_C, row_C in zip(h_ND.split(chunk), label_N.split(chunk), row_N.split(chunk), strict=True):
        logits_CV = head.logits(h_CD)
        ce_C = logits_CV.logsumexp(-1) - logits_CV.gather(-1, label_C[:, None])[:, 0]
        sums.index_add_(0, row_C, wide(ce_C).cpu())
    return sums.tolist()
