"""What replacing MLPs costs by their number: every figure is that of plain forward passes, every set holds the last."""

from dataclasses import replace
from itertools import pairwise

import pytest

import families
from families import D_MODEL
from saelora.core.lora import disabled
from saelora.core.replacement import Replacement
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.evals.loss_result import RunResult
from saelora.evals.replacement.measure import measure_replacement, spread
from saelora.evals.replacement.result import Alone, ReplacementResult, Step
from saelora.evals.replacement.section import sections
from saelora.evals.replacement.summary import lines
from saelora.evals.spliced import SplicedModel
from saelora.evals.variant import Variant
from saelora.identity import ModelId
from saelora.manifest import Manifest, PartFile
from saelora.models.hookpoints import Hookpoint
from saelora.records import from_json, to_json
from saelora.reporting.page.read import Run
from tiny_saes import SPARE_SPECIAL, TinySAE, hooks_in
from tiny_transcoders import TinyTranscoder
from variants import replaced, rows_of, with_adapter

SAES = {Hookpoint(layer, "mlp_out"): TinyTranscoder(D_MODEL, seed=layer, skips=True) for layer in range(4)}


def plain(model, rows):
    """Per counted prediction: cross entropy [n], log probabilities [n, vocabulary]."""
    counted = replaced(rows)[:, :-1].flatten()
    logp = model(input_ids=rows).logits[:, :-1].flatten(0, 1)[counted].detach().log_softmax(-1)
    return -logp.gather(1, rows[:, 1:].flatten()[counted][:, None])[:, 0], logp


# SPEC 4.8
def test_every_figure_equals_plain_forwards(fresh):
    model, rows = with_adapter(fresh("llama"), [1, 2, 3]), rows_of(families.tiny("llama"))
    before = hooks_in(model)
    with disabled(model):
        ce_base, base = plain(model, rows)
    with splice(model, {**SAES, Hookpoint(3): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        found = measure_replacement(
            subject, rows, sizes=(1, 3, 99), modes=("cascading", "parallel", "independent"), batch_rows=2
        )
    assert hooks_in(model) == before
    assert found.n_predictions == len(ce_base)
    assert found.ce_base["value"] == pytest.approx(float(ce_base.mean()), rel=1e-9)
    assert "The run's SAE is taken out here" in lines(found)[0]

    def check(saes, mode, ce, kl, top1):
        with splice(model, saes, SPARE_SPECIAL, replacement=Replacement(mode)):
            own_ce, logp = plain(model, rows)
        assert ce == pytest.approx(float(own_ce.mean()), rel=1e-8)
        assert kl == pytest.approx(float((base.exp() * (base - logp)).sum(-1).mean()), rel=1e-6)
        assert top1 == pytest.approx(float((base.argmax(-1) == logp.argmax(-1)).double().mean()))
        return float(own_ce.mean())

    for mode, steps in found.curves.items():
        assert [step.n_replaced for step in steps] == [1, 3, 4]
        for step in steps:
            saes = {Hookpoint(layer, "mlp_out"): SAES[Hookpoint(layer, "mlp_out")] for layer in step.layers}
            assert len(saes) == step.n_replaced
            values = {v: [each[v]["value"] for each in (step.ce, step.kl, step.top1)] for v in step.ce}
            with disabled(model):
                sae = check(saes, mode, *values[Variant.SPLICED])
            adapted = check(saes, mode, *values[Variant.ADAPTED])
            gap = sae - float(ce_base.mean())
            expected = pytest.approx((sae - adapted) / gap, rel=1e-6) if gap > 0 else None
            assert step.gap_closed["value"] == expected
    assert list(found.curves) == ["cascading", "parallel"]
    assert found.curves["cascading"][-1].kl != found.curves["parallel"][-1].kl
    with disabled(model):
        for alone in found.alone:
            where = Hookpoint(alone.layer, "mlp_out")
            rise = alone.rise["value"] + float(ce_base.mean())
            check({where: SAES[where]}, "cascading", rise, alone.kl["value"], alone.top1["value"])
    assert [alone.layer for alone in found.alone] == [0, 1, 2, 3]


def test_without_an_adapter_there_is_nothing_adapted(fresh):
    model, rows = fresh("llama"), rows_of(families.tiny("llama"))
    with splice(model, SAES, SPARE_SPECIAL) as spliced:
        found = measure_replacement(SplicedModel(model, spliced, SPARE_SPECIAL), rows, sizes=(2,), modes=("cascading",))
    (step,) = found.curves["cascading"]
    assert step.ce.keys() == {Variant.SPLICED}
    assert step.gap_closed is None
    assert found.alone == []


def test_saes_alone_are_refused(fresh):
    model, rows = fresh("llama"), rows_of(families.tiny("llama"))
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        with pytest.raises(InputError, match="there is no transcoder here: name some with --transcoders"):
            measure_replacement(subject, rows, sizes=(1,), modes=("cascading",))


@pytest.mark.parametrize("n", [1, 2, 5, 26, 30])
# SPEC 4.8
def test_sets_of_layers_are_nested_and_about_evenly_spread(n):
    places = [Hookpoint(layer, "mlp_out") for layer in range(n)]
    sets = spread(places, (1, 3, 5, 10, 15, 30))
    for small, large in pairwise(sets):
        assert set(small) < set(large)
    assert all(chosen == sorted(chosen, key=lambda place: place.layer) for chosen in sets)
    for chosen in sets:
        edges = [-1, *(place.layer for place in chosen), n]
        gaps = [b - a for a, b in pairwise(edges)]
        assert max(gaps) <= 2 * -(-(n + 1) // (len(chosen) + 1))


def e(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


def step(n, kl, adapted=None):
    by = {Variant.SPLICED: kl} | ({} if adapted is None else {Variant.ADAPTED: adapted})
    return Step(
        n, list(range(n)), {v: e(3 + x) for v, x in by.items()}, {v: e(x) for v, x in by.items()},
        {v: e(0.9) for v in by}, None if adapted is None else e(0.6),
    )  # fmt: skip


RESULT = ReplacementResult(
    1234,
    e(3.0),
    8,
    {"cascading": [step(1, 0.2, 0.1), step(8, 2.0, 0.5)], "parallel": [step(8, 0.7, 0.6)]},
    [Alone(layer, e(0.1 * layer), e(0.1 * layer), e(0.9)) for layer in range(8)],
)


def test_the_words_tell_each_curve_and_which_layers_cost_most():
    told = lines(RESULT)
    assert "taken out" not in told[0]
    assert told[0].startswith("The original's cross entropy is 3.0000 nats over 1,234 predictions")
    assert told[2] == (
        "Cascading (each transcoder reads the replaced stream), 8 MLPs replaced: cross entropy 5.0000, KL 2.0000, "
        "top-1 90.0%; adapted cross entropy 3.5000, KL 0.5000, top-1 90.0%, which wins back 60.0% of the cost (59.0% "
        "to 61.0%)."
    )
    assert "most KL is cost by layer 7 (0.7000), layer 6 (0.6000)" in told[-2]
    assert told[-2].endswith("least by layer 0 (0.0000).")
    assert told[-1] == "Their KLs alone sum to 2.8000; all at once cost 2.0000 cascading, 0.7000 parallel."
    unsure = replace(step(1, 0.2, 0.1), gap_closed=e(0.3, 2.0))
    told = lines(ReplacementResult(10, e(3.0), 1, {"cascading": [unsure]}, []))[1]
    assert "what that wins back cannot be told from nothing (30.0% of the cost, -170.0% to 230.0%)" in told
    harm = replace(step(1, 0.2, 0.1), gap_closed={"value": -0.8, "low": -1.1, "high": -0.6})
    told = lines(ReplacementResult(10, e(3.0), 1, {"cascading": [harm]}, []))[1]
    assert told.endswith("which adds 80.0% to the cost (60.0% to 110.0%).")
    bare = lines(ReplacementResult(10, e(3.0), 1, {"cascading": [step(1, 0.2)]}, []))
    assert bare[1].endswith("1 MLP replaced: cross entropy 3.2000, KL 0.2000, top-1 90.0%.")


def run_of(tmp_path, config, found):
    parts = {"replacement": PartFile(part="replacement", result=to_json(found))} if found else {}
    manifest = Manifest(model=ModelId(ref="m"), saes=[], config=config)
    results = RunResult(ce_base=1.0, n_tokens_evaluated=1, n_tokens_trained=1)
    return Run("run", tmp_path, manifest, results, parts, {"replacement": found} if found else {})


def test_the_page_draws_each_curve_and_is_silent_of_runs_without_transcoders(tmp_path):
    kept = from_json(ReplacementResult, to_json(RESULT), "file", "")
    (section,) = sections([run_of(tmp_path, {}, kept)])
    assert [figure.name for figure in section.figures] == ["replacement-kl", "replacement-ce", "replacement-alone"]
    assert "cascading, spliced + adapted" in section.figures[0].svg
    assert [row[:2] for row in section.figures[0].table.rows] == [["cascading", 1], ["cascading", 8], ["parallel", 8]]
    assert section.figures[0].table.rows[1][2:] == [e(2.0), e(0.5)]
    assert section.tables[0].rows[2] == ["parallel", 8, list(range(8)), e(0.9), e(0.9), e(0.6)]
    assert section.notes[0].lines == lines(RESULT)
    assert sections([run_of(tmp_path, {}, None)]) == []
    (unmeasured,) = sections([run_of(tmp_path, {"transcoders": ["x"]}, None)])
    assert unmeasured.notes[0].command.endswith("--parts replacement")
    two = [run_of(tmp_path, {}, kept), run_of(tmp_path, {}, kept)]
    assert len(sections(two)[0].tables[0].rows) == 6
