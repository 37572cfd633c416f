"""Figures of transcoders on the clean stream, against what is written out in float64."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saelora.core.splice import TokenMask
from saelora.evals.rebuilt import evaluate_rebuilding
from saelora.models.hookpoints import Hookpoint
from saelora.saes.transcoder import TranscoderParts, build_transcoder

BOS, D, S = 1, 16, 40
LAYERS = [Hookpoint(layer, "mlp_out") for layer in range(3)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=D, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=BOS, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def transcoder(seed, reads="mlp.hook_in"):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, S), "W_dec": (S, D), "b_enc": (S,), "b_dec": (D,), "W_skip": (D, D)}
    weights = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    weights["threshold"] = torch.full((S,), 0.5)
    parts = TranscoderParts(weights, "jumprelu", hook_in=f"blocks.1.{reads}", hook_out="blocks.1.hook_mlp_out")
    return build_transcoder(parts, "tiny", torch.float32)


def rows(n=7):
    found = torch.randint(2, 64, (n, 12), generator=torch.Generator().manual_seed(3))
    found[:, 0] = BOS
    return found


def expected(model, made, layer, ids):
    seen = {}
    hook = model.model.layers[layer].mlp.register_forward_hook(lambda _m, args, out: seen.update(x=args[0], y=out))
    with torch.no_grad():
        model(ids)
    hook.remove()
    x, y = (seen[key][ids != BOS].double() for key in "xy")
    latents = torch.relu(x @ made.W_enc.double() + made.b_enc.double())
    latents = latents * (latents > made.threshold)
    recon = latents @ made.W_dec.double() + made.b_dec.double() + x @ made.W_skip.double().T
    active = latents > 0
    return {
        "fvu": float((recon - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum()),
        "l0": float(active.double().sum(1).mean()),
        "dead_frac": float((~active.any(0)).double().mean()),
    }


def test_every_transcoder_is_measured_on_the_clean_stream_whatever_the_others_do(model):
    sets = {name: {h: transcoder(10 * i + h.layer) for h in LAYERS} for i, name in enumerate(("a", "b"))}
    found = evaluate_rebuilding(model, sets, TokenMask((BOS,)), rows())
    for name, one in sets.items():
        for hookpoint, made in one.items():
            for figure, value in expected(model, made, hookpoint.layer, rows()).items():
                assert getattr(found[name][str(hookpoint)], figure) == pytest.approx(value, rel=1e-4), figure


def test_progress_is_told_of_every_token(model):
    told = []
    evaluate_rebuilding(model, {"": {LAYERS[0]: transcoder(0)}}, TokenMask((BOS,)), rows(), progress=told.append)
    assert sum(told) == rows().numel()
