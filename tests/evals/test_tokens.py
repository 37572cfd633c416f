"""Losses token by token against plain forwards in float64; distributions and bins of a case made by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import families
from families import BOS, D_MODEL, EOS
from saelora.core.splice import splice
from saelora.errors import InputError
from saelora.evals.loss import evaluate_loss
from saelora.evals.spliced import SplicedModel
from saelora.evals.tokens.bins import frequency_bins, position_bins, recon_error_bins
from saelora.evals.tokens.per_token import PerToken, lowest, per_token, summarise
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, Identity, TinySAE, hooks_in, saes_at
from variants import plain_runs, replaced, rows_of, with_adapter

ONE = [Hookpoint(1)]
IN_ORDER = ("resid_pre", "attn_z", "attn_module_out", "attn_out", "mlp_module_out", "mlp_out", "resid_post")
SEVERAL = [Hookpoint(2), Hookpoint(1, "mlp_out"), Hookpoint(1, "attn_out")]
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def summarised(*args):
    return to_json(summarise(*args))


def measured(model, saes, rows, **options) -> PerToken:
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        return per_token(SplicedModel(model, spliced, SPARE_SPECIAL), rows, **options)


@pytest.mark.parametrize("layers", [[2, 3], [0, 3]], ids=["adapter above the SAE", "adapter around the SAE"])
@pytest.mark.parametrize("hookpoints", [ONE, SEVERAL], ids=["one SAE", "several SAEs"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox-parallel"])
# SPEC 7.1
def test_every_prediction_equals_plain_forwards(fresh, family, hookpoints, layers):
    rows = rows_of(families.tiny(family))
    model = with_adapter(fresh(family), layers)
    saes = saes_at(anatomy_of(model), hookpoints)
    found = measured(model, saes, rows)
    runs = plain_runs(model, saes, rows)

    log_p = {name: run["logits"][:, :-1].double().log_softmax(-1) for name, run in runs.items()}
    for name in ("base", "sae", "adapted"):
        ce = cross_entropy(runs[name]["logits"][:, :-1].double().transpose(1, 2), rows[:, 1:], reduction="none")
        assert found.values[f"ce_{name}"] == pytest.approx(ce.numpy(), **CLOSE)
    for name in ("sae", "adapted"):
        kl = kl_div(log_p[name], log_p["base"], reduction="none", log_target=True).sum(-1)
        assert found.values[f"kl_{name}"] == pytest.approx(kl.numpy(), **CLOSE)
    assert (found.counted == replaced(rows)[:, :-1].numpy()).all()

    first = Hookpoint(1) if hookpoints is ONE else Hookpoint(1, "attn_out")
    x = runs["sae"]["inputs"][first]
    error = (x - saes[first].decode(saes[first].encode(x))).square().sum(-1) / x.square().sum(-1)
    assert found.recon_error[found.counted] == pytest.approx(error[:, :-1].numpy()[found.counted], **CLOSE)
    assert np.isnan(found.recon_error[~found.counted]).all()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
# SPEC 7.1
def test_means_agree_with_the_loss_part(fresh, family):
    rows = rows_of(families.tiny(family), n_rows=6)
    model, saes = with_adapter(fresh(family), [2, 3]), {Hookpoint(1): TinySAE(D_MODEL)}
    expected = evaluate_loss(model, saes, SPARE_SPECIAL, rows)
    found = measured(model, saes, rows)
    result = summarised(found)
    assert result["n_predictions"] == expected["n_tokens_evaluated"]
    for name in ("ce_base", "ce_sae", "ce_adapted", "kl_sae", "kl_adapted"):
        assert found.values[name][found.counted].mean() == pytest.approx(expected[name], rel=1e-9)
    assert -result["change"]["mean"]["value"] == pytest.approx(expected["ce_gain"], rel=1e-9)
    assert result["cost"]["mean"]["value"] == pytest.approx(expected["ce_gap"], rel=1e-9)
    interval = [result["cost"]["mean"][side] for side in ("low", "high")]
    assert interval == pytest.approx(expected["ci95"]["ce_gap"], rel=1e-9)  # the same rows are drawn


def test_the_number_of_rows_at_a_time_changes_nothing(fresh):
    rows = rows_of(families.tiny("gemma2"))
    model, saes = with_adapter(fresh("gemma2"), [2, 3]), {Hookpoint(1): TinySAE(D_MODEL)}
    one, three = (measured(model, saes, rows, batch_rows=n) for n in (1, 3))
    for name, values in one.values.items():
        assert three.values[name] == pytest.approx(values, **CLOSE)
    assert np.allclose(one.recon_error, three.recon_error, equal_nan=True, rtol=1e-5)


@pytest.mark.parametrize("layers", [[2, 3], [3], [0]])
def test_an_adapter_of_zeros_changes_no_prediction_by_one_bit(fresh, layers):
    """Not even where the SAE has another way to reconstruct when nobody watches it."""

    class TwoWays(TinySAE):
        def reconstruct(self, x):
            return self.decode(self.encode(x)) + 1e-3

    rows = rows_of(families.tiny("llama"))
    found = measured(with_adapter(fresh("llama"), layers, size=0.0), {Hookpoint(1): TwoWays(D_MODEL)}, rows)
    assert (found.change == 0).all()
    result = summarised(found)
    assert result["share_helped"]["value"] == result["share_hurt"]["value"] == 0
    assert result["change"]["mean_helped"]["value"] is None
    assert result["concentration"] == {"0.01": None, "0.1": None}


def test_measuring_leaves_model_and_splice_as_they_were(fresh):
    model = with_adapter(fresh("llama"), [2, 3])
    model.train()
    seen, before = [], hooks_in(model)
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL, observer=lambda *a: seen.append(a)) as spliced:
        observer, hooks, modes = spliced.observer, hooks_in(model), [m.training for m in model.modules()]
        per_token(SplicedModel(model, spliced, SPARE_SPECIAL), rows_of(families.tiny("llama")))
        assert spliced.observer is observer
        assert spliced.enabled
        assert hooks_in(model) == hooks
        assert [m.training for m in model.modules()] == modes
    assert hooks_in(model) == before


def test_progress_adds_up_to_all_tokens(fresh):
    rows, told = rows_of(families.tiny("llama")), []
    measured(with_adapter(fresh("llama"), [2]), {Hookpoint(1): TinySAE(D_MODEL)}, rows, progress=told.append)
    assert sum(told) == rows.numel()


def test_rows_without_a_replaced_position_are_refused(fresh):
    model = with_adapter(fresh("llama"), [2])
    with pytest.raises(InputError, match="nothing to evaluate"):
        measured(model, {Hookpoint(1): TinySAE(D_MODEL)}, torch.full((2, 5), EOS))


def test_an_sae_that_reconstructs_perfectly_has_one_bin_and_no_gap(fresh):
    rows = rows_of(families.tiny("llama"))
    result = summarised(measured(with_adapter(fresh("llama"), [2]), {Hookpoint(1): Identity()}, rows))
    (only,) = result["by_recon_error"]
    assert (only["low"], only["high"]) == (0, 0)
    assert only["n"] == result["n_predictions"]
    assert only["gap_closed"] == {"value": None, "low": None, "high": None}


def test_the_lowest_sae_is_the_first_of_a_forward_pass():
    order = [Hookpoint(1, site) for site in IN_ORDER]
    order.append(Hookpoint(2, "resid_pre"))
    for i in range(len(order)):
        spliced = type("Spliced", (), {"saes": dict.fromkeys(reversed(order[i:]))})
        assert lowest(spliced) == order[i]


def by_hand() -> PerToken:
    """Three rows of four predictions; the third row counts nowhere."""
    nan = np.nan
    counted = np.array([[False, True, True, True], [True, True, True, True], [False] * 4])
    base = np.array([[9, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], float)
    sae = np.array([[0, 3, 3, 3], [2, 2, 2, 2], [7, 7, 7, 7]], float)
    change = np.array([[-5, -1.5, 0.5, 0], [-1e-6, 2e-6, -1, 11], [3, 3, 3, 3]])
    error = np.array([[nan, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7], [nan] * 4])
    ids = np.array([[1, 10, 11, 12, 13], [1, 10, 10, 10, 20], [1, 2, 2, 2, 2]])
    values = {"ce_base": base, "ce_sae": sae, "ce_adapted": sae + change, "kl_sae": sae, "kl_adapted": sae}
    return PerToken(ids, counted, values, error)


def again(found: PerToken, times: int) -> PerToken:
    """The same rows several times over."""
    ids, counted, error = (np.tile(x, (times, 1)) for x in (found.ids, found.counted, found.recon_error))
    return PerToken(ids, counted, {name: np.tile(x, (times, 1)) for name, x in found.values.items()}, error)


def test_shares_means_and_quantiles_are_of_counted_predictions():
    found = summarised(by_hand())
    changes = [-1.5, 0.5, 0, -1e-6, 2e-6, -1, 11]
    assert found["n_predictions"] == 7
    assert found["share_helped"]["value"] == pytest.approx(3 / 7)
    assert found["share_hurt"]["value"] == pytest.approx(3 / 7)  # one change is 0: neither
    assert found["change"]["mean"]["value"] == pytest.approx(np.mean(changes))
    assert found["change"]["mean_helped"]["value"] == pytest.approx(np.mean([-1.5, -1e-6, -1]))
    assert found["change"]["mean_hurt"]["value"] == pytest.approx(np.mean([0.5, 2e-6, 11]))
    assert found["change"]["quantiles"]["0.5"] == pytest.approx(0, abs=1e-5)
    assert found["change"]["quantiles"]["0.25"] == pytest.approx(np.quantile(changes, 0.25), abs=1e-5)
    assert set(found["change"]["quantiles"]) == {"0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95", "0.99"}
    assert found["cost"]["mean"]["value"] == pytest.approx((3 * 2 + 4 * 1) / 7)
    assert found["concentration"]["0.1"] == pytest.approx(1.5 / 2.500001)


def test_histogram_holds_every_change_once():
    found = summarised(by_hand())["histogram"]
    assert len(found["edges"]) == 51
    assert (found["edges"][0], found["edges"][-1]) == pytest.approx((1e-5, 10))
    for side, inside in (("helped", [1.5, 1.0]), ("hurt", [0.5])):
        filled = [i for i, count in enumerate(found[side]) for _ in range(count)]
        assert len(filled) == len(inside)
        for i, size in zip(filled, sorted(inside), strict=True):
            assert found["edges"][i] <= size * (1 + 1e-9)
            assert size <= found["edges"][i + 1] * (1 + 1e-9)
    below_above = [found[name] for name in ("helped_below", "hurt_below", "helped_above", "hurt_above")]
    assert below_above == [1, 1, 0, 1]


def test_positions_are_counted_from_the_tokens_before():
    bins = position_bins((2, 9))
    assert [each.label for each in bins] == ["1", "2–3", "4–7", "8–9"]
    assert [each.member_RP[0].nonzero()[0].tolist() for each in bins] == [[0], [1, 2], [3, 4, 5, 6], [7, 8]]
    found = summarised(by_hand())["by_position"]
    assert [(each["label"], each["n"]) for each in found] == [("1", 1), ("2–3", 4), ("4", 2)]
    of_second = summarised(again(by_hand(), 3))["by_position"][1]
    assert of_second["ce_base"]["value"] == pytest.approx(1)
    assert of_second["ce_sae"]["value"] == pytest.approx((3 + 3 + 2 + 2) / 4)
    assert of_second["change"]["value"] == pytest.approx((-1.5 + 0.5 + 2e-6 - 1) / 4)
    assert of_second["gap_closed"]["value"] == pytest.approx((2 - 2e-6) / 6)


def test_frequency_bins_are_of_the_predicted_token():
    count = np.zeros(30, int)
    count[10], count[11], count[12], count[2] = 50, 5, 2_000_000, 7
    count[3] = 10_000_000 - count.sum()
    found = summarised(by_hand(), count)["by_frequency"]
    # 10 is predicted at prediction 0 of rows 0 (not counted) and 1, and at 1 and 2 of row 1; 13 and 20 were never seen
    assert [(each["label"], each["n"]) for each in found] == [
        ("never seen", 2),
        ("under 1", 1),
        ("1–10", 3),
        ("10,000 or more", 1),
    ]
    assert found[-1]["high"] is None
    every = sum(each.member_RP.astype(int) for each in frequency_bins(by_hand().ids[:, 1:], count))
    assert (every == 1).all()


def test_recon_error_bins_hold_each_counted_prediction_once_and_evenly():
    rng = np.random.default_rng(0)
    counted = rng.random((20, 50)) < 0.9
    error = np.where(counted, rng.random((20, 50)), np.nan)
    bins = recon_error_bins(error, counted)
    members = np.stack([each.member_RP & counted for each in bins])
    assert len(bins) == 10
    assert (members.sum(0) == counted).all()
    assert np.ptp(members.sum((1, 2))) <= 1
    for each, member in zip(bins, members, strict=True):
        assert each.low <= error[member].min()
        assert error[member].max() <= each.high


def test_a_gap_that_cannot_be_told_from_zero_has_no_share_closed():
    found = again(by_hand(), 3)
    found.values["ce_sae"][::3] = -1
    for each in summarised(found)["by_position"][1:]:
        assert each["ce_sae"]["low"] is not None
        assert each["gap_closed"] == {"value": None, "low": None, "high": None}


def test_a_bin_of_a_few_rows_has_no_intervals():
    for few in (1, 2):
        for each in summarised(again(by_hand(), few))["by_position"]:
            assert each["change"]["value"] is not None
            assert each["change"]["low"] is each["change"]["high"] is each["gap_closed"]["value"] is None


# SPEC 4.1
def test_bos_in_the_middle_of_a_row_predicts_nothing_that_counts(fresh):
    rows = rows_of(families.tiny("llama"))
    assert int(rows[-1, 5]) == BOS
    found = measured(with_adapter(fresh("llama"), [2]), {Hookpoint(1): TinySAE(D_MODEL)}, rows)
    assert not found.counted[-1, 5]
    assert found.counted[-1, 4]  # while BOS itself may be predicted
