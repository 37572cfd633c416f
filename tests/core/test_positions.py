"""Positions in a text, from whatever a decoder is given; what cannot be told is refused."""

import pytest
import torch

from families import D_MODEL, tiny
from saelora.core.positions import arguments, check_signature, given_positions, positions
from saelora.errors import InputError

IDS = torch.tensor([[9, 9, 5, 6, 7], [5, 6, 7, 8, 9]])
REAL = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
WANTED = [[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


def causal(real, window=None, first=0):
    """Which keys each query attends to, row by row: those of its text, itself included, within a window."""
    n = real.shape[1]
    rows = [
        [[bool(row[q] and row[k]) and k <= q and (not window or k > q - window) for k in range(n)] for q in range(n)]
        for row in real.tolist()
    ]
    return torch.tensor(rows)[:, None, first:]


# SPEC 2.2
def test_positions_count_real_tokens_alone():
    assert positions(IDS, REAL).tolist() == WANTED
    assert positions(IDS).tolist() == [[0, 1, 2, 3, 4]] * 2
    holes = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1]])
    assert positions(IDS, holes).tolist() == [[0, -1, 1, 2, -1], [-1, 0, -1, 1, 2]]


@pytest.mark.parametrize("form", ["bool", "additive", "-inf", "several heads", "one row for all"])
def test_prepared_masks_tell_the_same(form):
    mask = causal(REAL)
    if form in ("additive", "-inf"):
        hidden = torch.finfo(torch.float32).min if form == "additive" else -torch.inf
        mask = torch.zeros(mask.shape).masked_fill(~mask, hidden)
    elif form == "several heads":
        mask = mask.expand(-1, 3, -1, -1)
    elif form == "one row for all":
        assert positions(IDS, causal(REAL[1:])).tolist() == [WANTED[1]] * 2
    assert positions(IDS, mask).tolist() == WANTED


@pytest.mark.parametrize("n_cached", [1, 2, 3, 4])
def test_prepared_masks_over_a_cache_tell_the_same_with_room_to_spare_and_without(n_cached):
    mask, ids, wanted = causal(REAL, first=n_cached), IDS[:, n_cached:], [row[n_cached:] for row in WANTED]
    assert positions(ids, mask, n_cached).tolist() == wanted
    roomy = torch.nn.functional.pad(mask, (0, 6))
    assert positions(ids, roomy, n_cached).tolist() == wanted
    assert positions(ids, REAL, n_cached).tolist() == wanted


def test_a_sliding_window_tells_positions_below_its_width():
    assert positions(IDS, causal(REAL, window=2)).tolist() == [[-1, -1, 0, 1, 1], [0, 1, 1, 1, 1]]
    rolled = causal(torch.ones_like(REAL), window=3, first=4)[..., 2:]  # the keys have moved up in a full cache
    assert positions(IDS[:, 4:], rolled, 4).tolist() == [[2], [2]]


def test_texts_that_see_each_other_both_ways_are_still_counted_from_their_first():
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    assert positions(IDS, mask).tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("name", ["past_key_values", "cache", "whatever_comes_next"])
def test_a_cache_is_known_under_any_name_and_by_place(name):
    given = {"input_ids": IDS, name: Cache(7)}
    assert given_positions(given).tolist() == [[7, 8, 9, 10, 11]] * 2
    assert given_positions({**given, "attention_mask": torch.ones(2, 12)}).tolist() == [[7, 8, 9, 10, 11]] * 2
    whole_room = torch.ones(2, 40)  # of a static cache
    assert given_positions({**given, "attention_mask": whole_room}).tolist() == [[7, 8, 9, 10, 11]] * 2
    body = tiny("gpt2").base_model
    by_place = arguments(body, (IDS, Cache(7)), {"use_cache": True})
    assert given_positions(by_place).tolist() == [[7, 8, 9, 10, 11]] * 2


def test_a_mask_for_each_type_of_attention_is_read():
    given = {"input_ids": IDS, "cache": Cache(0)}
    sliding = causal(REAL, window=2)
    by_type = {"sliding_attention": sliding, "full_attention": causal(REAL)}
    assert given_positions({**given, "attention_mask": by_type}).tolist() == WANTED
    by_type["full_attention"] = None  # nothing is hidden, so none was made
    assert given_positions({**given, "attention_mask": by_type}).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_position_ids_that_do_not_rise_begin_a_text_where_there_is_no_mask():
    told = torch.tensor([[0, 1, 2, 0, 1]])
    assert given_positions({"input_ids": IDS, "position_ids": told}).tolist() == [[0, 1, 2, 0, 1]] * 2
    assert given_positions({"input_ids": IDS, "position_ids": told, "attention_mask": REAL}).tolist() == WANTED


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_mask": torch.ones(2, 9)}, r"attention mask \[2, 9\] for 5 tokens after 0 cached ones: expected"),
        (
            {"attention_mask": torch.ones(2, 5), "cache": Cache(3)},
            r"attention mask \[2, 5\] for 5 tokens after 3 cached",
        ),
        ({"attention_mask": torch.ones(2, 5, 5)}, r"attention mask \[2, 5, 5\]"),
        ({"attention_mask": object()}, "attention mask object"),
        ({"attention_mask": torch.ones(2, 1, 5, 9, dtype=torch.bool)}, "over 9 keys for 5 tokens, and no cache"),
        ({"position_ids": torch.tensor([[4, 5, 6, 7, 8]])}, "position ids begin at 4, yet there is neither a cache"),
        ({"cache": Cache(3), "other": Cache(4)}, r"caches of \[3, 4\] tokens"),
    ],
)
# SPEC 2.2
def test_positions_that_cannot_be_told_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        given_positions({"input_ids": IDS, **given})


def test_a_decoder_without_attention_mask_is_refused():
    class Renamed(torch.nn.Module):
        def forward(self, input_ids, visible): ...

    with pytest.raises(InputError, match=r"takes no attention_mask \(input_ids, visible\)"):
        check_signature(Renamed())
    check_signature(tiny("llama").base_model)
    with pytest.raises(InputError, match="needs input_ids"):
        given_positions({"inputs_embeds": torch.zeros(1, 3, D_MODEL)})
