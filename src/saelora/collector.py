"""The garbage collector at rest while a process starts, where nearly all that is made stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting(*, keep: bool = False) -> Iterator[None]:
    """No collection while the block runs.

    The import of torch and transformers and the loading of a model make a million objects. The collector goes through
    all of them time and again and finds nothing, which is a fifth of what a start costs.

    Args:
        keep: what there is at the end stays out of later collections too: where the process is a command's own.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if keep:
            gc.freeze()
        if was_on:
            gc.enable()
