"""The variants of a run by the names that users give them. Imports no torch."""

from typing import Literal, get_args

from saelora.evals.variant import Variant

Name = Literal["original", "spliced", "adapted", "adapted_clean"]
NAMES: dict[str, Variant] = dict(
    zip(
        get_args(Name),
        (Variant.BASE, Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN),
        strict=True,
    )
)
SIDE_BY_SIDE: tuple[Name, ...] = ("original", "spliced", "adapted")
