"""Each cause for which a model does not load has its own line, and what it advises helps."""

import errno
import json
import shutil

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, __version__

from saelora.errors import InputError
from saelora.models.loading import load_model
from saelora.models.remedies import explain

SHARD, INDEX = "model-00001-of-00006.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A tiny llama in six shards, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder, max_shard_size="1KB")
    words = {word: i for i, word in enumerate("abcdefg")} | {"</s>": 7}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(words, [])), eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "m")


def message(folder):
    with pytest.raises(InputError) as caught:
        load_model(str(folder))
    said = str(caught.value)
    assert "\n" not in said
    assert "fetch it again" not in said
    return said


def configured(folder, **changed):
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_sound_model_loads(folder):
    load_model(str(folder))


QUANTISED = {
    "gptq": ({"bits": 4, "group_size": 128}, "optimum"),
    "awq": ({"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, "gptqmodel"),
    "bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes"),
    "compressed-tensors": ({"format": "pack-quantized", "config_groups": {}}, "compressed-tensors"),
    "hqq": ({}, "HQQ"),
    "aqlm": ({}, "aqlm"),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_model_names_the_package_that_it_needs(folder, method):
    options, package = QUANTISED[method]
    said = message(configured(folder, quantization_config={"quant_method": method, **options}))
    assert "needs a package that is not there" in said
    assert package in said


def test_quantisation_that_transformers_passes_over_is_refused(folder):
    said = message(configured(folder, quantization_config={"quant_method": "exl2", "bits": 4}))
    assert f"quantised by 'exl2', which transformers {__version__} passes over" in said


@pytest.mark.parametrize("asked", ["flash_attention_2", "nonsense"])
def test_attention_that_is_not_there_is_named_and_leaving_it_out_helps(folder, asked):
    configured(folder, _attn_implementation=asked, attn_implementation=asked)
    assert "the attention asked for is not available here" in message(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["_attn_implementation"], config["attn_implementation"]
    (folder / "config.json").write_text(json.dumps(config))
    load_model(str(folder))


# SPEC 12.8
def test_code_of_a_repository_is_neither_run_nor_asked_about(folder, monkeypatch):
    ran = folder.parent / "ran"
    code = f"open({str(ran)!r}, 'w')\n"
    (folder / "configuration_x.py").write_text(code)
    configured(folder, model_type="xmodel", auto_map={"AutoConfig": "configuration_x.XConfig"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks at a prompt"))
    assert "needs code from its own repository, which is never run" in message(folder)
    assert not ran.exists()


def test_code_of_a_tokenizer_is_neither_run_nor_asked_about(folder, monkeypatch):
    (folder / "tok_x.py").write_text("raise SystemExit")
    written = {"tokenizer_class": "XTokenizer", "auto_map": {"AutoTokenizer": ["tok_x.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks at a prompt"))
    assert "needs code from its own repository" in message(folder)


def test_unknown_kind_of_model_names_the_version_that_does_not_know_it(folder):
    assert f"of a kind (llama9) that transformers {__version__} does not know" in message(
        configured(folder, model_type="llama9")
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"hidden_size": "x"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 3}, "hidden size (8) is not a multiple of the number of attention heads (3)"),
        ({"hidden_act": "nope"}, "config.json names 'nope'"),
        ({"intermediate_size": 16}, "mlp.down_proj.weight (8, 8), expected (8, 16)"),
        ({"num_hidden_layers": 3}, "lacks 9 weights (model.layers.2."),
        ({"num_hidden_layers": 1}, "holds 9 weights that a llama model"),
    ],
)
def test_wrong_configuration_is_named_as_such(folder, changed, expected):
    said = message(configured(folder, **changed))
    assert "config.json" in said
    assert expected in said


def damaged(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:20])


def pointer(folder):
    (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")


def without(*patterns):
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (without(SHARD), f"{SHARD}, named by {INDEX}, not there"),
        (damaged(SHARD), f"{SHARD} is damaged or incomplete: fetch that file again"),
        (damaged(INDEX), f"{INDEX} is damaged or incomplete"),
        (damaged("config.json"), "config.json is damaged or incomplete"),
        (damaged("tokenizer.json"), "tokenizer.json is damaged or incomplete"),
        (pointer, f"{SHARD} is a Git LFS pointer instead of the file"),
        (without("*.safetensors*"), "holds no weights: expected model.safetensors"),
        (without("tokenizer*"), "comes without a tokenizer"),
        (without("tokenizer.json"), "tokenizer"),
    ],
)
def test_harm_is_named_by_its_file(folder, harm, expected):
    harm(folder)
    assert expected in message(folder)


def with_weights(folder, **more):
    weights = load_file(folder / SHARD)
    save_file(weights | more, folder / SHARD, metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(more, SHARD)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.sinks", "lm_head.bias"]
)
# SPEC 12.5
def test_weight_that_would_be_dropped_is_refused(folder, name):
    assert f"has no place for ({name}, ...)" in message(with_weights(folder, **{name: torch.ones(8)}))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.patch.weight",
        "v_head.summary.weight",
        "mtp.norm.weight",
    ],
)
def test_weight_that_no_language_model_uses_is_left_out(folder, name):
    load_model(str(with_weights(folder, **{name: torch.ones(4)})))


def hub_error(kind, text="said by the hub"):
    response = pytest.importorskip("httpx").Response(
        404, request=pytest.importorskip("httpx").Request("GET", "http://x")
    )
    return kind(text, response=response)


def caused(error):
    outer = OSError("what transformers makes of it\nand more")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (caused(OSError(errno.ENOSPC, "No space left on device")), "the disk of "),
        (caused(hub_error(errors.GatedRepoError)), "accept its terms at https://huggingface.co/a/b"),
        (caused(hub_error(errors.RevisionNotFoundError)), "has no such --revision"),
        (caused(hub_error(errors.RepositoryNotFoundError)), "neither a local path nor on the hub"),
        (OSError("a/b does not appear to have a file named config.json. Check"), "lacks a file"),
        (OSError("We couldn't connect to the hub"), "check the name and the network"),
    ],
)
def test_trouble_with_the_hub_is_told_apart(error, expected):
    said = str(explain("a/b", error, "cpu", None))
    assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImportError("GPTQ requires optimum (`pip install optimum`)"), "needs a package that is not there"),
        (RuntimeError("GPU is required to run this"), "runs on a GPU only, this is cpu"),
        (MemoryError("no"), "does not fit this machine's memory"),
    ],
)
def test_what_is_wrong_with_a_model_of_the_hub_is_not_laid_on_the_network(error, expected, tmp_path):
    said = str(explain("a/b", error, "cpu", tmp_path))
    assert expected in said
    assert "network" not in said
