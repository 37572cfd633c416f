"""The measure tells an adapter that reads its SAE from one that goes round it; its numbers are those of plain forwards.

The constructed model keeps two halves of the residual stream apart: all but one MLP write to the first, that one MLP
(whose output the SAE reconstructs) to the second. Layers above read both. An adapter that subtracts, from the linears
above, whatever they read of the second half then predicts from what flows beside the SAE alone.
"""

import copy
import json
from functools import cache

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

import families
from families import BOS, D_MODEL, EOS, PAD
from model_text import written_by
from saelora.core.lora import disabled, lora_config
from saelora.core.massive import Massive
from saelora.core.splice import TokenMask, splice
from saelora.core.spread import FIGURES
from saelora.errors import InputError
from saelora.evals.faithfulness.interventions import faithfulness, n_tokens_run, spaced
from saelora.evals.faithfulness.reliance import classify_reliance
from saelora.evals.faithfulness.result import Verdict
from saelora.evals.spliced import SplicedModel
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, Broken, TinySAE, hooks_in

HALF = D_MODEL // 2
MLP = Hookpoint(1, "mlp_out")
SMALL = 1e-3  # the second half's scale, so that it hardly moves the norms that both halves share
READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


def two_halves(model: nn.Module) -> nn.Module:
    """The llama with its residual stream in two halves."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:, HALF:] = 0
        model.get_output_embeddings().weight[:, HALF:] = 0
        for i, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight[HALF:] = 0
            layer.mlp.down_proj.weight[slice(0, HALF) if i == 1 else slice(HALF, None)] = 0
            if i == 1:
                layer.mlp.down_proj.weight *= 3 * SMALL
            for name in READERS if i > 1 else ():
                layer.get_submodule(name).weight[:, HALF:] /= SMALL
    return model


class HalfSAE(TinySAE):
    """Reconstructs the second half, roughly, and writes nothing to the first."""

    def __init__(self) -> None:
        super().__init__(D_MODEL, 24)
        directions = torch.zeros(24, D_MODEL, dtype=torch.float64)
        directions[:, HALF:] = self.W_dec.data[:, HALF:]
        directions /= directions.norm(dim=1, keepdim=True)
        self.W_dec.data, self.W_enc.data = directions, 0.5 * directions.T.clone()
        self.b_dec.data.zero_()
        self.b_enc.data.zero_()


def adapted(model: nn.Module, forget: float, noise: float = 0.0) -> nn.Module:
    """The model with an adapter that takes away a share of what the layers above read of the second half."""
    torch.manual_seed(0)  # PEFT draws lora_A
    model = get_peft_model(model, lora_config(model, [2, 3], rank=HALF, alpha=float(HALF))).double().eval()
    generator = torch.Generator().manual_seed(0)
    selector = torch.zeros(HALF, D_MODEL, dtype=torch.float64)
    selector[:, HALF:] = torch.eye(HALF)
    for layer in list(anatomy_of(model).layers)[2:]:
        for name in READERS:
            linear = layer.get_submodule(name)
            linear.lora_A["default"].weight.data.copy_(selector)
            linear.lora_B["default"].weight.data.copy_(-forget * linear.base_layer.weight[:, HALF:])
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            up = layer.get_submodule(name).lora_B["default"].weight
            up.data += noise * torch.randn(up.shape, generator=generator, dtype=up.dtype)
            up.data[HALF:] = 0
    return model


def rows_for(model: nn.Module, n_rows: int = 24, context: int = 16) -> Tensor:
    template = torch.full((n_rows, context), 3)
    template[:, 0] = BOS
    template[::5, 7] = EOS
    return written_by(model, template)


def found_by(subject: SplicedModel, rows: Tensor, **options) -> dict:
    return to_json(faithfulness(subject, rows, **options))


@cache
def measured(forget: float, noise: float) -> dict:
    base = two_halves(copy.deepcopy(families.tiny("llama")))
    rows = rows_for(base)
    model = adapted(base, forget, noise)
    with splice(model, {MLP: HalfSAE()}, SPARE_SPECIAL) as spliced:
        return found_by(SplicedModel(model, spliced, SPARE_SPECIAL), rows, batch_rows=8, draws=2)


# SPEC 8.4
def test_an_adapter_that_goes_round_its_sae_is_told_from_one_that_reads_it():
    for noise in (0.0, 0.05):
        reading, round_it = measured(0.0, noise), measured(1.0, noise)
        assert reading["verdict"] == Verdict.READS_SAE
        assert round_it["verdict"] == Verdict.BYPASSES_SAE
        assert reading["shuffled"]["rise_sae"]["value"] > 0.1  # the SAE is read by the spliced model
        assert round_it["shuffled"]["rise_sae"] == reading["shuffled"]["rise_sae"]
        assert abs(round_it["shuffled"]["reliance"]["value"]) < 1e-3
        assert reading["shuffled"]["reliance"]["value"] == pytest.approx(1, abs=0.1)
        assert abs(round_it["ablation"]["top_pooled"]["value"]) < 1e-3
        assert reading["ablation"]["top_pooled"]["value"] == pytest.approx(1, abs=0.1)
    assert measured(0.0, 0.0)["shuffled"]["reliance"] == {"value": 1.0, "low": 1.0, "high": 1.0}  # a zero adapter


def test_going_round_shows_with_the_sae_taken_out_too():
    """What an adapter that ignores the SAE predicts is the same with it and without."""
    found = measured(1.0, 0.0)
    assert found["sae_taken_out"]["ce_adapted_clean"]["value"] == pytest.approx(
        found["ce"]["adapted"]["value"], abs=1e-3
    )
    assert measured(0.0, 0.0)["sae_taken_out"]["harm"]["value"] == 0


def test_results_are_the_same_every_time_and_plain_json():
    found = measured(1.0, 0.0)
    measured.cache_clear()
    assert measured(1.0, 0.0) == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def noisy(model: nn.Module, layers=(2, 3)) -> nn.Module:
    model = get_peft_model(model, lora_config(model, list(layers), rank=2, alpha=4.0)).double()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


SITES = [Hookpoint(0, "mlp_out"), Hookpoint(1)]


def naive_ce(
    model: nn.Module, saes: dict, replaced: Tensor | dict, rows: Tensor, counted: Tensor | None = None
) -> float:
    """Mean over the counted predictions, one by one, with hooks of its own; positions replaced may be by hookpoint."""

    def hook(sae, replaced_BS):
        def on_output(_module, _args, output):
            x = output if isinstance(output, Tensor) else output[0]
            new = torch.where(replaced_BS[..., None], sae(x), x)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return on_output

    masks = replaced if isinstance(replaced, dict) else dict.fromkeys(saes, replaced)
    handles = [anatomy_of(model).site(h)[0].register_forward_hook(hook(sae, masks[h])) for h, sae in saes.items()]
    with torch.no_grad():
        log_p = model(input_ids=rows).logits.log_softmax(-1)
    for handle in handles:
        handle.remove()
    told = []
    for b, row in enumerate(rows.tolist()):
        counts = [token not in (PAD, BOS, EOS) for token in row] if counted is None else counted[b]
        told += [-float(log_p[b, t, row[t + 1]]) for t in range(len(row) - 1) if counts[t]]
    return sum(told) / len(told)


def plain(sae, without=()):
    def reconstruct(x):
        acts = sae.encode(x)
        acts[..., list(without)] = 0
        return sae.decode(acts)

    return reconstruct


@pytest.mark.parametrize(
    ("family", "layers"),
    [("llama", (2, 3)), ("llama", (0, 1, 3)), ("gemma2", (0, 1, 3)), ("gpt2", (2, 3))],
    ids=["llama, above", "llama, around", "gemma2, around", "gpt2, above"],
)
# SPEC 8.1, 8.5
def test_every_number_equals_plain_forwards(fresh, family, layers):
    """Two SAEs at once: both are ablated, zeroed and shuffled; another takes the place of one."""
    base = fresh(family)
    rows = rows_for(base, n_rows=5, context=10)
    model = noisy(base, layers)
    saes = {h: TinySAE(D_MODEL, seed=i) for i, h in enumerate(SITES)}
    other = TinySAE(D_MODEL, seed=7)
    hooks = hooks_in(model)
    with splice(model, saes, SPARE_SPECIAL) as spliced:
        found = to_json(
            faithfulness(SplicedModel(model, spliced, SPARE_SPECIAL), rows, other=(SITES[1], other), draws=1)
        )
    assert hooks_in(model) == hooks

    counted = torch.tensor([[token not in (PAD, BOS, EOS) for token in row] for row in rows.tolist()])
    all_but_first, everything = counted.clone(), torch.ones_like(counted)
    all_but_first[:, 1:] = True
    own = {h: plain(sae) for h, sae in saes.items()}
    mass = {}
    with disabled(model), splice(model, saes, SPARE_SPECIAL, observer=lambda h, x, a, r, m: mass.update({h: a[m]})):
        model(input_ids=rows)
    mass = {h: acts.sum(0) * saes[h].W_dec.norm(dim=1) for h, acts in mass.items()}
    top4 = {h: plain(saes[h], m.argsort(descending=True)[:4].tolist()) for h, m in mass.items()}
    zeros = dict.fromkeys(saes, torch.zeros_like)
    close = {"rel": 1e-5, "abs": 1e-5}

    def both(put_in, mask):
        with disabled(model):
            sae = naive_ce(model, put_in, mask, rows)
        return sae, naive_ce(model, put_in, mask, rows)

    plainly = both(own, counted)
    assert (found["ce"]["sae"]["value"], found["ce"]["adapted"]["value"]) == pytest.approx(plainly, **close)
    assert found["gain"]["value"] == pytest.approx(plainly[0] - plainly[1], **close)
    out = found["sae_taken_out"]
    with disabled(model):
        clean = naive_ce(model, {}, counted, rows)
    assert out["ce_base"]["value"] == pytest.approx(clean, **close)
    assert out["ce_adapted_clean"]["value"] == pytest.approx(naive_ce(model, {}, counted, rows), **close)
    assert out["harm"]["value"] == pytest.approx(naive_ce(model, {}, counted, rows) - clean, **close)
    seen = {plainly}
    for part, put_in, mask in (
        (found["zeroed"], zeros, counted),
        (found["exempt"]["spliced_too"], own, everything),
        (found["exempt"]["after_first"], own, all_but_first),
        (next(entry for entry in found["ablation"]["top"] if entry["k"] == 4), top4, counted),
        (found["other_sae"], {**own, SITES[1]: plain(other)}, counted),
    ):
        expected = both(put_in, mask)
        rises = tuple(now - before for now, before in zip(expected, plainly, strict=True))
        seen.add(expected)
        if "ce_sae" in part:
            assert (part["ce_sae"]["value"], part["ce_adapted"]["value"]) == pytest.approx(expected, **close)
        if "rise_sae" in part:
            assert (part["rise_sae"]["value"], part["rise_adapted"]["value"]) == pytest.approx(rises, **close)
        ratio = part.get("ratio", part.get("reliance", {"value": None}))["value"]
        if ratio is not None:
            assert ratio == pytest.approx(rises[1] / rises[0], rel=1e-3)
        if "excess" in part:
            assert part["excess"]["value"] == pytest.approx(rises[1] - rises[0], abs=3e-5)
    assert len(seen) == 6
    share = sum(float(m.sort(descending=True).values[:4].sum() / m.sum()) for m in mass.values()) / 2
    top = next(entry for entry in found["ablation"]["top"] if entry["k"] == 4)
    assert top["share"] == pytest.approx(share)
    closed = found["other_sae"]["gap_closed"]["value"]
    if closed is not None:
        swapped = both({**own, SITES[1]: plain(other)}, counted)
        assert closed == pytest.approx((swapped[0] - swapped[1]) / (swapped[0] - clean), rel=1e-3)
    for figure in {"fvu", *FIGURES} - {"top_variance"}:  # which is of what they are given
        assert found["other_sae"][figure] != pytest.approx(found["other_sae"][f"own_{figure}"]), figure
    assert found["n_predictions"] == int(counted[:, :-1].sum())


def test_the_adapter_s_own_sae_in_its_place_changes_nothing(fresh):
    base = fresh("llama")
    rows, sae = rows_for(base, n_rows=4), TinySAE(D_MODEL)
    with splice(model := noisy(base), {Hookpoint(1): sae}, SPARE_SPECIAL) as spliced:
        found = to_json(
            faithfulness(SplicedModel(model, spliced, SPARE_SPECIAL), rows, other=(Hookpoint(1), sae), draws=1)
        )
    other = found["other_sae"]
    for figure in ("fvu", *FIGURES):
        assert other[figure] == pytest.approx(other[f"own_{figure}"]), figure
    assert other["ce_sae"]["value"] == pytest.approx(found["ce"]["sae"]["value"])
    assert other["gap_closed"] == pytest.approx(other["own_gap_closed"])


def test_a_policy_that_exempts_nothing_has_no_exempt_figures(fresh):
    base = fresh("llama")
    rows = rows_for(base, n_rows=4)
    with splice(model := noisy(base), {Hookpoint(1): TinySAE(D_MODEL)}, TokenMask()) as spliced:
        found = found_by(SplicedModel(model, spliced, TokenMask()), rows, draws=1)["exempt"]
    assert found["n_positions"] == 0
    assert found["spliced_too"] is found["after_first"] is found["attention"] is None
    assert found["attention_missing"] == "no position is exempt"


@pytest.mark.parametrize("ids", [(PAD, BOS, EOS), ()], ids=["by token too", "by norm alone"])
# SPEC 8.5
def test_positions_spared_by_their_norm_are_counted_and_spliced_too(fresh, ids):
    base = fresh("llama")
    rows, model = rows_for(base, n_rows=5), noisy(base)
    saes, seen, policy = {h: TinySAE(D_MODEL, seed=i) for i, h in enumerate(SITES)}, {}, TokenMask(ids)
    with disabled(model), splice(model, saes, policy, observer=lambda h, x, a, r, m: seen.update({h: x.norm(dim=-1)})):
        model(input_ids=rows)
    low, high = SITES  # at the latter first positions are massive as well
    limits = ((low, float(seen[low].flatten().quantile(0.8))), (high, 0.99 * float(seen[high][:, 0].min())))
    policy, masks = TokenMask(ids, massive=Massive(2.0, limits)), []
    with disabled(model), splice(model, saes, policy, observer=lambda *event: masks.append(event[-1])):
        model(input_ids=rows)
    spared = ~torch.stack(masks).all(0)
    with splice(model, saes, policy) as spliced:
        found = found_by(SplicedModel(model, spliced, policy), rows, draws=1)["exempt"]
    assert spared[:, 0].all()
    assert int((~policy(rows))[:, 1:].sum()) < found["n_after_first"] == int(spared[:, 1:].sum()) < found["n_positions"]
    assert found["n_positions"] == int(spared.sum())

    own = {h: plain(sae) for h, sae in saes.items()}
    counted = policy(rows)
    with disabled(model):
        every = naive_ce(model, own, torch.ones_like(counted), rows, counted)
        first_spared = [torch.cat([mask[:, :1], torch.ones_like(mask[:, 1:])], 1) for mask in masks]
        after_first = naive_ce(model, own, dict(zip(saes, first_spared, strict=True)), rows, counted)
    assert found["spliced_too"]["ce_sae"]["value"] == pytest.approx(every, rel=1e-5)
    assert found["after_first"]["ce_sae"]["value"] == pytest.approx(after_first, rel=1e-5)
    assert every != pytest.approx(after_first, rel=1e-4)
    assert found["attention"] is not None if ids else "by its token" in found["attention_missing"]


def test_positions_that_begin_rows_leave_nothing_after_the_first(fresh):
    base = fresh("llama")
    rows = rows_for(base, n_rows=4)[1:]
    with splice(model := noisy(base), {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        found = found_by(SplicedModel(model, spliced, SPARE_SPECIAL), rows, draws=1)["exempt"]
    assert found["n_positions"] == 3
    assert found["spliced_too"] is not None
    assert found["after_first"] is None


def test_more_draws_pool_more_latents_and_fewer_rows_ablate_less(fresh):
    base = fresh("llama")
    rows = rows_for(base, n_rows=8)
    told = []
    with splice(model := noisy(base), {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        few = to_json(
            faithfulness(
                SplicedModel(model, spliced, SPARE_SPECIAL), rows, draws=1, ablation_rows=3, progress=told.append
            )
        )
        many = found_by(SplicedModel(model, spliced, SPARE_SPECIAL), rows, draws=2)
    assert sum(told) == n_tokens_run(rows, 3)
    assert few["ablation"]["n_predictions"] < few["n_predictions"] == many["ablation"]["n_predictions"]
    assert few["shuffled"] == many["shuffled"]  # drawn before, whatever is ablated
    assert few["ablation"]["random"][1]["share"] != many["ablation"]["random"][1]["share"]
    assert few["ablation"]["top"][0]["share"] == many["ablation"]["top"][0]["share"]


def test_spaced_rows_are_distinct_and_span_all():
    assert spaced(10, 4) == [0, 2, 5, 7]
    assert spaced(3, 16) == spaced(3, None) == [0, 1, 2]


@pytest.mark.parametrize("sae", [TinySAE(D_MODEL), Broken()], ids=["to the end", "ended by an error"])
def test_model_is_left_exactly_as_it_was(fresh, sae):
    base = fresh("llama")
    rows, model = rows_for(base, n_rows=4), noisy(base)
    model.train()
    anatomy_of(model).layers[0].eval()

    def state():
        modes = [m.training for m in model.modules()]
        switches = [
            (m._disable_adapters, m._active_adapter) for m in model.modules() if hasattr(m, "_disable_adapters")
        ]
        return modes, switches, hooks_in(model), base.config._attn_implementation, torch.get_rng_state().tolist()

    with splice(model, {Hookpoint(1): sae}, SPARE_SPECIAL, observer=(watch := lambda *event: None)) as spliced:
        before = state()
        if isinstance(sae, Broken):
            with pytest.raises(RuntimeError, match="broken SAE"):
                faithfulness(SplicedModel(model, spliced, SPARE_SPECIAL), rows, draws=1)
        else:
            faithfulness(SplicedModel(model, spliced, SPARE_SPECIAL), rows, draws=1)
        assert state() == before
        assert spliced.enabled
        assert spliced.observer is watch


def test_a_model_without_adapter_and_rows_without_counted_positions_are_refused(fresh):
    base, saes = fresh("llama"), {Hookpoint(1): TinySAE(D_MODEL)}
    with splice(base, saes, SPARE_SPECIAL) as spliced, pytest.raises(InputError, match="--adapter"):
        faithfulness(SplicedModel(base, spliced, SPARE_SPECIAL), rows_for(base, 2))
    with (
        splice(model := noisy(base), saes, SPARE_SPECIAL) as spliced,
        pytest.raises(InputError, match="no position is replaced"),
    ):
        faithfulness(SplicedModel(model, spliced, SPARE_SPECIAL), torch.full((2, 6), EOS))


def around(value: float | None, half: float = 0.02) -> dict:
    return {"value": value, "low": None, "high": None} if value is None else {
        "value": value, "low": value - half, "high": value + half,
    }  # fmt: skip


def result(reliance: float | None, top: float | None, excess: float | None = None, gain: float = 0.1) -> tuple:
    return around(reliance), around(top), around(gain), None if excess is None else around(excess)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (result(0.95, 0.9), Verdict.READS_SAE),
        (result(1.2, 1.1), Verdict.READS_SAE),
        (result(0.95, None), Verdict.READS_SAE),
        (result(0.81, 0.9), Verdict.UNCLEAR),  # its interval reaches below the threshold
        (result(0.65, 0.65), Verdict.UNCLEAR),
        (result(0.2, 0.3), Verdict.BYPASSES_SAE),
        (result(-0.1, None), Verdict.BYPASSES_SAE),
        (result(0.49, 0.3), Verdict.UNCLEAR),
        (result(0.95, 0.4), Verdict.UNCLEAR),  # the two do not agree
        (result(0.2, 0.9), Verdict.UNCLEAR),
        (result(None, 0.9), Verdict.UNCLEAR),
        (result(0.95, 0.9, excess=0.03), Verdict.READS_SAE),
        (result(0.95, 0.9, excess=0.08), Verdict.UNCLEAR),  # more than half the gain hangs on exempt positions
        (result(0.95, 0.9, excess=0.08, gain=-0.1), Verdict.READS_SAE),  # no gain that could hang on anything
    ],
)
# SPEC 8.4
def test_verdict_follows_the_stated_rule(found, verdict):
    told, why = classify_reliance(*found)
    assert told == verdict
    value = found[0]["value"]
    assert (f"{value:.2f}" if value is not None else "nothing") in why
    assert ("ablating the top latents" in why) == (None not in (value, found[1]["value"]))
