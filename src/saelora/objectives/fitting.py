"""Whether a step fits memory, before the first is made: whole, in pieces, or not at all."""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor

from saelora.core.group import Group
from saelora.core.head import Head
from saelora.core.kl_choice import fused
from saelora.core.kl_head import chunk_size
from saelora.errors import InputError
from saelora.objectives.distill import Distill
from saelora.train.memory import free_bytes

SHARE = 0.9  # of what is free
BYTES_PER_WEIGHT = 12  # gradient and AdamW's two moments, in float32, of what trains
OVERHEAD = 1.3  # a backward pass's own tensors beside what the forward pass kept
_ENDS = 8  # hidden states that teacher and student begin from and end with, and their gradients
_CHUNKS = 5  # [tokens of a chunk, vocabulary] tensors that the head holds


def fit_step(
    objective: Distill,
    rows: Int[Tensor, "n_rows context"],
    say: Callable[[str], None],
    group: Group,
    share: float = SHARE,
) -> None:
    """Run a step on ``rows`` [batch_rows, context] in pieces of rows where memory asks for it, and say so.

    The gradient is the same up to rounding. One row is run to see what it needs; nothing changes by that.

    Raises:
        InputError: not even a row fits, or the objective needs the whole batch at once.
    """
    mine, _ = group.share(rows)
    fixed, row = needs(objective, mine)
    free = int(share * free_bytes(objective.device))
    if objective.device.type == "cpu":
        free //= group.world
    fits = -group.max(-max(0, (free - fixed) // row))[0]
    if fits >= len(mine):
        return
    needed = f"a step on {len(mine)} rows needs about {_size(fixed + row * len(mine))} of memory"
    if fits < 1:
        ranked = any(r.adapter or any(sae.part == "linear" for sae in r.saes.values()) for r in objective.runs)
        raise InputError(
            f"{needed}, one row {_size(fixed + row)}, and {_size(free)} may be used: lower --context"
            f"{' or --rank' if ranked else ''}, or free some memory"
        )
    if not objective.divisible:
        raise InputError(
            f"{needed}, and {_size(free)} may be used; objective kl+mse needs its rows together: use --batch-rows "
            f"{fits * group.world}, or --objective kl"
        )
    at_once = len(mine)
    while at_once > fits:
        at_once = -(-at_once // 2) if at_once > 1 else 1
    objective.rows_at_once = at_once
    say(f"{needed}, and {_size(free)} may be used: {at_once} rows at a time then, the same up to rounding")


def needs(objective: Distill, rows: Int[Tensor, "n_rows context"]) -> tuple[int, int]:
    """Bytes that a step takes however few its rows, and for each row [context] besides."""
    trained = sum(p.numel() for run in objective.runs for p in run.trainable.values())
    fixed = BYTES_PER_WEIGHT * trained + _head_bytes(objective.head, rows.numel())
    ends = _ENDS * 4 * objective.head.weight.shape[1] * rows.shape[1]
    return fixed, int(OVERHEAD * objective.held_bytes(rows[:1])) + ends


def _head_bytes(head: Head, n_tokens: int) -> int:
    """What the KL head holds of [tokens of a chunk, vocabulary] at once, by the code that will run."""
    vocabulary, itemsize = len(head.weight), head.weight.itemsize
    if fused([head.weight[:1]], [head]):
        from saelora.core.kl_triton import chunk_size as fused_chunk_size

        return 2 * itemsize * vocabulary * min(n_tokens, fused_chunk_size(vocabulary, itemsize))
    return _CHUNKS * 4 * vocabulary * min(n_tokens, chunk_size(vocabulary, head.weight.device.type))


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
