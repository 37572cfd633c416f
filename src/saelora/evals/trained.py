"""What a run trained, as a sentence names it; a part's result holds it under "trained"."""

from typing import Any

ADAPTER, TRAINED_SAE, BOTH = "the adapter", "the trained SAE", "the adapter with its trained SAE"


def trained(result: dict[str, Any]) -> str:
    """Whose doing it is that the adapted model differs; results from before there was a choice are of adapters."""
    return result.get("trained", ADAPTER)
