"""The variants of one model that are compared. Imports no torch: results and reports name them too."""

from enum import StrEnum


class Variant(StrEnum):
    """A model with or without its SAEs spliced in, with or without its adapter.

    The values are the keys in files.
    """

    BASE = "base"  # the original model
    SPLICED = "sae"  # the SAEs in, no adapter
    ADAPTED = "adapted"  # the SAEs in, and the adapter
    ADAPTED_CLEAN = "adapted_clean"  # the adapter alone, the SAEs taken out
    ZERO = "zero"  # zeros in the place of the SAEs' reconstructions, no adapter

    @property
    def has_saes(self) -> bool:
        return self in (Variant.SPLICED, Variant.ADAPTED)

    @property
    def has_adapter(self) -> bool:
        return self in (Variant.ADAPTED, Variant.ADAPTED_CLEAN)

    @property
    def ce(self) -> str:
        """What its cross entropy is called in results."""
        return f"ce_{self}"

    @property
    def kl(self) -> str:
        """What the KL divergence of the original from it is called."""
        return f"kl_{self}"


SIDE_BY_SIDE = (Variant.BASE, Variant.SPLICED, Variant.ADAPTED)
AGAINST_BASE = (Variant.SPLICED, Variant.ADAPTED, Variant.ADAPTED_CLEAN, Variant.ZERO)  # "arms" in recipes
