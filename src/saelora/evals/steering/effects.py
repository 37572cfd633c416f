"""Steering: does an intervention along a latent move the adapted model as it moves the original, or better?

For each latent an intervention raises (or lowers) the mean log-probability of texts about it, the positives, and of
other texts, the negatives. Its strength alpha is chosen on tuning texts with the original model alone; the test texts
are then compared, text by text, between the original and the adapted model. The SAE itself is taken out of both.

Source: arXiv 2501.19406, the steering experiments; with the causal shift, which the published code leaves out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saelora.core.splice import Splice, TokenMask, splice
from saelora.evals.arms import arm
from saelora.evals.intervals import Estimate, t_interval
from saelora.evals.samples import generate, text_of
from saelora.evals.steering.interventions import intervention
from saelora.evals.steering.likelihood import log_likelihoods
from saelora.evals.steering.texts import Text
from saelora.models.hookpoints import Hookpoint

LEVEL = 0.9
ARMS = {"base": "base", "adapted": "adapted_clean"}
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
    about: dict[str, Any] = field(default_factory=dict)  # what else is to be reported of the latent

    def n_tokens(self, n_alphas: int, n_methods: int) -> int:
        """Tokens that passes over this case's texts come to."""
        tuning, test = (sum(len(t.ids) for side in SIDES for t in part[side]) for part in (self.tuning, self.test))
        return tuning * (1 + n_alphas) + 2 * test * (1 + n_methods)


@dataclass(frozen=True)
class Bench:
    """A model with an open splice, and where and at which positions it is steered."""

    model: nn.Module
    spliced: Splice
    hookpoint: Hookpoint
    steered_tokens: TokenMask
    autocast: torch.dtype | None = None
    progress: Callable[[int], None] = lambda n_tokens: None

    def changes(
        self, arm_name: str, case: Case, texts: Sequence[Text], steps: Sequence[tuple[str, float]]
    ) -> tuple[Tensor, Tensor]:
        """Un-steered mean log-probabilities [n_texts], and the steered ones [n_steps, n_texts]."""
        steerings = [intervention(method, case.d, alpha, case.unit) for method, alpha in steps]
        found = log_likelihoods(
            self.model,
            self.spliced,
            arm_name,
            texts,
            self.hookpoint,
            steerings,
            self.steered_tokens,
            autocast=self.autocast,
            progress=self.progress,
        )
        return found[0], found[1:]


def measure(bench: Bench, cases: Sequence[Case], alphas: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Steer every case's latent in the original and in the adapted model.

    Args:
        alphas: method ("scale", "add") -> the strengths to choose from.

    Returns:
        Plain data: methods, level, latents (one entry a case, with its ``about``), pooled.
    """
    latents = []
    for case in cases:
        tuned = tune(bench, case, alphas)
        latents.append({"latent": case.latent, **case.about, "methods": compare(bench, case, tuned)})
    return {"level": LEVEL, "methods": list(alphas), "latents": latents, "pooled": pool(latents, list(alphas))}


def tune(bench: Bench, case: Case, alphas: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """The alpha of each method that does best on the tuning texts with the original model, and every alpha's score.

    The score is the positives' mean change of log-probability, less the negatives' mean loss of it where they lose.
    Of equals the first wins. Test texts are not looked at.
    """
    steps = [(method, alpha) for method, grid in alphas.items() for alpha in grid]
    texts = [*case.tuning["positives"], *case.tuning["negatives"]]
    before, after = bench.changes(ARMS["base"], case, texts, steps)
    n = len(case.tuning["positives"])
    change = after - before
    gain, other = change[:, :n].mean(1), change[:, n:].mean(1)
    scores = (gain + other.clamp(max=0)).tolist()
    tuned: dict[str, dict[str, Any]] = {}
    for method in alphas:
        tried = [
            {"alpha": a, "score": s if math.isfinite(s) else None}
            for (m, a), s in zip(steps, scores, strict=True)
            if m == method
        ]
        tuned[method] = {"alpha": max(tried, key=_score)["alpha"], "tuning": tried}
    return tuned


def _score(tried: Mapping[str, Any]) -> float:
    return -math.inf if tried["score"] is None else tried["score"]


def compare(bench: Bench, case: Case, tuned: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Original and adapted model on the test texts, each method at its alpha."""
    steps = [(method, entry["alpha"]) for method, entry in tuned.items()]
    texts = [*case.test["positives"], *case.test["negatives"]]
    n = len(case.test["positives"])
    runs = {name: bench.changes(arm_name, case, texts, steps) for name, arm_name in ARMS.items()}
    out: dict[str, dict[str, Any]] = {}
    for row, (method, entry) in enumerate(tuned.items()):
        out[method] = dict(entry)
        for side, part in zip(SIDES, (slice(0, n), slice(n, None)), strict=True):
            pairs = {name: (before[part], after[row, part]) for name, (before, after) in runs.items()}
            out[method][side] = paired(pairs["base"], pairs["adapted"])
    return out


def paired(base: tuple[Tensor, Tensor], adapted: tuple[Tensor, Tensor]) -> dict[str, Estimate]:
    """Changes of log-probability by steering, and their difference between the models, paired by text.

    Args:
        base, adapted: un-steered and steered mean log-probabilities of the same texts, each [n_texts].

    Returns:
        base and adapted: mean change, nats per token. difference_raw: mean of (adapted change - base change).
        difference_normalised: the same, each model's values put on a scale on which its un-steered ones reach from 0
        to 100, as in the paper; undefined where these are all equal. All with Student's t interval at LEVEL.
    """
    changes = [after - before for before, after in (base, adapted)]
    spreads = [before.max() - before.min() for before, _ in (base, adapted)]
    scaled = [100 * change / spread for change, spread in zip(changes, spreads, strict=True)]
    return {
        "base": _mean(changes[0]),
        "adapted": _mean(changes[1]),
        "difference_raw": _mean(changes[1] - changes[0]),
        "difference_normalised": _mean(scaled[1] - scaled[0]),
    }


def _mean(values: Tensor) -> Estimate:
    """Undefined where a value is: a model that steering has destroyed may give no finite probabilities."""
    return t_interval(values.tolist() if bool(values.isfinite().all()) else [], LEVEL)


def pool(latents: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Means over latents of each latent's mean difference: latents are the independent unit, not their texts."""
    pooled: dict[str, Any] = {}
    for method in methods:
        pooled[method] = {}
        for side in SIDES:
            found = [latent["methods"][method][side] for latent in latents]
            pooled[method][side] = {
                name: t_interval([f[name]["value"] for f in found if f[name]["value"] is not None], LEVEL)
                for name in ("base", "adapted", "difference_raw", "difference_normalised")
            }
    return pooled


def samples(
    bench: Bench, tokenizer: Any, prompts: Tensor, cases: Sequence[Case], measured: Sequence[dict[str, Any]], n_new: int
) -> None:
    """Add greedy continuations of prompts [n_prompts, n_tokens] to every latent, steered by its better-tuned method."""
    prompts = prompts.to(next(bench.model.parameters()).device)
    plain = {name: _continued(bench, tokenizer, prompts, arm_name, n_new) for name, arm_name in ARMS.items()}
    for case, entry in zip(cases, measured, strict=True):
        best = {method: max(map(_score, found["tuning"])) for method, found in entry["methods"].items()}
        method = max(best, key=lambda name: best[name])
        alpha = entry["methods"][method]["alpha"]
        steering = intervention(method, case.d, alpha, case.unit)
        with splice(bench.model, {bench.hookpoint: steering}, bench.steered_tokens):
            steered = {name: _continued(bench, tokenizer, prompts, arm_name, n_new) for name, arm_name in ARMS.items()}
        entry["samples"] = [
            {
                "prompt": text_of(tokenizer, prompt),
                "method": method,
                "alpha": alpha,
                **{name: plain[name][i] for name in ARMS},
                **{f"{name}_steered": steered[name][i] for name in ARMS},
            }
            for i, prompt in enumerate(prompts)
        ]


def _continued(bench: Bench, tokenizer: Any, prompts: Tensor, arm_name: str, n_new: int) -> list[str]:
    with arm(bench.model, bench.spliced, arm_name, bench.autocast):
        ids = generate(bench.model, tokenizer, prompts, n_new)
    bench.progress(len(prompts) * n_new)
    return [text_of(tokenizer, row[prompts.shape[1] :]) for row in ids]
