"""Which figures compare: those on the same rows of the same model, under the same policy and precision."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from saelora.identity import (
    About,
    ModelId,
    SAEId,
    groups,
    heldout_rows,
    not_comparable,
    same_model,
    same_saes,
    text_differs,
)

PLAIN: dict[str, Any] = {
    "model": {"ref": "m", "revision": None, "fingerprint": "sha256:1", "dtype": "float32"},
    "saes": [{"hookpoint": "layers.1.resid_post", "fingerprint": "11"}],
    "token_policy": {"exempt_ids": [1], "first": False, "padding": True},
    "heldout": heldout_rows(torch.arange(12).view(3, 4)).to_json(),
    "autocast": None,
}
ABOUT = About.model_validate(PLAIN)


def changed(change: Callable[[dict[str, Any]], Any]) -> About:
    about = copy.deepcopy(PLAIN)
    change(about)
    return About.model_validate(about)


DIFFERENT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "rows": (lambda a: a.update(heldout=heldout_rows(torch.arange(1, 13).view(3, 4)).to_json()), "but of other text"),
    "context": (
        lambda a: a.update(heldout=heldout_rows(torch.arange(12).view(4, 3)).to_json()),
        "4 rows of 3 tokens, not 3",
    ),
    "policy": (lambda a: a["token_policy"].update(first=True), "another token policy"),
    "dtype": (lambda a: a["model"].update(dtype="bfloat16"), "another precision (bfloat16, not float32)"),
    "autocast": (lambda a: a.update(autocast="bfloat16"), "float32 with autocast to bfloat16"),
    "model": (lambda a: a["model"].update(fingerprint="sha256:2"), "another model"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_is_named_and_marked(case: str) -> None:
    change, told = DIFFERENT[case]
    other = changed(change)
    differs, unknown = text_differs(other, ABOUT)
    assert len(differs) == 1
    assert told in differs[0]
    assert unknown == []
    assert groups([ABOUT, other, ABOUT]) == ["a", "b", "a"]
    (note,) = not_comparable([ABOUT, other, ABOUT], "points")
    assert "points marked b" in note
    assert told in note


def test_other_saes_and_policies_of_older_versions_compare() -> None:
    other = changed(lambda a: (a["saes"][0].update(fingerprint="22"), a["token_policy"].update(massive=None)))
    assert text_differs(other, ABOUT) == ([], [])
    assert not_comparable([ABOUT, other]) == []


def test_what_was_not_recorded_is_unknown_and_never_the_same() -> None:
    old = changed(lambda a: a.pop("heldout"))
    assert text_differs(old, ABOUT) == ([], ["which held-out rows"])
    assert groups([ABOUT, old, None]) == ["a", "?", "?"]
    assert "unknown: of rows marked ?" in not_comparable([ABOUT, old])[0]
    assert "unknown" in not_comparable([old, old])[0]


def test_models_are_the_same_by_fingerprint_or_by_commit_and_else_unknown() -> None:
    hub, local = ModelId(ref="m", revision="c0ffee"), ModelId(ref="m", fingerprint="sha256:1")
    assert same_model(hub, ModelId(ref="a copy", revision="c0ffee")) is True
    assert same_model(hub, ModelId(ref="m", revision="badcafe")) is False
    assert same_model(local, ModelId(ref="m", fingerprint="sha256:2")) is False
    assert same_model(hub, local) is None


def test_saes_with_the_same_weights_and_another_k_are_others() -> None:
    def at_a(settings: dict[str, int]) -> SAEId:
        return SAEId(hookpoint="a", fingerprint="1", settings=settings)

    one = [at_a({"k": 8}), SAEId(hookpoint="b", fingerprint="2")]
    assert same_saes(one, one[::-1])
    assert same_saes(one, [at_a({}), one[1]])  # from before settings were recorded
    assert not same_saes(one, [at_a({"k": 4}), one[1]])
    assert not same_saes(one, one[:1])
