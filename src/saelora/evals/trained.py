"""Whose doing it is that an adapted model differs from the spliced one."""

from enum import StrEnum


class Trained(StrEnum):
    """What a run trained."""

    ADAPTER = "adapter"
    SAE = "sae"
    BOTH = "adapter+sae"

    @classmethod
    def _missing_(cls, value: object) -> "Trained | None":
        """Results up to version 0.1 hold words."""
        old = {"the adapter": cls.ADAPTER, "the trained SAE": cls.SAE, "the adapter with its trained SAE": cls.BOTH}
        return old.get(str(value))

    @property
    def words(self) -> str:
        """As the subject or object of a sentence."""
        return "the adapter" if self is Trained.ADAPTER else "the training"
