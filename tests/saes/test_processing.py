"""SAEs of centred models, spliced into the plain one, do what they do in TransformerLens' centred model."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn

import families
import sae_files as files
from families import D_MODEL, N_LAYERS, VOCAB
from saelora.core.partial import activations
from saelora.core.splice import TokenMask, splice
from saelora.errors import InputError
from saelora.evals.faithfulness.ablation import Ablated
from saelora.evals.loss import evaluate_loss
from saelora.evals.saebench.export import export_sae
from saelora.evals.steering.interventions import Scale, direction
from saelora.models import anatomy as table
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.sae_training.warm_start import Start
from saelora.saes.loading import load_sae
from saelora.saes.sparse import sparse

CENTRED = {"center_writing_weights": True}
NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-4}  # TransformerLens takes its norms in float32
EVERYWHERE = TokenMask(exempt_padding=False)
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))
STREAM = ("resid_pre", "resid_post", "mlp_out", "attn_out")


def with_mean(name: str) -> nn.Module:
    """A tiny model whose residual stream has a mean along d_model, at its start and in what its layers add."""
    model = copy.deepcopy(families.tiny(name))
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.7
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith((".dense.bias", "c_proj.bias", "dense_4h_to_h.bias")):
                parameter += 0.4
    return model


def transformer_lens(name: str, model: nn.Module) -> Any:
    """TransformerLens' own model of the same weights, centred by its own code."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions as convert

    parallel = name == "gpt_neox-parallel"
    neox: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_dim": 2, "parallel_attn_mlp": parallel}
    cfg = HookedTransformerConfig(
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_ctx=64,
        d_head=D_MODEL // 2,
        n_heads=2,
        d_mlp=model.transformer.h[0].mlp.c_fc.nf if name == "gpt2" else 20,
        d_vocab=VOCAB,
        act_fn="gelu_new" if name == "gpt2" else "gelu",
        normalization_type="LN",
        eps=1e-5,
        dtype=torch.float64,
        original_architecture="GPT2LMHeadModel" if name == "gpt2" else "GPTNeoXForCausalLM",
        **({} if name == "gpt2" else neox),
    )
    lens = HookedTransformer(cfg)
    state = (convert.convert_gpt2_weights if name == "gpt2" else convert.convert_neox_weights)(model, cfg)
    lens.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=True, center_unembed=False, fold_value_biases=False
    )
    return lens.double().eval()


def sae_of(d_in: int, hookpoint: Hookpoint, kwargs: Any = CENTRED, kind: str = "jumprelu") -> Any:
    made, config = {"jumprelu": (JumpReLUSAE, JumpReLUSAEConfig), "standard": (StandardSAE, StandardSAEConfig)}[kind]
    metadata = SAEMetadata(hook_name=hookpoint.tl_name, model_name="tiny", model_from_pretrained_kwargs=kwargs)
    sae = made(config(d_in=d_in, d_sae=40, dtype="float64", metadata=metadata))
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return sae.eval().requires_grad_(False)


def spliced_logits(model: nn.Module, hookpoint: Hookpoint, sae: Any) -> Tensor:
    with torch.no_grad(), splice(model, {hookpoint: sae}, EVERYWHERE):
        return model(input_ids=IDS).logits


WRAPS = [lambda sae: sae, sparse, lambda sae: TrainableSAE(sae, "sae"), lambda sae: TrainableSAE(sae, "linear")]


@pytest.mark.parametrize("site", [*STREAM, "attn_z"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox-parallel", "gpt_neox-serial"])
def test_spliced_plain_model_equals_transformer_lens_centred_model(name: str, site: Any) -> None:
    model, hookpoint = with_mean(name), Hookpoint(2, site)
    lens = transformer_lens(name, model)
    sae = sae_of(anatomy_of(model).width(hookpoint), hookpoint)

    def through(x: Tensor, hook: Any) -> Tensor:
        return sae(x.reshape(*x.shape[:2], -1)).view_as(x)

    with torch.no_grad():
        torch.testing.assert_close(lens(IDS), model(input_ids=IDS).logits, **NEAR)  # centring costs nothing
        theirs = lens.run_with_hooks(IDS, fwd_hooks=[(hookpoint.tl_name, through)])
        _, cache = lens.run_with_cache(IDS, names_filter=hookpoint.tl_name)
        plain = activations(model, IDS, None, [hookpoint])[hookpoint]
    for wrap in WRAPS:
        torch.testing.assert_close(spliced_logits(model, hookpoint, wrap(sae)), theirs, **NEAR)
    own = plain - plain.mean(-1, keepdim=True) if site != "attn_z" else plain
    torch.testing.assert_close(cache[hookpoint.tl_name].flatten(2), own, **NEAR)
    uncentred = spliced_logits(model, hookpoint, sae_of(plain.shape[-1], hookpoint, {}))
    assert (uncentred - theirs).abs().max() > (0.01 if site != "attn_z" else -1)


# SPEC 5.1
def test_observers_and_figures_see_the_centred_activation() -> None:
    model, hookpoint, calls = with_mean("gpt2"), Hookpoint(1), []
    sae = sae_of(D_MODEL, hookpoint)
    plain = activations(model, IDS, None, [hookpoint])[hookpoint]
    with torch.no_grad(), splice(model, {hookpoint: sae}, EVERYWHERE, observer=lambda *seen: calls.append(seen)):
        replaced = activations(model, IDS, None, [hookpoint])[hookpoint]
    [(_, x, _, recon, _)] = calls
    mean = plain.mean(-1, keepdim=True)
    torch.testing.assert_close(x, plain - mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(recon, sae(plain - mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(replaced, recon + mean, rtol=0, atol=1e-12)
    found = evaluate_loss(model, {hookpoint: sae}, EVERYWHERE, IDS)["saes"]["layers.1.resid_post"]
    flat = x.flatten(0, 1)
    error = (sae(flat) - flat).square().sum()
    assert found["fvu"] == pytest.approx(float(error / (flat - flat.mean(0)).square().sum()), rel=1e-4)


def test_a_wrapped_sae_is_still_centred() -> None:
    model, hookpoint = with_mean("gpt2"), Hookpoint(1)
    sae = sae_of(D_MODEL, hookpoint)
    nothing = Ablated(sae, torch.tensor([], dtype=torch.long))
    torch.testing.assert_close(
        spliced_logits(model, hookpoint, nothing), spliced_logits(model, hookpoint, sae), rtol=0, atol=1e-10
    )


def test_steering_a_centred_sae_equals_steering_the_centred_model() -> None:
    model, hookpoint = with_mean("gpt2"), Hookpoint(1)
    sae, lens = sae_of(D_MODEL, hookpoint), transformer_lens("gpt2", with_mean("gpt2"))
    row = sae.W_dec[4] / sae.W_dec[4].norm()
    theirs = lens.run_with_hooks(IDS, fwd_hooks=[(hookpoint.tl_name, lambda x, hook: Scale(row, 2.0).decode(x))])
    d, _ = direction(sae, 4, hookpoint)
    torch.testing.assert_close(spliced_logits(model, hookpoint, Scale(d, 2.0)), theirs, **NEAR)


def test_families_that_take_the_mean_off_are_those_whose_logits_a_mean_leaves_alone() -> None:
    for name in families.NAMES:
        model, anatomy = families.tiny(name), anatomy_of(families.tiny(name))
        with torch.no_grad():
            plain = model(input_ids=IDS).logits
            for at in (anatomy.layers[0], anatomy.layers[-1]):
                handle = at.register_forward_hook(
                    lambda m, a, out: (out[0] + 5, *out[1:]) if isinstance(out, tuple) else out + 5
                )
                off = (model(input_ids=IDS).logits - plain).abs().max()
                handle.remove()
                assert bool(off < 1e-4) == anatomy.removes_mean, (name, off)
    assert any(family.removes_mean for family in table._FAMILIES.values())


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "qwen3"])
def test_a_model_that_keeps_the_mean_is_refused(name: str) -> None:
    model, hookpoint = families.tiny(name), Hookpoint(1)
    with (
        pytest.raises(InputError, match="writing weights were centred"),
        splice(model, {hookpoint: sae_of(D_MODEL, hookpoint)}, EVERYWHERE),
    ):
        pass


def folder_with(folder: Path, kwargs: Any, hook: str = "blocks.3.hook_resid_post", *, beside: bool = False) -> Path:
    metadata = {"sae_lens_version": "6.54.12", "hook_name": hook, "model_name": "tiny"}
    entry = {"model_from_pretrained_kwargs": kwargs}
    cfg: dict[str, Any] = {"metadata": metadata, **entry} if beside else {"metadata": {**metadata, **entry}}
    return files.write_saelens(folder, files.weights(), **cfg)


@pytest.mark.parametrize(
    ("kwargs", "hook", "said"),
    [
        ({"fold_value_biases": True}, "blocks.3.attn.hook_z", "fold_value_biases"),
        ({"refactor_factored_attn_matrices": True}, "blocks.3.attn.hook_z", "refactor_factored_attn_matrices"),
        ({"center_writing_weights": "yes"}, "blocks.3.hook_resid_post", "expected true or false"),
        ({"scale_embeddings": 2.0}, "blocks.3.hook_resid_post", "scale_embeddings=2.0"),
        (["center_writing_weights"], "blocks.3.hook_resid_post", "expected an object"),
    ],
)
def test_processing_that_cannot_be_followed_is_refused(tmp_path: Path, kwargs: Any, hook: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_sae(str(folder_with(tmp_path, kwargs, hook)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        None,
        {},
        {"center_writing_weights": False, "fold_ln": True, "center_unembed": True, "fold_value_biases": True},
        {"n_devices": 2, "dtype": "bfloat16", "device_map": "auto", "refactor_factored_attn_matrices": False},
        {"scale_embeddings": None},
    ],
)
def test_processing_that_changes_nothing_at_the_hookpoint_is_let_pass(tmp_path: Path, kwargs: Any) -> None:
    loaded = load_sae(str(folder_with(tmp_path, kwargs)))
    model = families.tiny("llama")
    loaded.sae.cfg.d_in = D_MODEL  # of another width, which is not looked at here
    with splice(model, {loaded.hookpoint: loaded.sae}, EVERYWHERE) as spliced:
        assert not spliced._centred


@pytest.mark.parametrize("beside", [False, True])
def test_the_entry_is_read_in_the_metadata_and_beside_it(tmp_path: Path, beside: bool) -> None:
    loaded = load_sae(str(folder_with(tmp_path, CENTRED, beside=beside)))
    assert loaded.metadata["model_from_pretrained_kwargs"] == CENTRED
    old = json.loads((tmp_path / "cfg.json").read_text())
    flat = {**{k: v for k, v in old.items() if k != "metadata"}, "hook_name": "blocks.3.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps({**flat, "model_from_pretrained_kwargs": CENTRED}))
    assert load_sae(str(tmp_path)).metadata["model_from_pretrained_kwargs"] == CENTRED


@pytest.mark.parametrize("part", ["sae", "decoder", "linear"])
def test_a_finetuned_centred_sae_is_centred_when_it_is_loaded_again(tmp_path: Path, part: Any) -> None:
    model, hookpoint = with_mean("gpt2"), Hookpoint(1)
    tuned = TrainableSAE(sae_of(D_MODEL, hookpoint, kind="standard"), part, rank=2)
    with torch.no_grad():
        for parameter in tuned.tuned_parameters().values():
            parameter += 0.05
    expected = spliced_logits(model, hookpoint, tuned)
    tuned.export().save_model(tmp_path)
    again = load_sae(str(tmp_path), dtype=torch.float64)
    assert again.hookpoint == hookpoint
    torch.testing.assert_close(spliced_logits(model, hookpoint, again.sae), expected, rtol=0, atol=1e-9)


def test_what_would_give_a_centred_sae_plain_activations_is_refused(tmp_path: Path) -> None:
    loaded = load_sae(str(folder_with(tmp_path / "sae", CENTRED)))
    with pytest.raises(InputError, match="without their mean"):
        Start.of(loaded)
    with pytest.raises(InputError, match="without their mean"):
        export_sae(loaded.sae, loaded.hookpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
