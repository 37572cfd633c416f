"""Exports, each read by the library that it is for."""

import http.server
import importlib.util
import json
import math
import re
import runpy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from sae_lens import SAE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

import saelora
import workspace as ws
from gguf_files import made_model
from saelora.assemble import validation_rows
from saelora.cli import main
from saelora.config import build
from saelora.core.splice import TokenMask, splice
from saelora.errors import InputError
from saelora.options import DataConfig
from saelora.use.export import export
from saelora.use.exports import llama_cpp
from saelora.use.exports.gguf import alpha_of, write_adapter
from saelora.use.exports.gguf_base import write_base
from saelora.use.run import LoadedRun

TEXT = "bada lume re"


def ids_of(run: LoadedRun) -> torch.Tensor:
    return torch.tensor([[run.tokenizer.bos_token_id, *run.tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])


def read_in_full(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits.float()


def test_merged_is_read_by_plain_transformers_and_runs_through_its_saes_by_the_script(
    run, run_folder, tmp_path
) -> None:
    out = tmp_path / "merged"
    found = export(ref=str(run_folder), to="merged", out=str(out), dtype="float32", quiet=True)
    read = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert read.dtype is torch.float32
    assert AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"] == run.tokenizer(TEXT)["input_ids"]
    ids = ids_of(run)
    with run.adapted_clean():
        torch.testing.assert_close(logits(read, ids), run.logits(ids), rtol=1e-4, atol=1e-4)
    spliced = runpy.run_path(str(out / "spliced.py"))["spliced"]
    with spliced(read):
        torch.testing.assert_close(logits(read, ids), run.logits(ids), rtol=1e-4, atol=1e-4)
        made = read.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )  # with a cache
    assert run.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True) == run.generate(
        TEXT, max_new_tokens=6
    )
    assert max(found["difference"].values()) < 1e-3
    assert found["gain_kept"] == pytest.approx(1, abs=1e-3)


def test_merged_in_half_precision_says_what_the_rounding_costs(run, run_folder, tmp_path) -> None:
    out = tmp_path / "merged"
    found = export(ref=str(run_folder), to="merged", out=str(out), dtype="bfloat16", eval_tokens=384, quiet=True)
    read = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert read.dtype is torch.bfloat16
    with run.adapted_clean():
        off = (logits(read_in_full(out), ids_of(run)) - run.logits(ids_of(run))).abs().max()
    assert found["difference"]["adapted_clean, in bfloat16, read by transformers"] > 1e-3
    assert found["difference"]["adapted, by spliced.py"] < 1e-3
    assert 1e-3 < off < 1
    rows = 384 // ws.CONTEXT
    assert found["n_tokens_evaluated"] <= 384 - rows
    assert found["gain_kept"] == (found["ce_sae"] - found["ce_merged"]) / (found["ce_sae"] - found["ce_adapted"])
    assert found["gain_kept"] != 1
    assert f"{found['gain_kept']:.1%} is left" in " ".join(found["notes"])


def test_merged_of_a_run_that_trained_its_sae_sets_the_gain_against_the_sae_as_it_came(workspace, tmp_path) -> None:
    assert workspace.adapt(tmp_path / "both", "--quiet", "--method", "lora+sae", tokens=8 * ws.CONTEXT) == 0
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    asked = {"to": "merged", "dtype": "float32", "eval_tokens": ws.COMMON["eval_tokens"], "quiet": True}
    found = export(ref=str(tmp_path / "both"), out=str(tmp_path / "merged"), **asked)
    for name in ("ce_base", "ce_sae", "ce_adapted", "n_tokens_evaluated"):
        assert found[name] == pytest.approx(results[name], abs=1e-6)
    assert found["gain_kept"] == pytest.approx(1, abs=1e-3)


def test_the_readme_says_how_far_off_run_with_saes_is(run, run_folder, tmp_path) -> None:
    export(ref=str(run_folder), to="saelens", out=str(tmp_path / "saes"), quiet=True)
    text = (tmp_path / "saes" / "README.md").read_text()
    assert "SAEs leave alone: token ids" in text
    assert "run_with_saes" in text
    ids = ids_of(run)
    with run.adapted_clean(), splice(run.model, run.saes_of_default, TokenMask((), 0, False)):
        assert (run.logits(ids) - logits(run.model, ids)).abs().max() < 1e-6
    assert f"up to {0:.2f} on" not in text


def test_saelens_reads_the_saes(run, run_folder, tmp_path) -> None:
    out = tmp_path / "saes"
    found = export(ref=str(run_folder), to="saelens", out=str(out), quiet=True)
    read = SAE.load_from_disk(str(out / ws.HOOKPOINT))
    x = torch.randn(5, ws.D_MODEL)
    own = next(iter(run.saes.values()))
    assert torch.equal(read.encode(x), own.encode(x))
    assert read.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert max(found["difference"].values()) < 1e-3
    assert (out / "spliced.py").is_file()


@pytest.mark.parametrize("name", ["run_folder", "several_folder"])
def test_transformer_lens_runs_through_the_saes_by_the_script(name, tmp_path, request) -> None:
    folder = request.getfixturevalue(name)
    out = tmp_path / "lens"
    found = export(ref=str(folder), to="transformer-lens", out=str(out), quiet=True)
    run = saelora.load(folder)
    script = runpy.run_path(str(out / "bridged.py"))
    model, ids = script["load"](), ids_of(run)
    with run.adapted_clean():
        torch.testing.assert_close(model(ids).detach(), run.logits(ids), rtol=1e-4, atol=1e-4)
    with script["spliced"](model):
        torch.testing.assert_close(model(ids), run.logits(ids), rtol=1e-4, atol=1e-4)
        _, cache = model.run_with_cache(ids)
        made = model.generate(ids, max_new_tokens=6, do_sample=False, verbose=False, return_type="tokens")
    assert f"blocks.{run.hookpoints[0].layer}.hook_resid_post" in cache
    text = run.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert text == run.generate(TEXT, max_new_tokens=6)
    assert torch.equal(model(ids), script["logits"](model, ids, False))  # nothing is left of the hooks
    assert max(found["difference"].values()) < 1e-3
    assert re.search(r"Hooks that replace every position.* up to [1-9]", " ".join(found["notes"]))


@pytest.mark.parametrize("name", ["run_folder", "several_folder"])
def test_nnsight_traces_through_the_saes_by_the_script(name, tmp_path, request) -> None:
    pytest.importorskip("nnsight", reason="nnsight is not installed: pip install nnsight")
    folder = request.getfixturevalue(name)
    out = tmp_path / "sight"
    found = export(ref=str(folder), to="nnsight", out=str(out), quiet=True)
    run = saelora.load(folder)
    script = runpy.run_path(str(out / "traced.py"))
    model, ids = script["load"](), ids_of(run)
    with run.adapted_clean():
        torch.testing.assert_close(script["logits"](model, ids, False), run.logits(ids), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(script["logits"](model, ids), run.logits(ids), rtol=1e-4, atol=1e-4)
    first = min(run.hookpoints)
    with torch.no_grad(), model.trace(ids):
        latents = script["splice"](model)[str(first)].save()
    ours = run.latents(TEXT)
    for token in list(ours.at(first))[1:]:
        assert {each.latent for each in token.active} == set(latents[0, token.index].nonzero().flatten().tolist())
    assert max(found["difference"].values()) < 1e-3


@pytest.fixture(scope="module")
def neuronpedia_folder(run_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("neuronpedia") / "out"
    export(ref=str(run_folder), to="neuronpedia", out=str(out), eval_tokens=12 * ws.CONTEXT, quiet=True)
    return out


def test_neuronpedia_gets_each_latents_density_strongest_texts_and_logits(run, neuronpedia_folder, workspace) -> None:
    body = json.loads((neuronpedia_folder / "1-saelora-res-64" / "batch-0.json").read_text())
    assert (body["modelId"], body["source"]) == ("model", "1-saelora-res-64")
    assert [each["index"] for each in body["features"]] == list(range(ws.D_SAE))
    then = {name: value for name, value in run.run.manifest.config.items() if name in DataConfig.model_fields}
    rows = validation_rows(build(DataConfig, {**then, "eval_tokens": 12 * ws.CONTEXT}), run.loaded)
    special = torch.tensor([run.tokenizer.bos_token_id, run.tokenizer.eos_token_id, run.tokenizer.pad_token_id])
    counted = ~torch.isin(rows, special)
    counted[:, 0] = False
    sae = next(iter(run.saes.values()))
    with run.original(), torch.no_grad():  # below the adapter, so that the SAE sees the same
        x = run.model(input_ids=rows, output_hidden_states=True).hidden_states[2]
    dense = sae.encode(x) * counted.unsqueeze(-1)
    base = AutoModelForCausalLM.from_pretrained(workspace.model)
    weights = ((sae.W_dec * base.model.norm.weight) @ base.lm_head.weight.T).detach()
    for each in body["features"]:
        own = dense[..., each["index"]]
        assert each["density"] == pytest.approx(float((own != 0).sum() / counted.sum()))
        peaks = sorted((float(row.max()) for row in own if row.any()), reverse=True)[:10]
        assert [max(a["values"]) for a in each["activations"]] == pytest.approx(peaks, rel=1e-3)
        assert all(len(a["tokens"]) == len(a["values"]) for a in each["activations"])
        top = weights[each["index"]].topk(10)
        assert [one["value"] for one in each["topLogits"]] == pytest.approx(top.values.tolist(), rel=1e-3)
        assert each["topLogits"][0]["token"] == run.tokenizer.decode([int(top.indices[0])])
        assert each["bottomLogits"][0]["value"] == pytest.approx(float(weights[each["index"]].min()), rel=1e-3)
    assert any(each["activations"] for each in body["features"])


def test_neuronpedias_package_sends_what_the_files_hold(neuronpedia_folder, monkeypatch) -> None:
    base = pytest.importorskip(
        "neuronpedia.requests.base_request", reason="neuronpedia is not installed: pip install neuronpedia"
    )
    received: list[tuple[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.path, body))
            made = {"name": "n", "modelId": "m", "description": None, "urls": [], "sources": [], "layers": 4}
            answer = json.dumps({**made, "id": "m", "displayName": None, "website": None}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(base.NPRequest, "BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/api")
        monkeypatch.setenv("NEURONPEDIA_API_KEY", "key")
        runpy.run_path(str(neuronpedia_folder / "upload.py"))["main"](["--new-model"])
        server.shutdown()
    assert [path for path, _ in received] == ["/api/model/new", "/api/source-set/new", "/api/feature/upload-batch"]
    assert received[0][1]["layers"] == ws.N_LAYERS
    assert received[1][1]["name"] == "saelora-res-64"
    assert received[2][1] == json.loads((neuronpedia_folder / "1-saelora-res-64" / "batch-0.json").read_text())


def test_neuronpedia_gets_no_logits_of_latents_that_a_projection_stands_behind(several_folder, tmp_path) -> None:
    export(ref=str(several_folder), to="neuronpedia", out=str(tmp_path / "out"), eval_tokens=64, quiet=True)
    has = {}
    for path in (tmp_path / "out").glob("*/batch-0.json"):
        has[path.parent.name] = json.loads(path.read_text())["features"][0]["topLogits"] is not None
    one = {"1-saelora-res-pre-64": True, "1-saelora-mlp-64": True, "1-saelora-att-z-64": False}
    assert has == {"2-saelora-res-64": True, **one}


def test_where_the_other_library_is_not_installed_the_script_is_written_and_said_not_to_be_run(
    run_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("saelora.use.exports.scripted.version_of", lambda name: None)
    found = export(ref=str(run_folder), to="nnsight", out=str(tmp_path / "out"), quiet=True)
    assert (found["difference"], found["not_run"]) == ({}, "nnsight is not installed beside saelora")
    assert "was not run" in (tmp_path / "out" / "README.md").read_text()
    compile((tmp_path / "out" / "traced.py").read_text(), "traced.py", "exec")


def test_peft_reads_the_adapter_and_the_notes_name_rank_and_layers(run, run_folder, workspace, tmp_path) -> None:
    out = tmp_path / "adapter"
    found = export(ref=str(run_folder), to="peft", out=str(out), quiet=True)
    assert {p.name for p in out.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workspace.model), str(out))
    with run.adapted_clean():
        assert torch.equal(logits(read, ids_of(run)), run.logits(ids_of(run)))
    told = " ".join(found["notes"])
    assert "Rank 4, layers 2 to 3 (2 of them), float32" in told
    assert "--max-lora-rank 8" in told
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(workspace.model)


def test_gguf_holds_the_adapter_as_llama_cpp_has_the_weights(run, run_folder, tmp_path) -> None:
    out = tmp_path / "gguf"
    found = export(ref=str(run_folder), to="gguf", out=str(out), quiet=True)
    if importlib.util.find_spec("xllamacpp") is None:
        assert "no llama.cpp" in found["not_run"]
    reader = GGUFReader(out / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"
    config = json.loads((run_folder / "adapter_config.json").read_text())
    assert fields["adapter.lora.alpha"] == config["lora_alpha"]
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    names["ffn_down"] = "mlp.down_proj"
    stored = load_file(run_folder / "adapter_model.safetensors")
    undo = LlamaTensorProcessor({"num_attention_heads": 2, "num_key_value_heads": 1})
    assert len(reader.tensors) == len(stored)
    for tensor in reader.tensors:
        _, layer, name, _, side = tensor.name.split(".")
        key = f"base_model.model.model.layers.{layer}.{names[name]}.lora_{side[-1].upper()}.weight"
        read = np.array(tensor.data)
        if side == "lora_b":  # transformers' own reader of such files puts the rows back
            read = undo.process(read, tensor.name).weights
        assert np.array_equal(read, stored[key].numpy()), tensor.name


def test_llama_cpp_runs_the_adapter_as_we_do(run_folder, tmp_path, capsys) -> None:
    pytest.importorskip("xllamacpp", reason="runs adapters by llama.cpp: pip install xllamacpp")
    out = tmp_path / "gguf"
    assert main(["export", str(run_folder), "--to", "gguf", "--out", str(out), "--quiet"]) == 0
    shown = capsys.readouterr().out
    for variant in ("original", "adapted_clean"):
        told = re.search(f"^largest difference of log-probabilities, {variant}, by llama.cpp: (.+)$", shown, re.M)
        assert told
        assert 0 < float(told[1]) < 1e-4
    assert "Run by llama.cpp (of xllamacpp" in (out / "README.md").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "adapter.gguf"]


def test_an_adapter_that_llama_cpp_runs_otherwise_is_not_exported(run_folder, tmp_path, monkeypatch) -> None:
    pytest.importorskip("xllamacpp", reason="runs adapters by llama.cpp: pip install xllamacpp")
    monkeypatch.setattr("saelora.use.exports.gguf.alpha_of", lambda peft: 1.5 * peft["lora_alpha"])
    with pytest.raises(InputError, match=r"the adapter that llama.cpp reads gives logits that differ"):
        export(ref=str(run_folder), to="gguf", out=str(tmp_path / "gguf"), quiet=True)
    assert not (tmp_path / "gguf").exists()


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS = [
    ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 8192}}, 1e-4),
    ("qwen2", {}, 1e-4),
    ("qwen3", {}, 1e-4),
    ("gemma2", {"tie_word_embeddings": True}, 1e-2),  # llama.cpp looks GELU up in a table of 16 bits
    ("gemma3", {"tie_word_embeddings": True}, 1e-2),
]


@pytest.mark.parametrize(("architecture", "options", "within"), KINDS, ids=[kind[0] for kind in KINDS])
def test_llama_cpp_runs_models_of_each_architecture_and_their_adapters_as_transformers_does(
    architecture, options, within, tmp_path
) -> None:
    pytest.importorskip("xllamacpp", reason="runs adapters by llama.cpp: pip install xllamacpp")
    model = made_model(architecture, **options)
    prompts = [[1, 17, 5, 200, 33, 90, 7], [1, 5, 9, 100] * 8]
    write_base(model, architecture, tmp_path / "base.gguf")
    plain = [_after(model, prompt) for prompt in prompts]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=7, target_modules="all-linear")).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "peft")
    ours = torch.stack([torch.stack(plain), torch.stack([_after(adapted, prompt) for prompt in prompts])])
    write_adapter(tmp_path / "peft", model.config, "base", tmp_path / "adapter.gguf", torch.float32)
    found = llama_cpp.log_probabilities(tmp_path / "base.gguf", tmp_path / "adapter.gguf", prompts, 260, tmp_path)
    assert (ours[0] - ours[1]).abs().max() > 1
    assert np.abs(found - ours.numpy()).max() < within


@torch.no_grad()
def _after(model, prompt) -> torch.Tensor:
    return model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)


def test_a_model_whose_rotary_scaling_is_not_written_is_not_run(tmp_path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(InputError, match=r"rotary scaling of the kind linear is not written for llama.cpp here"):
        write_base(made_model("llama", rope_parameters=rope), "llama", tmp_path / "base.gguf")
    assert not (tmp_path / "base.gguf").exists()


def test_rank_stabilised_alpha_is_what_llama_cpp_divides_by_the_rank() -> None:
    assert alpha_of({"lora_alpha": 8, "r": 16}) == 8
    assert alpha_of({"lora_alpha": 8, "r": 16, "use_rslora": True}) / 16 == pytest.approx(8 / math.sqrt(16))


def test_a_run_that_trained_its_sae_exports_that(workspace: ws.Workspace, tmp_path: Path) -> None:
    assert workspace.adapt(tmp_path / "linear", "--quiet", method="linear") == 0
    found = export(ref=str(tmp_path / "linear"), to="saelens", out=str(tmp_path / "out"), quiet=True)
    run = saelora.load(tmp_path / "linear")
    assert run.variants == ("original", "spliced", "adapted")
    read = SAE.load_from_disk(str(tmp_path / "out" / ws.HOOKPOINT))
    x = torch.randn(5, ws.D_MODEL)
    ours = next(iter(run.saes.values()))
    assert torch.equal(read.decode(read.encode(x)), ours.decode(ours.encode(x)))
    with run.spliced():
        theirs = next(iter(run.saes.values()))
    assert ours is not theirs
    assert max(found["difference"].values()) < 1e-3
    with pytest.raises(InputError, match="trained no adapter"):
        export(ref=str(tmp_path / "linear"), to="merged", out=str(tmp_path / "no"), quiet=True)
    assert not (tmp_path / "no").exists()


def test_a_folder_that_is_not_empty_is_left_alone(run_folder, tmp_path, capsys) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    assert main(["export", str(run_folder), "--to", "peft", "--out", str(tmp_path / "mine")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


def test_the_command_names_the_difference_the_folder_and_what_is_next(run_folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run_folder), "--to", "peft", "--out", str(out), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "largest difference of logits, adapted_clean, read by PEFT: 0" in shown
    assert shown.splitlines()[-1].startswith(f"In {out}/ (README.md): PeftModel.from_pretrained(model, ")
