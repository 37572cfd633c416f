"""What reports call what is spliced in, and the variants of a model."""

from collections.abc import Sequence

from saelora.evals.loss_result import LossResult
from saelora.evals.variant import Variant
from saelora.identity import SAE, Kind, SAEId, kind_of, replacement_name
from saelora.records import JsonObject

# where runs of several kinds stand side by side
NEUTRAL = {
    Variant.BASE: "original model",
    Variant.SPLICED: "spliced",
    Variant.ADAPTED: "spliced + adapted",
    Variant.ADAPTED_CLEAN: "adapted, splice taken out",
}
# method -> what to call its outcome, and what made it; {} stands for what is spliced in
_METHODS = {
    "lora": ("spliced + adapted", "the adapter"),
    "linear": ("spliced + linear map", "the linear map"),
    "lora+sae": ("adapted, {} trained", "the adapter with the {} trained"),
    "sae": ("spliced, {} finetuned", "finetuning"),
}
_ADAPTERS = ("lora", "lora+sae")


def kind(results: LossResult) -> Kind:
    """What was spliced in; of results that do not say it, SAEs."""
    return SAE if results.about is None else kind_of(*results.about.saes)


def spliced_in(results: LossResult) -> str:
    """Its name, by how many there are: "SAE", "transcoders"."""
    return kind(results).of(len(results.saes))


def of_results(results: LossResult) -> dict[Variant, str]:
    """The names of the variants."""
    replacement = None if results.about is None else results.about.replacement
    return variant_names(spliced_in(results), results.method, replacement)


def of_saes(saes: Sequence[SAEId], method: str, replacement: JsonObject | None) -> dict[Variant, str]:
    """The same, of what was spliced in, how it was trained, and how transcoders were put in."""
    return variant_names(kind_of(*saes).of(len(saes)), method, replacement)


def variant_names(name: str, method: str, replacement: JsonObject | None = None) -> dict[Variant, str]:
    """The same, of what is spliced in by its name."""
    mode = "" if replacement is None else replacement_name(replacement)
    outcome = _METHODS.get(method, _METHODS["lora"])[0].format(name)
    return {
        Variant.BASE: NEUTRAL[Variant.BASE],
        Variant.SPLICED: f"spliced ({name} in{mode and f', {mode}'})",
        Variant.ADAPTED: f"{outcome}{mode and f' ({mode})'}",
        Variant.ADAPTED_CLEAN: f"adapted, {name} taken out" if method in _ADAPTERS else f"{name} taken out",
    }


def maker(results: LossResult) -> str:
    """What made the adapted variant, as the subject of a sentence."""
    return _METHODS.get(results.method, _METHODS["lora"])[1].format(spliced_in(results))


def possessive(name: str) -> str:
    """The genitive: SAE's, transcoders'."""
    return f"{name}'" if name.endswith("s") else f"{name}'s"
