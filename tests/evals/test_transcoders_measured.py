"""What measurements say of a transcoder: its latents are of what it reads, its errors of the MLP that it stands for."""

import pytest
import torch

import families
from families import D_MODEL
from saelora.core.lora import disabled
from saelora.core.numerics import wide
from saelora.core.partial import activations
from saelora.core.splice import splice
from saelora.core.students import CLEAN
from saelora.errors import InputError
from saelora.evals.batches import Batch
from saelora.evals.drift.measure import clean_latents, measure_drift
from saelora.evals.faithfulness.ablation import Ablated
from saelora.evals.faithfulness.interventions import faithfulness
from saelora.evals.loss import evaluate_loss
from saelora.evals.reading import doubts, fvu_by_site
from saelora.evals.saebench.export import export_sae
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering.latents import Reader
from saelora.evals.steering.texts import Text
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint, ReadPoint
from tiny_saes import SPARE_SPECIAL, hooks_in
from tiny_transcoders import TinyTranscoder
from variants import replaced, rows_of, with_adapter

WHERE, READ = Hookpoint(1, "mlp_out"), ReadPoint(1, "mlp_normalized")
FAMILIES = pytest.mark.parametrize("family", ["llama", "gemma2"])


def case(fresh, family, layers=(2, 3)):
    transcoder = TinyTranscoder(D_MODEL, READ.site, skips=True)
    return with_adapter(fresh(family), list(layers)), {WHERE: transcoder}, rows_of(families.tiny(family))


def plainly(model, transcoder, rows):
    """The read activation, the MLP's output and the transcoder's, clean."""
    found = activations(model, rows, None, [READ, WHERE])
    return found[READ], found[WHERE], transcoder.decode(transcoder.encode(found[READ])) + transcoder.skip(found[READ])


@FAMILIES
def test_fvu_is_of_the_mlps_output_and_l0_of_what_is_read(fresh, family):
    model, saes, rows = case(fresh, family)
    found = evaluate_loss(model, saes, SPARE_SPECIAL, rows)
    mask = replaced(rows)
    with disabled(model):
        read, x, recon = plainly(model, saes[WHERE], rows)
    x, recon = wide(x[mask]), wide(recon[mask])
    fvu = float((x - recon).square().sum() / (x - x.mean(0)).square().sum())
    figures = found["saes"][str(WHERE)]
    assert figures["fvu"] == pytest.approx(fvu, rel=1e-6)
    assert figures["l0"] == pytest.approx(float((saes[WHERE].encode(read)[mask] > 0).double().sum(-1).mean()), rel=1e-9)
    with splice(model, saes, SPARE_SPECIAL), disabled(model):
        logits = model(input_ids=rows).logits[:, :-1]
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    assert found["ce_sae"] == pytest.approx(float(ce[mask[:, :-1].flatten()].mean()), rel=1e-9)


@FAMILIES
def test_clean_latents_are_of_what_is_read(fresh, family):
    model, saes, rows = case(fresh, family)
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        students = SplicedModel(model, spliced, SPARE_SPECIAL).students([CLEAN])
        mask = replaced(rows)
        (x, latents, recon), _ = clean_latents(spliced, SPARE_SPECIAL, students, Batch(students, rows, mask))[WHERE]
        drift = measure_drift(SplicedModel(model, spliced, SPARE_SPECIAL), rows)
    with disabled(model):
        read, target, whole = plainly(model, saes[WHERE], rows)
    torch.testing.assert_close(latents[mask], saes[WHERE].encode(read)[mask], rtol=0, atol=1e-9)
    torch.testing.assert_close(x[mask], target[mask], rtol=0, atol=1e-9)
    torch.testing.assert_close(recon[mask], whole[mask], rtol=0, atol=1e-9)
    assert drift.n_positions == int(mask.sum())


def test_steering_reads_latents_where_the_transcoder_reads(fresh):
    model, saes, rows = case(fresh, "llama")
    texts = [Text("", row) for row in rows.tolist()]
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        latents, mask = Reader(SplicedModel(model, spliced, SPARE_SPECIAL), WHERE).latents(texts)
    with disabled(model):
        read, _, _ = plainly(model, saes[WHERE], rows)
    torch.testing.assert_close(latents, saes[WHERE].encode(read)[mask], rtol=0, atol=1e-9)


def test_an_ablated_transcoder_keeps_its_skip_connection(fresh):
    model, saes, rows = case(fresh, "llama")
    transcoder = saes[WHERE]
    every = torch.arange(transcoder.W_dec.shape[0])
    with splice(model, {WHERE: Ablated(transcoder, every)}, SPARE_SPECIAL), disabled(model):
        after = activations(model, rows, None, [WHERE])[WHERE]
    with disabled(model):
        read, _, _ = plainly(model, transcoder, rows)
    mask = replaced(rows)
    expected = transcoder.skip(read) + transcoder.b_dec
    torch.testing.assert_close(after[mask], expected[mask], rtol=0, atol=1e-9)


def test_faithfulness_is_measured_around_a_transcoder(fresh):
    model, saes, rows = case(fresh, "llama")
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        found = faithfulness(SplicedModel(model, spliced, SPARE_SPECIAL), rows)
    loss = evaluate_loss(model, saes, SPARE_SPECIAL, rows)
    assert found.ce["sae"]["value"] == pytest.approx(loss["ce_sae"], rel=1e-9)
    assert found.zeroed.ce_sae["value"] == pytest.approx(loss["ce_zero"], rel=1e-9)


def test_saebench_refuses_a_transcoder(tmp_path):
    with pytest.raises(InputError, match=r"a transcoder writes at layers\.1\.mlp_out"):
        export_sae(TinyTranscoder(D_MODEL), WHERE, tmp_path)


@FAMILIES
def test_a_transcoder_of_another_site_is_told_by_the_one_that_it_would_fit(fresh, family):
    model, rows = fresh(family), rows_of(families.tiny(family))
    anatomy, mask, before = anatomy_of(model), replaced(rows), hooks_in(model)
    with torch.no_grad():
        anatomy.layers[1].get_submodule(anatomy.layouts[1].mlp_reads).weight.add_(5)  # the gain tells the sites apart
    found = activations(model, rows, None, [READ, WHERE])
    read, x = found[READ][mask], found[WHERE][mask]
    fitted = torch.linalg.lstsq(torch.cat([read, torch.ones_like(read[:, :1])], 1), x).solution
    transcoder = TinyTranscoder(D_MODEL, READ.site, skips=True)
    transcoder.W_dec.zero_()
    transcoder.b_dec.copy_(fitted[-1])
    transcoder.W_skip = fitted[:-1].T

    right = fvu_by_site(model, {WHERE: transcoder}, SPARE_SPECIAL, rows)
    residual = wide(x - read @ fitted[:-1] - fitted[-1]).square().sum()
    assert right[WHERE] == {READ.site: pytest.approx(float(residual / wide(x - x.mean(0)).square().sum()), rel=1e-6)}
    assert doubts(right) == []
    transcoder.reads = "mlp_in"
    wrong = fvu_by_site(model, {WHERE: transcoder}, SPARE_SPECIAL, rows)
    assert set(wrong[WHERE]) == {"mlp_in", "mlp_normalized", "resid_mid", "resid_pre"}
    assert wrong[WHERE][READ.site] == pytest.approx(right[WHERE][READ.site])
    assert hooks_in(model) == before
    (told,) = doubts(wrong)
    assert f"at layers.1.mlp_out reads mlp_in and has FVU {wrong[WHERE]['mlp_in']:.2f}" in told
    assert f"reading mlp_normalized it would have {right[WHERE][READ.site]:.2f}" in told
    (told,) = doubts({WHERE: {"mlp_in": 3.0, "resid_pre": 2.9}})
    assert told.endswith("likely it is for another model, or for other weights of this one")
