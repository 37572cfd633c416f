"""Adapters that PEFT saved: one that does not land whole on a model is refused, whatever PEFT makes of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import families
from saelora.core.lora import lora_config
from saelora.errors import InputError
from saelora.models.adapters import adapter_fingerprint, load_adapter

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Fresh = Callable[[nn.Module | str], nn.Module]


def saved(model: nn.Module, folder: Path, **options: Any) -> Path:
    """An adapter on layers 1 and 3, every tensor of it drawn at random."""
    adapted = get_peft_model(model, lora_config(model, [1, 3], rank=2, alpha=4.0, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.add_(torch.randn_like(p) * 0.1)
    adapted.save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def configure(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changed}))


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("name", families.NAMES)
def test_an_adapter_lands_whole_in_every_family(fresh: Fresh, tmp_path: Path, name: str, use_dora: bool) -> None:
    folder = saved(fresh(name), tmp_path / "a", use_dora=use_dora)
    adapted = load_adapter(fresh(name), folder)
    there = {n.replace(".default", ""): p for n, p in adapted.named_parameters() if "lora_" in n}
    stored = load_file(folder / WEIGHTS)
    assert len(there) == len(stored)
    for n, tensor in stored.items():
        found = there[n if n in there else f"{n}.weight"]
        assert torch.equal(found, tensor), n


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_file_of_another_precision_lands_as_far_as_the_model_holds_it(
    fresh: Fresh, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = saved(fresh("llama"), tmp_path / "a")
    edit(folder, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    load_adapter(fresh("llama"), folder)
    load_adapter(fresh("llama").to(torch.bfloat16), folder)


def renamed(tensors: dict[str, Any]) -> None:
    name = next(n for n in tensors if "layers.3" in n)
    tensors[name.replace("layers.3", "layers.2")] = tensors.pop(name)


def all_renamed(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name.replace("base_model.model.model.layers", "base_model.model.layers")] = tensors.pop(name)


def drop(part: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[next(n for n in tensors if part in n)]

    return change


def base_weight(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.weight"] = torch.zeros(12, 16)


def head(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.lm_head.weight"] = torch.zeros(64, 16)


def nan(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values())).view(-1)[0] = float("nan")


FILES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a key of another layer": (renamed, "have no place in it"),
    "keys of another model's modules": (all_renamed, "have no place in it"),
    "lora_A gone": (drop("layers.1.self_attn.q_proj.lora_A"), "its file lacks 1 of"),
    "lora_B gone": (drop("layers.3.mlp.up_proj.lora_B"), "its file lacks 1 of"),
    "everything gone": (dict.clear, "its file lacks 28 of the 28"),
    "a tensor of the base": (base_weight, "have no place in it"),
    "a head that the configuration does not name": (head, "have no place in it"),
    "no number": (nan, "values that are no numbers"),
}


@pytest.mark.parametrize("case", FILES)
# SPEC 12.5
def test_a_file_that_does_not_match_the_model_is_refused(fresh: Fresh, tmp_path: Path, case: str) -> None:
    change, told = FILES[case]
    folder = saved(fresh("llama"), tmp_path / "a")
    edit(folder, change)
    with pytest.raises(InputError, match=told) as caught:
        load_adapter(fresh("llama"), folder)
    assert "\n" not in str(caught.value)


def test_large_numbers_whose_sum_is_none_are_numbers(fresh: Fresh, tmp_path: Path) -> None:
    folder = saved(fresh("llama"), tmp_path / "a")
    edit(folder, lambda tensors: [t.fill_(torch.finfo(t.dtype).max) for t in tensors.values()])
    adapted = load_adapter(fresh("llama"), folder)
    assert any(p.sum().isinf() for name, p in adapted.named_parameters() if "lora_" in name)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other modules": ({"target_modules": ["q_proj", "k_proj"]}, "have no place in it"),
    "modules that are not there": ({"target_modules": ["c_attn"]}, "does not load on this model"),
    "other layers": ({"layers_to_transform": [0, 1]}, "have no place in it"),
    "more layers": ({"layers_to_transform": None, "layers_pattern": None}, "its file lacks"),
    "another rank": ({"r": 4}, "does not load on this model"),
    "DoRA, whose vectors are not there": ({"use_dora": True}, "its file lacks"),
    "a head that is not there": ({"modules_to_save": ["lm_head"]}, "does not load on this model"),
    "another type": ({"peft_type": "VERA"}, "type VERA, expected LORA"),
    "weights of the base changed at the start": ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
    "biases of the base": ({"bias": "all"}, "biases of the base"),
    "layers twice": ({"layer_replication": [[0, 3], [1, 4]]}, "another base model"),
    "a key unknown to PEFT": ({"peft_type": None}, "type None, expected LORA"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_does_not_match_the_file_is_refused(fresh: Fresh, tmp_path: Path, case: str) -> None:
    changed, told = CONFIGS[case]
    folder = saved(fresh("llama"), tmp_path / "a")
    configure(folder, **changed)
    with pytest.raises(InputError, match=told) as caught:
        load_adapter(fresh("llama"), folder)
    assert "\n" not in str(caught.value)


def test_vectors_of_dora_that_the_configuration_does_not_ask_for_are_refused(fresh: Fresh, tmp_path: Path) -> None:
    folder = saved(fresh("llama"), tmp_path / "a", use_dora=True)
    configure(folder, use_dora=False)
    with pytest.raises(InputError, match="have no place in it"):
        load_adapter(fresh("llama"), folder)


@pytest.mark.parametrize("other", ["gpt2", "gpt_neox-serial", "phi"])
def test_an_adapter_of_another_family_is_refused(fresh: Fresh, tmp_path: Path, other: str) -> None:
    with pytest.raises(InputError, match="does not load on this model"):
        load_adapter(fresh(other), saved(fresh("llama"), tmp_path / "a"))


def test_an_adapter_of_a_deeper_model_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    folder = saved(fresh("llama"), tmp_path / "a")
    shallow = fresh("llama")
    shallow.model.layers = shallow.model.layers[:3]  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="have no place in it"):
        load_adapter(shallow, folder)


def test_what_is_no_lora_adapter_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    get_peft_model(
        fresh("llama"), IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    ).save_pretrained(tmp_path / "ia3")
    with pytest.raises(InputError, match="type IA3, expected LORA"):
        load_adapter(fresh("llama"), tmp_path / "ia3")
    folder = saved(fresh("llama"), tmp_path / "pickled")
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"a pickled adapter_model\.bin is not read"):
        load_adapter(fresh("llama"), folder)
    with pytest.raises(InputError, match="is missing"):
        load_adapter(fresh("llama"), tmp_path / "nothing")


def test_a_second_adapter_on_the_same_model_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    folder = saved(fresh("llama"), tmp_path / "a")
    with pytest.raises(InputError, match="has an adapter already"):
        load_adapter(load_adapter(fresh("llama"), folder), folder)


def test_a_head_that_was_trained_too_lands(fresh: Fresh, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(fresh("llama"), config).save_pretrained(tmp_path / "a")
    load_adapter(fresh("llama"), tmp_path / "a")


def test_the_fingerprint_changes_with_a_weight_and_with_what_scales_it(fresh: Fresh, tmp_path: Path) -> None:
    folder = saved(fresh("llama"), tmp_path / "a")
    copy = Path(shutil.copytree(folder, tmp_path / "b"))
    first = adapter_fingerprint(folder)
    assert first == adapter_fingerprint(copy)
    configure(copy, lora_alpha=8)
    scaled = adapter_fingerprint(copy)
    edit(folder, lambda tensors: next(iter(tensors.values())).add_(1e-3))
    assert len({first, scaled, adapter_fingerprint(folder)}) == 3
    assert adapter_fingerprint(tmp_path) is None
