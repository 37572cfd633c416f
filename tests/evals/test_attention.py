"""Attention on exempt positions, against weights that transformers itself hands out."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

import families
from families import BOS, D_MODEL, EOS, N_LAYERS, PAD
from model_text import written_by
from saelora.core.lora import lora_config, only
from saelora.core.splice import TokenMask, splice
from saelora.evals.faithfulness.attention import NoWeightsError, attention_to_exempt
from saelora.evals.spliced import SplicedModel
from saelora.models.anatomy import anatomy_of, unwrap
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, Broken, TinySAE, hooks_in

HOOKPOINT = Hookpoint(1)
CLOSE = {"rel": 1e-4, "abs": 1e-6}  # softmax is in float32 in most families


def rows_of(family: str) -> torch.Tensor:
    rows = torch.full((3, 9), 3)
    rows[:, 0] = BOS
    rows[1, 4] = EOS
    rows[2, 2:7:2] = EOS
    return written_by(families.tiny(family), rows)


def with_adapter(model: nn.Module) -> nn.Module:
    model = get_peft_model(model, lora_config(model, [2, 3], rank=2, alpha=4.0)).double()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


def implementations(model: nn.Module) -> list[str]:
    return [m.config._attn_implementation for m in unwrap(model).modules() if hasattr(m, "config")]


@pytest.mark.parametrize("family", families.NAMES)
def test_shares_equal_those_of_weights_that_transformers_returns(fresh, family):
    model, rows = with_adapter(fresh(family)), rows_of(family)
    before = implementations(model)
    with splice(model, {HOOKPOINT: TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        found = to_json(attention_to_exempt(SplicedModel(model, spliced, SPARE_SPECIAL), rows))
        assert implementations(model) == before
        assert spliced.enabled
        if family != "gemma2":  # whose own is eager already, with a mask that float64 allows
            unwrap(model).set_attn_implementation("eager")
        for name, on, adapter in (("base", False, None), ("sae", True, None), ("adapted", True, "default")):
            with torch.no_grad(), spliced.switched(on), only(model, adapter):
                weights = model(input_ids=rows, output_attentions=True).attentions
            assert len(weights) == len(found["layers"]) == N_LAYERS
            per_layer = []
            for layer, weights_BHQK in enumerate(weights):
                shares = []
                for row, weights_HQK in zip(rows.tolist(), weights_BHQK, strict=True):
                    spared = [i for i, token in enumerate(row) if token in (PAD, BOS, EOS)]
                    for query in set(range(len(row))) - set(spared):
                        shares.append(sum(float(weights_HQK[:, query, key].mean()) for key in spared))
                per_layer.append(sum(shares) / len(shares))
                assert found["layers"][layer]["layer"] == layer
                assert found["layers"][layer][name]["value"] == pytest.approx(per_layer[-1], **CLOSE)
            assert found["mean"][name]["value"] == pytest.approx(sum(per_layer) / N_LAYERS, **CLOSE)
    change = found["mean"]["adapted"]["value"] - found["mean"]["sae"]["value"]
    assert found["change"]["value"] == pytest.approx(change, abs=1e-9)
    assert abs(change) > 1e-5  # three models, three numbers
    assert found["n_rows"] == 3


def test_model_is_left_as_it_was_also_by_an_error(fresh):
    model, rows = with_adapter(fresh("llama")), rows_of("llama")
    before = implementations(model)
    assert "sdpa" in before
    with splice(model, {HOOKPOINT: Broken()}, SPARE_SPECIAL) as spliced:
        hooks = hooks_in(model)
        with pytest.raises(RuntimeError, match="broken SAE"):
            attention_to_exempt(SplicedModel(model, spliced, SPARE_SPECIAL), rows)
        assert hooks_in(model) == hooks
    assert implementations(model) == before


def test_attention_without_weights_is_said_to_have_none(fresh):
    model = with_adapter(fresh("llama"))
    attention = anatomy_of(model).layers[2].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)  # as a fused kernel would
    sae, told = TinySAE(D_MODEL), pytest.raises(NoWeightsError, match="layer 2")
    with splice(model, {HOOKPOINT: sae}, SPARE_SPECIAL) as spliced, told:
        attention_to_exempt(SplicedModel(model, spliced, SPARE_SPECIAL), rows_of("llama"))


def test_nothing_exempt_gets_nothing(fresh):
    model = with_adapter(fresh("llama"))
    with splice(model, {HOOKPOINT: TinySAE(D_MODEL)}, TokenMask()) as spliced:
        found = attention_to_exempt(SplicedModel(model, spliced, TokenMask()), rows_of("llama"))
    assert found.mean["adapted"] == {"value": 0.0, "low": 0.0, "high": 0.0}
