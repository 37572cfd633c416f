"""``joint.py``: its students are the package's, its stages keep what they have, and no arm is told what another is."""

import json
from pathlib import Path
from typing import Any

import joint
import joint_arms
import joint_check
import pytest
from joint_arms import IDEAS, Arm

from workspace import Workspace

SMALL = [
    "--choose-tokens",
    "192",
    "--budgets",
    "128,256",
    "--seeds",
    "0",
    "1",
    "--test-tokens",
    "160",
    "--tuning-tokens",
    "96",
]
SMALL += ["--validation-fraction", "0.2", "--batch-rows", "2", "--context", "32", "--device", "cpu", "--seconds", "600"]


def given(workspace: Workspace, out: Path, *more: str) -> list[str]:
    places = {"--model": workspace.model, "--data": workspace.data, "--sae": workspace.sae, "--out": out}
    return [*(str(word) for pair in places.items() for word in pair), *SMALL, *more]


@pytest.fixture(scope="module")
def done(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("joint")
    return out, joint.main(given(workspace, out, "--no-check"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_arm_among_others_ends_where_distill_takes_it_alone(
    workspace: Workspace, tmp_path: Path, dtype: str
) -> None:
    args = joint.parsed(given(workspace, tmp_path, "--dtype", dtype))
    study = joint.Study(args, joint.Clock(1e9))
    found = joint_check.check(study.assembled, study.rows(0, 6 * 32))
    assert len(found) == 6
    for arm, ways in found.items():
        assert ways["bank"] == pytest.approx(ways["distill"], rel=1e-4 if dtype == "float32" else 0.02), arm
        assert ways["weights_apart"] < (1e-3 if dtype == "float32" else 0.2), arm


def test_every_arm_of_every_unit_is_measured(done: tuple[Path, dict[str, Any]]) -> None:
    out, summary = done
    choose, ideas = (json.loads((out / f"{name}.json").read_text()) for name in ("choose", "ideas"))
    assert len(choose["found"]) == sum(map(len, joint_arms.grids().values()))
    assert {f"joint: {name}" for name in IDEAS} < set(ideas["found"])
    assert "lora: rank 256" in ideas["found"]
    assert "sae: rank 256" not in ideas["found"]
    assert list(summary) == ["128", "256"]
    for arms in summary.values():
        assert {"lora", "sae", "joint"} <= arms.keys()
        assert all(set(row["kl"]) == {"0", "1"} for row in arms.values())
        assert all(arms[name]["same_latents"] == {"0": 1.0, "1": 1.0} for name in ("lora", "joint"))


def test_arms_that_are_named_are_compared_at_once(workspace: Workspace, tmp_path: Path) -> None:
    found = joint.main(given(workspace, tmp_path, "--no-check", "--chosen", "lora@0.0007", "joint@0.0007,0.00015"))
    assert set(found["256"]) == {"lora", "joint"}
    assert not (tmp_path / "choose.json").exists()
    with pytest.raises(SystemExit):
        joint.parsed(given(workspace, tmp_path, "--chosen", "lora@7"))


def test_training_lowers_kl(done: tuple[Path, dict[str, Any]]) -> None:
    unit = json.loads((done[0] / "compare-256-seed0.json").read_text())
    assert unit["found"]["joint"]["kl"] < unit["spliced"]["kl"]


def test_a_second_call_goes_on(done: tuple[Path, dict[str, Any]], workspace: Workspace, monkeypatch: Any) -> None:
    out, summary = done
    missing = out / "compare-256-seed1.json"
    before = json.loads(missing.read_text())
    missing.unlink()
    trained: list[str] = []
    run = joint.Study._run
    monkeypatch.setattr(joint.Study, "_run", lambda self, *args: trained.append("unit") or run(self, *args))
    assert joint.main(given(workspace, out, "--no-check")) == summary
    assert trained == ["unit"]
    assert json.loads(missing.read_text())["found"] == before["found"]


def test_a_call_that_was_cut_off_goes_on_where_it_was(
    done: tuple[Path, dict[str, Any]], workspace: Workspace, monkeypatch: Any, capsys: Any
) -> None:
    out, summary = done
    missing = out / "ideas.json"  # windows, means, late batches: every kind of state
    before = json.loads(missing.read_text())
    missing.unlink()
    monkeypatch.setattr(joint, "KEEP_EVERY", 0.0)
    steps, teacher = iter(range(2)), joint.Bank.teacher

    def cut(self: Any, ids: Any, bridged: bool = False) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return teacher(self, ids, bridged)

    study_init = joint.Study.__init__

    def built(self: Any, *args: Any) -> None:
        study_init(self, *args)
        monkeypatch.setattr(joint.Bank, "teacher", cut)

    monkeypatch.setattr(joint.Study, "__init__", built)
    with pytest.raises(KeyboardInterrupt):
        joint.main(given(workspace, out, "--no-check"))
    monkeypatch.undo()
    assert (out / "ideas.pt").is_file()
    assert joint.main(given(workspace, out, "--no-check")) == summary
    assert "goes on from step 2" in capsys.readouterr().out
    assert json.loads(missing.read_text())["found"] == before["found"]
    assert not (out / "ideas.pt").exists()


def test_no_unit_begins_that_would_outlast_the_seconds() -> None:
    clock = joint.Clock(joint.time.monotonic() + 10, pace=0.1)
    assert clock.fits(n_steps=9, n_arms=10)
    assert not clock.fits(n_steps=10, n_arms=10)


def test_a_rate_is_zero_at_a_windows_end_and_none_outside() -> None:
    arm = Arm("", schedule="linear")
    assert joint_arms.factor(arm, (0.0, 0.5), 0.49, 0.01) == pytest.approx(0.01)
    assert joint_arms.factor(arm, (0.0, 0.5), 0.5, 0.01) is None
    assert joint_arms.factor(arm, (0.3, 1.0), 0.2, 0.01) is None
    assert joint_arms.factor(Arm("", schedule="1-sqrt"), (0.0, 1.0), 0.5, 0.01) == 1.0
    assert joint_arms.factor(Arm("", schedule="1-sqrt"), (0.0, 1.0), 0.7, 0.0) == pytest.approx(0.5)


def test_each_method_takes_its_own_best_ideas_that_fit_together() -> None:
    best = {
        "lora": Arm("l", rank=64, lr=1e-3),
        "sae": Arm("s", part="sae", sae_lr=1e-3),
        "joint": Arm("j", rank=64, lr=1e-3, part="decoder", sae_lr=1e-3),
    }
    better = {"lora": ["rank 256"], "sae": [], "joint": ["rank 256", "cosine", "1-sqrt", "bridge 1", "bridge 0.1"]}
    made = {arm.name: arm for arm in joint.contestants(best, better)}
    together = "joint + rank 256; cosine; bridge 1"
    assert list(made) == ["lora", "sae", "joint", "lora + rank 256", "joint + rank 256", together]
    assert (made[together].lr, made[together].schedule, made[together].bridge) == (5e-4, "cosine", 1.0)


def test_an_idea_is_not_for_an_arm_without_what_it_is_about() -> None:
    assert IDEAS["rank 256"].of(Arm("", part="sae"), "") is None
    assert IDEAS["decoder early"].of(Arm("", rank=64), "") is None
    assert IDEAS["cosine"].of(Arm("", part="sae"), "made") == Arm("made", part="sae", schedule="cosine")


def test_arms_of_one_rank_go_together_in_even_lots() -> None:
    lots = joint.lots_of([Arm(str(i), rank=64) for i in range(9)] + [Arm("high", rank=256), Arm("sae", part="sae")], 8)
    assert [len(lot) for lot in lots] == [5, 5, 1]
    assert lots[2][0].name == "high"
