"""Commands on a cross-layer transcoder: adapt, evaluate in its parts, load and generate, and what is refused of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import saelora
import workspace as ws
from saelora.cli import main
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_clt import clt_weights, write_clt, written

W = clt_weights(ws.N_LAYERS, ws.D_MODEL, size=0.1)
W = [{**w, "b_enc": w["b_enc"] - 1.0} for w in W]  # some latents fire in some texts only
PROMPT = "bada lume"
FEW = {"steering_n": 2, "steering_tokens": 60 * ws.CONTEXT, "steering_window": 8, "ablation_draws": 1}
FEW |= {"steering_tuning_texts": 2, "steering_test_texts": 2, "ablation_tokens": 4 * ws.CONTEXT}
FEW |= {"replacement_tokens": 4 * ws.CONTEXT}


@pytest.fixture(scope="module")
def clt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clt(tmp_path_factory.mktemp("clt") / "clt", W)


@pytest.fixture(scope="module")
def run(workspace: ws.Workspace, clt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert workspace.adapt(out, sae=None, transcoders=clt, placement="all", samples=1) == 0
    return out


def results_of(path: Path) -> Any:
    return json.loads(path.read_text())


def evaluated(run: Path, out: Path, *flags: str) -> Any:
    assert main(["evaluate", "--adapter", str(run), "--device", "cpu", "--out", str(out), *flags]) == 0
    return results_of(out)


def test_adapt_closes_some_of_its_gap_and_evaluate_finds_the_same(run: Path, tmp_path: Path) -> None:
    results = results_of(run / "results.json")
    assert results["ce_sae"] > results["ce_base"] + 0.01
    assert results["gap_closed"] > 0.1
    assert list(results["saes"]) == [f"layers.{layer}.mlp_out" for layer in range(ws.N_LAYERS)]
    again = evaluated(run, tmp_path / "again.json")
    assert again["ce_adapted"] == pytest.approx(results["ce_adapted"], abs=1e-6)
    assert again["ce_sae"] == pytest.approx(results["ce_sae"], abs=1e-6)
    added = evaluated(run, tmp_path / "added.json", "--add-error")
    assert added["ce_sae"] == added["ce_base"]
    parallel = evaluated(run, tmp_path / "parallel.json", "--replacement-mode", "parallel")
    assert parallel["ce_sae"] != pytest.approx(results["ce_sae"], abs=1e-4)


def test_all_parts_measure_it(run: Path, tmp_path: Path) -> None:
    given = {"adapter": run, "out": tmp_path / "evals", "device": "cpu", **FEW}
    assert main(["evaluate", *ws.as_flags(given), "--parts", "all"]) == 0
    names = sorted(path.stem for path in (tmp_path / "evals").glob("*.json"))
    assert names == ["drift", "faithfulness", "loss", "replacement", "steering", "tokens"]
    results = results_of(run / "results.json")
    faithful = results_of(tmp_path / "evals" / "faithfulness.json")["result"]
    assert faithful["ce"]["adapted"]["value"] == pytest.approx(results["ce_adapted"], abs=1e-5)
    replaced = results_of(tmp_path / "evals" / "replacement.json")["result"]
    assert [step["n_replaced"] for step in replaced["curves"]["cascading"]] == [ws.N_LAYERS]
    assert replaced["alone"] == []


def test_a_run_is_loaded_generates_with_a_cache_and_is_steered_in_all_later_layers(run: Path) -> None:
    """Against hooks by hand in the MLPs' places."""
    loaded = saelora.load(run)
    ids = torch.tensor([loaded.tokenizer(PROMPT).input_ids])
    mask = torch.arange(ids.shape[1])[None] > 0
    weights = [{name: tensor.float() for name, tensor in w.items()} for w in W]
    reads: list[torch.Tensor] = []

    def by_hand(push: float) -> torch.Tensor:
        handles, layers = [], anatomy_of(loaded.model).layers

        def in_its_place(layer: int) -> Any:
            def hook(_module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
                reads[layer:] = [args[0]]
                made = written([{**w, "W_skip": 0 * w["W_skip"]} for w in weights], reads)
                made = made + push * weights[1]["W_dec"][7, layer - 1] if layer >= 1 else made
                return torch.where(mask[..., None], made, output)

            return hook

        handles = [layers[i].mlp.register_forward_hook(in_its_place(i)) for i in range(ws.N_LAYERS)]
        with torch.no_grad():
            logits: torch.Tensor = loaded.model(input_ids=ids).logits
        for handle in handles:
            handle.remove()
        return logits

    plain, pushed = by_hand(0.0), by_hand(3.0)
    assert (plain - pushed).abs().max() > 1e-2
    torch.testing.assert_close(loaded.logits(ids), plain, rtol=1e-4, atol=1e-4)
    with loaded.steer({(Hookpoint(1, "mlp_out"), 7): "+3"}):
        torch.testing.assert_close(loaded.logits(ids), pushed, rtol=1e-4, atol=1e-4)
        made = loaded.generate(PROMPT, max_new_tokens=6)
        assert made == loaded.generate(PROMPT, max_new_tokens=6, use_cache=False)
    assert loaded.generate(PROMPT, max_new_tokens=6) == loaded.generate(PROMPT, max_new_tokens=6, use_cache=False)


def test_what_does_not_hold_for_it_is_refused_in_one_line(
    workspace: ws.Workspace, clt: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(code: int) -> str:
        assert code == 2
        *before, said = capsys.readouterr().err.strip().splitlines()
        assert not any(line.startswith("saelora: ") for line in before)
        return said

    def adapting(*flags: str, **options: Any) -> str:
        capsys.readouterr()
        given = {"sae": None, "transcoders": clt, **options}
        return refused(workspace.adapt(tmp_path / "refused", *flags, **given))

    assert "is put in whole, leave --transcoder-layers out" in adapting(transcoder_layers="every:2")
    assert "has no layer 3, but 0-2" in adapting(transcoders=write_clt(tmp_path / "short", W[:3]))
    other = write_clt(tmp_path / "other", clt_weights(ws.N_LAYERS, 24))
    assert "reads d_in 24, this model has d_model 32" in adapting(transcoders=other)
    few = write_clt(tmp_path / "few", [{**w, "W_dec": w["W_dec"][:, :1]} for w in W])
    assert "latents of layer 0 write into 1 layers, expected 4, as this model has 4" in adapting(transcoders=few)
    assert "layer 0 of it is not here" in adapting(sae=clt / "W_enc_1.safetensors", transcoders=None)
    assert "holds a cross-layer transcoder" in adapting(sae=clt, transcoders=None)
    assert "and this is a transcoder: use lora" in adapting(method="linear")
    assert "a cross-layer transcoder, once trained, could not be saved" in adapting(method="lora+sae")
    capsys.readouterr()
    words = [
        "evaluate",
        "--adapter",
        str(run),
        "--parts",
        "replacement",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "x"),
    ]
    assert "replaces all MLPs or none" in refused(main([*words, "--replacement-sizes", "1", "2"]))
    assert "replaces all MLPs or none" in refused(main([*words, "--replacement-modes", "independent"]))
