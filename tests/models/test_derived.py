"""Decoders that no table knows: their parts are found by running them, and what does not add up is refused."""

import copy
from contextlib import ExitStack

import pytest
import torch
from peft import get_peft_model
from torch import nn

import families
from families import BOS, D_MODEL, N_LAYERS, VOCAB
from saelora.core.check import check_against_whole
from saelora.core.head import head_of
from saelora.core.lora import lora_config
from saelora.core.partial import activations, clean_forward, run_from
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.models import derived
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, Site
from tiny_saes import SPARE_SPECIAL, TinySAE
from tiny_transcoders import TinyTranscoder

SUBLAYERS: tuple[Site, ...] = ("attn_out", "mlp_out", "attn_module_out", "mlp_module_out", "attn_z")
REFUSED = {  # family -> layers whose sublayers do not add up to what the layer adds, and why
    "granite": range(N_LAYERS),  # scaled on the way to the stream
    "gemma4": range(N_LAYERS),  # inputs of its own at each layer, and a scale
    "falcon_h1": range(N_LAYERS),  # attention and Mamba side by side
    "llama4": [1, 3],  # experts return tokens of all rows in one axis
}
TAKEN_FOR_EXPERTS = ("deepseek_v3", "qwen3_moe")  # by PEFT: names of shared and dense MLPs


@pytest.fixture(params=families.UNTABLED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> nn.Module:
    return families.tiny(name)


def ids(n_rows: int = 2, context: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(3, VOCAB, (n_rows, context), generator=draw)
    rows[:, 0] = BOS
    return rows


def test_derived_parts_of_known_families_are_the_tables() -> None:
    for family in families.NAMES:
        anatomy = anatomy_of(families.tiny(family))
        found = derived.layouts(anatomy.body, list(anatomy.layers), VOCAB, family)
        for known, own in zip(anatomy.layouts, found, strict=True):
            parts = [(each.attn, each.attn_proj, each.mlp, each.attn_norm, each.mlp_norm) for each in (known, own)]
            assert parts[0] == parts[1], family
            assert list(own.linears or ()) == anatomy.linears(), family


def test_sublayers_and_stream_add_up_to_the_layers_output(name: str, model: nn.Module) -> None:
    anatomy, rows = anatomy_of(model), ids()
    for layer in range(N_LAYERS):
        if layer in REFUSED.get(name, ()):
            for site in SUBLAYERS:
                with pytest.raises(InputError, match=f"layer {layer} of this model has no {site}: .* add"):
                    anatomy.site(Hookpoint(layer, site))
            continue
        sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        pre, attn, mlp, post = activations(model, rows, None, [Hookpoint(layer, site) for site in sites]).values()
        torch.testing.assert_close(pre + attn + mlp, post, rtol=0, atol=1e-12)


def test_attention_mixes_tokens_and_the_mlp_does_not(name: str, model: nn.Module) -> None:
    rows = ids(1)
    other = rows.clone()
    other[0, -2] = (rows[0, -2] + 1 - 3) % (VOCAB - 3) + 3  # one token changed: what follows differs through attention
    for layer in [i for i in range(N_LAYERS) if i not in REFUSED.get(name, ())][:1]:
        hookpoint = Hookpoint(layer, "attn_out")
        here, there = (activations(model, each, None, [hookpoint])[hookpoint][0, -1] for each in (rows, other))
        assert not torch.equal(here, there)
        assert anatomy_of(model).layouts[layer].mlp in ("mlp", "feed_forward", "mlp.dense_4h_to_h")


def test_parts_give_what_the_whole_gives(name: str, model: nn.Module) -> None:
    rows = ids()
    clean = clean_forward(model, rows, None, range(N_LAYERS))
    with torch.no_grad():
        logits = model(input_ids=rows).logits
        torch.testing.assert_close(head_of(model).logits(clean.hidden), logits, rtol=0, atol=1e-11)
        for entry in range(N_LAYERS):
            assert torch.equal(run_from(model, rows, None, entry, clean.entries[entry]), clean.hidden)


def test_spliced_and_adapted_it_passes_the_check_and_every_adapter_learns(name: str, fresh) -> None:
    model = fresh(name)
    anatomy = anatomy_of(model)
    adapted = get_peft_model(model, lora_config(model, [2, 3], rank=2, alpha=4.0)).double()
    where: dict[Hookpoint, TinySAE] = {Hookpoint(1): TinySAE(D_MODEL), Hookpoint(2, "resid_pre"): TinySAE(D_MODEL)}
    with ExitStack() as stack:
        spliced = stack.enter_context(splice(adapted, where, SPARE_SPECIAL))
        check_against_whole(adapted, spliced, ids())
        adapted(input_ids=ids()).logits.square().mean().backward()
    trained = {key: parameter for key, parameter in adapted.named_parameters() if "lora_B" in key}
    assert trained
    assert [key for key, parameter in trained.items() if not parameter.grad.any()] == []
    reached = {key.partition(".lora_B")[0].rpartition(f"{anatomy.layers_name}.")[2] for key in trained}
    wanted = {linear for i in (2, 3) for linear in anatomy.layouts[i].linears or ()}
    if name in TAKEN_FOR_EXPERTS:
        wanted = {linear for linear in wanted if linear.rpartition(".")[2] not in ("gate_proj", "up_proj", "down_proj")}
    assert {key.partition(".")[2] for key in reached} == wanted


def test_transcoders_stand_for_every_mlp_also_for_experts(name: str) -> None:
    """By hand: a forward hook where the MLP writes, fed by one where it reads."""
    model, batch = copy.deepcopy(families.tiny(name)), ids()
    anatomy = anatomy_of(model)
    saes, handles, mask = {}, [], SPARE_SPECIAL(batch)
    for layer in range(N_LAYERS):
        if layer in REFUSED.get(name, []):
            with pytest.raises(InputError, match=rf"layer {layer} of this model has no mlp_module_out"):
                anatomy.mlp(layer)
            continue
        saes[Hookpoint(layer, "mlp_module_out")] = TinyTranscoder(D_MODEL, seed=layer, skips=True)
    for hookpoint, transcoder in saes.items():

        def write(_m, args, kwargs, output, transcoder=transcoder):
            x = args[0] if args else kwargs["hidden_states"]
            first = output[0] if isinstance(output, tuple) else output
            made = transcoder.decode(transcoder.encode(x)) + transcoder.skip(x)
            made = torch.where(mask[..., None], made, first.view_as(made))
            return (made.view_as(first), *output[1:]) if isinstance(output, tuple) else made.view_as(first)

        handles.append(anatomy.mlp(hookpoint.layer).register_forward_hook(write, with_kwargs=True))
    if name == "bloom":
        with pytest.raises(InputError, match=r"layer 0 of this model has no mlp_in: its MLP adds to the stream itself"):
            splice(model, saes, SPARE_SPECIAL).__enter__()
    if not saes or name == "bloom":
        return
    by_hand = model(input_ids=batch, use_cache=False).logits
    for handle in handles:
        handle.remove()
    plain = model(input_ids=batch, use_cache=False).logits
    layers = [layer for layer in range(N_LAYERS) if layer not in REFUSED.get(name, [])]
    adapted = get_peft_model(model, lora_config(model, list(range(N_LAYERS)), rank=2, alpha=2, replaced=layers))
    with splice(adapted, saes, SPARE_SPECIAL) as spliced:
        found = adapted(input_ids=batch, use_cache=False).logits
        check_against_whole(adapted, spliced, batch)
    assert (by_hand - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-9)


def test_generation_with_a_cache_is_that_without_one(name: str, model: nn.Module) -> None:
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL):
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": families.PAD, "eos_token_id": None}
        cached = model.generate(ids(1), use_cache=True, **options)
        assert torch.equal(cached, model.generate(ids(1), use_cache=False, **options))


def test_layers_of_several_streams_are_refused() -> None:
    import transformers as tf

    config = tf.Gemma3nTextConfig(
        vocab_size=VOCAB, vocab_size_per_layer_input=VOCAB, hidden_size=D_MODEL, hidden_size_per_layer_input=4,
        intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=6,
        laurel_rank=4, num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    model = tf.Gemma3nForCausalLM(config).eval()
    with pytest.raises(InputError, match="'gemma3n_text' cannot be taken apart: layer 0 does not take and return"):
        anatomy_of(model)


class Detour(nn.Module):
    """A layer list whose second layer is not handed the first one's output."""

    def __init__(self, between: float):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.between = between

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden = self.layers[0](torch.ones(1, input_ids.shape[1], 4))
        return self.layers[1](hidden * self.between)


def test_a_stream_that_is_changed_between_layers_is_refused() -> None:
    with pytest.raises(InputError, match="layer 1 does not take the output of layer 0 as it is"):
        derived.layouts(changed := Detour(2.0), list(changed.layers), VOCAB, "it")
    derived.layouts(kept := Detour(1.0), list(kept.layers), VOCAB, "it")


def test_a_layer_list_must_be_the_only_one() -> None:
    stack = nn.Module()
    stack.layers = nn.ModuleList([nn.Linear(2, 2)])
    assert derived.layer_list(stack, 1, "it") == "layers"
    stack.twins = copy.deepcopy(stack.layers)
    with pytest.raises(InputError, match="expected one list of its 1 layers in Module, found layers, twins"):
        derived.layer_list(stack, 1, "it")
