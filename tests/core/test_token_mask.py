"""Rows that begin without BOS, sparing of several first positions, and policies by name."""

import pytest
import torch

import families
from families import BOS, EOS, PAD
from saelora.core.splice import TokenMask, TokenPolicy, splice
from saelora.errors import InputError
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SpecialTokens, saes_at

OLD_DEFAULT = ("bos", "eos", "pad")
PLAIN = torch.tensor([[5, 9, BOS, 33], [44, EOS, 8, 21]])
WITH_BOS = torch.tensor([[BOS, 5, 9, 33], [BOS, 44, EOS, 8]])


# SPEC 1.1
def test_the_first_position_of_a_row_without_bos_is_spared_by_default():
    mask = TokenPolicy().resolve(SpecialTokens())
    assert mask(PLAIN).tolist() == [[False, True, False, True], [False, False, True, True]]
    assert mask.row_starts(PLAIN) == {"n_rows": 2, "n_without_exempt_token": 2, "n_positions_spared": 1}
    padded = torch.tensor([[PAD, 5, 9, 33]]), torch.tensor([[0, 1, 1, 1]])
    assert mask(*padded).tolist() == [[False, False, True, True]]


def test_rows_that_begin_with_bos_are_masked_as_before_first_was_a_default():
    before, now = (TokenPolicy(names).resolve(SpecialTokens()) for names in (OLD_DEFAULT, TokenPolicy().exempt))
    assert torch.equal(before(WITH_BOS), now(WITH_BOS))
    assert now.row_starts(WITH_BOS)["n_without_exempt_token"] == 0
    assert before(PLAIN)[:, 0].all()


def test_a_spliced_row_without_bos_keeps_its_first_activation(batch):
    model, hookpoint = families.tiny("llama"), Hookpoint(1)
    seen = []
    with splice(
        model,
        saes_at(anatomy_of(model), [hookpoint]),
        TokenPolicy().resolve(SpecialTokens()),
        observer=lambda _h, _x, _l, _r, mask: seen.append(mask),
    ):
        model(input_ids=PLAIN)
    assert seen[0].tolist() == [[False, True, False, True], [False, False, True, True]]


def test_several_first_positions_can_be_spared():
    mask = TokenPolicy(("bos", "first:3")).resolve(SpecialTokens(bos_token_id=None))
    assert mask(PLAIN).tolist() == [[False, False, False, True]] * 2
    assert mask(PLAIN[:, :2], None, past=2).tolist() == [[False, True]] * 2
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert TokenPolicy(("first:2", "pad")).resolve(SpecialTokens())(PLAIN, left).tolist() == [
        [False, False, False, True],
        [False, False, True, True],
    ]
    assert mask.record().to_json() == {"exempt_ids": [], "first": 3, "padding": False}


def test_none_exempts_nothing_and_stands_alone():
    for names in (("none",), ()):
        mask = TokenPolicy(names).resolve(SpecialTokens())
        assert mask == TokenMask((), 0, False)
        assert mask(WITH_BOS).all()
    with pytest.raises(InputError, match="names none, which exempts nothing, beside bos, 7"):
        TokenPolicy(("bos", "none", 7))


@pytest.mark.parametrize("name", ["first:0", "first:", "first:-1", "first:1.5", "First", "first:4:5", ""])
def test_names_that_are_none_are_refused_before_a_tokenizer_is_there(name):
    with pytest.raises(InputError, match="expected any of bos, eos, pad, first, first:4"):
        TokenPolicy((name,))
