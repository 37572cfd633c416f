"""Where latents fire: which of them to steer, and the texts that each is steered on.

Shapes: T texts, L latents (d_sae), N tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelora.core.partial import activations
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering.likelihood import BATCH_TEXTS, padded
from saelora.evals.steering.result import TopPassage
from saelora.evals.steering.texts import Text
from saelora.evals.variant import Variant
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint

LEAST_PASSAGES = 8  # in which a latent has to fire, to be chosen


@dataclass(frozen=True)
class Reader:
    """Reads an SAE's latents off the clean model at its hookpoint."""

    subject: SplicedModel
    hookpoint: Hookpoint

    @property
    def sae(self) -> Any:
        return self.subject.spliced.saes[self.hookpoint]

    def latents(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Latents [n_tokens, d_sae] of the positions that the SAE replaces, and where these are [batch, seq]."""
        model = self.subject.model
        ids, attention = padded(texts, device_of(model))
        with self.subject.running_as(Variant.BASE):
            point = self.subject.spliced.reads.get(self.hookpoint, self.hookpoint)
            x = activations(model, ids, attention, [point])[point]
            mask = self.subject.token_mask(ids, attention) & attention.bool()
            return self.sae.encode(self.subject.spliced.given(self.hookpoint, x, mask)[mask]), mask


@dataclass(frozen=True)
class Firing:
    """The greatest activation of every latent in the first and in the second half of every text: sparse [T, L]."""

    texts: list[Text]
    first: Any
    second: Any

    def peaks(self, latent: int) -> np.ndarray:
        """A latent's greatest activation in each text [T]; 0 where it does not fire."""
        first, second = (half[:, [latent]].toarray()[:, 0] for half in (self.first, self.second))
        peaks_T: np.ndarray = np.maximum(first, second)
        return peaks_T

    def rates(self) -> np.ndarray:
        """Share of texts in which each latent fires [L]."""
        return np.asarray((self.first.maximum(self.second) > 0).sum(0)).ravel() / max(1, len(self.texts))

    def selectivity(self) -> np.ndarray:
        """Correlation (phi) over texts of firing in the first half and firing in the second [L]; 0 where undefined.

        High for a latent that is about what a text is about, near 0 for one that answers to single tokens anywhere.
        """
        a, b = (half > 0 for half in (self.first, self.second))
        n = len(self.texts)
        n_a, n_b, both = (np.asarray(x.sum(0), float).ravel() for x in (a, b, a.multiply(b)))
        spread = np.sqrt(n_a * (n - n_a) * n_b * (n - n_b))
        return np.where(spread > 0, (n * both - n_a * n_b) / np.where(spread > 0, spread, 1), 0.0)


def firing(reader: Reader, texts: Sequence[Text], progress: Callable[[int], None] = lambda n: None) -> Firing:
    """Where the latents fire in texts; ``progress`` is told of tokens."""
    from scipy.sparse import csc_array, csr_array, vstack

    halves: tuple[list[Any], list[Any]] = ([], [])
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = texts[start : start + BATCH_TEXTS]
        latents_NL, mask = reader.latents(batch)
        latents_NL, where = latents_NL.float().cpu(), mask.cpu().nonzero()
        middle = torch.tensor([len(text.ids) / 2 for text in batch])
        slot_N = 2 * where[:, 0] + (where[:, 1] >= middle[where[:, 0]]).long()
        most = torch.zeros(2 * len(batch), latents_NL.shape[1])
        for slot in slot_N.unique().tolist():
            most[slot] = latents_NL[slot_N == slot].amax(0)
        for side in (0, 1):
            halves[side].append(csr_array(most[side::2].numpy()))
        progress(int(sum(len(text.ids) for text in batch)))
    first, second = (csc_array(vstack(half)) for half in halves)
    return Firing(list(texts), first, second)


def choose(found: Firing, n: int, least_rate: float, most_rate: float) -> list[int]:
    """The n most selective latents among those that fire in a moderate share of the texts; best first."""
    rates, selectivity = found.rates(), found.selectivity()
    least = max(least_rate, LEAST_PASSAGES / max(1, len(found.texts)))
    moderate = np.flatnonzero((rates >= least) & (rates <= most_rate))
    best = moderate[np.argsort(-selectivity[moderate], kind="stable")]
    return [int(i) for i in best[:n]]


def positives(found: Firing, latent: int, n: int) -> list[Text]:
    """The n texts in which a latent fires most strongly, of those in which it fires at all."""
    peaks = found.peaks(latent)
    return [found.texts[i] for i in np.argsort(-peaks, kind="stable")[:n] if peaks[i] > 0]


def negatives(found: Firing, latent: int, lengths: Sequence[int]) -> list[Text]:
    """Texts in which a latent never fires, one for each length (tokens) in ``lengths``: the nearest that is left."""
    left = [found.texts[i] for i in np.flatnonzero(found.peaks(latent) == 0)]
    chosen: list[Text] = []
    for length in lengths:
        if left:
            nearest = min(range(len(left)), key=lambda i: abs(len(left[i].ids) - length))
            chosen.append(left.pop(nearest))
    return chosen


def passages(reader: Reader, found: Firing, latent: int, tokenizer: Any, n: int = 4) -> list[TopPassage]:
    """The texts in which a latent fires most strongly, strongest first; 0 where the SAE is not applied."""
    top = positives(found, latent, n)
    if not top:
        return []
    latents_NL, mask = reader.latents(top)
    acts = torch.zeros(mask.shape, dtype=torch.float32)
    acts[mask.cpu()] = latents_NL[:, latent].float().cpu()
    out = []
    for text, row in zip(top, acts.tolist(), strict=True):
        strengths = [round(value, 4) for value in row[: len(text.ids)]]
        tokens = [tokenizer.decode([token]) for token in text.ids]
        out.append(TopPassage(tokens, strengths, strengths.index(max(strengths))))
    return out
