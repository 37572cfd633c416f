"""Commands on models of no known family: a mixture of experts, and layers that differ inside one model."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf

import workspace as ws
from saelora.cli import main

SIZES = {
    "hidden_size": ws.D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": ws.N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXED = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}


def model_of(kind: str, workspace: ws.Workspace, folder: Path) -> Path:
    """A random model with the workspace's tokenizer."""
    tokenizer = tf.AutoTokenizer.from_pretrained(workspace.model)
    torch.manual_seed(1)
    if kind == "Qwen3Moe":
        model = tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(vocab_size=len(tokenizer), **SIZES, **EXPERTS))
    else:
        model = tf.Qwen3_5ForCausalLM(tf.Qwen3_5TextConfig(vocab_size=len(tokenizer), **SIZES, **MIXED))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["Qwen3Moe", "Qwen3_5"])
def test_adapt_and_evaluate(
    kind: str, workspace: ws.Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = model_of(kind, workspace, tmp_path / "model"), tmp_path / "run"
    options = {**ws.ADAPT, "sae": workspace.sae, "data": workspace.data, "out": out, "tokens": 20 * ws.CONTEXT}
    assert main(["adapt", str(model), *ws.as_flags(options)]) == 0
    told = capsys.readouterr()
    said = " ".join((told.out + told.err).split())
    left = "left as they are: mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight, which are no linear"
    assert (left in said) == (kind == "Qwen3Moe")
    results = json.loads((out / "results.json").read_text())
    assert results["ce_adapted"] != results["ce_sae"]  # it has learned something; of random text, not much
    parts = ["loss", "tokens", "drift", "faithfulness"]
    small = ws.as_flags({"text_rows": 3, "passages": 2, "frequency_tokens": 2000})
    assert main(["evaluate", "--adapter", str(out), "--parts", *parts, *small, "--quiet"]) == 0
    again = json.loads((out / "evals" / "loss.json").read_text())["result"]
    assert again["ce_adapted"] == results["ce_adapted"]
