#!/usr/bin/env bash
# In mixtures of experts, PEFT takes the names of shared and dense MLPs for those of the routed experts: an adapter asked
# for on `mlp.shared_experts.up_proj` is put on the experts' fused weights, at twice the rank, and on no shared MLP.
#
# What one expects: target_modules names modules of the model, and those get adapters; a name that fits none is an error.
#
# What happens: transformers 5 fuses all experts into one tensor. For adapters made before that, PEFT rewrites the
# configuration of some model types when it is applied: each target that ends in .gate_proj, .up_proj or .down_proj
# becomes a target *parameter*, experts.gate_up_proj or experts.down_proj, with a rank pattern of twice the rank. It does
# so to any name with that ending, so the modules of the same name in a dense layer or in the shared expert, which are
# still linear modules and were what was named, get nothing. No warning is given, and the configuration that is saved says
# what was made, not what was asked for.
#
# Seen on 2026-11-27 with peft 0.21.2, transformers 5.23.0, torch 2.13.0: a tiny DeepSeek-V3 whose first layer is dense
# asked for: mlp.gate_proj, mlp.up_proj, mlp.down_proj (layer 0) and the same under mlp.shared_experts (layer 1), rank 2
# got: layers.1.mlp.experts alone; target_parameters down_proj and gate_up_proj, rank_pattern {".*\.gate_up_proj": 4}
#
# Why it matters here: whoever adapts a model around an SAE wants all linear modules. The adapter trains, the loss falls,
# and other weights have moved, of another number, than the configuration named.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$tmp/venv/bin/python" -W ignore - <<'PY'
import sys

from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

config = DeepseekV3Config(
    vocab_size=64, hidden_size=16, intermediate_size=20, moe_intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
    v_head_dim=6, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1,
    first_k_dense_replace=1, max_position_embeddings=32,
)  # fmt: skip
model = DeepseekV3ForCausalLM(config)
linear = {name for name, module in model.named_modules() if type(module).__name__ == "Linear"}
ends = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
asked = [*ends, *(end.replace("mlp.", "mlp.shared_experts.") for end in ends)]
there = sorted(name for name in linear if name.endswith(tuple(asked)))
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=asked))
got = {
    name.partition(".lora_A")[0].removeprefix("base_model.model.").replace(".base_layer", ""): tuple(weight.shape)
    for name, weight in adapted.named_parameters()
    if "lora_A" in name
}
print("linear modules of these names:", ", ".join(there))
print("modules with an adapter:", ", ".join(sorted(got)))
made = adapted.peft_config["default"]
print("target_parameters now:", sorted(made.target_parameters), "rank_pattern:", made.rank_pattern)
if len(there) != 6:
    sys.exit("changed: the model's modules have other names now")
if set(got) != {"model.layers.1.mlp.experts"}:
    sys.exit("changed: other modules get the adapter now")
if list(made.rank_pattern.values()) != [4]:
    sys.exit("changed: the rank is no longer doubled")
PY
