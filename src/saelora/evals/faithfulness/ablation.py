"""Interventions on an SAE's latents, and cross entropies of a model's variants under them.

Each intervention is an SAE around the SAE, so that a splice can hold it. All variants of a batch share the clean pass
(``saelora.core.students``), and all are scored on the same predictions: those whose input position the token mask
counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelora.core.cross_layer import crosses
from saelora.core.head import Head
from saelora.core.kl_head import chunk_size
from saelora.core.numerics import wide
from saelora.core.splice import SAE, Observer
from saelora.core.students import Student
from saelora.evals.estimate import Estimate
from saelora.evals.intervals import UNDEFINED, ratio
from saelora.evals.spliced import SplicedModel
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
        if crosses(sae):
            self.ahead = self._ahead

    def encode(self, x: Tensor) -> Tensor:
        self.spared_N = (x == x[..., :1]).all(-1).flatten()
        return self.sae.encode(x)

    def decode(self, feature_acts: Tensor) -> Tensor:
        return self._moved(self.sae.decode(feature_acts))

    def _ahead(self, feature_acts: Tensor) -> Tensor:
        return self._moved(self.sae.ahead(feature_acts))  # type: ignore[attr-defined]

    def _moved(self, made: Tensor) -> Tensor:
        return made.flatten(0, 1)[self.shuffle.source(self.spared_N)].view_as(made)


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
    """What an activation of 1 adds to the reconstruction, in length: [d_sae]; 1 where the SAE holds no W_dec.

    Of a cross-layer transcoder, to those of all layers that it writes into, one after the other.
    """
    weight = getattr(sae, "W_dec", None)
    if weight is None or getattr(getattr(sae, "cfg", None), "rescale_acts_by_decoder_norm", False):
        return torch.ones(d_sae, dtype=torch.float64)  # rescaled activations hold the norm already
    norms = weight.detach().norm(dim=-1)
    ahead = getattr(sae, "W_ahead", None)
    return wide(norms if ahead is None else norms.hypot(ahead.detach().norm(dim=(1, 2)))).cpu()


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
        sums_R: np.ndarray = np.sum([self.ce[name] for name in names], axis=0)
        return sums_R

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
    subject: SplicedModel,
    variants: Mapping[str, Student],
    rows: Tensor,
    *,
    observers: Mapping[str, Observer] | None = None,
    before: Callable[[Tensor], None] = lambda mask_BS: None,
    batch_rows: int = 2,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> CrossEntropies:
    """Run variants of a model on packed rows [n_rows, context]; one without splice and adapter is the clean model.

    Args:
        subject: its own splices are kept out of variants that do not name them; its token mask says which predictions
            count: those from the positions that it replaces.
        observers: variant -> what sees its SAEs at work.
        before: called with each batch's token mask before its variants run.
    """
    found, students = CrossEntropies(), subject.students(variants.values())
    found.ce = {name: [] for name in variants}
    with subject.batches(students, rows, batch_rows, progress) as each:
        for batch in each:
            before(batch.mask)
            found.n += batch.mask[:, :-1].sum(1).double().tolist()
            for name, variant in variants.items():
                hidden = batch.hidden(variant, (observers or {}).get(name))
                found.ce[name] += _row_sums(hidden, batch.input_ids, batch.mask, students.head(variant))
    return found


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
