"""A GGUF file is read whole or refused: shards, tensors, factors stored as tensors, and every key of its metadata."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gguf_files import made_model, metadata_of, tensors_of, write_gguf, write_shards
from saelora.errors import InputError
from saelora.models import gguf
from saelora.models.gguf_config import stated_config
from saelora.models.gguf_file import read_gguf
from saelora.models.loading import load_model

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WIDE = {"hidden_size": 64, "head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
LONG = {"head_dim": 512, "num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(tmp_path, architecture, stated=None, more=None, less=(), general=None, model=None, **options):
    """A model and its GGUF file, with some keys and tensors changed; a key that is None is left out."""
    model = model or made_model(architecture, **options)
    tensors = {**tensors_of(model, architecture), **(more or {})}
    metadata = {**metadata_of(model, architecture), **(stated or {})}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in less}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return model, str(write_gguf(tmp_path / "tiny.gguf", tensors, architecture, metadata, general=general))


def message(path):
    with pytest.raises(InputError) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same_logits(model, path):
    loaded = load_model(str(path)).model
    ids = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def rope(kind, **options):
    return {"rope_type": kind, "rope_theta": 10000.0, **options}


GEMMA3_ROPE = {"sliding_attention": rope("default"), "full_attention": rope("linear", factor=8.0)}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
SAME = {
    "llama": ("llama", {}, {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, wide heads": ("llama", {"head_dim": 16}, {"attention.key_length": 16, "rope.dimension_count": 16}),
    "llama, linear": ("llama", {"rope_parameters": rope("linear", factor=8.0)}, LINEAR),
    "llama, linear as old files say it": (
        "llama",
        {"rope_parameters": rope("linear", factor=4.0)},
        {"rope.scale_linear": 4.0},
    ),
    "llama, yarn": (
        "llama",
        {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=16)},
        YARN,
    ),
    "llama, no scaling said": ("llama", {}, {"rope.scaling.type": "none", "expert_count": 0, "attention.causal": True}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {"head_dim": 16}, {}),
    "phi3": ("phi3", {}, {}),
    "phi3, part of a head is turned": (
        "phi3",
        {"rope_parameters": rope("default", partial_rotary_factor=0.5)},
        {"rope.dimension_count": 4},
    ),
    "phi3, window": ("phi3", {"sliding_window": 8}, {"attention.sliding_window": 8}),
    "gemma2": (
        "gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "tie_word_embeddings": True}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3", {**GEMMA3, "rope_parameters": GEMMA3_ROPE, "tie_word_embeddings": True}, LINEAR),
    "gemma3, layers named": (
        "gemma3",
        {**GEMMA3, "rope_parameters": GEMMA3_ROPE, "tie_word_embeddings": True},
        {**LINEAR, "attention.sliding_window_pattern": [True, True, True, True, True, False, True]},
    ),
    "gpt2": ("gpt2", {}, {}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}, {}),
}


@pytest.mark.parametrize("case", SAME)
def test_gguf_computes_what_the_model_computes(tmp_path, case):
    architecture, options, stated = SAME[case]
    assert_same_logits(*written(tmp_path, architecture, stated, **options))


def test_llama_named_mistral_has_no_window_of_its_own(tmp_path):
    model, path = written(tmp_path, "llama", general={"general.name": "mistral"})
    assert load_model(path).model.config.sliding_window is None
    assert_same_logits(model, path)


def llama3_factors(model):
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    plain = 10000.0 ** (-torch.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
    return (plain / scaled).float().numpy()


def test_factors_of_llama_3_stored_as_a_tensor_are_read(tmp_path):
    model = made_model("llama", **LONG, hidden_size=64, rope_parameters=LLAMA3)
    stated = {"attention.key_length": 512, "attention.value_length": 512, "rope.dimension_count": 512}
    more = {"rope_freqs.weight": llama3_factors(model)}
    assert len(set(more["rope_freqs.weight"])) > 3
    _, path = written(tmp_path, "llama", stated, more, model=model)
    assert load_model(path).model.config.rope_parameters["rope_type"] == "llama3"
    assert_same_logits(model, path)


def test_factors_that_change_nothing_are_passed_over(tmp_path):
    assert_same_logits(*written(tmp_path, "llama", more={"rope_freqs.weight": np.ones(4, np.float32)}))


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_other_factors_stored_as_tensors_are_refused(tmp_path, name):
    _, path = written(tmp_path, "llama", more={name: np.array([1, 2, 3, 5], np.float32)})
    assert f"stores rotary factors ({name}) that are not Llama 3's" in message(path)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "attention.scale", 0.125),
        ("llama", "attention.causal", False),
        ("llama", "attention.value_length", 16),
        ("llama", "attention.clamp_kqv", 8.0),
        ("llama", "attention.max_alibi_bias", 8.0),
        ("llama", "attention.sliding_window", 16),
        ("llama", "rope.dimension_count", 4),
        ("llama", "rope.scaling.type", "longrope"),
        ("llama", "rope.scaling.attn_factor", 1.2),
        ("llama", "rope.freq_base_swa", 500.0),
        ("llama", "expert_count", 8),
        ("llama", "pooling_type", 1),
        ("llama", "use_parallel_residual", True),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "logit_scale", 0.5),
        ("llama", "residual_scale", 0.5),
        ("llama", "embedding_scale", 12.0),
        ("llama", "something.new", "x"),
        ("qwen2", "attention.key_length", 16),
        ("phi3", "rope.scaling.attn_factor", 1.19),
        ("gemma3", "attention.sliding_window_pattern", 4),
        ("gpt2", "attention.head_count_kv", 2),
    ],
)
def test_metadata_that_changes_the_arithmetic_is_refused(tmp_path, architecture, key, value):
    options = GEMMA3 if architecture == "gemma3" else {}
    _, path = written(tmp_path, architecture, {key: value}, **options)
    assert f"{architecture}.{key} = {value}"[:40] in message(path)


def test_layers_that_differ_in_a_setting_are_refused(tmp_path):
    _, path = written(tmp_path, "llama", {"attention.head_count_kv": [2, 4]})
    assert "states another attention.head_count_kv for each layer" in message(path)


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "attention.layer_norm_rms_epsilon"])
def test_metadata_that_is_needed_and_lacks_is_named(tmp_path, key):
    _, path = written(tmp_path, "llama", {key: None})
    assert f"does not state llama.{key}" in message(path)


HUGE = 2**31 - 1
NOT_A_NUMBER = [float("nan"), float("inf"), -1.0, 0.0, "many"]
ABSURD = {
    ("llama", "block_count"): [HUGE, 2**32 - 1, 0, -1, 2.0, "2", True, []],
    ("llama", "embedding_length"): [HUGE, 0, -32, 33, "32", [32, 33]],
    ("llama", "feed_forward_length"): [HUGE, 0, 65, "64"],
    ("llama", "context_length"): [HUGE, 0, -1, "64", 64.0],
    ("llama", "vocab_size"): [HUGE, 261, -1, "260"],
    ("llama", "attention.head_count"): [HUGE, 0, -4, 3, 5, 64, "4"],
    ("llama", "attention.head_count_kv"): [HUGE, 0, -2, 1, 3, 4, "2"],
    ("llama", "attention.key_length"): [HUGE, -8, "8"],
    ("llama", "rope.dimension_count"): [HUGE, 0, -8, "8"],
    ("llama", "rope.freq_base"): NOT_A_NUMBER,
    ("llama", "rope.scale_linear"): NOT_A_NUMBER,
    ("llama", "attention.layer_norm_rms_epsilon"): [float("nan"), -1.0, "small"],
    ("llama", "attention.scale"): ["0.35", float("nan")],
    ("phi3", "rope.dimension_count"): [HUGE, 0, 3, "8"],
    ("phi3", "attention.sliding_window"): [-1, "8"],
    ("gemma3", "attention.sliding_window"): [0, HUGE, "8"],
    ("gemma3", "attention.sliding_window_pattern"): [HUGE, [True]],
    ("gemma3", "rope.freq_base_swa"): NOT_A_NUMBER,
    ("gpt2", "context_length"): [HUGE, 65],
    ("gpt2", "attention.head_count"): [HUGE, 0, 5],
}


@pytest.mark.parametrize(("architecture", "key"), ABSURD)
def test_numbers_that_no_model_has_are_named_before_one_is_made(tmp_path, architecture, key, monkeypatch):
    """Nothing is converted: a model of the stated sizes would not fit into memory."""
    monkeypatch.setattr("saelora.models.gguf._convert", None)
    model = made_model(architecture, **(GEMMA3 if architecture == "gemma3" else {}))
    for value in ABSURD[architecture, key]:
        _, path = written(tmp_path, architecture, {key: value}, model=model)
        said = message(path)
        assert key in said or "the sizes it states make it" in said, (value, said)


@pytest.mark.parametrize("key", ["bos", "eos", "padding"])
@pytest.mark.parametrize("value", [260, 2**32 - 1])
def test_special_tokens_outside_the_vocabulary_are_named(tmp_path, key, value):
    _, path = written(tmp_path, "llama")
    file = read_gguf([Path(path)])
    changed = dataclasses.replace(file, metadata={**file.metadata, f"tokenizer.ggml.{key}_token_id": value})
    with pytest.raises(InputError, match=f"{key}_token_id = {value}, expected a whole number from 0 to 259"):
        stated_config(changed)


@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "token_embd.weight", (260, 33)),
        ("llama", "output.weight", (259, 32)),
        ("llama", "output_norm.weight", (31,)),
        ("llama", "blk.1.attn_k.weight", (32, 32)),
        ("llama", "blk.0.ffn_down.weight", (64, 32)),
        ("qwen2", "blk.1.attn_k.bias", (32,)),
        ("qwen3", "blk.0.attn_q_norm.weight", (16,)),
        ("phi3", "blk.0.attn_qkv.weight", (65, 32)),
        ("phi3", "blk.1.ffn_up.weight", (64, 32)),
        ("gpt2", "blk.0.attn_qkv.bias", (95,)),
        ("gpt2", "position_embd.weight", (63, 32)),
    ],
)
def test_tensor_of_another_shape_than_the_sizes_make_it_is_named(tmp_path, architecture, name, shape):
    options = {"head_dim": 8} if architecture == "qwen3" else {}
    _, path = written(tmp_path, architecture, more={name: np.ones(shape, np.float32)}, **options)
    said = message(path)
    assert "the sizes it states make it" in said
    assert name in said or name == "token_embd.weight"


def test_architecture_that_is_not_read_is_refused(tmp_path):
    model = made_model("llama")
    metadata = metadata_of(model, "llama")
    path = write_gguf(tmp_path / "a.gguf", tensors_of(model, "llama"), "granite", metadata)
    assert "is granite, read are models of llama, qwen2" in message(path)


def test_adapter_is_refused(tmp_path):
    _, path = written(tmp_path, "llama", general={"general.type": "adapter"})
    assert "is adapter, read are models" in message(path)


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "blk.0.attn_norm.weight"])
def test_tensor_that_lacks_is_named_instead_of_drawn_at_random(tmp_path, name):
    _, path = written(tmp_path, "llama", less=[name])
    assert f"lacks 1 tensors ({name}" in message(path)


@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "blk.0.attn_q_norm.weight", 8),
        ("llama", "blk.0.attn_sinks.weight", 4),
        ("llama", "blk.1.ffn_down.bias", 32),
        ("llama", "blk.1.attn_q.bias", 32),
        ("llama", "blk.2.attn_norm.weight", 32),
        ("llama", "blk.0.post_attention_norm.weight", 32),
        ("llama", "output.bias", 260),
        ("llama", "blk.0.ssm_a", 4),
        ("qwen2", "blk.0.attn_output.bias", 32),
        ("phi3", "blk.0.attn_qkv.bias", 64),
    ],
)
def test_tensor_that_would_be_dropped_is_named(tmp_path, architecture, name, shape):
    _, path = written(tmp_path, architecture, more={name: np.ones(shape, np.float32)})
    assert f"holds 1 tensors that {architecture} models here lack ({name}" in message(path)


def test_split_model_is_read_whole_from_any_of_its_files_and_from_the_folder(tmp_path):
    model = made_model("llama")
    (tmp_path / "split").mkdir()
    paths = write_shards(tmp_path / "split", tensors_of(model, "llama"), "llama", metadata_of(model, "llama"))
    fingerprints = {load_model(str(path)).fingerprint for path in (*paths, tmp_path / "split")}
    assert len(fingerprints) == 1
    for path in paths:
        assert_same_logits(model, path)


def test_split_model_is_what_its_files_hold_not_what_its_first_one_does(tmp_path):
    model = made_model("llama")
    tensors, metadata = tensors_of(model, "llama"), metadata_of(model, "llama")
    first = write_shards(tmp_path, tensors, "llama", metadata)[0]
    before, content = load_model(str(first)).fingerprint, first.read_bytes()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] += 1
    changed = tensors_of(model, "llama")
    write_shards(tmp_path, changed, "llama", metadata)
    assert first.read_bytes() == content
    assert load_model(str(first)).fingerprint != before
    assert_same_logits(model, first)


def test_split_model_without_one_of_its_files_is_refused(tmp_path, cache):
    model = made_model("llama")
    paths = write_shards(tmp_path, tensors_of(model, "llama"), "llama", metadata_of(model, "llama"))
    paths[1].unlink()
    for path in (paths[0], paths[2]):
        assert "one of 3 files of a split model, tiny-00002-of-00003.gguf missing" in message(path)
    assert not list(cache.glob("converted/*"))


def test_shard_under_another_name_is_refused(tmp_path):
    model = made_model("llama")
    paths = write_shards(tmp_path, tensors_of(model, "llama"), "llama", metadata_of(model, "llama"))
    assert "its name does not say which" in message(paths[0].rename(tmp_path / "renamed.gguf"))


def test_shards_of_two_models_are_refused(tmp_path):
    model = made_model("llama")
    tensors, metadata = tensors_of(model, "llama"), metadata_of(model, "llama")
    first, second, third = write_shards(tmp_path, tensors, "llama", metadata)
    content = third.read_bytes()
    third.write_bytes(second.read_bytes())
    assert "is not file 3 of 3" in message(first)
    third.write_bytes(content)
    fewer = dict(list(tensors.items())[:-1])
    write_gguf(third, dict(list(fewer.items())[2::3]), "llama", metadata, shard=(2, 3, len(tensors)))
    assert "hold 20 tensors, not the 21" in message(first)


def test_conversions_of_an_earlier_version_are_not_taken_from_the_cache(tmp_path, cache):
    model, path = written(tmp_path, "llama")
    load_model(path)
    (folder,) = cache.glob("converted/*")
    assert folder.name.endswith("-v2")
    old = folder.with_name(folder.name.removesuffix("-v2"))
    folder.rename(old)
    (old / "model.safetensors").write_bytes(b"wrong")
    assert_same_logits(model, path)


def test_what_a_killed_conversion_left_goes_with_the_next(tmp_path, cache):
    _, path = written(tmp_path, "llama")
    child = os.fork()
    if child == 0:

        def die(file, whole, config, folder):
            folder.with_name("half").write_bytes(b"x")
            os.kill(os.getpid(), signal.SIGKILL)

        gguf._convert = die
        gguf.converted(Path(path))
    os.waitpid(child, 0)
    assert len(list(cache.glob("converted/*/half"))) == 1
    load_model(path)
    assert [p.name.endswith("-v2") for p in cache.glob("converted/*")] == [True]


def test_unknown_way_to_split_text_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("saelora.models.gguf_config._GPT2_SPLITS", ())
    _, path = written(tmp_path, "llama")
    load_model(path)
    assert "its way to split text (smollm) is not known" in caplog.text
