"""What --parts saebench found."""

from dataclasses import dataclass

from saelora.records import Number


@dataclass(frozen=True)
class Metric:
    """One figure of SAEBench, of the original and of the adapted model; None where it gave no number.

    Args:
        eval: SAEBench's evaluation; ``category``: its group of metrics.
        can_change: whether an adapter where it lies can change the figure at all.
        measured_once: the adapted model's is the original's.
    """

    eval: str
    metric: str
    category: str
    hookpoint: str
    base: Number | None
    adapted: Number | None
    can_change: bool
    measured_once: bool


@dataclass(frozen=True)
class Skipped:
    """An evaluation that SAEBench could not run."""

    eval: str
    hookpoint: str
    why: str


@dataclass(frozen=True)
class Figures:
    """What SAEBench measured.

    Args:
        cannot_change: evaluations whose every number is the same with the adapter and without; ``why``, in words.
    """

    metrics: list[Metric]
    cannot_change: list[str]
    why: str
    skipped: list[Skipped]


@dataclass(frozen=True)
class SAEBench(Figures):
    """What SAEBench measured, and how.

    Args:
        data: the texts, in words.
        sae_bench: its version.
        command: runs this again.
        sizes: numbers of texts, tokens and batches, by name.
        work: the folder of its own files.
    """

    data: str
    sae_bench: str
    command: str
    sizes: dict[str, int] | None = None
    work: str | None = None
