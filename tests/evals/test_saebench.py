"""SAEBench: what is exported, how its environment is made, what is read back, and what cannot change."""

import json
import os
import venv
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformers import AutoModelForCausalLM

import families
from saelora.core import lora
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.evals.saebench import environment, metrics
from saelora.evals.saebench.export import export_model, export_sae
from saelora.evals.saebench.local import local_data
from saelora.evals.saebench.runner import texts
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, hooks_in, saes_at

HERE = Hookpoint(1)


class Saves:
    """A tokenizer as far as an export is concerned."""

    bos_token_id = None

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


def with_adapter(model, layers=(1, 2)):
    made = get_peft_model(model, lora.lora_config(model, list(layers), rank=4, alpha=8)).double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return made


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel"])
def test_exported_models_say_what_the_running_ones_say(family, fresh, batch, tmp_path) -> None:
    model = with_adapter(fresh(family))
    with torch.no_grad(), splice(model, saes_at(anatomy_of(model), [HERE]), SPARE_SPECIAL) as spliced:
        hooks, state = hooks_in(model), {k: v.clone() for k, v in model.state_dict().items()}
        export_model(model, Saves(), tmp_path / "base", merged=False)
        export_model(model, Saves(), tmp_path / "adapted", merged=True)
        assert hooks_in(model) == hooks
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        with spliced.disabled():
            expected = {"adapted": model(batch.ids[:1]).logits}
            with lora.disabled(model):
                expected["base"] = model(batch.ids[:1]).logits
        for name, logits in expected.items():
            found = AutoModelForCausalLM.from_pretrained(
                tmp_path / name, dtype=torch.float64, attn_implementation=model.config._attn_implementation
            )
            assert torch.allclose(found(batch.ids[:1]).logits, logits, atol=1e-9), name
        assert not torch.allclose(expected["base"], expected["adapted"], atol=1e-3)


def test_exported_sae_is_read_back_equal_under_transformerlens_name(tmp_path) -> None:
    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=24, k=4, metadata=SAEMetadata(hook_name="layers.9", model_name="m")))
    export_sae(sae, Hookpoint(2, "mlp_out"), tmp_path / "sae")
    found = SAE.load_from_disk(tmp_path / "sae")
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), sae(x))
    assert found.cfg.metadata.hook_name == "blocks.2.hook_mlp_out"
    assert sae.cfg.metadata.hook_name == "layers.9"


def test_environment_is_made_without_cuda_where_there_is_no_gpu(tmp_path) -> None:
    venv, torch_alone, rest = environment.commands(tmp_path / "env", has_gpu=False)
    assert venv[1:3] == ["-m", "venv"]
    assert {"--no-deps", "--extra-index-url"} <= set(torch_alone)
    assert torch_alone[-1].startswith("torch==")
    assert rest[-3:] == ["--no-deps", "-r", str(environment.requirements())]
    assert rest[0].startswith(str(tmp_path / "env"))
    _, with_cuda, _ = environment.commands(tmp_path / "env", has_gpu=True)
    assert "--no-deps" not in with_cuda


def test_requirements_pin_every_package_and_what_saebench_cannot_do_without() -> None:
    lines = [line for line in environment.requirements().read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    pins = dict(line.split("==") for line in lines)
    assert pins["sae-bench"] == "0.6.0"
    assert int(pins["numpy"].split(".")[0]) < 2
    assert int(pins["datasets"].split(".")[0]) < 4
    assert "torchvision" not in pins


def test_a_python_without_saebench_is_refused_with_the_command_that_installs_it() -> None:
    with pytest.raises(InputError, match=r"no program"):
        environment.check_python("no-such-python")
    import sys

    with pytest.raises(InputError, match=r"pip install --no-deps -r .*requirements\.txt"):
        environment.check_python(sys.executable)


@pytest.mark.parametrize(
    ("hookpoint", "layers", "expected"),
    [
        (Hookpoint(2), [3, 4], False),
        (Hookpoint(2), [2], True),
        (Hookpoint(2, "resid_pre"), [2, 3], False),
        (Hookpoint(2, "resid_pre"), [1], True),
        (Hookpoint(2, "mlp_out"), [2], True),
        (Hookpoint(2), [], False),
    ],
)
def test_adapters_reach_a_hookpoint_only_from_below(hookpoint, layers, expected) -> None:
    assert metrics.reaches(hookpoint, layers) is expected


def test_only_core_can_change_with_adapters_above_every_sae() -> None:
    assert metrics.cannot_change([Hookpoint(1), Hookpoint(2)], [3], metrics.EVALS) == list(metrics.EVALS[1:])
    assert metrics.cannot_change([Hookpoint(1), Hookpoint(4)], [3], metrics.EVALS) == []
    assert metrics.can_change("core", "model_performance_preservation", reached=False)
    assert not metrics.can_change("core", "sparsity", reached=False)
    assert metrics.can_change("core", "sparsity", reached=True)


def write(folder: Path, name: str, metrics: dict) -> None:
    """A result file as SAEBench 0.6 writes it, as far as it is read."""
    where = folder / str(HERE) / name / (name if name in ("scr", "tpp") else "")
    where.mkdir(parents=True)
    text = {"eval_type_id": name, "eval_config": {"random_seed": 42}, "eval_result_metrics": metrics}
    (where / "saelora_custom_sae_eval_results.json").write_text(json.dumps(text))


def core(ce: float) -> dict:
    losses = {"ce_loss_with_sae": ce, "ce_loss_without_sae": 3.0}
    return {"model_performance_preservation": losses, "sparsity": {"l0": 32.0}, "token_stats": {"total": 4096}}


def test_results_are_read_into_one_table_base_beside_adapted(tmp_path) -> None:
    write(tmp_path / "base", "core", core(3.5))
    write(tmp_path / "adapted", "core", core(3.2))
    write(tmp_path / "base", "sparse_probing", {"sae": {"sae_top_1_test_accuracy": 0.75, "sae_top_50_test": None}})
    rows = metrics.table(tmp_path / "base", tmp_path / "adapted", [HERE], metrics.EVALS, [2, 3])
    found = {row.metric: (row.base, row.adapted, row.can_change, row.measured_once) for row in rows}
    assert found == {
        "ce_loss_with_sae": (3.5, 3.2, True, False),
        "ce_loss_without_sae": (3.0, 3.0, True, False),
        "l0": (32.0, 32.0, False, False),
        "sae_top_1_test_accuracy": (0.75, 0.75, False, True),
    }


def test_an_evaluation_that_could_change_but_was_not_measured_has_no_adapted_value(tmp_path) -> None:
    write(tmp_path / "base", "scr", {"scr_metrics": {"scr_dir1_threshold_2": 0.1}})
    [row] = metrics.table(tmp_path / "base", tmp_path / "adapted", [HERE], ["scr"], [1])
    assert (row.base, row.adapted, row.can_change) == (0.1, None, True)


def test_a_file_that_is_no_result_is_refused(tmp_path) -> None:
    (tmp_path / "x_eval_results.json").write_text("{}")
    with pytest.raises(InputError, match="no eval_result_metrics"):
        metrics.read_metrics(tmp_path)


def test_local_data_are_found_by_name_and_checked(tmp_path) -> None:
    with pytest.raises(InputError, match="holds no local data"):
        local_data(tmp_path)
    (tmp_path / "probing.jsonl").write_text('{"text": "a", "label": 1}\n')
    assert local_data(tmp_path) == {"probing": [str(tmp_path / "probing.jsonl")], "scr": None}
    (tmp_path / "scr.jsonl").write_text('{"text": "a", "label": 1}\n')
    with pytest.raises(InputError, match=r"scr\.jsonl line 1: expected .* attribute"):
        local_data(tmp_path)


def test_rows_without_a_split_are_split_one_in_five() -> None:
    rows = [{"text": str(i), "label": i % 2} for i in range(20)]
    train, test = texts.split_rows(rows)
    assert [row["text"] for row in test] == ["4", "9", "14", "19"]
    assert len(train) == 16
    named = [{"text": "a", "label": 0, "split": "test"}, {"text": "b", "label": 0, "split": "train"}]
    assert [[row["text"] for row in part] for part in texts.split_rows(named)] == [["b"], ["a"]]


def test_probing_sets_are_as_large_as_the_rarest_label_allows() -> None:
    rows = [{"text": "x", "label": label, "split": s} for s, n in (("train", 6), ("test", 3)) for label in "aab" * n]
    assert texts.set_sizes(rows, 1000, 4) == (12, 4)
    train, _ = texts.split_rows(rows)
    assert {label: len(found) for label, found in texts.by_label(train, 6).items()} == {"a": 6, "b": 6}
    assert list(texts.by_label(train, 7)) == ["a"]


def test_scr_sets_leave_twice_as_many_where_label_and_attribute_agree() -> None:
    counts = {("a", "x"): 9, ("a", "y"): 5, ("b", "x"): 4, ("b", "y"): 11}
    rows = [
        {"text": "t", "label": label, "attribute": attribute, "split": split}
        for split in ("train", "test")
        for (label, attribute), n in counts.items()
        for _ in range(n)
    ]
    assert texts.pair_sizes(rows, 1000, 8) == (16, 8)  # SAEBench wants more than 2 x 4 where they agree: 9 will do
    with pytest.raises(ValueError, match="3 labels"):
        texts.quadrants([*rows, {"text": "t", "label": "c", "attribute": "x"}])


def test_runner_begins_in_an_environment_without_saelora_and_its_last_words_are_told(fresh, tmp_path) -> None:
    from saelora.evals.saebench.run import Plan, run_saebench

    venv.create(tmp_path / "empty", symlinks=True)
    plan = Plan(["core"], {"context": 4}, None, "float32", "cpu", True)
    rows = torch.zeros(1, 4, dtype=torch.long)
    python = tmp_path / "empty" / "bin" / "python"
    with pytest.raises(InputError, match=r"exit code 1 \(ModuleNotFoundError: No module named 'torch'\): see"):
        run_saebench(fresh("llama"), {}, Saves(), rows, plan, python, _made(tmp_path / "work"))


@pytest.mark.skipif("SAEBENCH_PYTHON" not in os.environ, reason="SAEBENCH_PYTHON names no environment with SAEBench")
def test_saebench_runs_on_exported_models(fresh, tmp_path) -> None:
    from saelora.evals.saebench.run import Plan, run_saebench

    model = with_adapter(fresh("llama"), layers=(2, 3)).float()
    metadata = SAEMetadata(hook_name=HERE.tl_name, model_name="m")
    sae = TopKSAE(TopKSAEConfig(d_in=families.D_MODEL, d_sae=24, k=4, metadata=metadata))
    rows = torch.randint(3, families.VOCAB, (8, 16), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = families.BOS
    sizes = {"train": 8, "test": 4, "context": 16, "batch": 4, "core_batch": 4}
    sizes |= {"core_batches": 2, "core_variance_batches": 2}
    evals = ["core", "sparse_probing", "scr", "tpp"]
    plan = Plan(evals, sizes, tmp_path, "float32", "cpu", True, twice=True)
    words = {("a", "x"): "w5 w6", ("a", "y"): "w5 w9", ("b", "x"): "w20 w6", ("b", "y"): "w20 w9"}
    texts = [
        {"text": f"{text} w{30 + i}", "label": label, "attribute": attribute}
        for i in range(30)
        for (label, attribute), text in words.items()
    ]
    for name in ("probing", "scr"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    found = run_saebench(
        model, {HERE: sae}, _words(), rows, plan, Path(os.environ["SAEBENCH_PYTHON"]), _made(tmp_path / "work")
    )
    assert found.skipped == []
    assert {row.eval for row in found.metrics} == set(evals)
    values = {row.metric: (row.base, row.adapted) for row in found.metrics}
    assert values["l0"] == pytest.approx((4.0, 4.0))
    assert values["ce_loss_with_sae"][0] != values["ce_loss_with_sae"][1]
    for row in found.metrics:  # all were measured on both models: what is said to be fixed must be equal
        if not row.can_change:
            assert row.base == pytest.approx(row.adapted, abs=1e-6), row
    assert not list((tmp_path / "work").glob("model-*/*.safetensors"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _words():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, families.VOCAB)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
