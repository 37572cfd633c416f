#!/usr/bin/env bash
# A model that runs on SAELens' skip transcoders (`run_with_saes`, `add_sae`) runs without their skip connections.
#
# What one expects: spliced into a model, a SkipTranscoder writes what calling it gives, W_dec f(x) + b_dec + W_skip x:
# the class says that this is what it implements, and for every SAE of SAELens' the call and the splice agree.
#
# What happens: the wrapper round a spliced SAE calls `decode(encode(x))` to have a hook between them, and the skip
# connection is added in the transcoder's own `forward` alone. Shapes agree, so the model runs, with a part missing.
#
# Seen on 2026-11-28 with sae-lens 6.54.12, transformer-lens 3.9.0, torch 2.13.0 (one random layer, one transcoder):
#   written into the stream, and decode(encode(x)): the same, difference 0.0
#   written into the stream, and transcoder(x): apart by the whole of W_skip x
#   logits of run_with_saes are those of the decoded part written by a hook, difference 0.0
#
# Why it matters for SAEs: Gemma Scope 2's affine transcoders and circuit-tracer's sets put much of an MLP's output into
# the skip. A cross entropy, an ablation or a steered text measured this way is that of another, worse replacement model.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0 sae-lens==6.54.12
"$tmp/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from sae_lens import HookedSAETransformer
from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig
from transformer_lens import HookedTransformerConfig

READS, WRITES = "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"
torch.manual_seed(0)
shape = {"n_layers": 1, "d_model": 16, "d_mlp": 32, "n_heads": 2, "d_head": 8, "n_ctx": 12, "d_vocab": 20}
model = HookedSAETransformer(HookedTransformerConfig(**shape, act_fn="gelu", normalization_type="LN", device="cpu"))
cfg = SkipTranscoderConfig(d_in=16, d_sae=24, d_out=16, apply_b_dec_to_input=False)
cfg.metadata.hook_name, cfg.metadata.hook_name_out = READS, WRITES
transcoder = SkipTranscoder(cfg)
ids = torch.arange(8)[None]

with torch.no_grad():
    transcoder.W_skip.copy_(torch.randn(16, 16) / 2)
    read = model.run_with_cache(ids)[1][READS]
    called, decoded = transcoder(read), transcoder.decode(transcoder.encode(read))
    written = model.run_with_cache_with_saes(ids, saes=[transcoder])[1][f"{WRITES}.hook_sae_output"]
    logits = model.run_with_saes(ids, saes=[transcoder])
    by_hand = model.run_with_hooks(ids, fwd_hooks=[(WRITES, lambda value, hook: decoded)])
    right = model.run_with_hooks(ids, fwd_hooks=[(WRITES, lambda value, hook: called)])


def apart(a, b):
    return (a - b).abs().max().item()


print(f"written and decode(encode(x)) {apart(written, decoded):.2g}, written and transcoder(x) {apart(written, called):.2g}")
print(f"logits: without the skip {apart(logits, by_hand):.2g}, with it {apart(logits, right):.2g}")
if apart(called, decoded + read @ transcoder.W_skip.T) > 1e-5 or apart(called, decoded) < 1:
    sys.exit("changed: calling a skip transcoder no longer adds W_skip x to what it decodes")
if apart(written, decoded) > 1e-6 or apart(logits, by_hand) > 1e-6:
    sys.exit("changed: what is spliced in is no longer decode(encode(x))")
if apart(logits, right) < 0.1:
    sys.exit("changed: run_with_saes now gives the logits with the skip connection")
EOF
