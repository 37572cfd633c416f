"""What the splice costs and the adapter changes, prediction by prediction.

Prediction p of a row is of token p + 1, from position p. It counts where the SAE replaces position p (the token
mask), as in ``saelora.evals.loss``. The change of a prediction is ce_adapted - ce_sae in nats: negative where the
adapter helps.

Shapes: R rows, P predictions of a row (one fewer than its tokens), N counted predictions of all rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saelora.core.splice import Observer, Splice
from saelora.core.students import Student, Students
from saelora.evals.intervals import ratios
from saelora.evals.loss_sums import check_any
from saelora.evals.spliced import SplicedModel
from saelora.evals.tokens.bins import Bin, frequency_bins, position_bins, recon_error_bins, table
from saelora.evals.tokens.result import Change, Cost, Distribution, Group, Histogram
from saelora.evals.variant import SIDE_BY_SIDE, Variant
from saelora.models.hookpoints import Hookpoint

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
EDGES = np.logspace(-5, 1, 51)  # the paper's histogram of |ce_sae - ce_adapted|: 50 log bins
FIGURES = (*(variant.ce for variant in SIDE_BY_SIDE), Variant.SPLICED.kl, Variant.ADAPTED.kl)
# of the sites in a layer's forward pass
_IN_ORDER = ("resid_pre", "attn_z", "attn_module_out", "attn_out", "mlp_module_out", "mlp_out", "resid_post")


@dataclass(frozen=True)
class PerToken:
    """Every prediction of packed rows; arrays [R, P] on the CPU."""

    ids: np.ndarray  # [R, P + 1]
    counted: np.ndarray  # bool
    values: dict[str, np.ndarray]  # FIGURES -> nats
    recon_error: np.ndarray  # |x - recon|^2 / |x|^2 of the lowest SAE at the predicting position; NaN: not replaced

    @property
    def change(self) -> np.ndarray:
        change_N: np.ndarray = self.values[Variant.ADAPTED.ce] - self.values[Variant.SPLICED.ce]
        return change_N


def together(subject: SplicedModel) -> tuple[Students, dict[Variant, Student]]:
    """The base, the spliced and the adapted model, to be run together; whatever they share is run once.

    No SAE runs in a stem, where nobody watches: see ``unobserved``.
    """
    plan = {variant: subject.student(variant) for variant in SIDE_BY_SIDE}
    return subject.students(plan.values(), without_stem=plan.values()), plan


def unobserved(hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
    """An observer that does nothing: with any, an SAE reconstructs by the steps that an observer sees.

    It may do so by other steps, to other bits, where nobody watches: then even an adapter of zeros would seem to help
    here and hurt there. So all variants are observed.
    """


def per_token(
    subject: SplicedModel,
    rows: Tensor,
    *,
    batch_rows: int = 2,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> PerToken:
    """Cross entropies and KL of every prediction of rows [n_rows, context], in one pass.

    Raises:
        InputError: no prediction counts.
    """
    students, plan = together(subject)
    changed: dict[str, Student] = {variant: student for variant, student in plan.items() if variant is not Variant.BASE}
    watch = _ReconError(lowest(subject.spliced))
    observers: dict[Student, Observer] = {plan[Variant.SPLICED]: watch, plan[Variant.ADAPTED]: unobserved}
    found: dict[str, list[Tensor]] = {name: [] for name in FIGURES}
    with subject.batches(students, rows, batch_rows, progress) as each:
        for batch in each:
            values = batch.losses(changed, observers)
            for name in FIGURES:
                found[name].append(values[name].cpu())
    counted = subject.token_mask(rows)[:, :-1].numpy()
    check_any(counted)
    arrays = {name: torch.cat(parts).double().numpy() for name, parts in found.items()}
    return PerToken(rows.numpy(), counted, arrays, torch.cat(watch.found)[:, :-1].double().numpy())


def lowest(spliced: Splice) -> Hookpoint:
    """The hookpoint that comes first in a forward pass."""
    return min(spliced.saes, key=lambda h: (h.layer, _IN_ORDER.index(h.site)))


class _ReconError:
    """Keeps the relative squared error of one SAE at every position [batch, seq] of the spliced model."""

    def __init__(self, hookpoint: Hookpoint):
        self.hookpoint, self.found = hookpoint, list[Tensor]()

    def __call__(self, hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
        if hookpoint == self.hookpoint:
            dtype = torch.promote_types(x.dtype, torch.float32)
            x, recon = x.to(dtype), recon.to(dtype)
            error = (x - recon).square().sum(-1) / x.square().sum(-1).clamp(min=1e-30)
            self.found.append(error.masked_fill(~mask, torch.nan).cpu())


def summarise(found: PerToken, count_V: np.ndarray | None = None) -> Distribution:
    """Distributions and tables of ``per_token``'s predictions, with 95 % intervals by bootstrap over rows.

    Args:
        count_V: how often each token id occurs in training text [d_vocab]; without it there is no table by frequency.
    """
    kept = found.counted.any(1)  # rows without a counted prediction say nothing
    counted_RP, change_RP = found.counted[kept], found.change[kept]
    cost_RP = (found.values[Variant.SPLICED.ce] - found.values[Variant.BASE.ce])[kept]
    helped_RP, hurt_RP = counted_RP & (change_RP < 0), counted_RP & (change_RP > 0)
    n_R = counted_RP.sum(1)
    sums = [
        (helped_RP.sum(1), n_R),
        (hurt_RP.sum(1), n_R),
        ((change_RP * counted_RP).sum(1), n_R),
        ((change_RP * helped_RP).sum(1), helped_RP.sum(1)),
        ((change_RP * hurt_RP).sum(1), hurt_RP.sum(1)),
        ((cost_RP * counted_RP).sum(1), n_R),
    ]
    helped, hurt, mean, mean_helped, mean_hurt, cost = ratios(
        np.stack([top for top, _ in sums]), np.stack([bottom for _, bottom in sums])
    )
    change_N, cost_N = change_RP[counted_RP], cost_RP[counted_RP]
    values = {variant.ce: found.values[variant.ce][kept] for variant in SIDE_BY_SIDE}

    def groups(bins: list[Bin]) -> list[Group]:
        return table(bins, counted_RP, values)

    return Distribution(
        n_predictions=int(n_R.sum()),
        share_helped=helped,
        share_hurt=hurt,
        change=Change(mean, quantiles(change_N), mean_helped, mean_hurt),
        cost=Cost(cost, quantiles(cost_N)),
        concentration=concentration(change_N),
        histogram=histogram(change_N),
        by_position=groups(position_bins(counted_RP.shape)),
        by_frequency=[] if count_V is None else groups(frequency_bins(found.ids[kept, 1:], count_V)),
        by_recon_error=groups(recon_error_bins(found.recon_error[kept], counted_RP)),
    )


def quantiles(values_N: np.ndarray) -> dict[str, float]:
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(values_N, QUANTILES), strict=True)}


def concentration(change_N: np.ndarray) -> dict[str, float | None]:
    """Share of all nats gained (before what is lost is taken off) that the most helped 1 % and 10 % of predictions
    hold; None where nothing is gained."""
    gains = np.sort(-np.minimum(change_N, 0))[::-1]
    total = gains.sum()
    shares = (0.01, 0.1)
    return {str(q): float(gains[: max(1, round(q * len(gains)))].sum() / total) if total else None for q in shares}


def histogram(change_N: np.ndarray) -> Histogram:
    """Counts of |change| in the paper's bins, of helped and of hurt predictions; a change of exactly 0 is neither."""
    helped, hurt = _counts(-change_N[change_N < 0]), _counts(change_N[change_N > 0])
    return Histogram([float(edge) for edge in EDGES], *helped, *hurt)


def _counts(size_N: np.ndarray) -> tuple[list[int], int, int]:
    """Sizes in each bin, below all bins, and above."""
    return np.histogram(size_N, EDGES)[0].tolist(), int((size_N < EDGES[0]).sum()), int((size_N > EDGES[-1]).sum())
