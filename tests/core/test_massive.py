"""Massive positions: found by their norm alone, left as they are, by a limit that no batch and no cache can move."""

import pytest
import torch

import families
from families import BOS, EOS, PAD
from saelora.core.calibration import calibrated
from saelora.core.massive import Massive
from saelora.core.partial import activations
from saelora.core.splice import TokenMask, TokenPolicy, splice
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import SITES, Hookpoint
from tiny_saes import SpecialTokens, saes_at

HERE = Hookpoint(1)
SINK = 7  # the token whose activations are made huge
POLICY = TokenPolicy(("bos", "eos", "pad", "massive")).resolve(SpecialTokens())


def with_sink(fresh, family="llama"):
    model = fresh(family)
    model.get_input_embeddings().weight.data[SINK] *= 1000
    return model


def rows():
    ids = torch.randint(8, 20, (4, 10), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS
    ids[1, 3] = ids[2, 1] = ids[2, 9] = SINK
    ids[3, 5] = EOS
    return ids


def plain_limit(model, ids, hookpoint=HERE, multiple=10.0):
    x = activations(model, ids, None, [hookpoint])[hookpoint]
    norms = [float(x[i, j].norm()) for i, row in enumerate(ids) for j, t in enumerate(row) if t not in (BOS, EOS, PAD)]
    return multiple * sorted(norms)[(len(norms) - 1) // 2]


@pytest.mark.parametrize(("name", "multiple"), [("massive", 10.0), ("massive:20", 20.0), ("massive:1.5", 1.5)])
def test_the_multiple_is_read_off_the_name(name, multiple):
    assert TokenPolicy((name,)).resolve(SpecialTokens()).massive == Massive(multiple)


@pytest.mark.parametrize("name", ["massive:", "massive:x", "massive:1", "massive:-3", "massive:inf", "massive:nan"])
def test_other_multiples_are_refused(name):
    with pytest.raises(InputError, match="above 1"):
        TokenPolicy((name,)).resolve(SpecialTokens())


def test_without_it_a_policy_is_what_it_was():
    assert TokenPolicy().resolve(SpecialTokens()).massive is None
    assert TokenMask().record().to_json().keys() == {"exempt_ids", "first", "padding"}


# SPEC 4.2
def test_which_predictions_count_is_said_by_the_tokens_alone():
    plain = TokenPolicy(("bos", "eos", "pad")).resolve(SpecialTokens())
    assert torch.equal(POLICY(rows()), plain(rows()))


@pytest.mark.parametrize("site", SITES)
# SPEC 1.5
def test_the_limit_is_the_multiple_of_the_median_of_tokens_that_the_policy_leaves(fresh, site):
    model, hookpoint = with_sink(fresh), Hookpoint(2, site)
    found = calibrated(POLICY, model, rows(), [hookpoint])
    assert found.massive.limit(hookpoint) == pytest.approx(plain_limit(model, rows(), hookpoint), rel=1e-6)
    assert found.record().to_json()["massive"] == {
        "multiple": 10.0,
        "limits": {str(hookpoint): found.massive.limit(hookpoint)},
    }


def test_a_limit_that_is_known_is_not_measured_again(fresh):
    known = TokenMask(massive=Massive(10.0, ((HERE, 5.0),)))
    found = calibrated(known, with_sink(fresh), rows(), [HERE, Hookpoint(2)])
    assert found.massive.limit(HERE) == 5.0
    assert found.massive.limit(Hookpoint(2)) > 0


def test_a_splice_by_a_limit_that_nobody_measured_is_refused(fresh):
    model = with_sink(fresh)
    with (
        pytest.raises(InputError, match=r"calibration\.calibrated"),
        splice(model, saes_at(anatomy_of(model), [HERE]), POLICY),
    ):
        pass


@pytest.mark.parametrize("family", families.NAMES)
# SPEC 1.5
def test_massive_positions_keep_their_activation_and_all_others_are_replaced(fresh, family):
    model, ids = with_sink(fresh, family), rows()
    mask = calibrated(POLICY, model, ids, [HERE])
    clean = activations(model, ids, None, [HERE])[HERE]
    expected = POLICY(ids) & ~(clean.norm(dim=-1) > plain_limit(model, ids))
    assert torch.equal(expected, POLICY(ids) & (ids != SINK))
    seen = []
    kept = {}
    module, _ = anatomy_of(model).site(HERE)
    with splice(model, saes_at(anatomy_of(model), [HERE]), mask, observer=lambda *event: seen.append(event)):
        handle = module.register_forward_hook(lambda m, a, out: kept.update(x=out if torch.is_tensor(out) else out[0]))
        model(input_ids=ids)
        handle.remove()
    ((hookpoint, x, _, recon, used),) = seen
    assert hookpoint == HERE
    assert torch.equal(used, expected)
    assert torch.equal(x, clean)
    assert torch.equal(kept["x"], torch.where(expected[..., None], recon, clean))


# SPEC 1.5
def test_a_row_alone_is_spliced_as_in_a_batch(fresh):
    model, ids = with_sink(fresh), rows()
    mask = calibrated(POLICY, model, ids, [HERE])
    with splice(model, saes_at(anatomy_of(model), [HERE]), mask):
        together = model(input_ids=ids).logits
        for i in range(len(ids)):
            torch.testing.assert_close(model(input_ids=ids[i : i + 1]).logits[0], together[i], rtol=0, atol=1e-10)


def test_with_a_cache_the_same_positions_are_spared(fresh):
    model, ids = with_sink(fresh), rows()
    mask = calibrated(POLICY, model, ids, [HERE])
    with splice(model, saes_at(anatomy_of(model), [HERE]), mask):
        whole = model(input_ids=ids).logits
        begun = model(input_ids=ids[:, :6], use_cache=True)
        parts, cache = [begun.logits], begun.past_key_values
        for i in range(6, ids.shape[1]):
            step = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            parts, cache = [*parts, step.logits], step.past_key_values
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


def test_what_is_not_a_number_is_no_sink():
    mask = TokenMask(massive=Massive(10.0, ((HERE, 5.0),)))
    x = torch.ones(1, 3, 4)
    x[0, 1] = torch.nan
    x[0, 2] = torch.inf
    assert mask.replaced(HERE, x, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[True, True, False]]


def test_the_norm_of_half_precision_does_not_overflow():
    mask = TokenMask(massive=Massive(10.0, ((HERE, 2e4),)))
    x = torch.full((1, 2, 100), 1500.0, dtype=torch.float16)
    x[0, 1] = 3000.0
    assert mask.replaced(HERE, x, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[True, False]]
