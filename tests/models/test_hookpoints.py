"""Spellings of hookpoints."""

import pytest

from saelora.errors import InputError
from saelora.models.hookpoints import SITES, Hookpoint, parse_hookpoint


@pytest.mark.parametrize("site", SITES)
def test_own_and_transformer_lens_names_survive_a_round_trip(site):
    hookpoint = Hookpoint(12, site)
    assert parse_hookpoint(str(hookpoint)) == parse_hookpoint(hookpoint.tl_name) == hookpoint


@pytest.mark.parametrize(
    ("text", "hookpoint"),
    [
        ("blocks.12.hook_resid_post", Hookpoint(12, "resid_post")),
        ("blocks.0.hook_resid_pre", Hookpoint(0, "resid_pre")),
        ("blocks.3.attn.hook_z", Hookpoint(3, "attn_z")),
        ("blocks.3.hook_attn_out", Hookpoint(3, "attn_out")),
        ("layers.3", Hookpoint(3, "resid_post")),
        ("layers.3.mlp", Hookpoint(3, "mlp_module_out")),
        ("layers.3.self_attn", Hookpoint(3, "attn_module_out")),
        ("layers.3.self_attn.o_proj", Hookpoint(3, "attn_module_out")),
        ("h.2", Hookpoint(2, "resid_post")),
        ("h.2.attn", Hookpoint(2, "attn_out")),
        ("model.layers.5", Hookpoint(5, "resid_post")),
        ("transformer.h.5.mlp", Hookpoint(5, "mlp_out")),
        ("gpt_neox.layers.5.attention", Hookpoint(5, "attn_out")),
        ("gpt_neox.layers.5.mlp", Hookpoint(5, "mlp_out")),
        ("layers.5.attention", Hookpoint(5, "attn_out")),
        ("language_model.layers.5", Hookpoint(5, "resid_post")),
        ("model.language_model.layers.5.mlp", Hookpoint(5, "mlp_module_out")),
        ("language_model.model.layers.5.self_attn", Hookpoint(5, "attn_module_out")),
        ("base_model.model.model.layers.5.mlp", Hookpoint(5, "mlp_module_out")),
        ("model.text_model.layers.5.hook_resid_pre", Hookpoint(5, "resid_pre")),
        ("model.layers.5.output", Hookpoint(5, "resid_post")),
        ("model.layers.5.input", Hookpoint(5, "resid_pre")),
        ("model.layers.5.self_attn.o_proj.input", Hookpoint(5, "attn_z")),
        ("model.layers.5.post_feedforward_layernorm.output", Hookpoint(5, "mlp_out")),
        ("blocks.5.mlp.hook_out", Hookpoint(5, "mlp_module_out")),
        ("  layers.4.resid_post ", Hookpoint(4, "resid_post")),
    ],
)
def test_spellings_of_the_field_are_understood(text, hookpoint):
    assert parse_hookpoint(text) == hookpoint


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "resid_post",
            "layers.x.mlp",
            "layers.-1",
            "layers.3.hook_q",
            "blocks.3.ln1.hook_scale",
            "layers.3.",
            "3",
        ),
        "vision_tower.vision_model.encoder.layers.3",  # an image's layers
        "model.layers.3.post_attention_layernorm",  # before the MLP in one family, after attention in another
        "model.layers.3.pre_feedforward_layernorm.output",
        "model.layers.3.mlp.input",
        "encoder.layers.3.mlp",
        "language_modellayers.3",
    ],
)
def test_what_names_no_hookpoint_is_refused(text):
    with pytest.raises(InputError, match=r"hookpoint '.*' is not known: expected layers\.N\.SITE with SITE one of"):
        parse_hookpoint(text)


def test_hookpoints_sort_by_layer():
    assert sorted([Hookpoint(10), Hookpoint(9, "resid_pre"), Hookpoint(2)]) == [
        Hookpoint(2),
        Hookpoint(9, "resid_pre"),
        Hookpoint(10),
    ]
