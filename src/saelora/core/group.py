"""The processes that work on one run together: each takes its share of every batch, and one global count is over all.

Nothing wraps the model: the steps themselves call ``Group`` where processes have to agree. torch is imported only
where there are several: commands ask for their group before they look at their options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from saelora.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Some processes and this one's place among them; by default this process alone, where every method is a no-op.

    ``sum_``, ``max``, ``on...``, ``gather...`` and ``...in_turn`` are collective: all processes call them, in the same
    order.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def check_rows(self, batch_rows: int) -> None:
        """Raise InputError where a batch has fewer rows than there are processes."""
        if batch_rows < self.world:
            raise InputError(
                f"batch_rows is {batch_rows} for {self.world} processes, expected a row or more for each: "
                f"a batch is divided between them, so use --batch-rows {self.world} or a multiple of it"
            )

    def share(self, rows: Tensor) -> tuple[Tensor, float]:
        """This process's rows of a batch [n_rows, ...], and their weight.

        Where there are fewer rows than processes, some get a row that is another's, with weight 0 (else 1), to keep
        step: with sharded weights every process has to run every forward and backward.
        """
        first, last = (len(rows) * rank // self.world for rank in (self.rank, self.rank + 1))
        return (rows[first:last], 1.0) if last > first else (rows[:1], 0.0)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on one device by their sums over the processes, in one exchange."""
        if self.world == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])  # in the widest of their types
        dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def max(self, *values: int) -> list[int]:
        """The largest of each value over the processes."""
        if self.world == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def on_main(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the main process, which alone calls it; see ``on``."""
        return self.on(0, work)

    def on(self, rank: int, work: Callable[[], T]) -> T:
        """What ``work`` returns in one process, which alone calls it; picklable, and on the CPU.

        Raises:
            InputError: ``work`` raised it, in every process.
        """
        if self.world == 1:
            return work()
        import torch.distributed as dist

        found: list[Any] = [None, None]
        if self.rank == rank:
            try:
                found[0] = work()
            except InputError as error:
                found[1] = error
        dist.broadcast_object_list(found, src=rank)
        if found[1] is not None:
            raise found[1]
        done: T = found[0]
        return done

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; picklable, and on the CPU."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def gather_on_main(self, value: T) -> list[T]:
        """Every process's value, by rank, in the main process; nothing in the others."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, found)
        return found or []

    def turns(self, n: int) -> Iterator[tuple[int, bool]]:
        """Divide n pieces of work, dealt out one by one: this process's indices, and whether each one counts.

        All processes get equally many; the last index of some is another's work, run for step with the others alone.
        """
        for first in range(0, n, self.world):
            index = first + self.rank
            yield (index, True) if index < n else (n - 1, False)

    def in_turn(self, values: list[T]) -> list[T]:
        """Every process's values of its ``turns`` that count, in the order of the indices; picklable, on the CPU."""
        return _deal(self.gather(values))

    def tensors_in_turn(self, tensors: list[Tensor]) -> list[Tensor]:
        """``in_turn`` for tensors [n, ...] on this process's device, of which only n may differ.

        Every process gives one or more: for a turn that does not count, an empty one.
        """
        if self.world == 1:
            return tensors
        import torch
        import torch.distributed as dist

        lengths = self.gather([len(tensor) for tensor in tensors])
        flat = torch.cat(tensors)
        padded = flat.new_zeros(max(map(sum, lengths)), *flat.shape[1:])  # gloo gathers equal shapes only
        padded[: len(flat)] = flat
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded)
        return _deal([list(part[: sum(n)].split(n)) for part, n in zip(found, lengths, strict=True)])

    def patient_barrier(self) -> Callable[[], None]:
        """A barrier for work that each process does alone, however long it takes; all make it before they begin."""
        if self.world == 1:
            return lambda: None
        import torch.distributed as dist

        waiting = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        return lambda: dist.barrier(waiting)


ALONE = Group()


def _deal(found: list[list[T]]) -> list[T]:
    """The first of every process by rank, then the second of every one that has two, and so on."""
    return [mine[i] for i in range(max(map(len, found))) for mine in found if i < len(mine)]
