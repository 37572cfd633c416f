"""Every number of an evaluation against plain forwards in float64; what it may not touch; its intervals."""

from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

import families
from families import BOS, D_MODEL, EOS, PAD
from model_text import written_by
from saelora.core.lora import disabled, lora_config
from saelora.core.splice import TokenMask, ZeroAblation, splice
from saelora.core.spread import FIGURES
from saelora.errors import InputError
from saelora.evals.loss import evaluate_loss
from saelora.evals.loss_sums import LossSums
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from spread_reference import plain_figures
from tiny_saes import SPARE_SPECIAL, Broken, Identity, TinySAE, hooks_in, saes_at

HOOKPOINT = Hookpoint(1)
# Norms round to float32 on the way in some families, which magnifies differences of 1e-16 now and then.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def _template() -> torch.Tensor:
    """Five rows whose numbers of exempt positions differ widely, so that means of means would be other numbers."""
    rows = torch.full((5, 11), 3)
    rows[:, 0] = BOS
    rows[1, 3:11] = EOS
    rows[3, 2:9:2] = EOS
    rows[4, 5] = BOS
    return rows


@cache
def rows_of(family: str) -> torch.Tensor:
    return written_by(families.tiny(family), _template())


ROWS = rows_of("llama")


def with_adapter(model: nn.Module, *, zero: bool = False, layers=(2, 3)) -> nn.Module:
    model = get_peft_model(model, lora_config(model, list(layers), rank=2, alpha=4.0)).double()
    if not zero:
        for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
            generator = torch.Generator().manual_seed(i)
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


@contextmanager
def plain_hook(model: nn.Module, sae, rows: torch.Tensor):
    """A splice at layers.1.resid_post written down independently."""
    replaced = torch.tensor([[token not in (PAD, BOS, EOS) for token in row] for row in rows.tolist()])

    def hook(_module, _args, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        new = x.clone()
        new[replaced] = sae.decode(sae.encode(x[replaced]))
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    handle = anatomy_of(model).layers[1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def naive(logits: torch.Tensor, clean: torch.Tensor, rows: torch.Tensor) -> tuple[float, float, float]:
    """Cross entropy, KL(clean || other) and top-1 agreement, prediction by prediction."""
    ce, kl, top1 = [], [], []
    for row in range(len(rows)):
        for t in range(rows.shape[1] - 1):
            if int(rows[row, t]) in (PAD, BOS, EOS):
                continue
            log_p, log_q = clean[row, t].log_softmax(-1), logits[row, t].log_softmax(-1)
            ce.append(-float(log_q[rows[row, t + 1]]))
            kl.append(float((log_p.exp() * (log_p - log_q)).sum()))
            top1.append(float(log_p.argmax() == log_q.argmax()))
    return tuple(sum(x) / len(x) for x in (ce, kl, top1))


@pytest.mark.parametrize("layers", [(2, 3), (0, 3)], ids=["adapter above the SAE", "adapter around the SAE"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
# SPEC 4.1, 4.3, 4.5, 4.7
def test_every_arm_equals_plain_forwards(fresh, family, layers):
    model, sae, rows = with_adapter(fresh(family), layers=layers), TinySAE(D_MODEL), rows_of(family)
    found = evaluate_loss(model, {HOOKPOINT: sae}, SPARE_SPECIAL, rows)

    logits = {}
    with torch.no_grad():
        with disabled(model):
            clean = model(input_ids=rows).logits
            for arm, module in (("sae", sae), ("zero", ZeroAblation())):
                with plain_hook(model, module, rows):
                    logits[arm] = model(input_ids=rows).logits
        logits["adapted_clean"] = model(input_ids=rows).logits
        with plain_hook(model, sae, rows):
            logits["adapted"] = model(input_ids=rows).logits
    ce = {arm: naive(value, clean, rows)[0] for arm, value in logits.items()}
    base = naive(clean, clean, rows)[0]
    for arm, value in logits.items():
        expected = naive(value, clean, rows)
        assert (found[f"ce_{arm}"], found[f"kl_{arm}"], found[f"top1_{arm}"]) == pytest.approx(expected, **CLOSE)
    assert len({round(x, 3) for x in (base, *ce.values())}) == 5  # five models, five numbers
    assert found["ce_base"] == pytest.approx(base, **CLOSE)
    assert found["ce_gap"] == pytest.approx(ce["sae"] - base, **CLOSE)
    for arm in ("sae", "adapted"):
        recovered = (ce["zero"] - ce[arm]) / (ce["zero"] - base)
        assert found[f"loss_recovered_{arm}"] == pytest.approx(recovered, rel=1e-4)
    closed = (ce["sae"] - ce["adapted"]) / (ce["sae"] - base)
    assert found["gap_closed"] == pytest.approx(closed, rel=1e-4)
    assert found["n_tokens_evaluated"] == sum(int(t) not in (PAD, BOS, EOS) for t in rows[:, :-1].flatten())


# SPEC 5.1, 5.3
def test_fvu_l0_and_dead_latents_are_of_the_whole_set(fresh):
    """At every replaced position, last ones included; variance about one mean over all rows."""
    model, hookpoints = fresh("llama"), [Hookpoint(0, "mlp_out"), Hookpoint(2, "attn_z")]
    saes = saes_at(anatomy_of(model), hookpoints)
    for sae in saes.values():
        sae.b_enc[:5] = -1e3
    seen = {h: [] for h in hookpoints}

    def observer(hookpoint, x, latents, recon, mask):
        seen[hookpoint].append((x[mask], latents[mask], recon[mask]))

    with torch.no_grad(), splice(model, saes, SPARE_SPECIAL, observer=observer):
        model(input_ids=ROWS)
    found = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS, batch_rows=2)["saes"]
    for hookpoint in hookpoints:
        x, latents, recon = seen[hookpoint][0]
        assert len(x) == sum(int(t) not in (PAD, BOS, EOS) for t in ROWS.flatten())
        fvu = (x - recon).square().sum() / (x - x.mean(0)).square().sum()
        l0 = (latents != 0).sum(1).double().mean()
        dead = sum(not bool((latents[:, i] != 0).any()) for i in range(latents.shape[1])) / latents.shape[1]
        of_this = found[str(hookpoint)]
        assert of_this["fvu"] == pytest.approx(float(fvu), **CLOSE)
        assert {name: of_this[name] for name in FIGURES} == pytest.approx(plain_figures(x, recon), **CLOSE)
        assert of_this["l0"] == pytest.approx(float(l0))
        assert of_this["dead_frac"] == pytest.approx(dead)
        assert 5 / 24 <= dead < 1


# SPEC 4.4
def test_rows_per_batch_change_no_number(fresh):
    model = with_adapter(fresh("llama"))
    saes = {HOOKPOINT: TinySAE(D_MODEL)}
    whole = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS, batch_rows=len(ROWS))
    whole_saes, whole_ci, starts = whole.pop("saes"), whole.pop("ci95"), whole.pop("row_starts")
    assert starts == {"n_rows": len(ROWS), "n_without_exempt_token": 0, "n_positions_spared": 0}
    for batch_rows in (1, 2, 3):  # uneven last batches of 1 and 2
        found = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS, batch_rows=batch_rows)
        found_saes, found_ci = found.pop("saes"), found.pop("ci95")
        assert found.pop("row_starts") == starts
        assert found == pytest.approx(whole, **CLOSE)
        assert found_saes[str(HOOKPOINT)] == pytest.approx(whole_saes[str(HOOKPOINT)], **CLOSE)
        for name, interval in whole_ci.items():
            assert found_ci[name] == pytest.approx(interval, rel=1e-4, abs=1e-5)
    weights = SPARE_SPECIAL(ROWS)[:, :-1].double()
    one_by_one = [evaluate_loss(model, saes, SPARE_SPECIAL, ROWS[i : i + 1]) for i in range(len(ROWS))]
    mean_of_means = sum(row["ce_base"] for row in one_by_one) / len(ROWS)
    assert abs(mean_of_means - whole["ce_base"]) > 1e-2  # these rows tell one kind of mean from the other
    by_tokens = sum(row["ce_base"] * w for row, w in zip(one_by_one, weights.sum(1).tolist(), strict=True))
    assert by_tokens / float(weights.sum()) == pytest.approx(whole["ce_base"], **CLOSE)


# SPEC 4.5
def test_perfect_sae_costs_nothing_and_leaves_no_gap_to_close(fresh):
    found = evaluate_loss(with_adapter(fresh("llama")), {HOOKPOINT: Identity()}, SPARE_SPECIAL, ROWS)
    assert found["ce_gap"] == pytest.approx(0, abs=1e-9)
    assert found["kl_sae"] == pytest.approx(0, abs=1e-9)
    assert found["top1_sae"] == 1
    assert found["saes"][str(HOOKPOINT)]["fvu"] == 0
    assert found["kl_adapted"] > 0.01
    if found["ce_gap"] <= 0:
        assert "gap_closed" not in found
        assert "gap_closed" not in found["ci95"]


def test_zero_adapter_closes_nothing(fresh):
    found = evaluate_loss(with_adapter(fresh("llama"), zero=True), {HOOKPOINT: TinySAE(D_MODEL)}, SPARE_SPECIAL, ROWS)
    assert found["ce_adapted"] == pytest.approx(found["ce_sae"], abs=1e-9)
    assert found["kl_adapted"] == pytest.approx(found["kl_sae"], abs=1e-9)
    assert found["ce_adapted_clean"] == pytest.approx(found["ce_base"], abs=1e-9)
    assert found["kl_adapted_clean"] == pytest.approx(0, abs=1e-9)
    assert found["gap_closed"] == pytest.approx(0, abs=1e-6)


def test_an_arm_by_itself_has_the_numbers_it_has_among_all(fresh):
    model, saes = with_adapter(fresh("gemma2")), {HOOKPOINT: TinySAE(D_MODEL)}
    whole = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS)
    for arm in ("sae", "adapted", "adapted_clean", "zero"):
        alone = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS, arms=[arm])
        names = {"ce_base", *(f"{metric}_{arm}" for metric in ("ce", "kl", "top1"))}
        assert {name: alone[name] for name in names} == pytest.approx({name: whole[name] for name in names}, **CLOSE)
        assert {name for name in alone if name.startswith(("ce_", "kl_"))} <= {*names, "ce_gap"}
        assert bool(alone["saes"]) == (arm == "sae")


def test_model_without_adapter_has_no_adapted_arms(fresh):
    found = evaluate_loss(fresh("llama"), {HOOKPOINT: TinySAE(D_MODEL)}, SPARE_SPECIAL, ROWS)
    assert {"ce_base", "ce_sae", "ce_zero"} <= set(found)
    assert not [name for name in found if "adapted" in name or name == "gap_closed"]


def test_evaluation_within_an_open_but_disabled_splice_gives_the_same(fresh):
    """As the learning curve of a run is measured: the student's own splice stays attached."""
    model, saes = with_adapter(fresh("llama")), {HOOKPOINT: TinySAE(D_MODEL)}
    expected = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS)
    with splice(model, saes, SPARE_SPECIAL) as student, student.disabled():
        assert evaluate_loss(model, saes, SPARE_SPECIAL, ROWS) == expected


@pytest.mark.parametrize("sae", [TinySAE(D_MODEL), Broken()], ids=["to the end", "ended by an error"])
# SPEC 11.8
def test_evaluation_leaves_the_model_as_it_was(fresh, sae):
    model = with_adapter(fresh("llama"))
    model.train()
    anatomy_of(model).layers[0].eval()  # modes may be mixed

    def state():
        modes = [m.training for m in model.modules()]
        trainable = [p.requires_grad for p in model.parameters()]
        weights = [p.detach().clone() for p in model.parameters()]
        return modes, trainable, hooks_in(model), weights, torch.get_rng_state(), np.random.get_state()[1].copy()

    before = state()
    assert len(set(before[0])) == len(set(before[1])) == 2
    if isinstance(sae, Broken):
        with pytest.raises(RuntimeError, match="broken SAE"):
            evaluate_loss(model, {HOOKPOINT: sae}, SPARE_SPECIAL, ROWS)
    else:
        evaluate_loss(model, {HOOKPOINT: sae}, SPARE_SPECIAL, ROWS)
    after = state()
    assert after[:3] == before[:3]
    assert all(torch.equal(a, b) for a, b in zip(after[3], before[3], strict=True))
    assert torch.equal(after[4], before[4])
    assert np.array_equal(after[5], before[5])


def test_dropout_plays_no_part(fresh):
    model = fresh("llama")
    config = lora_config(model, [2, 3], rank=2, alpha=4.0, dropout=0.5)
    model = get_peft_model(model, config).double().train()
    for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
        parameter.data += 0.3
    saes = {HOOKPOINT: TinySAE(D_MODEL)}
    first = evaluate_loss(model, saes, SPARE_SPECIAL, ROWS)
    assert evaluate_loss(model, saes, SPARE_SPECIAL, ROWS) == first


# SPEC 12.1
def test_rows_without_a_replaced_position_are_refused(fresh):
    nothing = torch.full((2, 5), EOS)
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate_loss(fresh("llama"), {HOOKPOINT: TinySAE(D_MODEL)}, SPARE_SPECIAL, nothing)


def test_progress_adds_up_to_all_tokens(fresh):
    told = []
    saes = {HOOKPOINT: TinySAE(D_MODEL)}
    evaluate_loss(fresh("llama"), saes, TokenMask(), ROWS, batch_rows=2, progress=told.append)
    assert len(told) == 3
    assert sum(told) == ROWS.numel()


N_PER_ROW = 50


def measured(n_rows: int, seed: int, gap: float = 1.0, closed: float = 0.4) -> LossSums:
    """Rows of known expectation: cross entropies share a large part that varies from row to row, as in text."""
    rng = np.random.default_rng(seed)
    sums = LossSums()
    sums.n = rng.integers(N_PER_ROW // 2, 2 * N_PER_ROW, n_rows).astype(float).tolist()
    n = np.array(sums.n)
    base = 3 + rng.normal(0, 1, n_rows)
    sae = base + gap + rng.normal(0, 0.05, n_rows)
    adapted = sae - closed * gap + rng.normal(0, 0.05, n_rows)
    sums.sums = {
        "ce_base": (n * base).tolist(),
        "ce_sae": (n * sae).tolist(),
        "ce_adapted": (n * adapted).tolist(),
    }
    return sums


def test_intervals_hold_the_point_and_are_the_same_every_time():
    found = measured(40, 0).compute()
    assert found == measured(40, 0).compute()
    for name, (low, high) in found.ci95.items():
        assert low < found.point[name] < high
    assert set(found.ci95) == {"ce_base", "ce_sae", "ce_adapted", "ce_gain", "ce_gap", "gap_closed"}


def test_intervals_shrink_with_the_root_of_the_number_of_rows():
    def width(n_rows):
        low, high = measured(n_rows, 1).compute().ci95["ce_base"]
        return high - low

    assert 5 < width(25) / width(1600) < 13  # 8 expected


# SPEC 6.1
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = {"ce_base": 3.0, "gap_closed": 0.4, "ce_gap": 1.0}
    hits = dict.fromkeys(truth, 0)
    n_draws = 200
    for seed in range(n_draws):
        interval = measured(60, seed).compute().ci95
        for name, value in truth.items():
            hits[name] += interval[name][0] <= value <= interval[name][1]
    for name, count in hits.items():
        assert 0.88 <= count / n_draws <= 0.99, name


# SPEC 6.2
def test_interval_of_gap_closed_is_paired():
    """Rows differ far more from each other than arms do: resampled separately, the arms would drown in that."""
    found = measured(60, 2).compute()
    low, high = found.ci95["gap_closed"]
    spread = np.diff(found.ci95["ce_base"])[0]  # an unpaired difference of means has at least this width
    unpaired = spread / found.point["ce_gap"]
    assert high - low < unpaired / 5


# SPEC 4.5
def test_sae_that_helps_leaves_no_share_to_report():
    found = measured(30, 3, gap=-0.5).compute().point
    assert found["ce_gap"] < 0
    assert "gap_closed" not in found
    assert all(np.isfinite(value) for value in found.values())


def test_rows_without_predictions_leave_the_intervals_alone():
    sums = measured(20, 4)
    expected = sums.compute()
    sums.n += [0.0] * 15
    for values in sums.sums.values():
        values += [0.0] * 15
    assert sums.compute() == expected


def test_a_row_of_a_single_prediction_counts():
    sums = measured(20, 4)
    before, n = sums.compute(), sum(sums.n)
    sums.n.append(1.0)
    for values in sums.sums.values():
        values.append(2.0)
    found = sums.compute()
    assert found.n == before.n + 1
    assert found.point["ce_sae"] == pytest.approx((before.point["ce_sae"] * n + 2) / (n + 1))
