"""The splice: which tensor, which positions, nothing left behind."""

import pytest
import torch
from torch import nn

import families
from families import BOS, D_MODEL, EOS, N_LAYERS, PAD
from saelora.core.partial import activations
from saelora.core.splice import TokenMask, TokenPolicy, ZeroAblation, splice
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import SITES, Hookpoint
from tiny_saes import SPARE_SPECIAL, Broken, Identity, SpecialTokens, TinySAE, hooks_in, saes_at

ONE_OF_EACH_SITE = [
    Hookpoint(layer, site) for layer, site in enumerate(("resid_pre", "resid_post", "attn_out", "attn_z"))
]


class Replaced(nn.Module):
    """The plain way to splice: a module in the other's place."""

    def __init__(self, inner, side, sae, mask):
        super().__init__()
        self.inner, self.side, self.sae, self.mask = inner, side, sae, mask

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def through(self, x):
        y = self.sae.decode(self.sae.encode(x))
        y[~self.mask] = x[~self.mask]
        return y

    def forward(self, *args, **kwargs):
        if self.side == "input" and args:
            args = (self.through(args[0]), *args[1:])
        elif self.side == "input":
            kwargs["hidden_states"] = self.through(kwargs["hidden_states"])
        out = self.inner(*args, **kwargs)
        if self.side == "input":
            return out
        return self.through(out) if isinstance(out, torch.Tensor) else (self.through(out[0]), *out[1:])


def by_replacing_modules(model, saes, mask):
    for hookpoint, sae in saes.items():
        inner, side = anatomy_of(model).site(hookpoint)
        parent_name, _, name = next(n for n, m in model.named_modules() if m is inner).rpartition(".")
        setattr(model.get_submodule(parent_name), name, Replaced(inner, side, sae, mask))
    return model


@pytest.mark.parametrize("site", SITES)
# SPEC 1.3
def test_splice_equals_replacing_the_module_by_one_that_spares_special_tokens(model, fresh, batch, site):
    saes = saes_at(anatomy_of(model), [Hookpoint(2, site)])
    with splice(model, saes, SPARE_SPECIAL):
        spliced = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    expected = by_replacing_modules(fresh(model), saes, batch.replaced)(
        input_ids=batch.ids, attention_mask=batch.attention
    ).logits
    seen = batch.attention.bool()
    torch.testing.assert_close(spliced[seen], expected[seen], rtol=0, atol=1e-10)
    clean = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    assert (spliced - clean)[batch.replaced].abs().max() > 0.01


# SPEC 1.3
def test_several_saes_equal_several_replaced_modules(model, fresh, batch):
    saes = saes_at(anatomy_of(model), ONE_OF_EACH_SITE)
    with splice(model, saes, SPARE_SPECIAL):
        spliced = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    expected = by_replacing_modules(fresh(model), saes, batch.replaced)(
        input_ids=batch.ids, attention_mask=batch.attention
    ).logits
    seen = batch.attention.bool()
    torch.testing.assert_close(spliced[seen], expected[seen], rtol=0, atol=1e-10)


# SPEC 1.2
def test_splice_leaves_exempt_activations_bit_for_bit_unchanged(model, batch):
    hookpoint = Hookpoint(1, "resid_post")
    clean = activations(model, batch.ids, batch.attention, [hookpoint])[hookpoint]
    with splice(model, saes_at(anatomy_of(model), [hookpoint]), SPARE_SPECIAL):
        spliced = activations(model, batch.ids, batch.attention, [hookpoint])[hookpoint]
    assert torch.equal(spliced[~batch.replaced], clean[~batch.replaced])
    assert (spliced != clean)[batch.replaced].any(-1).all()


def test_sites_are_the_tensors_of_the_residual_stream(model, fresh, batch):
    model = fresh(model)  # asked for hidden states, transformers leaves hooks on it
    anatomy = anatomy_of(model)
    every = [Hookpoint(layer, site) for layer in range(N_LAYERS) for site in SITES]
    found = activations(model, batch.ids, batch.attention, every)
    hidden = model(input_ids=batch.ids, attention_mask=batch.attention, output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS):
        pre, post, mlp_out, attn_out, z, mlp, attn = (found[Hookpoint(layer, site)] for site in SITES)
        assert torch.equal(pre, hidden[layer])
        if layer + 1 < N_LAYERS:  # transformers' last entry is taken after the final norm
            assert torch.equal(post, hidden[layer + 1])
        torch.testing.assert_close(pre + attn_out + mlp_out, post, rtol=0, atol=1e-10)
        block = anatomy.layers[layer]
        assert torch.equal(block.get_submodule(anatomy.layouts[layer].attn_proj)(z), attn)
        if "post_feedforward_layernorm" in dict(block.named_modules()):
            attn, mlp = block.post_attention_layernorm(attn), block.post_feedforward_layernorm(mlp)
            assert anatomy.canonical(Hookpoint(layer, "mlp_module_out")) == Hookpoint(layer, "mlp_module_out")
        else:
            assert anatomy.canonical(Hookpoint(layer, "attn_module_out")) == Hookpoint(layer, "attn_out")
        assert torch.equal(attn, attn_out)
        assert torch.equal(mlp, mlp_out)


def test_observer_sees_each_input_and_what_the_sae_made_of_it(model, batch):
    saes = saes_at(anatomy_of(model), [Hookpoint(1, site) for site in SITES])
    clean = activations(model, batch.ids, batch.attention, list(saes))
    for hookpoint, sae in saes.items():
        calls = []
        with splice(model, {hookpoint: sae}, SPARE_SPECIAL, observer=lambda *seen, calls=calls: calls.append(seen)):
            model(input_ids=batch.ids, attention_mask=batch.attention)
        [(where, x, latents, recon, mask)] = calls
        assert where == hookpoint
        assert torch.equal(x, clean[hookpoint])
        assert torch.equal(mask, batch.replaced)
        torch.testing.assert_close(latents[mask], sae.encode(x[mask]), rtol=0, atol=1e-12)
        torch.testing.assert_close(recon[mask], sae.decode(sae.encode(x[mask])), rtol=0, atol=1e-12)


def test_identity_sae_leaves_logits_bit_for_bit_equal(model, batch):
    clean = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    with splice(model, dict.fromkeys(ONE_OF_EACH_SITE, Identity()), TokenMask()):
        assert torch.equal(model(input_ids=batch.ids, attention_mask=batch.attention).logits, clean)


# SPEC 1.4
def test_leaving_the_splice_restores_logits_and_removes_hooks_even_after_an_error(model, batch):
    clean, hooks = model(input_ids=batch.ids).logits, hooks_in(model)
    saes = saes_at(anatomy_of(model), ONE_OF_EACH_SITE)
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        assert not torch.equal(model(input_ids=batch.ids).logits, clean)
        with spliced.disabled():
            assert torch.equal(model(input_ids=batch.ids).logits, clean)
        assert not torch.equal(model(input_ids=batch.ids).logits, clean)
    assert (torch.equal(model(input_ids=batch.ids).logits, clean), hooks_in(model)) == (True, hooks)
    with pytest.raises(RuntimeError, match="broken"), splice(model, {Hookpoint(1): Broken()}, SPARE_SPECIAL):
        model(input_ids=batch.ids)
    assert (torch.equal(model(input_ids=batch.ids).logits, clean), hooks_in(model)) == (True, hooks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
# SPEC 1.2
def test_huge_exempt_activation_does_not_poison_the_gradient(fresh, batch, dtype):
    model = fresh("llama").to(dtype)
    embedding = model.get_input_embeddings().weight
    embedding[BOS] = 6e4  # norm 2.4e5: the SAE's latents would overflow float16
    embedding.requires_grad_()
    norms = []
    sae = TinySAE(D_MODEL, dtype=dtype).requires_grad_()
    observer = lambda _h, x, *_: norms.append(x.float().norm(dim=-1).max())  # noqa: E731
    with splice(model, {Hookpoint(1): sae}, SPARE_SPECIAL, observer=observer):
        model(input_ids=batch.ids).logits.float().logsumexp(-1).sum().backward()
    assert norms[0] > 1e5
    assert all(p.grad.isfinite().all() for p in (embedding, *sae.parameters()))
    assert embedding.grad[5].abs().max() > 0


# SPEC 4.3
def test_zero_ablation_writes_zeros_where_the_mask_is_true(batch):
    model, hookpoint = families.tiny("llama"), Hookpoint(1, "mlp_out")
    with splice(model, {hookpoint: ZeroAblation()}, SPARE_SPECIAL):
        found = activations(model, batch.ids, batch.attention, [hookpoint])[hookpoint]
    assert torch.equal(found.abs().sum(-1) == 0, batch.replaced)


# SPEC 12.3
def test_inputs_embeds_are_refused_since_the_token_mask_is_read_from_ids():
    model = families.tiny("llama")
    with splice(model, {Hookpoint(1): Identity()}, SPARE_SPECIAL), pytest.raises(InputError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, D_MODEL, dtype=torch.float64))


# SPEC 12.2
def test_sae_of_another_width_is_refused_and_leaves_no_hook(model):
    hooks = hooks_in(model)
    message = r"SAE expects d_in 7, layers\.1\.resid_post has 16: is this SAE for another model\?"
    saes = {Hookpoint(0): TinySAE(D_MODEL), Hookpoint(1): TinySAE(7)}
    with pytest.raises(InputError, match=message), splice(model, saes, SPARE_SPECIAL):
        pass
    assert hooks_in(model) == hooks


@pytest.mark.parametrize("layer", [-1, N_LAYERS])
# SPEC 12.2
def test_layer_out_of_range_is_refused(layer):
    message = rf"hookpoint layers\.{layer}\.resid_post is out of range: this model has layers 0 to 3"
    with (
        pytest.raises(InputError, match=message),
        splice(families.tiny("llama"), {Hookpoint(layer): Identity()}, SPARE_SPECIAL),
    ):
        pass


# SPEC 1.1
def test_policy_spares_bos_eos_and_padding_by_default(batch):
    mask = TokenPolicy().resolve(SpecialTokens())(batch.ids, batch.attention)
    assert torch.equal(mask, batch.replaced)


def test_policy_without_bos_in_the_tokenizer_spares_the_first_position():
    mask = TokenPolicy(("bos",)).resolve(SpecialTokens(bos_token_id=None))
    assert (mask.exempt_first, mask.exempt_ids) == (1, ())
    assert not TokenPolicy(("eos",)).resolve(SpecialTokens(bos_token_id=None)).exempt_first


def test_policy_takes_token_ids_and_refuses_unknown_names():
    assert TokenPolicy((7, "eos", 9)).resolve(SpecialTokens()).exempt_ids == (EOS, 7, 9)
    with pytest.raises(InputError, match=r"token policy names 'sep': expected any of bos, eos, pad, first, first:4"):
        TokenPolicy(("sep",)).resolve(SpecialTokens())


# SPEC 2.1
def test_padding_is_read_from_the_attention_mask_where_pad_is_an_ordinary_token():
    ids, attention = torch.tensor([[9, 9, 5, 6], [5, 6, 9, 9]]), torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    tokenizer = SpecialTokens(pad_token_id=None)
    assert torch.equal(TokenPolicy(("pad",)).resolve(tokenizer)(ids, attention), attention.bool())
    assert TokenPolicy(("eos",)).resolve(tokenizer)(ids, attention).all()
    assert TokenPolicy(()).resolve(SpecialTokens(pad_token_id=PAD))(ids, attention).all()


def test_first_means_the_first_token_that_is_not_padding():
    ids, attention = torch.full((2, 4), 9), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    mask = TokenPolicy(("first", "pad")).resolve(SpecialTokens())
    assert mask(ids, attention).tolist() == [[False, False, False, True], [False, True, True, False]]
    assert mask(ids).tolist() == [[False, True, True, True]] * 2


def test_first_is_over_once_tokens_are_cached():
    ids, mask = torch.full((2, 1), 9), TokenPolicy(("first",)).resolve(SpecialTokens())
    assert mask(ids, None, past=3).all()
    assert mask(ids, torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]), past=3).tolist() == [[True], [False]]
