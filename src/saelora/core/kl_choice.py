"""Which code forms the KL head: the fused Triton kernels on GPUs, the chunked code everywhere else."""

import functools
import importlib.util
import os
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelora.core.head import Head
from saelora.errors import InputError, first_line

SWITCH = "SAELORA_KL_HEAD"  # environment: auto (the default), fused, chunked
_HALVES_AND_FLOAT = (torch.float32, torch.bfloat16, torch.float16)


def fused(hidden: Sequence[Float[Tensor, "N D"]], heads: Sequence[Head]) -> bool:
    """Whether the Triton kernels run for these hidden states and unembeddings; by $SAELORA_KL_HEAD, else by device.

    Raises:
        InputError: the switch has no such value, or asks for kernels that cannot run here.
    """
    wanted = os.environ.get(SWITCH) or "auto"
    if wanted not in ("auto", "fused", "chunked"):
        raise InputError(f"${SWITCH} is {wanted!r}, expected auto, fused or chunked")
    if wanted == "chunked":
        return False
    why_not = _obstacle(hidden, heads)
    if wanted == "fused" and why_not is not None:
        raise InputError(f"${SWITCH} is fused, but {why_not}: set it to auto or chunked")
    return why_not is None


def _obstacle(hidden: Sequence[Tensor], heads: Sequence[Head]) -> str | None:
    """Why the kernels cannot run, in words; None where they can."""
    device = hidden[0].device
    if device.type != "cuda" and not _interpreted():
        return f"the model is on {device.type}, and the fused head runs on GPUs alone"
    dtypes = {head.weight.dtype for head in heads} | {states.dtype for states in hidden}
    for dtype in dtypes.difference(_HALVES_AND_FLOAT):
        return f"the model is in {str(dtype).removeprefix('torch.')}, and the fused head has float32 at most"
    return _trial(device)


def _interpreted() -> bool:
    """Triton's interpreter, for tests: it runs kernels on CPUs, very slowly."""
    return os.environ.get(SWITCH) == "fused" and os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _trial(device: torch.device) -> str | None:
    """Why the kernels do not run on this device, found by running them once on a few numbers; None where they do.

    Triton builds what it launches when it is first launched, with a C compiler that not every machine has.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        from saelora.core.kl_triton import trial

        trial(device)
    except Exception as error:  # what a compiler can raise is not for us to list
        why = f"Triton's kernels do not run here ({type(error).__name__}: {first_line(error)})"
        warnings.warn(f"{why}: the KL head takes the chunked code, which is slower", stacklevel=2)
        return why
    return None
