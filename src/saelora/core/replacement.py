"""How transcoders take the place of MLPs: what each reads, and whether what it misses is put back.

Of the stream that transcoders read there are two. In the replaced one, what is read hangs on the transcoders below
(*cascading*); in the original model's own, of the same tokens, it does not (*parallel*). Importing this needs no torch.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from saelora.errors import InputError

Mode = Literal["cascading", "parallel"]


@dataclass(frozen=True)
class Replacement:
    """How the transcoders of a splice are put in.

    Args:
        mode: "cascading", each reads what the replaced stream gives it; "parallel", each reads the original's stream.
        add_error: write MLP(c) + T(x) - T(c) instead of T(x), where T is the transcoder, x what it reads, c what it
            reads in the original's pass: what T misses of the MLP there is put back, and as long as nothing is
            intervened on and nothing adapted, the model is bit for bit the original.
    """

    mode: Mode = "cascading"
    add_error: bool = False

    @property
    def needs_clean(self) -> bool:
        """Whether a spliced pass needs what the original model's pass on the same tokens gives."""
        return self.mode == "parallel" or self.add_error

    def record(self) -> dict[str, Any] | None:
        """For files: None of what every version did."""
        return None if self == CASCADING else {"mode": self.mode, "add_error": self.add_error}


CASCADING = Replacement()


def replacement_of(mode: str, add_error: bool) -> Replacement:
    """The replacement that options name.

    Raises:
        InputError: mode "independent", which no one model has.
    """
    if mode not in get_args(Mode):
        raise InputError(
            f"replacement_mode {mode} puts in one transcoder at a time, so there is no one model with all of them: use "
            "cascading or parallel, and measure each layer alone by evaluate --parts replacement"
        )
    return Replacement(mode, add_error)  # type: ignore[arg-type]
