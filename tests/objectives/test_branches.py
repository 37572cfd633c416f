"""Several branches in one pass against as many runs of their own."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

import families
from families import BOS, D_MODEL, N_LAYERS, VOCAB
from saelora.core.lora import lora_config, parameters_of
from saelora.core.splice import Splice, splice
from saelora.core.students import Student
from saelora.errors import NonFiniteLoss
from saelora.evals.loss import evaluate_branches, evaluate_loss
from saelora.models.anatomy import anatomy_of
from saelora.models.compiling import CompiledLayers, compile_layers
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from tiny_saes import SPARE_SPECIAL, TinySAE

N_STEPS = 3


@dataclass(frozen=True)
class Setting:
    """A branch as a person would describe it."""

    hookpoints: tuple[Hookpoint, ...] = (Hookpoint(1),)
    layers: tuple[int, ...] = (2, 3)
    rank: int = 2
    alpha: float = 4.0
    lr: float = 1e-2
    clip: float = 0.05


SETTINGS = {
    "plain": Setting(),
    "rank": Setting(rank=5, alpha=1.0),
    "lr": Setting(lr=3e-2, clip=0.0),
    "single-layer": Setting(layers=(3,)),
    "all-layers": Setting(layers=tuple(range(N_LAYERS))),
    "another-layer": Setting((Hookpoint(2),), (3,)),
    "two-saes": Setting((Hookpoint(0), Hookpoint(2, "mlp_out")), (1, 2, 3)),
    "two-saes-single": Setting((Hookpoint(0), Hookpoint(1), Hookpoint(2)), (3,)),
}


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    rows = torch.randint(3, VOCAB, (2 * N_STEPS, 9), generator=draw)
    rows[:, 0] = BOS
    return list(rows.split(2))


@contextmanager
def branches(
    family: str, settings: Sequence[Setting], compiled: str | None = None, **options: Any
) -> Iterator[Distill]:
    """The objective of these settings side by side; settings with the same SAEs share a splice."""
    model: Any = copy.deepcopy(families.tiny(family))
    for i, setting in enumerate(settings):
        torch.manual_seed(0)
        config = lora_config(model, list(setting.layers), rank=setting.rank, alpha=setting.alpha)
        model = get_peft_model(model, config, adapter_name="b0") if i == 0 else model
        if i > 0:
            model.add_adapter(f"b{i}", config)
    model.double()
    if compiled:
        compile_layers(model, backend=compiled)
    with ExitStack() as stack:
        splices: dict[Any, Splice] = {}
        for setting in settings:
            if setting.hookpoints not in splices:
                saes: Any = {h: TinySAE(D_MODEL) for h in setting.hookpoints}
                splices[setting.hookpoints] = stack.enter_context(splice(model, saes, SPARE_SPECIAL))
        made = [
            Branch(f"b{i}", splices[s.hookpoints], DistillRecipe(lr=s.lr, clip=s.clip)) for i, s in enumerate(settings)
        ]
        yield Distill(model, made, n_rows=2 * N_STEPS, **options)


def train(objective: Distill) -> list[dict[str, Tensor]]:
    return [objective.step(rows, i / N_STEPS) for i, rows in enumerate(batches())]


def weights(objective: Distill, name: str) -> list[Tensor]:
    return [p.detach().clone() for p in parameters_of(objective.model, name).values()]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
# SPEC 11.1
def test_branches_in_one_pass_equal_separate_runs_bit_for_bit(family: str) -> None:
    settings = list(SETTINGS.values())
    with branches(family, settings) as together:
        metrics = train(together)
        found = [weights(together, f"b{i}") for i in range(len(settings))]
    for i, setting in enumerate(settings):
        with branches(family, [setting]) as alone:
            before = weights(alone, "b0")
            own = train(alone)
            expected = weights(alone, "b0")
        assert all(torch.equal(a, b) for a, b in zip(found[i], expected, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(before, expected, strict=True))
        for step, step_alone in zip(metrics, own, strict=True):
            assert step[f"loss/b{i}"] == step_alone["loss"]
            assert step[f"grad_norm/b{i}"] == step_alone["grad_norm"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_how_many_branches_are_held_at_once_changes_no_weight(at_once: int) -> None:
    settings = list(SETTINGS.values())[:3]
    with branches("llama", settings) as all_at_once, branches("llama", settings, at_once=at_once) as in_lots:
        train(all_at_once), train(in_lots)
        for i in range(len(settings)):
            pairs = zip(weights(all_at_once, f"b{i}"), weights(in_lots, f"b{i}"), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_layers_are_run_as_often_as_the_shared_passes_say() -> None:
    settings = [SETTINGS["plain"], SETTINGS["rank"], SETTINGS["single-layer"], SETTINGS["another-layer"]]
    with branches("llama", settings) as objective:
        runs = [0] * N_LAYERS
        for i, layer in enumerate(anatomy_of(objective.model).layers):
            layer.register_forward_pre_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
        objective.step(batches()[0], 0.0)
    # one teacher; layer 2: two students and the stem of the single-layer one; layer 3: all four students
    assert runs == [1, 1, 1 + 2 + 1, 1 + 4]


# SPEC 11.1
def test_a_branch_that_blows_up_leaves_the_others_alone() -> None:
    settings = [SETTINGS["plain"], SETTINGS["rank"]]
    with branches("llama", settings) as objective, branches("llama", settings[:1]) as alone:
        for parameter in parameters_of(objective.model, "b1").values():
            parameter.data.fill_(torch.nan)
        metrics, own = train(objective), train(alone)
        assert all(torch.equal(a, b) for a, b in zip(weights(objective, "b0"), weights(alone, "b0"), strict=True))
        assert [run.failed for run in objective.runs] == [False, True]
        assert metrics[0]["loss"] == own[0]["loss"]
        for parameter in parameters_of(objective.model, "b0").values():
            parameter.data.fill_(torch.nan)
        with pytest.raises(NonFiniteLoss):
            objective.step(batches()[0], 0.0)


def test_state_of_several_branches_restores_bit_for_bit() -> None:
    settings = [SETTINGS["plain"], SETTINGS["two-saes"]]
    with (
        branches("llama", settings) as whole,
        branches("llama", settings) as first,
        branches("llama", settings) as rest,
    ):
        train(whole)
        first.step(batches()[0], 0.0)
        rest.load_state_dict(copy.deepcopy(first.state_dict()))
        for i in range(1, N_STEPS):
            rest.step(batches()[i], i / N_STEPS)
        for name in ("b0", "b1"):
            assert all(torch.equal(a, b) for a, b in zip(weights(whole, name), weights(rest, name), strict=True))


def test_branches_are_evaluated_together_as_each_alone() -> None:
    settings = [SETTINGS["plain"], SETTINGS["single-layer"], SETTINGS["two-saes"]]
    rows = torch.cat(batches())
    with branches("llama", settings) as objective:
        train(objective)
        named = {f"b{i}": Student(run.branch.spliced, f"b{i}") for i, run in enumerate(objective.runs)}
        together = evaluate_branches(objective.model, named, SPARE_SPECIAL, rows)
        assert together["b0"].ce_adapted != together["b1"].ce_adapted
        for name, student in named.items():
            objective.model.set_adapter(name)
            with ExitStack() as stack:
                for other in objective.students.splices:
                    stack.enter_context(other.disabled())
                alone = evaluate_loss(objective.model, student.splice.saes, SPARE_SPECIAL, rows)
            assert alone == together[name].to_json()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_layers_train_to_the_same_weights(family: str) -> None:
    """Splices, stems and adapters come and go between calls of one compiled layer: stale code would not see them."""
    settings = [SETTINGS["single-layer"], SETTINGS["all-layers"], SETTINGS["two-saes"]]
    torch._dynamo.reset()
    found = {}
    for backend in ("aot_eager", None):  # one after the other: a splice on a model that is not compiled holds all back
        with branches(family, settings, backend) as objective:
            metrics = train(objective)
            found[backend] = metrics, [weights(objective, f"b{i}") for i in range(len(settings))]
        if backend:
            n_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(found["aot_eager"][0], found[None][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found["aot_eager"][1], found[None][1], rtol=0, atol=1e-10)
    assert n_graphs > 0


@pytest.mark.usefixtures("unchecked")
def test_steps_alone_run_compiled_layers_and_one_compiled_layer_is_all_layers() -> None:
    settings, rows = [SETTINGS["all-layers"]], batches()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with branches("llama", settings) as plain, branches("llama", settings) as compiled:
        compiled._compiled = CompiledLayers(compiled.model, "aot_eager")
        layers = anatomy_of(compiled.model).layers
        for i, each in enumerate([*rows, rows[0][:1]]):
            found, expected = (one.step(each, i / (2 * N_STEPS)) for one in (compiled, plain))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            assert not any("forward" in vars(layer) for layer in layers)
        torch.testing.assert_close(weights(compiled, "b0"), weights(plain, "b0"), rtol=0, atol=1e-10)
    # the clean pass, the adapted layers, and the first of them, whose input needs no gradient; the last rows: none
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4 < 2 * len(layers)
