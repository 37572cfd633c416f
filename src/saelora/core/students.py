"""Several students of one teacher: each has its own splice and adapter, and all share what they have in common.

A batch costs one pass of the clean model (the teacher), which also yields every student's prefix; for each splice one
pass of the spliced model up to the lowest layers that its students adapt (the stem), where there is such a stretch; and
for each student only the layers above.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.head import Head, head_of
from saelora.core.partial import NO_PREFIX, CleanPass, clean_forward, entry_layer, run_from, shared_stem
from saelora.core.splice import Splice
from saelora.models.hookpoints import Hookpoint, ReadPoint


@dataclass(frozen=True, eq=False)
class Student:
    """A variant of the model: through a splice (None: without), with an adapter (None: without)."""

    splice: Splice | None = None
    adapter: lora.Adapter = None


CLEAN = Student()


@dataclass(frozen=True)
class Shared:
    """What one batch's students share."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Shaped[Tensor, "batch seq"] | None
    clean: CleanPass
    # (id of the splice, entry layer) -> output
    stems: dict[tuple[int, int], Float[Tensor, "batch seq d_model"]] = field(default_factory=dict)


class Students:
    """Runs teacher and students of one model. Build it once all splices are open and all adapters are in."""

    def __init__(
        self,
        model: nn.Module,
        students: Sequence[Student],
        others: Sequence[Splice] = (),
        without_stem: Sequence[Student] = (),
    ):
        """Args:
        others: further splices that are open on the model, to be kept out of it.
        without_stem: students whose SAEs are to run in ``hidden``, because they train there or are watched.
        """
        self.model, self.students = model, list(students)
        own = [s.splice for s in students if s.splice is not None]
        self.splices = list({id(spliced): spliced for spliced in (*own, *others)}.values())
        adapted: dict[lora.Adapter, list[int]] = {None: []}
        adapted |= {a: lora.adapted_layers(model, a) for a in {s.adapter for s in students} if a is not None}
        # below the splice's entry all is clean; between it and the adapter's all is spliced but not adapted
        own_saes = {s: s.splice.saes if s.splice else () for s in students}
        self._clean_entry = {s: entry_layer(own_saes[s], adapted[s.adapter]) for s in students}
        self._entry = {s: entry_layer((), adapted[s.adapter]) if s.adapter else self._clean_entry[s] for s in students}
        # a stem would keep what crosses layers from the layers above
        crossing = [s for s in students if s.splice is not None and s.splice.crossing]
        self._entry.update({s: self._clean_entry[s] for s in (*without_stem, *crossing)})
        self._heads: dict[lora.Adapter, Head] = {}

    def enters(self, student: Student) -> int:
        """The layer whose clean output a student goes on from, or NO_PREFIX."""
        return self._clean_entry[student]

    @property
    def clean_points(self) -> list[Hookpoint | ReadPoint]:
        """The activations of the clean pass that splices go by."""
        points: dict[Hookpoint | ReadPoint, None] = {}
        for spliced in self.splices:
            points |= dict.fromkeys(spliced.clean_points)
        return list(points)

    def known(self, clean: CleanPass) -> bool:
        """Whether a clean pass holds all that students need of it."""
        entries = all(self.enters(s) in (NO_PREFIX, *clean.entries) for s in self.students)
        return entries and clean.seen.keys() >= set(self.clean_points)

    def times(self, student: Student) -> dict[Hookpoint, int]:
        """How often each SAE of a student runs for one batch: in its stem, and in the layers that are its own."""
        if student.splice is None:
            return {}
        entry, stem = self._entry[student], self._has_stem(student)
        return {
            h: int(stem and h.layer <= entry) + int(not stem or entry_layer([h]) >= entry) for h in student.splice.saes
        }

    def head(self, student: Student = CLEAN) -> Head:
        """A student's unembedding; the teacher's by default."""
        if student.adapter not in self._heads:
            self._heads[student.adapter] = head_of(self.model, student.adapter)
        return self._heads[student.adapter]

    def teacher(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Shaped[Tensor, "batch seq"] | None = None
    ) -> Shared:
        """The clean pass and the stems, without gradient."""
        with self.only(Student()):
            entries = list(self._clean_entry.values())
            clean = clean_forward(self.model, input_ids, attention_mask, entries, self.clean_points)
        return self.share(input_ids, attention_mask, clean)

    def share(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Shaped[Tensor, "batch seq"] | None, clean: CleanPass
    ) -> Shared:
        """``teacher`` from a clean pass that was made before; it must hold what ``known`` asks for."""
        shared = Shared(input_ids, attention_mask, clean)
        for spliced in self.splices:
            entries = {self._entry[s] for s in self.students if s.splice is spliced and self._has_stem(s)}
            if entries:
                low = entry_layer(spliced.saes)
                with self.only(Student(spliced), clean):
                    found = shared_stem(
                        self.model, input_ids, attention_mask, low, clean.entries.get(low), list(entries)
                    )
                shared.stems.update({(id(spliced), layer): output for layer, output in found.items()})
        return shared

    def _has_stem(self, student: Student) -> bool:
        return self._entry[student] > self._clean_entry[student]

    def hidden(self, student: Student, shared: Shared) -> Float[Tensor, "batch seq d_model"]:
        """A student's final hidden states, with gradient to its adapter."""
        if student.splice is not None and self._has_stem(student):
            entry = self._entry[student]
            stored: Tensor | None = shared.stems[id(student.splice), entry]
        else:
            entry = self._clean_entry[student]
            stored = shared.clean.entries.get(entry)
        with self.only(student, shared.clean):
            return run_from(self.model, shared.input_ids, shared.attention_mask, entry, stored)

    @contextmanager
    def only(self, student: Student, clean: CleanPass | None = None) -> Iterator[None]:
        """The model as this student, for as long as the context is open.

        Args:
            clean: of the rows that will be run; without it, what transcoders read of it is found by passes of its own.
        """
        with ExitStack() as stack:
            if clean is not None and student.splice is not None:
                stack.enter_context(student.splice.beside(clean.seen))
            for spliced in self.splices:
                stack.enter_context(spliced.switched(spliced is student.splice))
            stack.enter_context(lora.only(self.model, student.adapter))
            yield
