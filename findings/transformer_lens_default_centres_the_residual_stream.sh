#!/usr/bin/env bash
# TransformerLens' default processing of weights leaves the log-probabilities as they are but takes the mean over the
# channels out of the residual stream, so an SAE trained there does not fit the same Hugging Face model.
#
# What one expects: same weights, same log-probabilities, hook at the same place: same activations.
#
# What happens: `center_writing_weights=True` (default of HookedTransformer.from_pretrained and of
# load_and_process_state_dict) subtracts from each matrix that writes to the residual stream its mean over the
# channels. Layer norm removes that mean anyway, so the output does not notice; the residual stream itself does.
#
# Seen on 2026-11-27 with transformer-lens 3.9.0, transformers 5.23.0, torch 2.13.0: tiny GPT-2, norm of the
# difference from Hugging Face's hidden_states[1] relative to that state, and largest difference of log-probabilities:
#   processed (default): 0.251 and 0.000003; after subtracting each token's mean from Hugging Face's state 0.0000004
#   not processed:       0.0000004 and 0.000003
#
# Why it matters for SAEs: an SAE may come from either (SAELens' runner asks for center_writing_weights=False).
# Spliced into the Hugging Face model, one trained on centred activations gets inputs with an offset that it has never
# seen, and its reconstruction lacks it. Equal log-probabilities, the natural check, say nothing about it.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0
"$tmp/venv/bin/python" -W ignore - <<'EOF'
import inspect
import sys

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
hf = GPT2LMHeadModel(
    GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
).eval()
with torch.no_grad():
    for p in hf.parameters():
        p.add_(0.2 * torch.randn_like(p))  # biases and layer norms that are not at their initial values
    ids = torch.arange(8)[None]
    expected = hf(ids, output_hidden_states=True)
stream = expected.hidden_states[1]
centred = stream - stream.mean(-1, keepdim=True)


def compare(**processing):
    """Distance of the residual stream to Hugging Face's and to its centred version, and of the log-probabilities."""
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=32,
        n_ctx=32,
        d_head=8,
        n_heads=4,
        d_vocab=64,
        d_mlp=128,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    model = HookedTransformer(config)
    model.load_and_process_state_dict(convert_gpt2_weights(hf, config), **processing)
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
    got = cache["blocks.0.hook_resid_post"]
    log_probs = (logits.log_softmax(-1) - expected.logits.log_softmax(-1)).abs().max()
    return [d.item() for d in ((got - stream).norm() / stream.norm(), (got - centred).norm() / stream.norm(), log_probs)]


default = compare()
plain = compare(fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
loader = inspect.signature(HookedTransformer.from_pretrained).parameters["center_writing_weights"].default
print("to the stream, to the centred stream, of the log-probabilities")
print("default processing:", ["%.1e" % d for d in default])
print("no processing:     ", ["%.1e" % d for d in plain])
print("default of from_pretrained: center_writing_weights =", loader)
if max(default[2], plain[2]) > 1e-4 or plain[0] > 1e-4:
    sys.exit("changed: the two libraries no longer compute the same model")
if loader is not True or default[0] < 0.05:
    sys.exit("changed: the residual stream is no longer centred by default")
if default[1] > 1e-4:
    sys.exit("changed: the difference is no longer each token's mean")
EOF
