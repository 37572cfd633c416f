"""Gathered reconstructions against SAELens's own encode and decode, value and gradient, in float64."""

import copy
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

import families
from saelora.assemble import assemble
from saelora.config import build
from saelora.core.splice import TokenMask, splice
from saelora.jobs import adapt
from saelora.models.hookpoints import Hookpoint
from saelora.saes import sparse as sparse_module
from saelora.saes.sparse import SparseSAE, sparse, worthwhile

D_IN, D_SAE, K = 16, 60, 5
KINDS = ["topk", "topk-rescaled", "jumprelu"]


def make(kind: str, *, k: int = K, **options: Any) -> Any:
    """A frozen float64 SAE; its decoder's norms differ, and thresholds lie on both sides of zero."""
    common = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float64", **options}
    if kind == "jumprelu":
        sae: Any = JumpReLUSAE(JumpReLUSAEConfig(**common))
    else:
        sae = TopKSAE(TopKSAEConfig(k=k, rescale_acts_by_decoder_norm=kind == "topk-rescaled", **common))
    draw = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    if kind == "jumprelu":
        sae.threshold.data += 1.0
    return sae.eval().requires_grad_(False)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(sae: Any, x: Tensor) -> Tensor:
    return sae.decode(sae.encode(x))


def assert_equal(sae: Any, x: Tensor) -> Tensor:
    """Same reconstruction, same gradient of an uneven function of it; gives back the latents."""
    pull = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    recon, recon_dense = sparse(sae).reconstruct(found), dense(sae, expected)
    torch.testing.assert_close(recon, recon_dense, rtol=1e-12, atol=1e-12)
    (recon * pull).sum().backward()
    (recon_dense * pull).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-12)
    return sae.encode(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("shape", [(2, 7), (9,), (), (0,)])
# SPEC 11.4
def test_reconstruct_equals_decode_of_encode(kind: str, apply_b_dec_to_input: bool, shape: tuple[int, ...]) -> None:
    assert_equal(make(kind, apply_b_dec_to_input=apply_b_dec_to_input), inputs(*shape))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_module, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(sparse_module, "_MIN_CHUNK", 4)
    assert_equal(make(kind), inputs(3, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_with_few_or_no_positive_latents(kind: str) -> None:
    sae = make(kind)
    sae.b_enc -= 2.5 if kind == "jumprelu" else 4.5
    latents = assert_equal(sae, inputs(40))
    active = (latents > 0).sum(-1)
    assert (active == 0).any()
    assert ((active > 0) & (active < K)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_all_latents_silent_leaves_the_bias_and_no_gradient(kind: str) -> None:
    sae, x = make(kind), inputs(3).requires_grad_()
    sae.b_enc -= 1e3
    recon = sparse(sae).reconstruct(x)
    recon.sum().backward()
    assert torch.equal(recon, sae.b_dec.expand(3, -1))
    assert not x.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_tokens(kind: str) -> None:
    assert_equal(make(kind), torch.zeros(2, 3, D_IN, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_autocast_selects_the_same_latents(kind: str) -> None:
    sae, x = make(kind).to(torch.float32), inputs(2, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sparse(sae).reconstruct(x), dense(sae, x), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(kind: str) -> None:
    x = inputs(3)
    x[1, 2] = torch.nan
    assert sparse(make(kind)).reconstruct(x).isnan().any(-1).tolist() == [False, True, False]


def test_second_backward_follows_changed_weights() -> None:
    sae = make("topk")
    wrapped = sparse(sae)
    for _ in range(2):
        found, expected = (inputs(4).requires_grad_() for _ in range(2))
        wrapped.reconstruct(found).sum().backward()
        dense(sae, expected).sum().backward()
        torch.testing.assert_close(found.grad, expected.grad)
        sae.W_enc *= -1.0


def test_without_gradient_no_transposed_copy_is_made() -> None:
    wrapped = sparse(make("topk"))
    wrapped.reconstruct(inputs(3))
    with torch.no_grad():
        wrapped.reconstruct(inputs(3).requires_grad_())
    assert wrapped._rows is None


def test_an_sae_in_training_gets_its_gradients() -> None:
    wrapped = sparse(make("topk"))
    wrapped.requires_grad_(True)
    wrapped.reconstruct(inputs(4)).sum().backward()
    assert wrapped.W_enc.grad.any()
    assert wrapped.W_dec.grad.any()


def test_hooks_inside_the_sae_still_act() -> None:
    sae, x = make("topk"), inputs(3)
    sae.hook_sae_acts_post.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    assert torch.equal(sparse(sae).reconstruct(x), sae.b_dec.expand(3, -1))


def other_saes() -> dict[str, Any]:
    standard = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
    normalised = make("topk", normalize_activations="layer_norm")
    heads = make("topk", reshape_activations="hook_z")
    return {"standard": standard, "normalised": normalised, "heads": heads}


@pytest.mark.parametrize("name", ["standard", "normalised", "heads"])
def test_other_saes_stay_as_they_are(name: str) -> None:
    sae = other_saes()[name]
    assert sparse(sae) is sae
    assert not worthwhile(sae, "cpu")


def test_only_sparse_saes_on_measured_devices_are_worthwhile() -> None:
    assert worthwhile(make("topk", k=1), "cpu")
    assert not worthwhile(make("topk", k=D_SAE // 2), "cpu")
    assert not worthwhile(make("topk", k=1), "a device nobody timed")


def test_the_wrapped_sae_is_seen_through() -> None:
    sae = make("topk")
    wrapped = copy.deepcopy(sparse(sae))
    assert sparse(wrapped) is wrapped
    assert wrapped.cfg.d_sae == D_SAE
    assert torch.equal(wrapped.W_dec, sae.W_dec)
    x = inputs(2)
    assert torch.equal(wrapped.decode(wrapped.encode(x)), dense(sae, x))
    assert torch.equal(wrapped(x), sae(x))
    with pytest.raises(AttributeError):
        wrapped.nothing  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
# SPEC 11.8
def test_spliced_model_is_the_same_with_and_without_an_observer(kind: str) -> None:
    model, ids = families.tiny("llama"), torch.randint(3, families.VOCAB, (2, 8))
    calls: list[Any] = []
    wrapped, site = sparse(make(kind)), Hookpoint(1)

    def run(sae: Any, observer: Any = None) -> Tensor:
        with splice(model, {site: sae}, TokenMask(exempt_first=True), observer=observer):
            return model(input_ids=ids).logits

    expected = run(wrapped.sae)
    torch.testing.assert_close(run(wrapped), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(wrapped, lambda *seen: calls.append(seen)), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(calls[0][2], wrapped.encode(torch.where(calls[0][4][..., None], calls[0][1], 0.0)))


def word_tokenizer() -> Any:
    """A tokenizer of one word and the special tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "word": 3}, unk_token="word"))
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize(("option", "wrapped"), [("on", True), ("off", False), ("auto", False)])
def test_option_chooses(option: str, wrapped: bool, tmp_path: Any) -> None:
    """Auto leaves this SAE alone: it has 5 active latents of 60."""
    model, tokenizer = tmp_path / "model", word_tokenizer()
    families.tiny("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)
    make("topk", metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post")).save_model(tmp_path / "sae")
    (tmp_path / "text.txt").write_text("word word")
    data = str(tmp_path / "text.txt")
    common = {
        "model": str(model),
        "sae": [str(tmp_path / "sae")],
        "data": data,
        "device": "cpu",
        "sparse_decode": option,
    }
    found = assemble(build(adapt.Config, common))
    assert all(isinstance(sae, SparseSAE) == wrapped for sae in found.sae_modules.values())
