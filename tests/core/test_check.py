"""The parts are what the model runs: adapters of every kind are measured as PEFT runs them, all else is refused."""

import pytest
import torch
import torch.nn.functional as F
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

from families import BOS, D_MODEL, VOCAB
from saelora.core.check import check_activations, check_against_whole
from saelora.core.lora import adapter_name
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.evals.loss import evaluate_loss
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, TinySAE, hooks_in

ATTENTION = ["q_proj", "v_proj"]
KINDS = {
    "lora": LoraConfig(r=2, target_modules=ATTENTION),
    "lora on the unembedding": LoraConfig(r=2, target_modules=[*ATTENTION, "lm_head"]),
    "dora on the unembedding": LoraConfig(r=2, target_modules=["lm_head"], use_dora=True),
    "lora on the embeddings": LoraConfig(r=2, target_modules=["embed_tokens"]),
    "trained unembedding": LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"]),
    "trained embeddings": LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["embed_tokens"]),
    "trained norm": LoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["norm"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=ATTENTION),
    "vera": VeraConfig(r=4, target_modules=["q_proj"]),
}
PROMPTS = {
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def moved(model, scale=0.3):
    """A model whose adapters are all away from where they began."""
    generator = torch.Generator().manual_seed(5)
    base = {id(p) for name, p in model.named_parameters() if "base_layer" in name or "original_module" in name}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) not in base and any(part in name for part in (".default", ".other")):
                parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.double().eval()


def rows(n=3, context=20):
    draw = torch.Generator().manual_seed(1)
    return torch.cat([torch.full((n, 1), BOS), torch.randint(3, VOCAB, (n, context - 1), generator=draw)], 1)


def cross_entropy(model, ids):
    """By the model's own forward pass, over the predictions that count."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1].double()
    ce = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return ce[SPARE_SPECIAL(ids)[:, :-1].flatten()].mean().item()


def saes():
    return {Hookpoint(1): TinySAE(D_MODEL)}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_are_measured_as_peft_runs_them(kind, fresh):
    model, ids = moved(get_peft_model(fresh("llama"), KINDS[kind])), rows()
    found = evaluate_loss(model, saes(), SPARE_SPECIAL, ids)
    with model.disable_adapter():
        base = cross_entropy(model, ids)
    adapted = cross_entropy(model, ids)
    with splice(model, saes(), SPARE_SPECIAL):
        both = cross_entropy(model, ids)
    assert abs(adapted - base) > 1e-4
    assert found["ce_base"] == pytest.approx(base, abs=1e-9)
    assert found["ce_adapted_clean"] == pytest.approx(adapted, abs=1e-9)
    assert found["ce_adapted"] == pytest.approx(both, abs=1e-9)


def test_several_active_adapters_are_measured_together(fresh):
    model = get_peft_model(fresh("llama"), KINDS["lora"])
    model.add_adapter("other", LoraConfig(r=3, target_modules=["down_proj"]))
    model = moved(model)
    model.base_model.set_adapter(["default", "other"])
    ids = rows()
    assert adapter_name(model) == ("default", "other")
    assert evaluate_loss(model, saes(), SPARE_SPECIAL, ids)["ce_adapted_clean"] == pytest.approx(
        cross_entropy(model, ids), abs=1e-9
    )


def test_adapters_that_transformers_itself_holds_are_measured(fresh):
    model = fresh("llama")
    try:
        model.add_adapter(KINDS["lora on the unembedding"], adapter_name="other")
    except ValueError as error:  # transformers 5.24 wants a PEFT that is not released yet
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers refuses the PEFT that is installed: {error}")
    model, ids = moved(model), rows()
    found = evaluate_loss(model, saes(), SPARE_SPECIAL, ids)
    assert found["ce_adapted_clean"] == pytest.approx(cross_entropy(model, ids), abs=1e-9)
    model.disable_adapters()
    assert found["ce_base"] == pytest.approx(cross_entropy(model, ids), abs=1e-9)
    assert "ce_adapted" not in evaluate_loss(model, saes(), SPARE_SPECIAL, ids)


@pytest.mark.parametrize("kind", PROMPTS)
def test_adapters_that_add_tokens_are_refused(kind, fresh):
    model = get_peft_model(fresh("llama"), PROMPTS[kind]).double().eval()
    with pytest.raises(InputError, match=r"as it was given gives .*(PROMPT|PREFIX)_TUNING"):
        evaluate_loss(model, saes(), SPARE_SPECIAL, rows())


def scaled_logits(model):
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled


def bent_unembedding(model):
    model.lm_head.register_forward_hook(lambda module, args, output: output + 0.1 * output.square())


def layer_that_looks_below(model):
    """Its output hangs on the embeddings, which a pass that begins above them does not have."""
    seen = {}
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: seen.update(x=output))
    model.model.layers[3].register_forward_hook(lambda module, args, output: output + seen["x"][:, :1].detach())
    model.model.layers[0].register_forward_hook(lambda module, args, output: seen.update(x=output))


def rank_of_no_layer(model):
    model.model.layers[2].register_forward_hook(lambda module, args, output: output + torch.rand(()))


@pytest.mark.parametrize("bend", [scaled_logits, bent_unembedding, layer_that_looks_below, rank_of_no_layer])
# SPEC 11.3
def test_what_layers_norm_and_unembedding_do_not_explain_is_refused(bend, fresh):
    model = fresh("llama")
    bend(model)
    with pytest.raises(InputError, match=r"gives other logits than its parts, by up to .*nothing is measured"):
        evaluate_loss(model, saes(), SPARE_SPECIAL, rows())


def test_nan_logits_are_refused(fresh):
    model = fresh("llama")
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        evaluate_loss(model, saes(), SPARE_SPECIAL, rows())


# SPEC 11.3
def test_every_family_passes_and_is_left_as_it_was(model, fresh):
    model = fresh(model)
    hooks, before = hooks_in(model), torch.get_rng_state()
    hookpoints = [Hookpoint(1), Hookpoint(3, "mlp_out"), Hookpoint(2, "resid_pre"), Hookpoint(0, "attn_z")]
    width = model.config.get_text_config()
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL), Hookpoint(3, "mlp_out"): TinySAE(D_MODEL)}, SPARE_SPECIAL) as s:
        check_against_whole(model, s, rows())
    check_activations(model, hookpoints, rows())
    assert hooks_in(model) == hooks
    assert torch.equal(torch.get_rng_state(), before)
    assert width.hidden_size == D_MODEL


def test_a_fresh_adapter_is_seen_to_act_and_left_as_it_was(fresh):
    """Its second matrix is zero: as it is, an adapter that is lost on the way would pass."""
    model = get_peft_model(fresh("llama"), KINDS["lora"])
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    stack = model.get_base_model().model
    layer, whole = stack.layers[2].self_attn.q_proj, stack.layers
    with splice(model, saes(), SPARE_SPECIAL) as spliced:
        check_against_whole(model, spliced, rows())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name][0])
            assert parameter.requires_grad == before[name][1]
        adapted = type(layer).forward
        layer.forward = lambda x: adapted(layer, x) if stack.layers is whole else layer.base_layer(x)
        with pytest.raises(InputError, match=r"gives other logits than its parts.*LORA"):
            check_against_whole(model, spliced, rows())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_allowed_for(dtype, fresh):
    model = get_peft_model(fresh("qwen3"), KINDS["lora"])
    model = moved(model).to(dtype)
    autocast = dtype if dtype == torch.bfloat16 else None
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL, dtype=torch.float32)}, SPARE_SPECIAL) as spliced:
        check_against_whole(model, spliced, rows(), autocast=autocast)
