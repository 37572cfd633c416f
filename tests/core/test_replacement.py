"""What transcoders read by the mode, and what is left of a model once their errors are put back."""

import pytest
import torch

import families
from families import D_MODEL
from saelora.core.check import check_against_whole
from saelora.core.partial import activations
from saelora.core.replacement import Replacement, replacement_of
from saelora.core.splice import splice
from saelora.core.students import Student, Students
from saelora.errors import InputError
from saelora.evals.faithfulness.ablation import Ablated
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, ReadPoint
from saelora.saes.sparse import sparse
from saelora.saes.transcoder import TranscoderParts, build_transcoder
from tiny_saes import SPARE_SPECIAL, TinySAE
from tiny_transcoders import TinyTranscoder
from transcoder_checks import figures_are_those_of_whole_passes, run
from variants import rows_of, with_adapter

PARALLEL, ADDED = Replacement("parallel"), Replacement(add_error=True)
BOTH_ADDED = [ADDED, Replacement("parallel", add_error=True)]
LAYERS = (0, 1, 3)
EVERY = pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi"])


def transcoders(reads="mlp_in", layers=LAYERS):
    return {Hookpoint(layer, "mlp_out"): TinyTranscoder(D_MODEL, reads, seed=layer, skips=True) for layer in layers}


def topk(layer):
    """A TopK transcoder with a skip, as loaders make them."""
    draw = torch.Generator().manual_seed(layer)
    shapes = {"W_enc": (D_MODEL, 40), "W_dec": (40, D_MODEL), "b_enc": (40,), "b_dec": (D_MODEL,)}
    shapes |= {"W_skip": (D_MODEL, D_MODEL)}
    weights = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    hook = f"blocks.{layer}.ln2.hook_normalized"
    parts = TranscoderParts(weights, "topk", k=8, hook_in=hook, hook_out=f"blocks.{layer}.hook_mlp_out")
    return build_transcoder(parts, "tiny", torch.float64)


def written(transcoder, x):
    return transcoder.decode(transcoder.encode(x)) + transcoder.skip(x)


def by_hand(model, batch, write):
    """The model with outputs of MLPs replaced, where the mask is True, by ``write``: Hookpoint -> [batch, seq, d]."""
    anatomy, handles = anatomy_of(model), []
    for hookpoint, value in write.items():

        def put_in(_module, _args, output, value=value):
            return torch.where(batch.replaced[..., None], value, output)

        handles.append(anatomy.site(hookpoint)[0].register_forward_hook(put_in))
    try:
        return run(model, batch)
    finally:
        for handle in handles:
            handle.remove()


@EVERY
# SPEC 1.7
def test_parallel_transcoders_each_write_what_they_make_of_the_original_stream(fresh, batch, family):
    model, saes = fresh(family), transcoders("mlp_normalized")
    reads = {h: ReadPoint(h.layer, "mlp_normalized") for h in saes}
    clean = activations(model, batch.ids, batch.attention, list(reads.values()))
    expected = by_hand(model, batch, {h: written(saes[h], clean[reads[h]]) for h in saes})
    found = {}
    seen = activations(model, batch.ids, batch.attention, list(saes))
    with splice(model, saes, SPARE_SPECIAL, replacement=PARALLEL) as spliced:
        torch.testing.assert_close(run(model, batch), expected, rtol=0, atol=1e-10)
        with spliced.observed_by(lambda h, *event: found.update({h: event})):
            run(model, batch)
    with splice(model, saes, SPARE_SPECIAL):
        assert (run(model, batch) - expected)[batch.replaced].abs().max() > 0.01
    for h in saes:
        x, latents, _, mask = found[h]
        torch.testing.assert_close(latents[mask], saes[h].encode(clean[reads[h]])[mask], rtol=0, atol=1e-10)
        torch.testing.assert_close(x[mask], seen[h][mask], rtol=0, atol=1e-10)


@pytest.mark.parametrize("replacement", BOTH_ADDED, ids=["cascading", "parallel"])
@pytest.mark.parametrize("wrap", [lambda transcoder: transcoder, sparse], ids=["dense", "sparse"])
@EVERY
# SPEC 1.8
def test_with_its_error_added_the_spliced_model_is_bit_for_bit_the_original(fresh, batch, family, replacement, wrap):
    model = fresh(family)
    saes = {h: wrap(topk(h.layer)) for h in transcoders()}
    clean = run(model, batch)
    with splice(model, saes, SPARE_SPECIAL, replacement=replacement) as spliced:
        assert torch.equal(run(model, batch), clean)
        with spliced.observed_by(lambda *event: None):
            assert torch.equal(run(model, batch), clean)


# SPEC 1.8
def test_what_an_intervention_takes_away_is_missing_though_the_error_is_added(fresh, batch):
    model, saes = fresh("llama"), transcoders(layers=(1,))
    ((where, transcoder),) = saes.items()
    read = ReadPoint(1, "mlp_in")
    clean = activations(model, batch.ids, batch.attention, [where, read])
    latents = torch.arange(10)
    acts = transcoder.encode(clean[read])[..., latents]
    expected = by_hand(model, batch, {where: clean[where] - acts @ transcoder.W_dec[latents]})
    for replacement in BOTH_ADDED:
        with splice(model, {where: Ablated(transcoder, latents)}, SPARE_SPECIAL, replacement=replacement):
            torch.testing.assert_close(run(model, batch), expected, rtol=0, atol=1e-10)
    assert (expected - run(model, batch))[batch.replaced].abs().max() > 1e-3


@pytest.mark.parametrize("replacement", [PARALLEL, *BOTH_ADDED], ids=["parallel", "added", "parallel, added"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel"])
@pytest.mark.parametrize("layers", [[2, 3], [0, 3]], ids=["adapter above", "adapter around"])
def test_parts_of_the_model_give_what_the_whole_gives_with_adapters(fresh, family, layers, replacement):
    rows, model = rows_of(families.tiny(family)), with_adapter(fresh(family), layers)
    saes = {**transcoders(layers=(1, 2)), Hookpoint(1): TinySAE(D_MODEL, seed=5)}
    with splice(model, saes, SPARE_SPECIAL, replacement=replacement) as spliced:
        check_against_whole(model, spliced, rows)


def test_the_original_stream_is_the_one_without_the_adapter(fresh):
    rows = rows_of(families.tiny("llama"))
    plain, model = fresh("llama"), with_adapter(fresh("llama"), [0, 1])
    reads = {h: ReadPoint(h.layer, "mlp_in") for h in transcoders()}
    clean, found = activations(plain, rows, None, list(reads.values())), {}
    watch = {"observer": lambda h, *event: found.update({h: event}), "replacement": PARALLEL}
    with splice(model, transcoders(), SPARE_SPECIAL, **watch):
        model(input_ids=rows)
    for h, each in transcoders().items():
        mask = found[h][3]
        torch.testing.assert_close(found[h][1][mask], each.encode(clean[reads[h]])[mask], rtol=0, atol=1e-10)


@pytest.mark.parametrize("replacement", [PARALLEL, ADDED], ids=["parallel", "added"])
def test_losses_drift_and_faithfulness_are_those_of_whole_passes(fresh, replacement):
    model, rows = with_adapter(fresh("llama"), [2, 3]), rows_of(families.tiny("llama"))
    found, drift = figures_are_those_of_whole_passes(model, transcoders(), rows, replacement)
    if replacement.add_error:
        assert found["kl_sae"] == pytest.approx(0, abs=1e-12)
        assert found["ce_sae"] == pytest.approx(found["ce_base"], rel=1e-12)
    else:
        assert all(each.identical for each in drift.latents.values())


def test_a_pass_that_failed_leaves_nothing_to_the_next(fresh, batch):
    model, saes = fresh("llama"), transcoders()
    other = batch.ids.flip(1)
    with splice(model, saes, SPARE_SPECIAL, replacement=PARALLEL):
        expected = run(model, batch)
        norm = anatomy_of(model).layers[2]

        def fail(*_):
            raise RuntimeError("in the middle")

        for handle in [norm.register_forward_hook(fail)]:
            with handle, pytest.raises(RuntimeError, match="in the middle"):
                model(input_ids=other, attention_mask=batch.attention)
        assert torch.equal(run(model, batch), expected)


def test_after_a_pass_that_failed_the_model_runs_in_parts(fresh, batch):
    model = with_adapter(fresh("llama"), [2, 3])

    with splice(model, transcoders(), SPARE_SPECIAL, replacement=PARALLEL) as spliced:

        def fail(*_):
            if spliced.enabled:  # in the spliced pass, not in that of the original before it
                raise RuntimeError("in the middle")

        student = Student(spliced, "default")
        students = Students(model, [student], [spliced])

        def hidden():
            with torch.no_grad():
                return students.hidden(student, students.teacher(batch.ids, batch.attention))

        expected = hidden()
        handle = anatomy_of(model).layers[3].register_forward_hook(fail)
        with handle, pytest.raises(RuntimeError, match="in the middle"):
            model(input_ids=batch.ids.flip(1), attention_mask=batch.attention)
        assert torch.equal(hidden(), expected)


def test_no_gradient_goes_through_a_parallel_transcoder(fresh, batch):
    model = fresh("llama").requires_grad_(True)
    reading = model.model.layers[3].post_attention_layernorm.weight
    for replacement, reached in ((PARALLEL, False), (Replacement(), True)):
        model.zero_grad()
        with splice(model, transcoders(layers=(3,)), SPARE_SPECIAL, replacement=replacement):
            run(model, batch)[batch.replaced].sum().backward()
        kept = reading.grad is not None and bool(reading.grad.abs().sum() > 0)
        assert kept == reached


@pytest.mark.parametrize("replacement", [PARALLEL, ADDED], ids=["parallel", "added"])
def test_a_pass_that_goes_on_from_a_cache_is_refused_and_without_one_it_generates(fresh, replacement):
    model, ids = fresh("gemma2"), torch.tensor([[5, 9, 33, 12]])
    mask = torch.ones_like(ids)
    with splice(model, transcoders(), SPARE_SPECIAL, replacement=replacement):
        with pytest.raises(InputError, match="run it with use_cache=False"):
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
        asked = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        made = model.generate(input_ids=ids, use_cache=False, **asked)
        step = ids
        while step.shape[1] < made.shape[1]:
            step = torch.cat([step, model(input_ids=step, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(step, made)
    if replacement.add_error:
        assert torch.equal(made, model.generate(input_ids=ids, **asked))


def test_independent_is_no_model_of_all_transcoders():
    with pytest.raises(InputError, match="measure each layer alone by evaluate --parts replacement"):
        replacement_of("independent", False)
