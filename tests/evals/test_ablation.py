"""Interventions on latents, and cross entropies under them, against plain forwards in float64."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import nn

import families
from families import BOS, D_MODEL, EOS, PAD
from model_text import written_by
from saelora.core.lora import disabled, lora_config
from saelora.core.massive import Massive
from saelora.core.splice import splice
from saelora.core.students import Student
from saelora.evals.faithfulness.ablation import (
    Ablated,
    CrossEntropies,
    LatentMass,
    Shuffle,
    Shuffled,
    cross_entropies,
    decoder_norms,
    random_order,
    top_latents,
)
from saelora.evals.spliced import SplicedModel
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, Identity, TinySAE, hooks_in

HOOKPOINT = Hookpoint(1)
CLOSE = {"rel": 1e-5, "abs": 1e-6}  # norms round to float32 on the way in some families


def rows_of(family: str) -> torch.Tensor:
    rows = torch.full((5, 9), 3)
    rows[:, 0] = BOS
    rows[1, 3:8] = EOS
    rows[3, 2:8:2] = EOS
    return written_by(families.tiny(family), rows)


def with_adapter(model: nn.Module, layers=(2, 3)) -> nn.Module:
    model = get_peft_model(model, lora_config(model, list(layers), rank=2, alpha=4.0)).double()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


@contextmanager
def replaced(model: nn.Module, new_output):
    """layers.1's output replaced by new_output(x), whatever that does."""

    def hook(_module, _args, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        return new_output(x) if isinstance(output, torch.Tensor) else (new_output(x), *output[1:])

    handle = anatomy_of(model).layers[1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def counted(row: list[int]) -> list[bool]:
    return [token not in (PAD, BOS, EOS) for token in row]


def naive_sums(logits: torch.Tensor, rows: torch.Tensor) -> list[float]:
    """Each row's sum, prediction by prediction."""
    sums = []
    for row, logits_SV in zip(rows.tolist(), logits, strict=True):
        log_p = logits_SV.log_softmax(-1)
        sums.append(-sum(float(log_p[t, row[t + 1]]) for t, ok in enumerate(counted(row)[:-1]) if ok))
    return sums


@pytest.mark.parametrize("layers", [(2, 3), (0, 3), (3,)], ids=["above", "around", "with a stem"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
# SPEC 8.2
def test_every_variant_equals_plain_forwards(fresh, family, layers):
    model, sae, rows = with_adapter(fresh(family), layers), TinySAE(D_MODEL), rows_of(family)
    mask = torch.tensor([counted(row) for row in rows.tolist()])
    gone = torch.tensor([3, 7, 11])

    def ablated(x):
        acts = sae.encode(x)
        acts[..., gone] = 0
        return torch.where(mask[..., None], sae.decode(acts), x)

    expected = {}
    with torch.no_grad():
        expected["adapted_clean"] = model(input_ids=rows).logits
        with replaced(model, ablated):
            expected["adapted"] = model(input_ids=rows).logits
        with disabled(model):
            expected["base"] = model(input_ids=rows).logits
            with replaced(model, ablated):
                expected["sae"] = model(input_ids=rows).logits
    hooks = hooks_in(model)
    with splice(model, {HOOKPOINT: sae}, SPARE_SPECIAL) as other:
        with splice(model, {HOOKPOINT: Ablated(sae, gone)}, SPARE_SPECIAL) as opened:
            variants = {"base": Student(), "adapted_clean": Student(None, "default")}
            variants |= {"sae": Student(opened), "adapted": Student(opened, "default")}
            found = cross_entropies(SplicedModel(model, other, SPARE_SPECIAL), variants, rows, batch_rows=2)
        assert other.enabled
        assert opened.enabled
    assert hooks_in(model) == hooks
    assert found.n == [sum(counted(row)[:-1]) for row in rows.tolist()]
    for name, logits in expected.items():
        assert found.ce[name] == pytest.approx(naive_sums(logits, rows), **CLOSE)
    assert len({round(sum(sums), 3) for sums in found.ce.values()}) == 4  # four models, four numbers


# SPEC 8.2
def test_shuffled_latents_are_another_counted_position_s(fresh):
    """The reconstruction at each counted position is that of the source; exempt positions keep their own."""
    model, sae, rows = fresh("llama"), TinySAE(D_MODEL), rows_of("llama")
    mask, shuffle, seen = SPARE_SPECIAL(rows), Shuffle(), {}
    shuffle.draw(mask, torch.Generator().manual_seed(0))
    with splice(model, {HOOKPOINT: Shuffled(sae, shuffle)}, SPARE_SPECIAL, observer=lambda *e: seen.update(e=e)):
        model(input_ids=rows)
    _, x, _, recon, _ = seen["e"]
    source = shuffle.source()
    expected = sae.decode(sae.encode(x)).flatten(0, 1)
    for i, ok in enumerate(mask.flatten().tolist()):
        if ok:
            assert mask.flatten()[source[i]]
            assert source[i] != i
            assert torch.allclose(recon.flatten(0, 1)[i], expected[source[i]])
        else:
            assert source[i] == i
    assert sorted(source.tolist()) == list(range(rows.numel()))  # every one's latents are somewhere


def test_positions_spared_by_their_norm_stay_out_of_the_shuffle(fresh):
    model, sae, rows, seen = fresh("llama"), TinySAE(D_MODEL), rows_of("llama"), {}
    with splice(model, {HOOKPOINT: sae}, SPARE_SPECIAL, observer=lambda *e: seen.update(e=e)):
        model(input_ids=rows)
    _, x, _, _, mask = seen["e"]
    policy = replace(SPARE_SPECIAL, massive=Massive(2.0, ((HOOKPOINT, float(x.norm(dim=-1)[mask].median())),)))
    shuffle = Shuffle()
    shuffle.draw(mask, torch.Generator().manual_seed(0))
    with splice(model, {HOOKPOINT: Shuffled(sae, shuffle)}, policy, observer=lambda *e: seen.update(e=e)):
        model(input_ids=rows)
    *_, recon, replaced_too = seen["e"]
    massive = mask & ~replaced_too
    assert 0 < massive.sum() < mask.sum() / 2 + 1
    own = sae.decode(sae.encode(x))
    moved = sorted(map(tuple, recon[replaced_too].tolist()))
    assert moved == sorted(map(tuple, own[replaced_too].tolist()))  # the same ones, none of the spared among them
    assert not torch.equal(recon[replaced_too], own[replaced_too])


def test_a_counted_position_by_itself_keeps_its_latents():
    shuffle = Shuffle()
    shuffle.draw(torch.tensor([[False, True, False]]), torch.Generator())
    assert shuffle.source().tolist() == [0, 1, 2]


# SPEC 8.2
def test_variants_of_one_batch_share_a_draw_and_batches_do_not(fresh):
    model, sae, rows, shuffle = with_adapter(fresh("llama")), TinySAE(D_MODEL), rows_of("llama")[:4], Shuffle()
    generator, drawn, used = torch.Generator().manual_seed(0), [], []

    def before(mask):
        shuffle.draw(mask, generator)
        drawn.append(shuffle.order)

    with splice(model, {HOOKPOINT: Shuffled(sae, shuffle)}, SPARE_SPECIAL) as opened:
        variants = {"sae": Student(opened), "adapted": Student(opened, "default")}
        spy = dict.fromkeys(variants, lambda *event: used.append(shuffle.order))
        same = rows[[0, 1, 0, 1]]  # equal batches: a second draw shows as other numbers
        subject = SplicedModel(model, opened, SPARE_SPECIAL)
        found = cross_entropies(subject, variants, same, before=before, observers=spy)
    assert [id(source) for source in used] == [id(drawn[0])] * 2 + [id(drawn[1])] * 2
    assert found.ce["sae"][:2] != found.ce["sae"][2:]


# SPEC 8.2
def test_mass_is_activation_times_decoder_norm_over_counted_positions(fresh):
    model, rows = fresh("llama"), rows_of("llama")
    sae, seen = TinySAE(D_MODEL), {}
    mass = LatentMass({HOOKPOINT: sae})

    def observer(*event):
        mass(*event)
        seen["x"] = event[1]

    with splice(model, {HOOKPOINT: sae}, SPARE_SPECIAL, observer=observer):
        model(input_ids=rows)
    expected = torch.zeros(24, dtype=torch.float64)
    for row, x_SD in zip(rows.tolist(), seen["x"], strict=True):
        for ok, x in zip(counted(row), x_SD, strict=True):
            if ok:
                acts = sae.encode(x)
                expected += torch.stack([acts[i] * sae.W_dec[i].square().sum().sqrt() for i in range(24)])
    assert torch.allclose(mass.sums[HOOKPOINT], expected)
    top = top_latents(expected, 3).tolist()
    assert top == sorted(range(24), key=lambda i: -float(expected[i]))[:3]


def test_decoder_norms_are_counted_once():
    """SAELens's rescaled activations hold the norm already; an SAE without W_dec has no norms to give."""
    sae = TinySAE(4, 6)
    assert torch.allclose(decoder_norms(sae, 6), torch.tensor([float(row.norm()) for row in sae.W_dec]).double())
    sae.cfg = type("Config", (), {"rescale_acts_by_decoder_norm": True})
    assert decoder_norms(sae, 6).tolist() == [1] * 6
    assert decoder_norms(Identity(), 3).tolist() == [1] * 3


def test_random_latents_are_of_those_that_fire_and_differ_between_draws():
    mass, generator = torch.arange(40).double(), torch.Generator().manual_seed(0)
    mass[::2] = 0
    first, second = random_order(mass, generator), random_order(mass, generator)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1, 40, 2))
    assert first.tolist() != second.tolist()


# SPEC 8.3
def test_a_share_of_nothing_is_undefined():
    ce = CrossEntropies([2.0, 2.0, 2.0], {"a": [1.0, 2.0, 3.0], "b": [1.0, -1.5, 0.4]})
    assert ce.share(ce.row_sums("b"), ce.row_sums("a"))["value"] == pytest.approx(-0.1 / 6)
    assert ce.share(ce.row_sums("a"), ce.row_sums("b")) == {"value": None, "low": None, "high": None}
    assert ce.mean(ce.row_sums("a", "b"), 2)["value"] == pytest.approx(5.9 / 12)
    assert ce.at([2, 0]).ce["a"] == [3.0, 1.0]
