"""Public functions say the shapes of their tensors, and every test checks them as they run (conftest.py)."""

import importlib.util
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from typing import Any, ForwardRef

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

import saelora
from saelora.core.head import Head
from saelora.core.kl_head import kl_head
from saelora.core.massive import norms
from saelora.core.splice import ZeroAblation
from saelora.core.spread import Spread
from saelora.core.token_mask import TokenMask
from saelora.data.pack import Rows
from saelora.data.streamed import StreamedRows
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.balance import BatchErrors, balanced
from saelora.sae_training.end_to_end import relative_error

ROOMS = ("core", "models", "data", "saes", "objectives", "sae_training")
# Where a shape cannot be said: weights by name have each their own; the other two are told beside them.
MASK = "keys of a batch [batch, keys], or what transformers prepares of them [batch, heads, queries, keys]"
WEIGHTS = "tensors of a file or a module by name, each of a shape of its own"
COMPILED = "inside layers that are compiled, where the check would be compiled too"
EARLY = "read before torch is imported, so that a command's options cost no second"
FREE = {
    "core.group.Group.share return": EARLY,
    "core.group.Group.share rows": EARLY,
    "core.group.Group.sum_ tensors": EARLY,
    "core.group.Group.tensors_in_turn return": EARLY,
    "core.group.Group.tensors_in_turn tensors": EARLY,
    "core.lora_linear.FusedLinear.forward return": COMPILED,
    "core.lora_linear.FusedLinear.forward x": COMPILED,
    "core.token_mask.TokenMask.__call__ attention_mask": MASK,
    "models.adapters.check_landed stored": WEIGHTS,
    "saes.inference.inference_sae weights": WEIGHTS,
    "saes.readers.common.Parts.__init__ weights": WEIGHTS,
    "saes.readers.common.Spec.__init__ weights": WEIGHTS,
    "saes.readers.common.check_floats state": WEIGHTS,
    "saes.readers.common.read_npz return": WEIGHTS,
    "saes.readers.common.read_safetensors return": WEIGHTS,
    "saes.transcoder.Transcoder.__init__ weights": WEIGHTS,
    "saes.transcoder.TranscoderParts.__init__ weights": WEIGHTS,
    "sae_training.export.inference_parts return": WEIGHTS,
    "sae_training.export.inference_sae weights": WEIGHTS,
    "sae_training.transcoder.TrainingTranscoder.folded return": WEIGHTS,
    "sae_training.transcoder_trainer.TranscoderTrainer.inference_parts return": WEIGHTS,
    "saes.saving.save_for_circuit_tracer weights": WEIGHTS,
    "objectives.distill_recipe.DistillRecipe.normaliser rows": EARLY,
}


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(saelora.__path__, "saelora."):
        if found.name == "saelora.core.kl_triton" and importlib.util.find_spec("triton") is None:
            continue  # no wheel for this system
        if found.name.split(".")[1] in ROOMS:
            yield importlib.import_module(found.name)


def public_functions(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and methods that others may call, by name; a dataclass's fields are its ``__init__``'s arguments."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).items() if inspect.isclass(value) else [("", value)]
        for below, member in members:
            if below.startswith("_") and below not in ("__init__", "__call__", "__getitem__"):
                continue
            member = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            if inspect.isfunction(member):
                yield f"{module.__name__}.{name}{'.' if below else ''}{below}", inspect.unwrap(member)


def without_shape(hint: Any, names: dict[str, Any]) -> bool:
    """Whether a hint holds a tensor of any shape, or cannot be read when the module is imported, and is not checked."""
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        try:
            hint = eval(hint, names)
        except NameError:
            return "Tensor" in hint
    if isinstance(hint, list):
        return any(without_shape(part, names) for part in hint)
    return hint is Tensor or any(without_shape(part, names) for part in typing.get_args(hint))


def test_every_public_function_says_the_shapes_of_its_tensors() -> None:
    found = {
        f"{name.removeprefix('saelora.')} {argument}"
        for module in modules()
        for name, function in public_functions(module)
        for argument, hint in function.__annotations__.items()
        if without_shape(hint, function.__globals__)
    }
    assert found == set(FREE)


HEAD = Head(torch.ones(5, 3))
WRONG: dict[str, Callable[[], Any]] = {
    "core: another number of tokens": lambda: kl_head(torch.ones(2, 3), torch.ones(4, 3), HEAD),
    "core: labels that are no integers": lambda: kl_head(torch.ones(2, 3), torch.ones(2, 3), HEAD, None, torch.ones(2)),
    "core: a bias of another vocabulary": lambda: Head(torch.ones(5, 3), torch.ones(3)),
    "core: ids instead of activations": lambda: norms(torch.ones(2, 3, dtype=torch.long)),
    "core: errors of other tokens": lambda: Spread(9).add(torch.ones(2, 3), torch.ones(3)),
    "core: one row without its batch": lambda: TokenMask()(torch.ones(4, dtype=torch.long)),
    "core: latents of no float": lambda: ZeroAblation().encode(torch.ones(2, dtype=torch.bool)),
    "data: one row without its batch": lambda: Rows(torch.ones(4, dtype=torch.long), 1),
    "data: rows of two dimensions each": lambda: StreamedRows(iter([torch.ones(1, 4).long()]), 1)[:1],
    "objectives: losses by token": lambda: balanced(torch.ones(2), *[torch.ones(())] * 3),
    "objectives: a mask of other tokens": lambda: BatchErrors(1.0)(
        Hookpoint(0), torch.ones(2, 3), torch.ones(2, 5), torch.ones(2, 3), torch.ones(3, dtype=torch.bool)
    ),
    "sae_training: layers of two widths": lambda: relative_error(
        torch.ones(1, 2, 3), torch.ones(1, 2, 4), torch.ones(1, dtype=torch.long)
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_shape_is_refused(case: str) -> None:
    with pytest.raises(TypeCheckError):
        WRONG[case]()
