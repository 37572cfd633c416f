"""Passages: which are chosen, what stands beside each token, and how tokens are spelt."""

import numpy as np
import pytest
import torch

import families
from families import BOS, D_MODEL
from saelora.core.splice import splice
from saelora.evals.spliced import SplicedModel
from saelora.evals.tokens import passages
from saelora.evals.tokens.passages import extreme, show, token_text, vocabulary, whole_rows
from saelora.evals.tokens.per_token import PerToken, per_token
from saelora.evals.tokens.result import Passage
from saelora.evals.variant import Variant
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, TinySAE
from variants import plain_runs, rows_of, with_adapter

ARMS = ("base", "sae", "adapted")


def changed(change: np.ndarray, counted: np.ndarray | None = None) -> PerToken:
    """Predictions of which only the change is known."""
    n_rows, n = change.shape
    zero = np.zeros_like(change)
    values = {"ce_base": zero, "ce_sae": zero, "ce_adapted": change, "kl_sae": zero, "kl_adapted": zero}
    counted = np.ones_like(change, bool) if counted is None else counted
    return PerToken(np.zeros((n_rows, n + 1), int), counted, values, zero)


def test_the_most_changed_come_first_and_none_overlap():
    change = np.random.default_rng(0).normal(size=(6, 255))
    found = changed(change)
    for helped, sign in ((True, 1), (False, -1)):
        places = extreme(found, 12, helped=helped)
        sizes = [sign * change[row, token - 1] for row, _, _, token in places]
        assert len(places) == 12
        assert sizes == sorted(sizes)
        assert sizes[0] == (sign * change).min()
        assert sizes[-1] < 0
        for i, (row, start, end, token) in enumerate(places):
            assert end - start == passages.WINDOW
            assert 0 <= start <= token < end <= 256
            assert all(row != r or end <= s or start >= e for r, s, e, _ in places[:i])


def test_a_prediction_that_counts_nowhere_is_not_shown():
    change = np.full((2, 99), -0.1)
    change[0, 50] = -9.0
    counted = np.ones_like(change, bool)
    counted[0, 50] = False
    assert (0, 51) not in [(row, token) for row, _, _, token in extreme(changed(change, counted), 9, helped=True)]


def test_there_are_no_more_passages_than_predictions_that_changed():
    change = np.zeros((3, 99))
    change[1, 70] = -1.0
    assert [(row, token) for row, _, _, token in extreme(changed(change), 5, helped=True)] == [(1, 71)]
    assert extreme(changed(change), 5, helped=False) == []
    assert extreme(changed(change), 0, helped=True) == []


def test_rows_shorter_than_a_window_are_shown_whole():
    change = np.zeros((2, 10))
    change[1, 9] = 2.0
    assert extreme(changed(change), 3, helped=False) == [(1, 0, 11, 10)]


def test_whole_rows_are_spread_evenly_and_no_more_than_there_are():
    found = changed(np.zeros((10, 4)))
    assert whole_rows(found, 3) == [(0, 0, 5, None), (3, 0, 5, None), (6, 0, 5, None)]
    assert len(whole_rows(found, 99)) == 10
    assert whole_rows(found, 0) == []


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_each_entry_is_of_the_token_in_its_place(fresh, family, chunk, monkeypatch):
    """Losses, KL and likeliest tokens stand beside the token they predict; the SAE's error is of the place before."""
    monkeypatch.setattr(passages, "chunk_size", lambda *a: chunk)
    rows = rows_of(families.tiny(family))
    model, sae = with_adapter(fresh(family), [2, 3]), TinySAE(D_MODEL)
    with splice(model, {Hookpoint(1): sae}, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        found = per_token(subject, rows)
        places = {"one": [(4, 2, 9, 6)], "rows": [(1, 0, 11, None), (4, 0, 11, None)]}
        told = []
        shown = to_json(show(subject, found, places, progress=told.append))
    assert told == [1, 1]  # each row is run once
    runs = plain_runs(model, {Hookpoint(1): sae}, rows)
    log_p = {arm: runs[arm]["logits"].double().log_softmax(-1) for arm in ARMS}
    x = runs["sae"]["inputs"][Hookpoint(1)]
    error = (x - sae.decode(sae.encode(x))).square().sum(-1) / x.square().sum(-1)

    (one,) = shown["one"]
    assert (one["row"], one["start"], one["focus"]) == (4, 2, 4)
    for passage in (one, *shown["rows"]):
        row, start = passage["row"], passage["start"]
        assert passage["ids"] == rows[row, start : start + len(passage["ids"])].tolist()
        for i, token in enumerate(passage["ids"]):
            at = start + i
            if at == 0:
                assert not passage["counted"][0]
                assert passage["recon_error"][0] is None
                assert [passage[name][arm][0] for name in ("ce", "top") for arm in ARMS] == [None] * 6
                continue
            counts = int(rows[row, at - 1]) not in (0, 1, 2)
            assert passage["counted"][i] == counts
            assert (passage["recon_error"][i] is None) == (not counts)
            if counts:
                assert passage["recon_error"][i] == pytest.approx(float(error[row, at - 1]), abs=1e-4)
            for arm in ARMS:
                assert passage["ce"][arm][i] == pytest.approx(-float(log_p[arm][row, at - 1, token]), abs=1e-4)
                best = log_p[arm][row, at - 1].topk(5)
                assert [j for j, _ in passage["top"][arm][i]] == best.indices.tolist()
                assert [p for _, p in passage["top"][arm][i]] == pytest.approx(best.values.exp().tolist(), abs=1e-4)
            for arm in ("sae", "adapted"):
                p, q = log_p["base"][row, at - 1], log_p[arm][row, at - 1]
                assert passage["kl"][arm][i] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)


class Spelling:
    """A tokenizer of a few tokens: byte-level, SentencePiece, special, and an id that it does not know."""

    pieces = ("<s>", "Ġthe", "▁the", "▁▁▁", "Ċ", "<0x0A>", None)
    texts = ("<s>", " the", "the", "  ", "\n", "\n", "")

    def convert_ids_to_tokens(self, token_id):
        return self.pieces[token_id]

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        return "" if skip_special_tokens else self.texts[ids[0]]


def test_tokens_keep_their_leading_spaces():
    spelt = [token_text(Spelling(), i) for i in range(7)]
    assert spelt == ["<s>", " the", " the", "   ", "\n", "\n", "<6>"]


def test_the_vocabulary_has_every_id_that_is_shown_and_no_other():
    top = {Variant.BASE: [None, [(3, 0.5), (4, 0.1)]], Variant.SPLICED: [None, [(3, 0.5), (5, 0.1)]]}
    passage = Passage(0, 0, None, ids=[0, 1], counted=[False, True], ce={}, kl={}, recon_error=[None, 0.1], top=top)
    assert vocabulary([passage], Spelling()) == {
        "0": "<s>",
        "1": " the",
        "3": "   ",
        "4": "\n",
        "5": "\n",
    }


def test_bos_is_shown_with_what_was_expected_in_its_place(fresh):
    rows = rows_of(families.tiny("llama"))
    model = with_adapter(fresh("llama"), [2])
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        found = per_token(subject, rows)
        (passage,) = to_json(show(subject, found, {"text": [(4, 0, 11, None)]}))["text"]
    assert passage["ids"][5] == BOS
    assert passage["counted"][5]
    assert not passage["counted"][6]
    assert passage["ce"]["base"][6] is not None
    assert torch.tensor([p for _, p in passage["top"]["base"][6]]).sum() <= 1.001
