"""What --parts steering found. Effects are changes of a text's mean log-probability, in nats per token."""

from dataclasses import dataclass, field
from typing import Literal

from saelora.evals.estimate import Estimate
from saelora.records import Number

Method = str  # "scale": h + alpha (h.d) d; "add": h + alpha s d, s the latent's peak activation
How = Literal["given", "selected"]


@dataclass(frozen=True)
class Sides:
    """A number for the positives, in which the latent fires, and for the negatives, in which it never does."""

    positives: int
    negatives: int


@dataclass(frozen=True)
class Try:
    """A strength and its score on the tuning texts, in nats per token; None where it gave no finite probabilities."""

    alpha: Number
    score: Number | None


@dataclass(frozen=True)
class Tuned:
    """The strength that did best on the tuning texts with the original model, and all that were tried."""

    alpha: Number
    tuning: list[Try]


@dataclass(frozen=True)
class Shift:
    """Effects on the same texts in the original and in the adapted model.

    Args:
        difference_raw: adapted minus original, paired by text.
        difference_normalised: the same on a scale on which each model's un-steered values reach from 0 to 100.
    """

    base: Estimate
    adapted: Estimate
    difference_raw: Estimate
    difference_normalised: Estimate


@dataclass(frozen=True)
class Effect(Tuned):
    """A method's effects at its strength, on the test texts of a latent."""

    positives: Shift
    negatives: Shift


@dataclass(frozen=True)
class Pooled:
    """Means over latents of each latent's means."""

    positives: Shift
    negatives: Shift


@dataclass(frozen=True)
class TopPassage:
    """A text in which the latent fires strongly, token by token; ``focus`` is the index of the strongest."""

    tokens: list[str]
    activations: list[Number]
    focus: int


@dataclass(frozen=True)
class Sample:
    """Greedy continuations of a prompt by the original and the adapted model, without and with steering."""

    prompt: str
    method: Method
    alpha: Number
    base: str
    adapted: str
    base_steered: str
    adapted_steered: str


@dataclass(frozen=True)
class Latent:
    """One latent that was steered along.

    Args:
        how: whether the user gave it, or it is one of the most selective.
        selectivity, rate: see ``saelora.evals.steering.latents``; rate is the share of passages in which it fires.
        max_activation: its peak on the selection texts.
        unit: that peak times the norm of its decoder row: the length that activation addition takes for alpha = 1.
        n, n_tuning: test texts and tuning texts.
        methods: by name.
    """

    latent: int
    how: How
    selectivity: Number
    rate: Number
    max_activation: Number
    unit: Number
    n: Sides
    n_tuning: Sides
    top_passages: list[TopPassage]
    samples: list[Sample] = field(default_factory=list)
    methods: dict[Method, Effect] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A latent that could not be steered."""

    latent: int
    why: str


@dataclass(frozen=True)
class Corpora:
    """Where the texts come from.

    Args:
        source: the data.
        divided_by: what was divided into the selection, tuning and test texts.
        passages, tokens: of each of these, how many.
        positives, negatives: the user's file, or "found".
        n_latents_passed_over: chosen latents that lacked texts and gave way to the next.
    """

    source: str
    divided_by: str
    window_tokens: int
    passages: dict[str, int]
    tokens: dict[str, int]
    positives: str
    negatives: str
    n_latents_passed_over: int | None = None


@dataclass(frozen=True)
class Steering:
    """Steering along latents of one SAE in the original and in the adapted model.

    Args:
        bos: exempt positions were steered too.
        skipped: latents that were asked for.
        level: of all intervals.
    """

    hookpoint: str
    bos: bool
    corpora: Corpora
    skipped: list[Skipped]
    level: Number
    methods: list[Method]
    latents: list[Latent]
    pooled: dict[Method, Pooled]
