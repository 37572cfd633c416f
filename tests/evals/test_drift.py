"""Drift of layers and latents against plain forwards in float64."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import families
from families import D_MODEL, EOS, N_LAYERS
from saelora.core.splice import splice
from saelora.core.spread import FIGURES
from saelora.errors import InputError
from saelora.evals.drift.measure import distances, measure_drift
from saelora.evals.firing import Firing, correlation
from saelora.evals.spliced import SplicedModel
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from spread_reference import plain_figures
from tiny_saes import SPARE_SPECIAL, Broken, TinySAE, hooks_in, saes_at
from variants import plain_runs, replaced, rows_of, with_adapter

ONE = [Hookpoint(1)]
SEVERAL = [Hookpoint(1), Hookpoint(2, "mlp_out")]
CLOSE = {"rel": 1e-6, "abs": 1e-9}


def measured(model, saes, rows, **options):
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        return to_json(measure_drift(SplicedModel(model, spliced, SPARE_SPECIAL), rows, **options))


@pytest.mark.parametrize("layers", [[2, 3], [0, 3]], ids=["adapter above the SAE", "adapter around the SAE"])
@pytest.mark.parametrize("hookpoints", [ONE, SEVERAL], ids=["one SAE", "several SAEs"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel"])
# SPEC 9.1
def test_distances_and_latents_equal_plain_forwards(fresh, family, hookpoints, layers):
    rows = rows_of(families.tiny(family))
    model = with_adapter(fresh(family), layers)
    saes = saes_at(anatomy_of(model), hookpoints)
    found = measured(model, saes, rows, batch_rows=2)
    runs, mask = plain_runs(model, saes, rows), replaced(rows)
    assert found["n_positions"] == int(mask.sum())
    assert [each["layer"] for each in found["layers"]] == list(range(N_LAYERS))
    means = {}
    for i, each in enumerate(found["layers"]):
        base = runs["base"]["layers"][i][mask].double()
        for arm in ("sae", "adapted", "adapted_clean"):
            x = runs[arm]["layers"][i][mask].double()
            l2 = (x - base).norm(dim=1)
            cosine = 1 - torch.nn.functional.cosine_similarity(x, base, dim=1)
            assert each["l2"][arm]["value"] == pytest.approx(float(l2.mean()), **CLOSE)
            assert each["relative_l2"][arm]["value"] == pytest.approx(float((l2 / base.norm(dim=1)).mean()), **CLOSE)
            assert each["cosine_distance"][arm]["value"] == pytest.approx(float(cosine.mean()), **CLOSE)
            means[arm] = (float(l2.mean()), float(cosine.mean()))
        for name, k in (("l2_difference", 0), ("cosine_difference", 1)):
            assert each[name]["value"] == pytest.approx(means["adapted"][k] - means["sae"][k], **CLOSE)
            assert each[name]["low"] <= each[name]["value"] <= each[name]["high"]
    assert len({round(mean[0], 6) for mean in means.values()}) == 3  # at the last layer the variants differ
    check_latents(found["latents"], saes, clean_inputs(model, hookpoints, rows), runs["adapted"]["inputs"], mask)


@torch.no_grad()
def clean_inputs(model, hookpoints, rows):
    got, handles = {}, []
    for hookpoint in hookpoints:

        def keep(_module, _args, output, hookpoint=hookpoint):
            got[hookpoint] = output if isinstance(output, torch.Tensor) else output[0]

        handles.append(anatomy_of(model).site(hookpoint)[0].register_forward_hook(keep))
    with model.disable_adapter():
        model(input_ids=rows)
    for handle in handles:
        handle.remove()
    return got


def check_latents(found, saes, clean, adapted, mask):
    assert list(found) == [str(h) for h in saes]
    for hookpoint, sae in saes.items():
        each, counts = found[str(hookpoint)], {}
        for name, inputs in (("base", clean), ("adapted", adapted)):
            x = inputs[hookpoint][mask].double()
            latents = sae.encode(x)
            error = (x - sae.decode(latents)).square().sum()
            counts[name] = latents
            assert each["fvu"][name]["value"] == pytest.approx(float(error / (x - x.mean(0)).square().sum()), **CLOSE)
            robust = {figure: each[figure][name] for figure in FIGURES}
            assert robust == pytest.approx(plain_figures(x, sae.decode(latents)), **CLOSE)
            assert each["l0"][name] == pytest.approx(float((latents != 0).double().sum(1).mean()), **CLOSE)
        on, other = (counts[name] != 0 for name in ("base", "adapted"))
        jaccard = [
            float((a & b).sum() / (a | b).sum()) if (a | b).any() else 1.0 for a, b in zip(on, other, strict=True)
        ]
        assert each["jaccard"]["value"] == pytest.approx(np.mean(jaccard), **CLOSE)
        rates = np.corrcoef(on.double().mean(0), other.double().mean(0))[0, 1]
        assert each["rate_correlation"]["value"] == pytest.approx(rates, rel=1e-6)
        apart = float((counts["base"] - counts["adapted"]).abs().max())
        assert each["max_abs_difference"] == pytest.approx(apart, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
# SPEC 9.2
def test_latents_are_identical_where_all_adapters_lie_above_and_only_there(fresh, family, dtype):
    rows = rows_of(families.tiny(family))
    for layers, identical in (([2, 3], True), ([1, 3], False)):
        model = with_adapter(fresh(family), layers).to(dtype)
        found = measured(model, {Hookpoint(1): TinySAE(D_MODEL, dtype=dtype)}, rows)
        latents = found["latents"]["layers.1.resid_post"]
        assert latents["identical"] is identical
        assert (latents["max_abs_difference"] == 0) == identical
        one = {"value": 1.0, "low": 1.0, "high": 1.0}
        assert (latents["jaccard"] == one) == identical
        assert (latents["rate_correlation"] == pytest.approx(one, abs=1e-12)) == identical
        assert (latents["fvu"]["base"] == latents["fvu"]["adapted"]) == identical


def test_an_sae_above_another_sees_the_splice_below_it(fresh):
    rows = rows_of(families.tiny("llama"))
    model = with_adapter(fresh("llama"), [3])
    found = measured(model, saes_at(anatomy_of(model), SEVERAL), rows)["latents"]
    assert found["layers.1.resid_post"]["identical"]
    assert not found["layers.2.mlp_out"]["identical"]


def test_layers_below_splice_and_adapter_have_not_moved_at_all(fresh):
    rows = rows_of(families.tiny("gemma2"))
    layers = measured(with_adapter(fresh("gemma2"), [3]), {Hookpoint(1): TinySAE(D_MODEL)}, rows)["layers"]
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (
        layers[0]["l2"] == layers[0]["cosine_distance"] == dict.fromkeys(("sae", "adapted", "adapted_clean"), nothing)
    )
    assert layers[1]["l2"]["sae"]["value"] > 0
    assert layers[1]["l2"]["adapted_clean"] == layers[2]["l2"]["adapted_clean"] == nothing
    assert layers[2]["l2_difference"] == nothing
    assert layers[3]["l2"]["adapted_clean"]["value"] > 0


def test_an_sae_with_another_way_to_reconstruct_is_run_the_same_way_in_every_variant(fresh):
    class TwoWays(TinySAE):
        def reconstruct(self, x):
            return self.decode(self.encode(x)) + 1e-3

    found = measured(
        with_adapter(fresh("llama"), [2, 3]), {Hookpoint(1): TwoWays(D_MODEL)}, rows_of(families.tiny("llama"))
    )
    assert found["layers"][1]["l2_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


# SPEC 9.1
def test_what_happens_at_exempt_positions_does_not_count():
    """Their activations may be of any size, so that their squares overflow."""
    draw = torch.Generator().manual_seed(0)
    x, sae = torch.randn(2, 6, D_MODEL, generator=draw, dtype=torch.float64), TinySAE(D_MODEL)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 0] = mask[1, 3] = False
    found = []
    for size in (0.0, torch.inf):
        firing = Firing(2)
        seen = []
        for shift in (0.0, 0.5):
            given = (x + shift).masked_fill(~mask.unsqueeze(-1), size)
            latents = sae.encode(torch.where(mask.unsqueeze(-1), given, 0.0))  # as a splice does
            seen.append((given, latents, sae.decode(latents)))
        firing.update(0, mask, *seen)
        away = distances(seen[1][0], seen[0][0])
        assert all(torch.isfinite(value[mask]).all() for value in away.values())
        found.append(to_json(firing.compute()))
    assert found[0] == found[1]
    assert np.isfinite(found[0]["fvu"]["adapted"]["value"])


def test_the_number_of_rows_at_a_time_changes_nothing(fresh):
    rows = rows_of(families.tiny("gemma2"))
    model, saes = with_adapter(fresh("gemma2"), [0, 3]), {Hookpoint(1): TinySAE(D_MODEL)}
    one, three = (measured(model, saes, rows, batch_rows=n) for n in (1, 3))
    for a, b in zip(one["layers"], three["layers"], strict=True):
        for measure in ("l2", "relative_l2", "cosine_distance"):
            for arm in ("sae", "adapted", "adapted_clean"):
                assert a[measure][arm] == pytest.approx(b[measure][arm], rel=1e-5, abs=1e-9)
    a, b = (found["latents"]["layers.1.resid_post"] for found in (one, three))
    assert a["jaccard"] == pytest.approx(b["jaccard"])
    assert a["fvu"]["adapted"] == pytest.approx(b["fvu"]["adapted"], rel=1e-5)


@pytest.mark.parametrize("sae", [TinySAE(D_MODEL), Broken()], ids=["to the end", "ended by an error"])
def test_measuring_leaves_model_and_splice_as_they_were(fresh, sae):
    model = with_adapter(fresh("llama"), [2, 3])
    model.train()
    rows = rows_of(families.tiny("llama"))
    with splice(model, {Hookpoint(1): sae}, SPARE_SPECIAL) as spliced:
        hooks, modes = hooks_in(model), [m.training for m in model.modules()]
        with pytest.raises(RuntimeError, match="broken SAE") if isinstance(sae, Broken) else nullcontext():
            measure_drift(SplicedModel(model, spliced, SPARE_SPECIAL), rows)
        assert (hooks_in(model), spliced.observer, spliced.enabled) == (hooks, None, True)
        assert [m.training for m in model.modules()] == modes


def test_rows_without_a_replaced_position_are_refused(fresh):
    with pytest.raises(InputError, match="nothing to evaluate"):
        measured(with_adapter(fresh("llama"), [2]), {Hookpoint(1): TinySAE(D_MODEL)}, torch.full((2, 5), EOS))


def test_progress_adds_up_to_all_tokens(fresh):
    rows, told = rows_of(families.tiny("llama")), []
    measured(with_adapter(fresh("llama"), [2]), {Hookpoint(1): TinySAE(D_MODEL)}, rows, progress=told.append)
    assert sum(told) == rows.numel()


# SPEC 6.1
def test_rate_correlation_is_pearsons_with_an_interval_around_it():
    rng = np.random.default_rng(0)
    rate = rng.exponential(5, 20_000)  # more latents than are taken at a time
    a, b = rng.poisson(rate, (30, len(rate))), rng.poisson(rate * rng.uniform(0.2, 1.8, len(rate)), (30, len(rate)))
    found = correlation(a.astype(float), b.astype(float))
    assert found["value"] == pytest.approx(np.corrcoef(a.sum(0), b.sum(0))[0, 1], rel=1e-9)
    assert found["low"] < found["value"] + 0.01
    assert found["low"] < found["high"] < 1


@pytest.mark.parametrize("block", range(8))
def test_rate_correlation_is_told_though_some_draws_hold_nothing_that_fires(block):
    fired = np.zeros((8, 5))
    fired[block] = range(1, 6)
    assert correlation(fired, fired) == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})


def test_latents_that_all_fire_equally_often_have_no_correlation():
    assert correlation(np.ones((3, 5)), np.ones((3, 5)))["value"] is None
