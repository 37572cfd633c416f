"""The parts against the whole: what the fast path computes is what the model itself computes, or nothing is printed.

The fast path takes a model apart: it runs layers without those below them, switches adapters by their wrappers, and
reads the unembedding as a matrix (``run_from``, ``lora``, ``head``). Before anything is trained or measured, every
variant of the model is run on one short row both ways, and the logits are compared.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.eval_mode import evaluating
from saelora.core.partial import CleanPass, activations, capturing, clean_forward
from saelora.core.splice import Splice
from saelora.core.students import CLEAN, Student, Students
from saelora.errors import InputError, on_one_line
from saelora.models.anatomy import anatomy_of, device_of
from saelora.models.compiling import is_compiled
from saelora.models.hookpoints import Hookpoint, ReadPoint

TOKENS = 16  # of the row: room for every kind of mask; about 2 s in all on two CPU cores with the default model
_ROUNDINGS = {torch.float64: 1e6, torch.float32: 64}  # allowed difference in units of the last place; else 4
_NO_HOOKS = (
    "its hooks are not called: was the model compiled (torch.compile) or its forward replaced before? Splice the model "
    "first, or load it anew and use --compile"
)
_UNLIKE = "its forward pass does more than run layers, norm and unembedding one after the other, so nothing is measured"


def check_against_whole(
    model: nn.Module,
    spliced: Splice | None,
    rows: Int[Tensor, "n_rows context"],
    *,
    adapters: Iterable[lora.Adapter] = (),
    others: Sequence[Splice] = (),
    autocast: torch.dtype | None = None,
) -> None:
    """Compare the fast path of every variant with the model's own forward pass, on the first tokens of the first row.

    Variants: the clean model, the spliced one, and for the adapter that is active and each of ``adapters`` the adapted
    one with and without the SAEs. An adapter of zeros, as before training, would show nothing: it is filled with noise
    for as long as this takes.

    Args:
        model: as it will be run, PEFT-wrapped or not.
        spliced: open on the model; None where there is no SAE yet.
        rows: a batch like those that will be run, packed, [n_rows, context].
        others: further splices that are open on the model, to be kept out of it.
        autocast: half precision that the model will run in.

    Raises:
        InputError: they differ by more than rounding, or an SAE did not run as often as it must; it says which variant,
            by how much, and the likely cause.
    """
    given = lora.adapter_name(model)
    variants = {"the original model": CLEAN}
    if spliced is not None:
        variants["the spliced model"] = Student(spliced)
    for adapter in dict.fromkeys((given, *adapters)):
        if adapter is not None:
            name = ", ".join(lora.names_of(adapter))
            variants[f"the model with adapter {name}"] = Student(None, adapter)
            if spliced is not None:
                variants[f"the spliced model with adapter {name}"] = Student(spliced, adapter)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model, autocast))
        stack.enter_context(_told_apart(model))
        splices = [each for each in (spliced, *others) if each is not None]
        pair = _Pair(model, list(variants.values()), splices, given, rows, autocast)
        if given is None and _peft_configs(model):  # else it is one of the variants
            pair.check("the model as it was given", CLEAN, pair.whole("the model as it was given", CLEAN))
        for adapter in dict.fromkeys(student.adapter for student in variants.values()):
            of_adapter = {name: student for name, student in variants.items() if student.adapter == adapter}
            with _peft_runs(model, adapter, given):  # once for several: PEFT takes stock of the whole model here
                wholes = {name: pair.whole(name, student) for name, student in of_adapter.items()}
            for name, student in of_adapter.items():
                pair.check(name, student, wholes[name])


def check_activations(
    model: nn.Module,
    hookpoints: Sequence[Hookpoint | ReadPoint],
    rows: Int[Tensor, "n_rows context"],
    autocast: torch.dtype | None = None,
) -> None:
    """The same for activations that SAEs are trained on: those of a pass that ends early are the whole model's own.

    Raises:
        InputError: they are not, or a hookpoint was not seen to be passed.
    """
    ids = (rows if is_compiled(model) else rows[:1, :TOKENS]).to(device_of(model))
    whole: dict[Hookpoint | ReadPoint, Tensor] = {}
    with evaluating(model, autocast):
        with capturing(anatomy_of(model), hookpoints, whole):
            model(input_ids=ids)
        parts = activations(model, ids, None, hookpoints)
    for hookpoint in hookpoints:
        if hookpoint not in whole or hookpoint not in parts:
            raise InputError(f"{hookpoint} is not passed in the model's forward pass: {_NO_HOOKS}")
        off = (whole[hookpoint] - parts[hookpoint]).abs().max().item()
        if not off <= _allowed(whole[hookpoint], autocast):
            raise InputError(
                f"{hookpoint}: activations of a pass that ends there are {off:.2g} away from the whole model's: "
                f"{_UNLIKE}"
            )


class _Pair:
    """Both ways to run a variant, on one row."""

    def __init__(
        self,
        model: nn.Module,
        variants: Sequence[Student],
        splices: Sequence[Splice],
        given: lora.Adapter,
        rows: Tensor,
        autocast: torch.dtype | None,
    ):
        self.model, self.splices, self.given, self.autocast = model, splices, given, autocast
        # compiled layers would be compiled anew for a row of another shape, which takes a minute
        self.ids = (rows if is_compiled(model) else rows[:1, :TOKENS]).to(device_of(model))
        self.every = Students(model, variants, splices)

    @cached_property
    def clean(self) -> CleanPass:
        """The clean pass that all variants go on from."""
        with self.every.only(CLEAN):
            entries = sorted({self.every.enters(student) for student in self.every.students})
            return clean_forward(self.model, self.ids, None, entries, self.every.clean_points)

    def whole(self, name: str, student: Student) -> Tensor:
        """Logits of the model's own forward pass, with the adapters that are switched on now."""
        with ExitStack() as stack:
            for spliced in self.splices:
                stack.enter_context(spliced.switched(spliced is student.splice))
            seen = stack.enter_context(_counting(self.splices))
            kept = {"logits_to_keep": TOKENS} if is_compiled(self.model) else {}
            logits: Tensor = self.model(input_ids=self.ids, **kept).logits
        self._ran(f"{name}, run whole", student, seen, dict.fromkeys(student.splice.saes if student.splice else (), 1))
        return logits

    def check(self, name: str, student: Student, whole: Tensor) -> None:
        """Raise InputError where the parts give other logits than the whole."""
        with self._fast_path(), _counting(self.splices) as seen:
            students = Students(self.model, [student], self.splices)
            hidden = self.clean.hidden
            if student.splice is not None or student.adapter is not None:
                hidden = students.hidden(student, students.share(self.ids, None, self.clean))
            fast = students.head(student).logits(hidden[:, -TOKENS:])
        self._ran(f"{name}, run in parts", student, seen, students.times(student))
        self._agree(name, student, whole, fast)

    @contextmanager
    def _fast_path(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(f"this model cannot be run in parts ({on_one_line(error)}): {_UNLIKE}") from error

    def _ran(self, name: str, student: Student, seen: dict[Any, int], expected: Mapping[Hookpoint, int]) -> None:
        wanted = {(student.splice, hookpoint): n for hookpoint, n in expected.items()}
        for (spliced, hookpoint), n in {**dict.fromkeys(seen, 0), **wanted}.items():
            ran = seen.get((spliced, hookpoint), 0)
            if ran != n:
                why = _NO_HOOKS if ran == 0 else _UNLIKE
                raise InputError(f"the SAE at {hookpoint} ran {ran} times instead of {n} in {name}: {why}")

    def _agree(self, name: str, student: Student, whole: Tensor, fast: Tensor) -> None:
        if whole.shape != fast.shape:
            raise InputError(
                f"{name} gives logits of shape {tuple(whole.shape)}, its parts {tuple(fast.shape)}: "
                f"{self._cause(student)}"
            )
        if student.adapter is not None and not torch.isfinite(whole).all():
            return  # an adapter that blows up tells nothing here; whoever runs it says that it diverged
        if not torch.isfinite(whole).all():
            raise InputError(f"{name} gives logits that are NaN or infinite: is it damaged, or its precision too low?")
        off, allowed = (whole.to(fast.dtype) - fast).abs().max().item(), _allowed(whole, self.autocast)
        if not off <= allowed:
            raise InputError(
                f"{name} gives other logits than its parts, by up to {off:.2g} where rounding explains {allowed:.1g}: "
                f"{self._cause(student)}"
            )

    def _cause(self, student: Student) -> str:
        kinds = {str(getattr(c.peft_type, "value", c.peft_type)) for c in _peft_configs(self.model)}
        if kinds and (student.adapter is not None or self.given is None):
            remedy = "merge it into the model first" if kinds == {"LORA"} else "merge it into the model, or use LoRA"
            return (
                f"its adapter ({', '.join(sorted(kinds))}) acts otherwise when layers run by themselves, so nothing "
                f"is measured: {remedy}"
            )
        return _UNLIKE


def _allowed(whole: Tensor, autocast: torch.dtype | None) -> float:
    dtype = autocast or whole.dtype
    return _ROUNDINGS.get(dtype, 4) * torch.finfo(dtype).eps * max(1.0, whole.abs().max().item())


def _peft_configs(model: nn.Module) -> list[Any]:
    found = getattr(model, "peft_config", None)
    return list(found.values()) if isinstance(found, dict) else []


@contextmanager
def _peft_runs(model: nn.Module, adapter: lora.Adapter, given: lora.Adapter) -> Iterator[None]:
    """The model with an adapter as PEFT itself switches it: not by ``lora.only``, which is what is checked."""
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with ExitStack() as stack:
        if adapter is None and hasattr(model, "disable_adapter"):
            stack.enter_context(model.disable_adapter())  # type: ignore[operator]
        elif adapter is None and given is not None and getattr(model, "_hf_peft_config_loaded", False):
            model.disable_adapters()  # type: ignore[operator]
            stack.callback(model.enable_adapters)  # type: ignore[arg-type]
        elif adapter is not None and adapter != given and given is not None:
            tuner: Any = model.base_model if hasattr(model, "peft_config") else model
            tuner.set_adapter(lora.names_of(adapter))
            stack.callback(tuner.set_adapter, lora.names_of(given))
        try:
            yield
        finally:
            stack.close()
            for parameter, was in trains.items():
                parameter.requires_grad_(was)


@contextmanager
def _counting(splices: Sequence[Splice]) -> Iterator[dict[Any, int]]:
    """How often each splice's SAEs run while the context is open: (splice, hookpoint) -> times."""
    seen: dict[Any, int] = {}

    def counted(spliced: Splice) -> Any:
        replace = type(spliced).replace.__get__(spliced)

        def replace_and_count(hookpoint: Hookpoint, x: Tensor) -> Tensor:
            seen[spliced, hookpoint] = seen.get((spliced, hookpoint), 0) + 1
            replaced: Tensor = replace(hookpoint, x)
            return replaced

        return replace_and_count

    for spliced in splices:
        spliced.replace = counted(spliced)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for spliced in splices:
            del spliced.replace


@contextmanager
def _told_apart(model: nn.Module) -> Iterator[None]:
    """Weights of adapters that are all zeros hold a little noise, for as long as the context is open."""
    generator = torch.Generator().manual_seed(0)
    before: list[tuple[Tensor, Tensor]] = []
    for wrapper in lora.wrappers(model):
        for name, parameter in wrapper.named_parameters():
            own = name.startswith(tuple(getattr(wrapper, "adapter_layer_names", ())))
            if own and parameter.is_floating_point() and not parameter.any():
                before.append((parameter, parameter.detach().clone()))
                noise = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise.to(parameter.dtype))
    try:
        yield
    finally:
        for parameter, was in before:
            parameter.data.copy_(was)
