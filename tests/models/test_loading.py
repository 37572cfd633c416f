import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from saelora.errors import InputError
from saelora.models import gguf as gguf_module
from saelora.models.gguf import file_sha256
from saelora.models.loading import load_model, pick_device, quiet_transformers, resolve_dtype
from small_gguf import LLAMA, byte_vocabulary, save_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_folder(folder, model=None):
    torch.manual_seed(0)
    (model or LlamaForCausalLM(LLAMA)).save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate(byte_vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def message(ref, **options):
    with pytest.raises(InputError) as caught:
        load_model(str(ref), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_loads_frozen_in_evaluation_mode_with_its_tokenizer(tmp_path):
    loaded = load_model(str(save_folder(tmp_path / "m")))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert loaded.revision is None


def test_dtype_asked_for_is_the_dtype_of_every_weight(tmp_path):
    loaded = load_model(str(save_folder(tmp_path / "m")), dtype="bf16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.dtype == torch.bfloat16


def test_fingerprint_follows_the_weights_and_not_the_place(tmp_path):
    one, two = save_folder(tmp_path / "one"), tmp_path / "two"
    shutil.copytree(one, two)
    before = load_model(str(one)).fingerprint
    assert load_model(str(two)).fingerprint == before
    model = LlamaForCausalLM.from_pretrained(two)
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(two)
    assert load_model(str(two)).fingerprint != before


@pytest.mark.parametrize("whole_folder", [False, True])
def test_gguf_loads_with_exactly_its_weights_and_tokenizer(tmp_path, whole_folder):
    (tmp_path / "g").mkdir()
    path = tmp_path / "g" / "tiny.gguf"
    state = save_gguf(path)
    loaded = load_model(str(path.parent if whole_folder else path))
    got = loaded.model.state_dict()
    assert got.keys() == state.keys()
    for name, weight in state.items():
        assert torch.equal(got[name], weight.float()), name
    assert loaded.tokenizer.bos_token_id == 1
    assert loaded.fingerprint == file_sha256(path)


def test_gguf_is_converted_once_and_shows_nothing(tmp_path, cache, capfd):
    path = tmp_path / "tiny.gguf"
    save_gguf(path)
    capfd.readouterr()
    load_model(str(path))
    assert capfd.readouterr().err == ""
    folders = list((cache / "converted").iterdir())
    assert len(folders) == 1
    written = (folders[0] / "model.safetensors").stat().st_mtime_ns
    load_model(str(path))
    assert list((cache / "converted").iterdir()) == folders
    assert (folders[0] / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(("stored", "expected"), [(torch.float16, "float16"), (torch.float32, "float32")])
def test_converted_weights_take_16_bits_only_where_that_is_exact(tmp_path, cache, stored, expected):
    save_gguf(tmp_path / "tiny.gguf", stored)
    load_model(str(tmp_path / "tiny.gguf"))
    (config,) = cache.glob("converted/*/config.json")
    assert json.loads(config.read_text())["dtype"] == expected


def test_changed_gguf_is_converted_anew(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    save_gguf(path)
    load_model(str(path))
    save_gguf(path, torch.float32)
    load_model(str(path))
    assert len(list((cache / "converted").iterdir())) == 2


def test_truncated_gguf_is_refused_and_leaves_nothing(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    save_gguf(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a readable GGUF" in message(path)
    assert not list(cache.glob("converted/*"))


def test_cache_without_room_is_refused_before_converting(tmp_path, cache, monkeypatch):
    save_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_module, "_SPARE_BYTES", 1 << 62)
    assert "make room or set SAELORA_CACHE" in message(tmp_path / "tiny.gguf")
    assert not list(cache.glob("converted/*"))


def test_folder_with_two_gguf_files_is_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "2 .gguf files" in message(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    weights = save_folder(tmp_path / "m") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "model.safetensors is damaged or incomplete" in message(tmp_path / "m")


# SPEC 12.5
def test_checkpoint_that_lacks_a_weight_is_refused_instead_of_filled_at_random(tmp_path):
    from safetensors.torch import load_file, save_file

    weights = save_folder(tmp_path / "m") / "model.safetensors"
    state = load_file(weights)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    assert "lacks 1 weights (model.layers.1.mlp.up_proj.weight" in message(tmp_path / "m")


def test_encoder_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_folder(tmp_path / "m", BertForMaskedLM(BertConfig(vocab_size=260, **sizes)))
    assert "expected a decoder-only" in message(tmp_path / "m")


def test_encoder_decoder_is_refused(tmp_path):
    T5Config().save_pretrained(tmp_path / "m")
    assert "expected a decoder-only" in message(tmp_path / "m")


def test_tied_model_is_complete(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    loaded = load_model(str(save_folder(tmp_path / "m", model))).model
    assert torch.equal(loaded.lm_head.weight, model.transformer.wte.weight)


def test_folder_without_model_or_tokenizer_is_refused(tmp_path):
    assert "neither config.json nor a .gguf" in message(tmp_path)
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path / "m")
    assert "comes without a tokenizer" in message(tmp_path / "m")


def test_adapter_folder_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in message(tmp_path)
    save_folder(tmp_path)
    assert "adapter" in message(tmp_path)


@pytest.mark.parametrize("ref", ["./missing", "missing/", "missing.gguf", "/a/b/c"])
def test_missing_path_is_refused_without_asking_the_hub(ref):
    assert "does not exist" in message(ref)


def test_hub_name_without_network_is_one_line_with_a_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "check the name and the network" in message("nobody/no-such-model-here")


def test_hub_model_loads_from_the_hub_cache_with_its_commit(tmp_path):
    """The hub's own cache layout, read offline in a process of its own, since its client reads settings once."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--owner--tiny"
    save_folder(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    code = "from saelora.models.loading import load_model as f; m = f('owner/tiny'); print(m.revision, m.fingerprint)"
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{commit} None\n", done.stderr


def test_revision_of_a_local_model_is_refused(tmp_path):
    assert "revision" in message(save_folder(tmp_path / "m"), revision="main")


def test_auto_device_and_dtype_fit_the_machine():
    device = pick_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else device.type)
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype(torch.float64, device) == torch.float64


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu0"])
def test_unknown_device_is_refused(device):
    with pytest.raises(InputError, match="device"):
        pick_device(device)


def test_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="expected auto, float32"):
        resolve_dtype("int8", torch.device("cpu"))


def test_quiet_restores_bars_and_verbosity():
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
