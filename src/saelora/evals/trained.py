"""Whose doing it is that an adapted model differs from the spliced one."""

from enum import StrEnum


class Trained(StrEnum):
    """What a run trained."""

    ADAPTER = "adapter"
    SAE = "sae"
    BOTH = "adapter+sae"

    @classmethod
    def _missing_(cls, value: object) -> "Trained | None":
        """Results up to version 0.1 hold the words."""
        return next((each for each, words in _WORDS.items() if words == value), None)

    @property
    def words(self) -> str:
        """As the subject or object of a sentence."""
        return _WORDS[self]


_WORDS = {
    Trained.ADAPTER: "the adapter",
    Trained.SAE: "the trained SAE",
    Trained.BOTH: "the adapter with its trained SAE",
}
