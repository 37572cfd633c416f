"""Published suites: which SAEs are of one, and the token policy that `--exempt suite` makes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from saelora.cli import main
from saelora.core.token_mask import TokenPolicy
from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint
from saelora.saes.loading import LoadedSAE
from saelora.saes.suites import SUITES, hint, suite_of, with_suite
from workspace import Workspace

CACHED = "/home/me/.cache/huggingface/hub/models--andyrdt--saes-qwen2.5-7b-instruct/snapshots/0123/resid_post_layer_3"


def test_a_run_takes_its_saes_suites_policy_and_is_evaluated_with_it(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = tmp_path / "models--adamkarvonen--qwen3-1.7b-saes"
    shutil.copytree(workspace.sae, sae)
    assert workspace.adapt(tmp_path / "plain", sae=sae, tokens=64) == 0
    assert "the SAEs are of adamkarvonen-qwen3, whose authors leave out first pad massive:10" in capsys.readouterr().err
    assert workspace.adapt(tmp_path / "run", sae=sae, tokens=64, exempt="suite") == 0
    assert "the SAEs are of" not in capsys.readouterr().err
    policy = json.loads((tmp_path / "run" / "saelora.json").read_text())["token_policy"]
    assert (policy["first"], policy["massive"]["multiple"]) == (1, 10.0)
    assert main(["evaluate", "--adapter", str(tmp_path / "run"), "--eval-tokens", "96", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["about"]["token_policy"]
    assert found == policy


def loaded(ref: str, revision: str | None = "0123") -> LoadedSAE:
    sae: Any = None
    return LoadedSAE(sae, Hookpoint(3), ref, "saelens", "topk", 4, 8, None, revision, "0" * 16, {})


@pytest.mark.parametrize(
    ("ref", "revision", "name"),
    [
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "a", "gemma-scope"),
        ("google/gemma-scope-9b-it-res/layer_20/width_16k/average_l0_91", "a", "gemma-scope"),
        ("gemma-scope-2-4b-it-res-all/layer_0_width_16k_l0_big", "a", "gemma-scope-2-it"),
        ("google/gemma-scope-2-270m-it/resid_post/layer_12_width_16k_l0_big", "a", "gemma-scope-2-it"),
        ("google/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big", "a", None),
        ("qwen2.5-7b-instruct-andyrdt/resid_post_layer_3_trainer_1", "a", "andyrdt-qwen2.5"),
        (CACHED, None, "andyrdt-qwen2.5"),
        ("andyrdt/saes-gpt-oss-20b/resid_post_layer_3/trainer_0", "a", None),
        ("adamkarvonen/qwen3-8b-saes/saes/resid_post_layer_9/trainer_0", "a", "adamkarvonen-qwen3"),
        ("mygoogle/gemma-scope-2b-copy", "a", None),
        ("/data/my-sae", None, None),
    ],
)
def test_a_suite_is_told_by_the_repository(ref: str, revision: str | None, name: str | None) -> None:
    found = suite_of(loaded(ref, revision))
    assert (None if found is None else found.name) == name


def test_every_suites_policy_is_one() -> None:
    for suite in SUITES:
        TokenPolicy(suite.exempt)


def test_suite_stands_for_its_policy_beside_what_else_is_named() -> None:
    assert with_suite(["suite", "eos"], [loaded(CACHED, None)]) == ["first:8", "pad", "massive:10", "eos"]
    assert with_suite(["bos"], [loaded("/data/my-sae", None)]) == ["bos"]


@pytest.mark.parametrize(
    ("refs", "said"),
    [
        (["/data/my-sae"], "what the authors of /data/my-sae leave out is not known here"),
        ([], "authors of no SAE"),
        ([CACHED, "/cache/models--google--gemma-scope-2b-pt-res/snapshots/0/x"], "suites differ"),
    ],
)
def test_what_is_not_known_is_not_guessed(refs: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        with_suite(["suite"], [loaded(ref, None) for ref in refs])


def test_the_default_beside_another_policy_of_the_authors_is_said() -> None:
    told = hint(["bos", "eos", "pad", "first"], [loaded(CACHED, None)])
    assert told is not None
    assert "first:8 pad massive:10" in told
    assert "--exempt suite" in told
    assert hint(["bos"], [loaded(CACHED, None)]) is None
    assert hint(["bos", "eos", "pad", "first"], [loaded("/data/my-sae", None)]) is None
    assert hint(["bos", "eos", "pad", "first"], [loaded("google/gemma-scope-2b-pt-res/x", None)]) is None
