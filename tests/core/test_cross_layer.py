"""Cross-layer transcoders in a splice: the sum over layers written plainly, and nothing of a pass in another."""

import pytest
import torch

import families
from families import D_MODEL
from saelora.core.check import check_against_whole
from saelora.core.cross_layer import Ahead
from saelora.core.lora import disabled
from saelora.core.massive import Massive
from saelora.core.partial import activations
from saelora.core.replacement import Replacement
from saelora.core.splice import TokenMask, TokenPolicy, splice
from saelora.core.students import Student, Students
from saelora.errors import InputError
from saelora.evals.faithfulness.ablation import Ablated, Shuffle, Shuffled, decoder_norms
from saelora.evals.loss import evaluate_loss
from saelora.evals.reading import fvu_by_site
from saelora.evals.replacement.measure import measure_replacement
from saelora.evals.spliced import SplicedModel
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, ReadPoint
from tiny_clt import clt_weights, members, written
from tiny_saes import SPARE_SPECIAL, SpecialTokens, TinySAE, hooks_in
from tiny_transcoders import TinyTranscoder
from transcoder_checks import close, compiled_layers_take_and_give_back, figures_are_those_of_whole_passes, run
from variants import replaced, rows_of, with_adapter

N = 4
W = clt_weights(N, D_MODEL)
PARALLEL, ADDED = Replacement("parallel"), Replacement(add_error=True)
MODES = pytest.mark.parametrize(
    "replacement",
    [Replacement(), PARALLEL, ADDED, Replacement("parallel", add_error=True)],
    ids=["cascading", "parallel", "added", "parallel, added"],
)


class PlainlyReplaced:
    """All MLPs replaced by hand: hooks that keep what each reads, and write the sum over the layers so far."""

    def __init__(self, model, weights, mask):
        self.anatomy, self.reads, self.weights, self.mask, self.handles = anatomy_of(model), [], weights, mask, []
        for layer in range(N):
            module = self.anatomy.site(Hookpoint(layer, "mlp_out"))[0]
            self.handles.append(self.anatomy.mlp(layer).register_forward_pre_hook(self.keep(layer), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self.write))

    def keep(self, layer):
        def hook(_module, args, kwargs):
            self.reads = self.reads[:layer]
            self.reads.append(args[0] if args else kwargs["hidden_states"])

        return hook

    def write(self, _module, _args, output):
        return torch.where(self.mask[..., None], written(self.weights, self.reads), output)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


# SPEC 1.9
def test_each_mlp_is_replaced_by_what_latents_of_all_layers_so_far_write_there(model, fresh, batch):
    before, clean = hooks_in(model), run(model, batch)
    with splice(model, members(W), SPARE_SPECIAL):
        spliced = run(model, batch)
    other = fresh(model)
    with PlainlyReplaced(other, W, batch.replaced) as plain:
        close(spliced, run(other, batch), batch)
    assert len(plain.reads) == N
    assert (spliced - clean)[batch.replaced].abs().max() > 0.01
    assert hooks_in(model) == before
    assert torch.equal(run(model, batch), clean)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel"])
def test_gradient_goes_through_decoders_into_every_later_layer(fresh, batch, family):
    found = []
    for plainly in (False, True):
        torch.manual_seed(0)
        model = with_adapter(fresh(family), [0, 1, 2, 3])
        context = PlainlyReplaced(model, W, batch.replaced) if plainly else splice(model, members(W), SPARE_SPECIAL)
        with context:
            (run(model, batch)[batch.replaced].log_softmax(-1)[:, 7]).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if "lora_" in name and p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=0, atol=1e-8)
    assert max(float(gradient.abs().max()) for name, gradient in found[0].items() if ".0." in name) > 1e-3


def test_what_writes_nothing_into_later_layers_is_bit_for_bit_the_set_of_single_transcoders(fresh, batch):
    model, weights = fresh("llama"), [{**w, "W_dec": w["W_dec"].clone()} for w in W]
    for w in weights:
        w["W_dec"][:, 1:] = 0
    single = members(weights)
    alone = {h: TinySingle(sae) for h, sae in single.items()}
    with splice(model, alone, SPARE_SPECIAL):
        expected = run(model, batch)
    with splice(model, single, SPARE_SPECIAL):
        assert torch.equal(run(model, batch), expected)
    with splice(model, members(W), SPARE_SPECIAL):
        assert (run(model, batch) - expected)[batch.replaced].abs().max() > 0.01


class TinySingle(torch.nn.Module):
    """A layer's transcoder, without what it writes into others."""

    def __init__(self, member):
        super().__init__()
        self.reads, self.cfg = member.reads, member.cfg
        self.encode, self.decode, self.skip = member.encode, member.decode, member.skip


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_one_by_one_with_a_cache_are_those_of_a_whole_pass(fresh, family):
    model, ids = fresh(family), torch.tensor([[5, 9, 33, 12, 50, 7]])
    mask = TokenPolicy(("first", "pad")).resolve(SpecialTokens())
    with splice(model, members(W), mask):
        whole = model(input_ids=ids).logits
        cache, parts = None, []
        for token in ids.split([3, 1, 1, 1], dim=1):
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        made = [model.generate(input_ids=ids, use_cache=use_cache, **asked) for use_cache in (True, False)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)
    assert torch.equal(*made)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel"])
@pytest.mark.parametrize("layers", [[2, 3], [0, 3]], ids=["adapter above", "adapter around"])
@MODES
def test_parts_of_the_model_give_what_the_whole_gives_with_adapters(fresh, family, layers, replacement):
    rows, model = rows_of(families.tiny(family)), with_adapter(fresh(family), layers)
    saes = {**members(W), Hookpoint(1): TinySAE(D_MODEL, seed=5)}
    with splice(model, saes, SPARE_SPECIAL, replacement=replacement) as spliced:
        check_against_whole(model, spliced, rows)


def test_students_of_two_transcoders_of_many_layers_do_not_mix(fresh):
    rows, model = rows_of(families.tiny("llama")), with_adapter(fresh("llama"), [2, 3])
    sets = [members(clt_weights(N, D_MODEL, seed)) for seed in (0, 1)]
    expected = []
    for saes in sets:
        with splice(model, saes, SPARE_SPECIAL):
            expected.append(model.model.model(input_ids=rows).last_hidden_state)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    with splice(model, sets[0], SPARE_SPECIAL) as one, splice(model, sets[1], SPARE_SPECIAL) as other:
        students = Students(model, [Student(one, "default"), Student(other, "default"), Student(one)])
        shared = students.teacher(rows)
        for _ in range(2):
            for student, hidden in zip(students.students[:2], expected, strict=True):
                torch.testing.assert_close(students.hidden(student, shared), hidden, rtol=0, atol=1e-10)
            with disabled(model):
                students.hidden(students.students[2], shared)


def test_a_pass_that_failed_halfway_leaves_nothing_to_the_next(fresh, batch):
    model, other = fresh("llama"), batch.ids.flip(1)
    with splice(model, members(W), SPARE_SPECIAL) as spliced:
        expected = run(model, batch)

        def fail(*_):
            raise RuntimeError("in the middle")

        with model.model.layers[2].register_forward_hook(fail), pytest.raises(RuntimeError, match="in the middle"):
            model(input_ids=other, attention_mask=batch.attention)
        assert torch.equal(run(model, batch), expected)
        with spliced.disabled():
            run(model, batch)
        assert torch.equal(run(model, batch), expected)
        assert spliced._ahead._written is None


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_parallel_members_each_write_what_they_make_of_the_original_stream(fresh, batch, family):
    model = fresh(family)
    points = [ReadPoint(layer, "mlp_in") for layer in range(N)]
    clean = activations(model, batch.ids, batch.attention, points)
    handles = []
    for j in range(N):
        made = written(W, [clean[point] for point in points[: j + 1]])

        def put_in(_module, _args, output, made=made):
            return torch.where(batch.replaced[..., None], made, output)

        handles.append(anatomy_of(model).site(Hookpoint(j, "mlp_out"))[0].register_forward_hook(put_in))
    expected = run(model, batch)
    for handle in handles:
        handle.remove()
    with splice(model, members(W), SPARE_SPECIAL, replacement=PARALLEL):
        close(run(model, batch), expected, batch)
    with splice(model, members(W), SPARE_SPECIAL):
        assert (run(model, batch) - expected)[batch.replaced].abs().max() > 0.01


@pytest.mark.parametrize("replacement", [ADDED, Replacement("parallel", add_error=True)], ids=["cascading", "parallel"])
def test_with_its_error_added_the_model_is_bit_for_bit_the_original_until_latents_are_taken_away(
    fresh, batch, replacement
):
    model, saes, gone = fresh("llama"), members(W), torch.arange(8)
    points = [ReadPoint(layer, "mlp_in") for layer in range(N)]
    places = [Hookpoint(layer, "mlp_out") for layer in range(N)]
    clean, seen = run(model, batch), activations(model, batch.ids, batch.attention, [*points, *places])
    with splice(model, saes, SPARE_SPECIAL, replacement=replacement) as spliced:
        assert torch.equal(run(model, batch), clean)
        with spliced.observed_by(lambda *event: None):
            assert torch.equal(run(model, batch), clean)
    wrapped = {**saes, places[1]: Ablated(saes[places[1]], gone)}
    found = {}
    with splice(model, wrapped, SPARE_SPECIAL, replacement=replacement):
        run(model, batch)
        found = activations(model, batch.ids, batch.attention, places)
    acts = saes[places[1]].encode(seen[points[1]])[..., gone]
    for j in (1, 2, 3):
        if j == 1 or replacement.mode == "parallel":
            expected = seen[places[j]] - acts @ W[1]["W_dec"][gone, j - 1]
            torch.testing.assert_close(found[places[j]][batch.replaced], expected[batch.replaced], rtol=0, atol=1e-9)


@pytest.mark.parametrize("keep_error", [False, True])
def test_an_edit_of_latents_is_written_into_every_later_layer(fresh, batch, keep_error):
    model, saes = fresh("llama"), members(W)
    places = [Hookpoint(layer, "mlp_out") for layer in range(N)]
    clean = run(model, batch)

    def pushed(hookpoint, latents):
        return latents + 2 * (torch.arange(latents.shape[-1]) == 5) if hookpoint.layer == 1 else latents

    with splice(model, saes, SPARE_SPECIAL, replacement=PARALLEL) as spliced:
        before = run(model, batch), activations(model, batch.ids, batch.attention, places)
        if keep_error:
            with spliced.edited_by(lambda _h, latents: latents, keep_error=True):
                assert torch.equal(run(model, batch), clean)
            with spliced.disabled():
                before = clean, activations(model, batch.ids, batch.attention, places)
        with spliced.edited_by(pushed, keep_error=keep_error):
            after = activations(model, batch.ids, batch.attention, places)
    for j in range(N):
        change = 2 * W[1]["W_dec"][5, j - 1] if j >= 1 else torch.zeros(D_MODEL, dtype=torch.float64)
        expected = (before[1][places[j]] + change)[batch.replaced]
        torch.testing.assert_close(after[places[j]][batch.replaced], expected, rtol=0, atol=1e-9)


# SPEC 1.9
def test_latents_of_a_layer_that_spares_a_position_write_nothing_there(fresh, batch):
    model, saes, places = fresh("llama"), members(W), [Hookpoint(layer, "mlp_out") for layer in range(N)]
    points = [ReadPoint(layer, "mlp_in") for layer in range(N)]
    seen = activations(model, batch.ids, batch.attention, [*points, *places])
    limits = {place: float("inf") for place in places}
    limits[places[1]] = float(seen[places[1]].norm(dim=-1)[batch.replaced].median())
    mask, masks = TokenMask(SPARE_SPECIAL.exempt_ids, massive=Massive(2.0).with_limits(limits)), {}
    with splice(model, saes, mask, replacement=PARALLEL, observer=lambda h, *event: masks.update({h: event[-1]})):
        found = activations(model, batch.ids, batch.attention, places)
    spared = [~masks[place] if place in masks else ~batch.replaced for place in places]
    for j in range(N):
        made = written(W, [seen[point] for point in points[: j + 1]], spared[: j + 1])
        kept = ~spared[j]
        torch.testing.assert_close(found[places[j]][kept], made[kept], rtol=0, atol=1e-9)
    assert (spared[1] & batch.replaced).any()
    assert (~spared[1]).any()


def test_an_observer_sees_the_whole_of_what_is_written_and_gets_it_of_clean_activations_too(fresh, batch):
    model, saes = fresh("gemma3"), members(W)
    found = {}
    with splice(model, saes, SPARE_SPECIAL, observer=lambda h, *event: found.update({h: event})) as spliced:
        with PlainlyReplaced(fresh(model), W, batch.replaced):
            run(model, batch)
        read = activations(model, batch.ids, batch.attention, list(spliced.reads.values()))
        reads = [read[ReadPoint(layer, "mlp_in")] for layer in range(N)]
        ahead = Ahead()
        for h in sorted(saes):
            mask = found[h][3]
            expected = written(W, reads[: h.layer + 1])
            torch.testing.assert_close(found[h][2][mask], expected[mask], rtol=0, atol=1e-9)
            given = spliced.given(h, reads[h.layer], mask)
            latents, recon = spliced.made(h, given, mask, torch.float64, ahead)
            assert torch.equal(latents[mask], found[h][1][mask])
            assert torch.equal(recon[mask], found[h][2][mask])


@MODES
def test_losses_drift_and_faithfulness_are_those_of_whole_passes(fresh, replacement):
    model, rows = with_adapter(fresh("llama"), [2, 3]), rows_of(families.tiny("llama"))
    figures_are_those_of_whole_passes(model, members(W), rows, replacement)


def test_shuffled_latents_take_what_they_write_into_later_layers_with_them(fresh, batch):
    model, saes, places = fresh("llama"), members(W), [Hookpoint(layer, "mlp_out") for layer in range(N)]
    points = [ReadPoint(layer, "mlp_in") for layer in range(N)]
    seen = activations(model, batch.ids, batch.attention, points)
    shuffle = Shuffle()
    shuffle.draw(batch.replaced, torch.Generator().manual_seed(0))
    source, shape = shuffle.source(), seen[points[0]].shape
    with splice(model, {h: Shuffled(sae, shuffle) for h, sae in saes.items()}, SPARE_SPECIAL, replacement=PARALLEL):
        found = activations(model, batch.ids, batch.attention, places)
    for j in range(N):
        moved = [seen[point].flatten(0, 1)[source].view(shape) for point in points[: j + 1]]
        skips = [torch.einsum("...i,oi->...o", x[j], W[j]["W_skip"]) for x in (moved, [seen[p] for p in points])]
        expected = written(W, moved) - skips[0] + skips[1]  # what skips the latents stays in its place
        torch.testing.assert_close(found[places[j]][batch.replaced], expected[batch.replaced], rtol=0, atol=1e-9)


def test_a_latents_share_counts_all_layers_that_it_writes_into():
    found = decoder_norms(members(W)[Hookpoint(1, "mlp_out")], 24)
    torch.testing.assert_close(found, W[1]["W_dec"].flatten(1).norm(dim=1), rtol=1e-12, atol=0)


def test_fvu_by_what_is_read_is_of_the_sum_over_layers(fresh):
    rows, model = rows_of(families.tiny("llama")), fresh("llama")
    found = fvu_by_site(model, members(W), SPARE_SPECIAL, rows)
    places = [Hookpoint(layer, "mlp_out") for layer in range(N)]
    mask = replaced(rows)
    for site in ("mlp_in", "resid_mid", "resid_pre"):
        points = [ReadPoint(layer, site) for layer in range(N)]
        seen = activations(model, rows, None, [*places, *points])
        for j, place in enumerate(places):
            made, x = written(W, [seen[p] for p in points[: j + 1]])[mask], seen[place][mask]
            fvu = float((x - made).square().sum() / (x - x.mean(0)).square().sum())
            assert fvu > 1  # so that the other sites are tried
            assert found[place][site] == pytest.approx(fvu, rel=1e-9)


def test_replacement_is_measured_of_all_mlps_and_not_of_some(fresh):
    rows, model = rows_of(families.tiny("llama")), fresh("llama")
    with splice(model, members(W), SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        found = measure_replacement(subject, rows, sizes=(30,), modes=("cascading", "parallel"))
        assert [step.n_replaced for step in found.curves["cascading"]] == [N]
        for asked in ({"sizes": (1, 4), "modes": ("cascading",)}, {"sizes": (4,), "modes": ("independent",)}):
            with pytest.raises(InputError, match="replaces all MLPs or none"):
                measure_replacement(subject, rows, **asked)
    whole = evaluate_loss(model, members(W), SPARE_SPECIAL, rows)
    assert found.curves["cascading"][0].ce["sae"]["value"] == pytest.approx(whole["ce_sae"], rel=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_compiled_layers_take_the_transcoder_and_give_it_back(fresh, batch):
    compiled_layers_take_and_give_back(fresh("llama"), members(W), batch)


def test_gradient_checkpointing_is_refused(fresh, batch):
    model = fresh("llama").train().requires_grad_(True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with splice(model, members(W), SPARE_SPECIAL):
        loss = run(model, batch, use_cache=False).sum()
        with pytest.raises(InputError, match="turn checkpointing off"):
            loss.backward()


@pytest.mark.parametrize(
    ("saes", "said"),
    [
        ({h: sae for h, sae in members(W).items() if h.layer != 2}, "layer 2 of it is not here"),
        (members(clt_weights(3, D_MODEL)), "of layer 0 write into 3 layers, expected 4, as this model has 4 layers"),
        (members(clt_weights(N, D_MODEL + 1)), f"reads d_in {D_MODEL + 1}, this model has d_model {D_MODEL}"),
        ({**members(W), Hookpoint(1, "mlp_out"): TinyTranscoder(D_MODEL)}, "layer 1 of it is not here"),
    ],
)
def test_what_is_not_whole_or_of_another_model_is_said_in_one_line(fresh, saes, said):
    with pytest.raises(InputError, match=said) as caught, splice(fresh("llama"), saes, SPARE_SPECIAL):
        pass
    assert "\n" not in str(caught.value)
