"""saelora compare on a tiny workspace: every method, its costs, resuming, and what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from saelora.cli import main
from saelora.jobs.comparison import runs as runs_module
from saelora.saes.loading import load_sae
from workspace import CONTEXT, HOOKPOINT, Workspace, files_in, recipe_of

pytestmark = pytest.mark.xdist_group("compare")


def write(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def runs_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "results.json").read_text())["runs"]


def test_every_run_has_its_curve_its_costs_and_its_figures(compared: tuple[Path, Path]) -> None:
    found = runs_of(compared[0])
    names = [(run["name"], (run["start"] or {}).get("share")) for run in found]
    expected = [("local", None), ("e2e", None), ("lora", 0.5), ("lora", 1.0), ("lora-all", 1.0), ("linear", 1.0)]
    assert names == [*expected, ("both", 1.0), ("finetune", None)]
    for run in found:
        points = run["curve"]
        shares = [0.0, 0.5, 1.0] if run["kind"] == "method" else [0.5, 1.0]
        assert [round(point["share"], 6) for point in points] == shares
        assert points[-1]["n_tokens"] == run["budget"]
        for cost in ("n_tokens", "seconds", "model_flops"):
            assert all(a[cost] < b[cost] for a, b in itertools.pairwise(points)), cost
        assert points[-1]["ce"] == pytest.approx(run["final"]["ce"])
        assert run["final"]["n_tokens_evaluated"] > 0
    lora = next(run for run in found if run["name"] == "lora" and run["start"]["share"] == 0.5)
    local = found[0]
    assert lora["start"]["n_tokens"] == local["budget"] / 2
    assert lora["start"]["seconds"] == local["curve"][0]["seconds"]
    assert lora["curve"][0]["ce"] == pytest.approx(lora["final"]["ce_sae"])
    assert lora["curve"][0]["ce"] == pytest.approx(local["curve"][0]["ce"])  # it begins where the SAE was


def test_what_a_method_leaves_of_the_latents_is_what_it_trains(compared: tuple[Path, Path]) -> None:
    final = {run["name"]: run["final"] for run in runs_of(compared[0])}
    for name in ("lora", "linear", "both"):  # above the SAE, or behind its latents
        assert final[name]["latents_identical"]
        assert final[name]["jaccard"] == 1
    assert not final["lora-all"]["latents_identical"]
    assert not final["finetune"]["latents_identical"]
    assert final["linear"]["ce_clean"] == final["linear"]["ce_base"]
    assert final["lora"]["ce_clean"] != final["lora"]["ce_base"]


def test_the_learning_rate_that_does_better_on_rows_of_its_own_is_used(compared: tuple[Path, Path]) -> None:
    for run in runs_of(compared[0]):
        if run["name"] in ("lora", "e2e"):
            assert [tried["lr"] for tried in run["tuning"]] == ([1e-6, 1e-2] if run["name"] == "lora" else [1e-3, 1e-2])
            assert run["lr"] == min(run["tuning"], key=lambda tried: tried["ce"])["lr"]
            assert all(tried["ce"] != run["final"]["ce"] for tried in run["tuning"])
        else:
            assert run["tuning"] is None
    assert next(run for run in runs_of(compared[0]) if run["name"] == "lora")["lr"] == 1e-2


def test_a_methods_run_equals_saelora_adapt_on_the_same_options(compared: tuple[Path, Path], tmp_path: Path) -> None:
    out, _ = compared
    run = next(run for run in runs_of(out) if run["name"] == "both")
    config = {key: value for key, value in run["config"].items() if value is not None and key not in ("out", "track")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    assert main(["adapt", "--config", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "own"), "--quiet"]) == 0
    own = json.loads((tmp_path / "own" / "results.json").read_text())
    for theirs, ours in (("ce_base", "ce_base"), ("ce_sae", "ce_sae"), ("ce_adapted", "ce"), ("gap_closed",) * 2):
        if theirs in own:
            assert run["final"][ours] == pytest.approx(own[theirs], abs=1e-6), theirs


def test_a_checkpoint_is_the_sae_that_was_measured(compared: tuple[Path, Path], workspace: Workspace) -> None:
    out, _ = compared
    local = runs_of(out)[0]
    found = load_sae(str(out / "saes" / local["id"] / "at-0.5"))
    assert str(found.hookpoint) == HOOKPOINT
    assert found.metadata["saelora"]["n_tokens"] < local["budget"]
    shown = main(["evaluate", str(workspace.model), "--sae", str(out / "saes" / local["id"] / "at-1"), "--quiet",
                  "--data", str(workspace.data), "--context", str(CONTEXT), "--validation-fraction", "0.2",
                  "--eval-tokens", str(8 * CONTEXT), "--out", str(out.parent / "sae.json"), "--overwrite"])  # fmt: skip
    assert shown == 0
    assert json.loads((out.parent / "sae.json").read_text())["ce_sae"] == pytest.approx(local["final"]["ce"], abs=1e-6)


def test_tables_figures_and_words_are_written(compared: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out, recipe = compared
    for name in ("race", "speedups", "equal", "left_behind"):
        assert (out / f"{name}.svg").stat().st_size > 1000
        assert (out / f"{name}.png").stat().st_size > 1000
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 2 * 2 + 6 * 3
    assert not (out / "work").exists()
    before = files_in(out / "runs")
    assert main(["compare", str(recipe), "--out", str(out), "--resume", "--quiet"]) == 0
    assert files_in(out / "runs") == before
    assert "Gap closed at equal tokens" in capsys.readouterr().out


def test_an_interrupted_comparison_goes_on_to_the_same_figures(
    compared: tuple[Path, Path], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run in hand dies in the middle, without a chance to save: its newest checkpoint is what remains."""
    recipe = recipe_of(workspace)
    recipe["saes"].pop("e2e")
    recipe["methods"] = {"both": recipe["methods"]["both"]}
    recipe["base"]["checkpoint_seconds"] = 0
    path, out = write(tmp_path / "tiny.yaml", recipe), tmp_path / "out"
    calls = []
    true_loop = runs_module.means

    def dying(losses: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # local twice, then the method's start and its middle
            raise KeyboardInterrupt
        return true_loop(losses)

    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "means", dying)
        assert main(["compare", str(path), "--out", str(out), "--quiet"]) == 130
    assert len(list((out / "runs").glob("*.json"))) == 1
    assert main(["compare", str(path), "--out", str(out), "--quiet", "--resume"]) == 0
    final = {run["name"]: run["final"] for run in runs_of(out)}
    expected = {run["name"]: run["final"] for run in runs_of(compared[0])}
    for name in ("local", "both"):
        assert final[name] == expected[name]


def test_entries_run_one_by_one_and_bring_the_sae_they_start_from(workspace: Workspace, tmp_path: Path) -> None:
    recipe, out = write(tmp_path / "tiny.yaml", recipe_of(workspace)), tmp_path / "out"
    assert main(["compare", str(recipe), "--out", str(out), "--quiet", "--only", "linear"]) == 0
    assert [run["name"] for run in runs_of(out)] == ["local", "linear"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "no output folder given"),
        (["--out", "{out}", "--only", "lorra"], "there is no 'lorra' to run: expected one of local, e2e, lora"),
        (["--out", "{out}", "--set", "methods.lora.rnak=4"], "unknown key 'rnak'"),
        (["--out", "{workspace}"], "is no comparison, so it is left alone"),
        (["--out", "{out}", "--set", "methods.finetune.from=/no/such/sae"], "/no/such/sae"),
    ],
)
def test_bad_input_is_one_line(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    recipe = recipe_of(workspace)
    recipe["saes"], recipe["methods"] = {**recipe["saes"]}, {**recipe["methods"]}
    if "methods.finetune.from=/no/such/sae" in flags:
        flags = [*flags, "--only", "finetune"]
    path = write(tmp_path / "tiny.yaml", recipe)
    given = [flag.format(out=tmp_path / "out", workspace=workspace.root) for flag in flags]
    assert main(["compare", str(path), "--quiet", *given]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.strip().splitlines()) == 1


def test_a_run_that_diverges_leaves_the_others_and_says_so(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(workspace)
    recipe["saes"] = {}
    own = {"from": str(workspace.sae), "rank": 4, "tokens": 8 * CONTEXT}
    recipe["methods"] = {"wild": {**own, "alpha": 1e30, "lr": 1, "clip": 0}, "tame": own}
    path, out = write(tmp_path / "tiny.yaml", recipe), tmp_path / "out"
    assert main(["compare", str(path), "--out", str(out), "--quiet"]) == 2
    assert [run["name"] for run in runs_of(out)] == ["tame"]
    assert "1 of 2 runs failed" in capsys.readouterr().err


def test_entries_of_a_comparison_are_jobs_and_wait_for_the_sae_they_start_from(
    compared: tuple[Path, Path], workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason='the launcher of SLURM; pip install "saelora[slurm]"')
    recipe, out = recipe_of(workspace), tmp_path / "out"
    recipe["saes"].pop("e2e")
    recipe["methods"] = {"both": recipe["methods"]["both"]}
    path = write(tmp_path / "c.yaml", recipe)
    launcher = ["--launcher", "submitit", "--launcher-options", "cluster=local", "--launcher-jobs", "2"]
    assert main(["compare", str(path), "--out", str(out), *launcher]) == 0
    said = capsys.readouterr()
    jobs = [line for line in said.err.splitlines() if line.startswith("job ")]
    assert [line.split(": ")[1].split(",")[0] for line in jobs] == ["local", "both"]
    assert said.err.index(jobs[1]) > said.err.index("1 of 2 jobs done")
    final = {run["name"]: run["final"] for run in runs_of(out)}
    expected = {run["name"]: run["final"] for run in runs_of(compared[0])}
    assert final == {name: expected[name] for name in ("local", "both")}
    assert "Gap closed at equal tokens" in said.out
