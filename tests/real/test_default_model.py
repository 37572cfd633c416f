"""The main job on the real default model, its shipped SAE and real text, at a size that tests can afford."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import saelora
from saelora.cli import main
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.use.export import export

pytestmark = [pytest.mark.real, pytest.mark.timeout(600), pytest.mark.xdist_group("real")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "run"
    options = ["--tokens", "3072", "--eval-tokens", "1536", "--history-points", "1"]
    code = main(["adapt", DEFAULT_MODEL, "--sae", DEFAULT_SAE, "--data", DEFAULT_DATA, "--out", str(folder), *options])
    assert code == 0
    return folder


def test_a_few_thousand_tokens_already_win_back_part_of_the_gap(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["ce_base"] < results["ce_adapted"] < results["ce_sae"]
    assert results["kl_adapted"] < results["kl_sae"]
    assert abs(results["ce_adapted_clean"] - results["ce_base"]) < 0.05


def test_shipped_sae_is_what_its_card_says() -> None:
    sae = saelora.load_sae(DEFAULT_SAE)
    assert (sae.d_in, sae.d_sae, sae.architecture, str(sae.hookpoint)) == (576, 4608, "topk", "layers.12.resid_post")
    assert sae.metadata["k"] == 32


def test_example_generates_through_the_sae(run: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / "generate_through_sae.py"
    spec = importlib.util.spec_from_file_location("example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    texts = example.main(str(run), "Fellow citizens, the state of our union")
    assert set(texts) == {"original", "spliced", "adapted"}
    assert texts["original"] != texts["spliced"]


def test_llama_cpp_runs_the_exported_adapter_as_we_do(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="runs adapters by llama.cpp: pip install xllamacpp")
    found = export(ref=str(run), to="gguf", out=str(tmp_path / "gguf"), quiet=True)
    assert found["not_run"] is None
    assert max(found["difference"].values()) < 1e-3


def test_splice_leaves_the_real_model_bit_for_bit_as_it_was() -> None:
    loaded = saelora.load_model(DEFAULT_MODEL)
    sae = saelora.load_sae(DEFAULT_SAE)
    ids = loaded.tokenizer("<|im_start|>The state of the union is strong.", return_tensors="pt").input_ids
    with torch.no_grad():
        before = loaded.model(ids).logits
        token_mask = saelora.TokenPolicy().resolve(loaded.tokenizer)
        with saelora.splice(loaded.model, {sae.hookpoint: sae.sae}, token_mask):
            inside = loaded.model(ids).logits
        after = loaded.model(ids).logits
    assert torch.equal(before, after)
    assert not torch.allclose(before, inside)
    assert torch.equal(before[:, 0], inside[:, 0])  # BOS keeps its own activation and attends to itself alone


def test_replacement_demo_wins_back_much_of_what_all_transcoders_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from saelora.jobs import demo

    monkeypatch.setattr(demo, "REPLACEMENT_TOKENS", 512)
    out = tmp_path / "replaced"
    assert main(["demo", "--replacement", "--tokens", "2048", "--eval-tokens", "512", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["saes"]) == 30
    assert results["ce_base"] < results["ce_adapted"] < results["ce_sae"]
    assert results["kl_adapted"] < 0.9 * results["kl_sae"]
    said = capsys.readouterr().out
    assert "Cascading (each transcoder reads the replaced stream), 30 MLPs replaced" in said
    assert f"saelora generate {out}" in said
    assert (out / "report.html").is_file()
