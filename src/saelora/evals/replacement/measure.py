"""What replacing MLPs by transcoders costs: by how many are replaced, by mode, before and after adaptation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from saelora.core import lora
from saelora.core.replacement import Mode, Replacement
from saelora.core.splice import Splice, splice
from saelora.core.students import Student
from saelora.errors import InputError
from saelora.evals.estimate import Estimate
from saelora.evals.faithfulness.interventions import spaced
from saelora.evals.intervals import UNDEFINED
from saelora.evals.loss_sums import LossSums, Means
from saelora.evals.replacement.options import Options
from saelora.evals.replacement.result import Alone, ReplacementResult, Step
from saelora.evals.spliced import SplicedModel
from saelora.evals.subject import Subject
from saelora.evals.variant import Variant
from saelora.models.hookpoints import Hookpoint

CURVES: tuple[Mode, ...] = ("cascading", "parallel")
_AT_ONCE = 8  # students whose hidden states are held together
_FIGURES = ("ce", "kl", "top1")
Sets = Sequence[Sequence[Hookpoint]]


def spread(places: Sequence[Hookpoint], sizes: Sequence[int]) -> list[list[Hookpoint]]:
    """Nested sets of so many of ``places``, each about evenly spread over them; the last is the largest.

    They are prefixes of one order, that of van der Corput's sequence: the middle, the quarters, the eighths, ...
    """
    order: dict[int, None] = {}
    i = 0
    while len(order) < len(places):
        i += 1
        order.setdefault(int(_van_der_corput(i) * len(places)))
    ordered = list(order)
    found = sorted({min(size, len(places)) for size in sizes})
    return [[places[i] for i in sorted(ordered[:size])] for size in found]


def _van_der_corput(i: int) -> float:
    """The digits of i in base 2, mirrored at the point."""
    value, share = 0.0, 0.5
    while i:
        value, share, i = value + share * (i & 1), share / 2, i >> 1
    return value


def measure_replacement(
    subject: SplicedModel,
    rows: Tensor,
    *,
    sizes: Sequence[int],
    modes: Sequence[str],
    batch_rows: int = 2,
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> ReplacementResult:
    """Losses of the model with some of its MLPs replaced, on packed rows [n_rows, context].

    All share each batch's clean pass, and the layers below the lowest replaced one. SAEs that are no transcoders are
    taken out.

    Args:
        sizes: how many MLPs are replaced at a time; ``modes``: how, "independent" for each alone.

    Raises:
        InputError: there is no transcoder, some of a cross-layer one are asked for, or no position is replaced.
    """
    places = sorted(subject.spliced.reads, key=lambda hookpoint: hookpoint.layer)
    if not places:
        raise InputError(
            "--parts replacement measures MLPs that transcoders replace, and there is no transcoder here: name some "
            "with --transcoders"
        )
    sets, adapter = spread(places, sizes), lora.adapter_name(subject.model)
    if subject.spliced.crossing and (min(map(len, sets), default=len(places)) < len(places) or "independent" in modes):
        raise InputError(
            "a cross-layer transcoder replaces all MLPs or none, so there are none to replace one by one: give "
            f"--replacement-sizes {len(places)} and --replacement-modes cascading parallel"
        )
    with ExitStack() as stack:
        plan = _Plan(subject, adapter, stack)
        for mode in CURVES:
            for chosen in sets if mode in modes else []:
                plan.add((mode, len(chosen)), chosen, Replacement(mode), adapted=True)
        for place in places if "independent" in modes else []:
            plan.add(("independent", place.layer), [place], Replacement(), adapted=False)
        sums = plan.run(rows, batch_rows, progress)
    curves: dict[str, list[Step]] = {
        mode: [_step(chosen, sums.of((mode, len(chosen)))) for chosen in sets] for mode in CURVES if mode in modes
    }
    alone = [_alone(place.layer, sums.of(("independent", place.layer))) for place in places if "independent" in modes]
    base = LossSums(sums.n, {"ce_base": sums.values["ce_base"]}).compute()
    return ReplacementResult(
        n_predictions=base.n,
        ce_base=_estimate(base, "ce_base"),
        n_transcoders=len(places),
        curves=curves,
        alone=alone,
        n_taken_out=len(subject.spliced.saes) - len(places),
    )


Key = tuple[str, int]


@dataclass
class _Sums:
    """Per-row sums of every student, by the names of ``_Plan``."""

    n: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def of(self, key: Key) -> Means:
        """One set's figures, spliced and adapted, with intervals over the same draws for all."""
        sums = {"ce_base": self.values["ce_base"]}
        for variant in (Variant.SPLICED, Variant.ADAPTED):
            name = _name(key, variant)
            if f"ce_{name}" in self.values:
                sums |= {f"{figure}_{variant}": self.values[f"{figure}_{name}"] for figure in _FIGURES}
        return LossSums(self.n, sums).compute()


class _Plan:
    """The students of all sets, their splices open as long as ``stack``."""

    def __init__(self, subject: SplicedModel, adapter: lora.Adapter, stack: ExitStack):
        self.subject, self.adapter, self._stack = subject, adapter, stack
        self.students: dict[str, Student] = {}

    def add(self, key: Key, places: Sequence[Hookpoint], replacement: Replacement, *, adapted: bool) -> None:
        """The model with the MLPs at some places replaced, without and with what was trained."""
        opened = self._opened(self.subject.spliced, places, replacement)
        self.students[_name(key, Variant.SPLICED)] = Student(opened)
        own = self.subject.adapted
        if adapted and (own is not None or self.adapter is not None):
            opened = opened if own is None else self._opened(own, places, replacement)
            self.students[_name(key, Variant.ADAPTED)] = Student(opened, self.adapter)

    def _opened(self, of: Splice, places: Sequence[Hookpoint], replacement: Replacement) -> Splice:
        """Some of the transcoders of a splice, by themselves."""
        subject, saes = self.subject, {place: of.saes[place] for place in places}
        opened = splice(subject.model, saes, subject.token_mask, replacement=replacement)
        return self._stack.enter_context(opened)

    def run(self, rows: Tensor, batch_rows: int, progress: Callable[[int], None]) -> _Sums:
        """Sums over counted predictions of each row."""
        students, found = self.subject.students(self.students.values()), _Sums()
        with self.subject.batches(students, rows, batch_rows, progress) as each:
            for batch in each:
                sums = LossSums()
                for lot in self._lots():
                    part = LossSums()
                    part.update(batch.mask[:, :-1], batch.losses(lot))
                    sums.n, sums.sums = part.n, {**sums.sums, **part.sums}
                found.n += sums.n
                for name, values in sums.sums.items():
                    found.values.setdefault(name, []).extend(values)
        return found

    def _lots(self) -> Iterator[Mapping[str, Student]]:
        named = list(self.students.items())
        for start in range(0, len(named), _AT_ONCE):
            yield dict(named[start : start + _AT_ONCE])


def _name(key: Key, variant: Variant) -> str:
    return f"{key[0]}.{key[1]}.{variant}"


def _estimate(means: Means, name: str) -> Estimate:
    if name not in means.point:
        return UNDEFINED.copy()
    low, high = means.ci95[name]
    return {"value": means.point[name], "low": low, "high": high}


def _step(places: Sequence[Hookpoint], means: Means) -> Step:
    variants = [v for v in (Variant.SPLICED, Variant.ADAPTED) if f"ce_{v}" in means.point]
    figures: dict[str, Any] = {
        figure: {variant: _estimate(means, f"{figure}_{variant}") for variant in variants} for figure in _FIGURES
    }
    closed = _estimate(means, "gap_closed") if Variant.ADAPTED in variants else None
    return Step(len(places), [place.layer for place in places], **figures, gap_closed=closed)


def _alone(layer: int, means: Means) -> Alone:
    rise, kl, top1 = (_estimate(means, name) for name in ("ce_gap", "kl_sae", "top1_sae"))
    return Alone(layer, rise, kl, top1)


def run(subject: Subject, config: Options) -> ReplacementResult:
    """What the run's transcoders cost, by how many of them are in, and what its adapter wins back."""
    n_rows = max(1, config.replacement_tokens // subject.rows.shape[1])
    rows = subject.rows[spaced(len(subject.rows), n_rows)]
    sizes, modes = config.replacement_sizes, config.replacement_modes
    if subject.spliced.crossing:  # all of it, unless something else is asked for
        sizes = sizes if "replacement_sizes" in config.given else (len(subject.spliced.crossing),)
        modes = modes if "replacement_modes" in config.given else CURVES
    with subject.console.progress("replacement", rows.numel()) as bar:
        return measure_replacement(
            subject,
            rows,
            sizes=sizes,
            modes=modes,
            progress=bar.advance,
        )
