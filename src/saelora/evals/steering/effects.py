"""Steering: does an intervention along a latent move the adapted model as it moves the original, or better?

For each latent an intervention raises (or lowers) the mean log-probability of texts about it, the positives, and of
other texts, the negatives. Its strength alpha is chosen on tuning texts with the original model alone; the test texts
are then compared, text by text, between the original and the adapted model. The SAE itself is taken out of both.

Source: arXiv 2501.19406, the steering experiments; with the causal shift, which the published code leaves out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from saelora.core.splice import TokenMask, splice
from saelora.evals.estimate import Estimate
from saelora.evals.intervals import t_interval
from saelora.evals.samples import generate, text_of
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering.interventions import intervention
from saelora.evals.steering.likelihood import log_likelihoods
from saelora.evals.steering.result import Effect, Method, Pooled, Sample, Shift, Try, Tuned
from saelora.evals.steering.texts import Text
from saelora.evals.variant import Variant
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint

LEVEL = 0.9
COMPARED = (Variant.BASE, Variant.ADAPTED_CLEAN)  # the SAE is in neither
SIDES = ("positives", "negatives")
LEAST_TEST = 2  # texts: the interval of one is undefined


@dataclass(frozen=True)
class Case:
    """One latent and the texts it is steered on."""

    latent: int
    d: Tensor  # [d_in], unit norm
    unit: float  # of activation addition
    tuning: dict[str, list[Text]]  # "positives", "negatives" -> texts
    test: dict[str, list[Text]]

    def n_tokens(self, n_alphas: int, n_methods: int) -> int:
        """Tokens that passes over this case's texts come to."""
        tuning, test = (sum(len(t.ids) for side in SIDES for t in part[side]) for part in (self.tuning, self.test))
        return tuning * (1 + n_alphas) + 2 * test * (1 + n_methods)


@dataclass(frozen=True)
class SteeringSetup:
    """A model, and where and at which positions it is steered."""

    subject: SplicedModel
    hookpoint: Hookpoint
    steered_tokens: TokenMask
    progress: Callable[[int], None] = lambda n_tokens: None

    def changes(
        self, variant: Variant, case: Case, texts: Sequence[Text], steps: Sequence[tuple[str, float]]
    ) -> tuple[Tensor, Tensor]:
        """Un-steered mean log-probabilities [n_texts], and the steered ones [n_steps, n_texts]."""
        steerings = [intervention(method, case.d, alpha, case.unit) for method, alpha in steps]
        where = self.hookpoint, steerings, self.steered_tokens
        found = log_likelihoods(self.subject, variant, texts, *where, progress=self.progress)
        return found[0], found[1:]


def measure(
    setup: SteeringSetup, cases: Sequence[Case], alphas: Mapping[Method, Sequence[float]]
) -> list[dict[Method, Effect]]:
    """Steer every case's latent in the original and in the adapted model: the effects of each method, case by case.

    Args:
        alphas: method ("scale", "add") -> the strengths to choose from.
    """
    return [compare(setup, case, tune(setup, case, alphas)) for case in cases]


def tune(setup: SteeringSetup, case: Case, alphas: Mapping[Method, Sequence[float]]) -> dict[Method, Tuned]:
    """The alpha of each method that does best on the tuning texts with the original model, and every alpha's score.

    The score is the positives' mean change of log-probability, less the negatives' mean loss of it where they lose.
    Of equals the first wins. Test texts are not looked at.
    """
    steps = [(method, alpha) for method, grid in alphas.items() for alpha in grid]
    texts = [*case.tuning["positives"], *case.tuning["negatives"]]
    before, after = setup.changes(Variant.BASE, case, texts, steps)
    n = len(case.tuning["positives"])
    change = after - before
    gain, other = change[:, :n].mean(1), change[:, n:].mean(1)
    scores = (gain + other.clamp(max=0)).tolist()
    tuned = {}
    for method in alphas:
        tried = [
            Try(a, s if math.isfinite(s) else None) for (m, a), s in zip(steps, scores, strict=True) if m == method
        ]
        tuned[method] = Tuned(max(tried, key=_score).alpha, tried)
    return tuned


def _score(tried: Try) -> float:
    return -math.inf if tried.score is None else tried.score


def compare(setup: SteeringSetup, case: Case, tuned: Mapping[Method, Tuned]) -> dict[Method, Effect]:
    """Original and adapted model on the test texts, each method at its alpha."""
    steps = [(method, entry.alpha) for method, entry in tuned.items()]
    texts = [*case.test["positives"], *case.test["negatives"]]
    n = len(case.test["positives"])
    runs = [setup.changes(variant, case, texts, steps) for variant in COMPARED]
    out = {}
    for row, (method, entry) in enumerate(tuned.items()):
        positives, negatives = (
            paired(*((before[part], after[row, part]) for before, after in runs))
            for part in (slice(0, n), slice(n, None))
        )
        out[method] = Effect(entry.alpha, entry.tuning, positives, negatives)
    return out


def paired(base: tuple[Tensor, Tensor], adapted: tuple[Tensor, Tensor]) -> Shift:
    """Changes of log-probability by steering, and their difference between the models, paired by text.

    Args:
        base, adapted: un-steered and steered mean log-probabilities of the same texts, each [n_texts].

    The normalised difference, as in the paper, is undefined where a model's un-steered values are all equal. All have
    Student's t interval at LEVEL.
    """
    changes = [after - before for before, after in (base, adapted)]
    spreads = [before.max() - before.min() for before, _ in (base, adapted)]
    scaled = [100 * change / spread for change, spread in zip(changes, spreads, strict=True)]
    return Shift(_mean(changes[0]), _mean(changes[1]), _mean(changes[1] - changes[0]), _mean(scaled[1] - scaled[0]))


def _mean(values: Tensor) -> Estimate:
    """Undefined where a value is: a model that steering has destroyed may give no finite probabilities."""
    return t_interval(values.tolist() if bool(values.isfinite().all()) else [], LEVEL)


def pool(latents: Sequence[Mapping[Method, Effect]]) -> dict[Method, Pooled]:
    """Means over latents of each latent's mean effects: latents are the independent unit, not their texts."""

    def over(shifts: Sequence[Shift]) -> Shift:
        found = [[getattr(shift, f.name)["value"] for shift in shifts] for f in fields(Shift)]
        return Shift(*(t_interval([value for value in values if value is not None], LEVEL) for values in found))

    return {
        method: Pooled(
            over([latent[method].positives for latent in latents]),
            over([latent[method].negatives for latent in latents]),
        )
        for method in latents[0]
    }


def samples(
    setup: SteeringSetup,
    tokenizer: Any,
    prompts: Tensor,
    cases: Sequence[Case],
    measured: Sequence[Mapping[Method, Effect]],
    n_new: int,
) -> list[list[Sample]]:
    """Greedy continuations of prompts [n_prompts, n_tokens], case by case, steered by its better-tuned method."""
    prompts = prompts.to(device_of(setup.subject.model))
    plain = [_continued(setup, tokenizer, prompts, variant, n_new) for variant in COMPARED]
    out = []
    for case, effects in zip(cases, measured, strict=True):
        best = {method: max(map(_score, effect.tuning)) for method, effect in effects.items()}
        method = max(best, key=lambda name: best[name])
        alpha = effects[method].alpha
        steering = intervention(method, case.d, alpha, case.unit)
        with splice(setup.subject.model, {setup.hookpoint: steering}, setup.steered_tokens):
            steered = [_continued(setup, tokenizer, prompts, variant, n_new) for variant in COMPARED]
        shown = zip(prompts, *plain, *steered, strict=True)
        out.append([Sample(text_of(tokenizer, prompt), method, alpha, *texts) for prompt, *texts in shown])
    return out


def _continued(setup: SteeringSetup, tokenizer: Any, prompts: Tensor, variant: Variant, n_new: int) -> list[str]:
    with setup.subject.running_as(variant):
        ids = generate(setup.subject.model, tokenizer, prompts, n_new)
    setup.progress(len(prompts) * n_new)
    return [text_of(tokenizer, row[prompts.shape[1] :]) for row in ids]
