"""Transcoders in a splice: what they read, what they replace, and that the MLP rests."""

import pytest
import torch

import families
from families import D_MODEL
from saelora.core import lora
from saelora.core.check import check_against_whole
from saelora.core.massive import Massive
from saelora.core.partial import activations
from saelora.core.splice import TokenMask, TokenPolicy, ZeroAblation, splice
from saelora.core.students import Student, Students
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, ReadPoint
from tiny_saes import SPARE_SPECIAL, SpecialTokens, TinySAE, hooks_in
from tiny_transcoders import TheMLP, TinyTranscoder
from transcoder_checks import close, compiled_layers_take_and_give_back, run
from variants import rows_of, with_adapter

READS = ("mlp_in", "mlp_normalized", "resid_mid", "resid_pre")
WITHOUT_NORM = ("olmo2", "olmo3")  # their MLP reads the residual stream as it is
WHERE = Hookpoint(2, "mlp_out")


def normed(norm, x):
    """The norm's output without gain and bias, in float64, by what kind of norm its class says it is."""
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-5))  # OLMo writes that one into its code
    x = x.double()
    x = x if "RMS" in type(norm).__name__ else x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


class PlainlyReplaced:
    """Layer 2's MLP replaced by hand: forward of the module that writes, told what was read by hooks of its own."""

    def __init__(self, model, transcoder, mask, site="mlp_out"):
        anatomy = anatomy_of(model)
        layer, layout = anatomy.layers[WHERE.layer], anatomy.layouts[WHERE.layer]
        norm = None if layout.mlp_reads is None else layer.get_submodule(layout.mlp_reads)
        reads = {"resid_pre": layer, "mlp_in": layer.get_submodule(layout.mlp)}.get(transcoder.reads, norm)
        read = {}

        def keep(_module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            read["x"] = normed(norm, x) if transcoder.reads == "mlp_normalized" else x

        def write(_module, _args, output):
            made = transcoder.decode(transcoder.encode(read["x"])) + transcoder.skip(read["x"])
            made[~mask] = output[~mask]
            return made

        self.handles = [reads.register_forward_pre_hook(keep, with_kwargs=True)]
        self.handles.append(anatomy.site(Hookpoint(WHERE.layer, site))[0].register_forward_hook(write))


@pytest.mark.parametrize("skips", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("reads", READS)
# SPEC 1.6
def test_a_transcoder_replaces_the_mlp_by_what_it_makes_of_what_it_reads(model, fresh, batch, reads, skips, request):
    transcoder = TinyTranscoder(D_MODEL, reads, skips=skips)
    family, before = request.node.callspec.params["model"], hooks_in(model)
    if family in WITHOUT_NORM and reads in ("mlp_normalized", "resid_mid"):
        with pytest.raises(InputError, match="no norm makes its MLP's input"):
            splice(model, {WHERE: transcoder}, SPARE_SPECIAL).__enter__()
        assert hooks_in(model) == before
        return
    with splice(model, {WHERE: transcoder}, SPARE_SPECIAL):
        spliced = run(model, batch)
    plain = fresh(model)
    PlainlyReplaced(plain, transcoder, batch.replaced)
    # norms round to float32, so that the reference's float64 is another number
    close(spliced, run(plain, batch), batch, 1e-5 if reads == "mlp_normalized" else 1e-8)
    clean = run(model, batch)
    assert (spliced - clean)[batch.replaced].abs().max() > 0.01
    assert hooks_in(model) == before
    assert "forward" not in vars(anatomy_of(model).mlp(WHERE.layer))


def test_a_transcoder_may_write_before_the_norm_behind_the_mlp(fresh, batch):
    model, transcoder = fresh("gemma2"), TinyTranscoder(D_MODEL)
    with splice(model, {Hookpoint(2, "mlp_module_out"): transcoder}, SPARE_SPECIAL):
        spliced = run(model, batch)
    with splice(model, {WHERE: transcoder}, SPARE_SPECIAL):
        after = run(model, batch)
    PlainlyReplaced(model, transcoder, batch.replaced, "mlp_module_out")
    close(spliced, run(model, batch), batch)
    assert (spliced - after)[batch.replaced].abs().max() > 0.01


# SPEC 1.6
def test_the_mlp_in_its_own_place_changes_nothing_and_zeros_are_its_ablation(model, batch):
    anatomy = anatomy_of(model)
    every = [Hookpoint(layer, "mlp_out") for layer in range(anatomy.n_layers)]
    where = [anatomy.canonical(Hookpoint(layer, "mlp_module_out")) for layer in range(anatomy.n_layers)]
    clean = run(model, batch)
    with splice(model, {h: TheMLP(anatomy.mlp(h.layer)) for h in where}, SPARE_SPECIAL):
        close(run(model, batch), clean, batch)
    nothing = TinyTranscoder(D_MODEL)
    for weight in (nothing.W_dec, nothing.b_dec):
        weight.zero_()
    with splice(model, dict.fromkeys(every, ZeroAblation()), SPARE_SPECIAL):
        zeroed = run(model, batch)
    with splice(model, dict.fromkeys(every, nothing), SPARE_SPECIAL):
        close(run(model, batch), zeroed, batch)
    assert (zeroed - clean)[batch.replaced].abs().max() > 0.01


def tokens_through(model, layer):
    """How many tokens go through a layer's MLP in each call, while the handle lives: the sizes, and the handle."""
    linear = next(m for m in anatomy_of(model).mlp(layer).modules() if not list(m.children()) and list(m.parameters()))
    sizes = []
    return sizes, linear.register_forward_hook(lambda _m, args, _o: sizes.append(args[0].shape[:-1].numel()))


# SPEC 1.6
def test_the_replaced_mlp_runs_for_exempt_positions_alone_and_wholly_where_it_is_watched(model, batch):
    sizes, handle = tokens_through(model, WHERE.layer)
    saes = {WHERE: TinyTranscoder(D_MODEL)}
    with handle, splice(model, saes, SPARE_SPECIAL) as spliced:
        alone = run(model, batch)
        with spliced.observed_by(lambda *event: None):
            watched = run(model, batch)
        with spliced.disabled():
            run(model, batch)
    assert sizes == [int((~batch.replaced).sum()), batch.ids.numel(), batch.ids.numel()]
    close(alone, watched, batch)
    with tokens_through(model, WHERE.layer)[1], splice(model, saes, TokenMask((), 0, False)):
        sizes, handle = tokens_through(model, WHERE.layer)
        with handle:
            run(model, batch)
    assert sizes == []


def test_an_observer_of_a_transcoder_sees_the_mlps_output_and_what_was_made_of_its_input(fresh, batch):
    model, transcoder = fresh("gemma3"), TinyTranscoder(D_MODEL, skips=True)
    points = [WHERE, ReadPoint(WHERE.layer, "mlp_in")]
    clean = activations(model, batch.ids, batch.attention, points)
    found = {}
    with splice(model, {WHERE: transcoder}, SPARE_SPECIAL, observer=lambda h, *event: found.update({h: event})):
        run(model, batch)
    x, latents, recon, mask = found[WHERE]
    assert torch.equal(mask, batch.replaced)
    torch.testing.assert_close(x[mask], clean[WHERE][mask], rtol=0, atol=1e-12)
    read = clean[points[1]]
    torch.testing.assert_close(latents[mask], transcoder.encode(read)[mask], rtol=0, atol=1e-12)
    whole = transcoder.decode(transcoder.encode(read)) + transcoder.skip(read)
    torch.testing.assert_close(recon[mask], whole[mask], rtol=0, atol=1e-12)


def test_several_transcoders_each_read_what_the_replaced_stream_gives(fresh, batch):
    model = fresh("llama")
    saes = {Hookpoint(layer, "mlp_out"): TinyTranscoder(D_MODEL, seed=layer) for layer in (0, 1, 3)}
    saes[Hookpoint(2)] = TinySAE(D_MODEL)
    found = {}
    with splice(model, saes, SPARE_SPECIAL, observer=lambda h, *event: found.update({h: event})):
        both = run(model, batch)
        read = activations(model, batch.ids, batch.attention, [ReadPoint(3, "mlp_in")])[ReadPoint(3, "mlp_in")]
    with splice(model, saes, SPARE_SPECIAL):
        close(run(model, batch), both, batch)
    latents, mask = found[Hookpoint(3, "mlp_out")][1], batch.replaced
    torch.testing.assert_close(latents[mask], saes[Hookpoint(3, "mlp_out")].encode(read)[mask], rtol=0, atol=1e-12)
    clean = activations(model, batch.ids, batch.attention, [ReadPoint(3, "mlp_in")])[ReadPoint(3, "mlp_in")]
    assert (read - clean)[mask].abs().max() > 0.01


def test_a_cache_gives_the_tokens_one_by_one_what_a_whole_pass_gives_them(fresh):
    model = fresh("gemma2")
    ids, mask = torch.tensor([[5, 9, 33, 12, 50, 7]]), TokenPolicy(("first", "pad")).resolve(SpecialTokens())
    saes = {WHERE: TinyTranscoder(D_MODEL, "resid_mid", skips=True), Hookpoint(1, "mlp_out"): TinyTranscoder(D_MODEL)}
    with splice(model, saes, mask):
        whole = model(input_ids=ids).logits
        cache, parts = None, []
        for token in ids.split([3, 1, 1, 1], dim=1):
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel", "gpt_neox-serial", "phi"])
@pytest.mark.parametrize("layers", [[2, 3], [0, 3]], ids=["adapter above", "adapter around"])
def test_parts_of_the_model_give_what_the_whole_gives_with_adapters(fresh, family, layers):
    rows, model = rows_of(families.tiny(family)), with_adapter(fresh(family), layers)
    saes = {Hookpoint(1, "mlp_out"): TinyTranscoder(D_MODEL), WHERE: TinyTranscoder(D_MODEL, "resid_mid", 1, True)}
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        check_against_whole(model, spliced, rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_a_replaced_mlp_gets_no_adapter(fresh, family):
    from peft import get_peft_model

    model = fresh(family)
    config = lora.lora_config(model, [1, 2, 3], rank=2, alpha=2, replaced=[2])
    model = get_peft_model(model, config)
    anatomy = anatomy_of(model)

    def held(module):
        return any(lora.is_wrapper(each) for each in module.modules())

    assert [held(anatomy.mlp(i)) for i in range(4)] == [False, True, False, True]
    attention = [layer.get_submodule(anatomy.layouts[0].attn) for layer in anatomy.layers]
    assert [held(each) for each in attention] == [False, True, True, True]


def test_students_of_different_transcoders_on_one_mlp_do_not_mix_and_may_leave_in_any_order(fresh, batch):
    model = fresh("llama")
    own = vars(anatomy_of(model).mlp(2)).copy()
    expected, opened = [], []
    for seed in (0, 1):
        with splice(model, {WHERE: TinyTranscoder(D_MODEL, seed=seed)}, SPARE_SPECIAL):
            expected.append(run(model, batch))
    for seed in (0, 1):
        opened.append(splice(model, {WHERE: TinyTranscoder(D_MODEL, seed=seed)}, SPARE_SPECIAL))
    splices = [context.__enter__() for context in opened]
    students = Students(model, [Student(each) for each in splices])
    for student, whole in zip(students.students, expected, strict=True):
        with students.only(student):
            assert torch.equal(run(model, batch), whole)
    opened[0].__exit__(None, None, None)
    assert torch.equal(run(model, batch), expected[1])
    opened[1].__exit__(None, None, None)
    assert vars(anatomy_of(model).mlp(2)).keys() == own.keys()


def test_massive_positions_are_told_by_the_output_of_the_mlp_itself(fresh, batch):
    model = fresh("llama")
    x = activations(model, batch.ids, batch.attention, [WHERE])[WHERE]
    norms = x.norm(dim=-1)
    limit = float(norms[batch.replaced].median())
    mask = TokenMask(SPARE_SPECIAL.exempt_ids, massive=Massive(2.0).with_limits({WHERE: limit}))
    with splice(model, {WHERE: TinyTranscoder(D_MODEL)}, mask):
        run(model, batch)
        kept = activations(model, batch.ids, batch.attention, [WHERE])[WHERE]
    same = (kept == x).all(-1)
    assert torch.equal(same, ~batch.replaced | (norms > limit))


@pytest.mark.usefixtures("unchecked")
def test_compiled_layers_take_the_transcoder_and_give_it_back(fresh, batch):
    compiled_layers_take_and_give_back(fresh("llama"), {WHERE: TinyTranscoder(D_MODEL)}, batch)


def test_gradient_goes_through_the_transcoder_and_not_through_the_mlp_it_stands_for(fresh, batch):
    model = fresh("llama").requires_grad_(True)
    with splice(model, {WHERE: TinyTranscoder(D_MODEL)}, TokenMask((), 0, False)):
        run(model, batch).sum().backward()
    grads = [p.grad for p in anatomy_of(model).mlp(2).parameters()]
    assert all(g is None for g in grads)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in anatomy_of(model).mlp(1).parameters())


@pytest.mark.parametrize(
    ("saes", "said"),
    [
        ({Hookpoint(1): TinyTranscoder(D_MODEL)}, "a transcoder cannot write at layers.1.resid_post"),
        (
            {WHERE: TinyTranscoder(D_MODEL), Hookpoint(2, "mlp_module_out"): TinySAE(D_MODEL)},
            "the MLP of layer 2 has two writers, at layers.2.mlp_out and layers.2.mlp_module_out",
        ),
        ({Hookpoint(9, "mlp_out"): TinyTranscoder(D_MODEL)}, "layers.9.mlp_out is out of range"),
        ({WHERE: TinyTranscoder(D_MODEL + 1)}, f"reads d_in {D_MODEL + 1}, this model has d_model {D_MODEL}"),
    ],
)
def test_what_cannot_be_spliced_is_said_in_one_line(model, saes, said):
    with pytest.raises(InputError, match=said) as caught, splice(model, saes, SPARE_SPECIAL):
        pass
    assert "\n" not in str(caught.value)
