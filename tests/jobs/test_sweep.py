"""Sweeps on the tiny workspace: points that share passes equal runs of their own."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from saelora.cli import main
from saelora.jobs import sweep_groups
from saelora.jobs.sweep_plan import expand, group_points, read_recipe, split
from workspace import ADAPT, CONTEXT, D_SAE, Workspace, write_sae


def base(workspace: Workspace, **options: Any) -> dict[str, Any]:
    own = {k: v for k, v in ADAPT.items() if k not in ("history_points", "history_tokens", "rank")}
    common = {"model": str(workspace.model), "sae": [str(workspace.sae)], "data": str(workspace.data)}
    return {**own, **common, "tokens": 16 * CONTEXT, **options}


def write(path: Path, **recipe: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def rows_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "results.json").read_text())["points"]


@pytest.fixture(scope="module")
def swept(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep over ranks and SAEs of two layers, and its recipe."""
    root = tmp_path_factory.mktemp("sweep")
    other = write_sae(root / "sae2", layer=2, seed=5)
    recipe = write(
        root / "ranks.yaml",
        title="ranks",
        series="layer",
        base=base(workspace),
        grid={"rank": [1, 4]},
        points=[{"sae": [str(workspace.sae)]}, {"sae": [str(other)]}, {"placement": "layers:3"}],
    )
    assert main(["sweep", str(recipe), "--out", str(root / "out"), "--save-adapters"]) == 0
    return root / "out", recipe


# SPEC 11.1
def test_every_point_equals_its_own_adapt_run(workspace: Workspace, swept: tuple[Path, Path], tmp_path: Path) -> None:
    out, _ = swept
    rows = rows_of(out)
    assert len(rows) == 6
    for row in (rows[0], rows[3], rows[5]):
        config = {k: row["config"][k] for k in ("sae", "rank", "placement", "tokens")}
        assert workspace.adapt(tmp_path / row["id"], **config, history_points=0) == 0
        alone = json.loads((tmp_path / row["id"] / "results.json").read_text())
        for figure in ("ce_base", "ce_sae", "ce_adapted", "ce_adapted_clean", "gap_closed", "kl_adapted"):
            assert row[figure] == alone[figure], figure
        ours = load_file(out / "adapters" / row["id"] / "adapter_model.safetensors")
        theirs = load_file(tmp_path / row["id"] / "adapter_model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_points_of_a_sweep_share_one_group_and_one_teacher(swept: tuple[Path, Path]) -> None:
    out, _ = swept
    assert {row["n_branches"] for row in rows_of(out)} == {6}
    assert len(list((out / "groups").iterdir())) == 1


def test_table_and_figures_hold_every_point(workspace: Workspace, swept: tuple[Path, Path]) -> None:
    out, _ = swept
    rows = rows_of(out)
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["id"] for line in table] == [row["id"] for row in rows]
    assert [float(line["ce_adapted"]) for line in table] == [row["ce_adapted"] for row in rows]
    assert [line["gap_closed_low"] for line in table] == [str(row["ci95"]["gap_closed"][0]) for row in rows]
    assert [(row["layer"], row["rank"], row["adapted_layer"]) for row in rows] == [
        (1, 1, None), (1, 4, None), (2, 1, 3), (2, 4, 3), (1, 1, 3), (1, 4, 3)
    ]  # fmt: skip
    weights = load_file(workspace.model / "model.safetensors")
    assert {row["n_parameters"] for row in rows} == {sum(w.numel() for w in weights.values())}  # adapters left out
    assert all(row["d_sae"] == D_SAE and row["status"] == "done" for row in rows)
    assert (out / "rank.svg").read_text().count("<svg") == 1
    assert (out / "rank.png").stat().st_size > 5000
    assert len((out / "results.md").read_text().splitlines()) == 2 + 6


def test_resume_keeps_finished_points_and_runs_new_ones(swept: tuple[Path, Path], capsys: Any) -> None:
    out, recipe = swept
    before = {path: path.read_bytes() for path in (out / "points").iterdir()}
    (gone,) = [p for p in before if json.loads(before[p])["rank"] == 1 and json.loads(before[p])["layer"] == 2]
    gone.unlink()
    assert main(["sweep", str(recipe), "--out", str(out), "--resume"]) == 0
    assert "5 of 6 points are done already" in capsys.readouterr().err
    again = {path: path.read_bytes() for path in (out / "points").iterdir()}
    assert again.keys() == before.keys()
    assert all(again[path] == before[path] for path in before if path != gone)
    then, now = json.loads(before[gone]), json.loads(again[gone])
    assert (now["n_branches"], now["ce_adapted"]) == (1, then["ce_adapted"])


def test_interrupted_group_goes_on_from_its_checkpoint(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real stop request in the middle of a group; the table ends as that of an uninterrupted sweep."""
    import os
    import signal

    from saelora.objectives.distill import Distill

    recipe = write(tmp_path / "r.yaml", base=base(workspace), grid={"rank": [1, 2]})
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "whole")]) == 0
    step, count = Distill.step, 0

    def stopping(self: Distill, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(Distill, "step", stopping)
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out")]) == 128 + signal.SIGTERM
    assert not list((tmp_path / "out" / "points").iterdir())
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert count == 8  # 16 rows, 2 a step: none was done twice
    figures = [[row["ce_adapted"] for row in rows_of(tmp_path / name)] for name in ("whole", "out")]
    assert figures[0] == figures[1]


def test_recipes_own_saes_are_trained_once_and_cached(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SAELORA_CACHE", str(tmp_path / "cache"))
    train = {"model": str(workspace.model), "data": str(workspace.data), "context": CONTEXT, "tokens": 40 * CONTEXT}
    train |= {"validation_fraction": 0.2, "eval_tokens": 4 * CONTEXT, "batch_rows": 8, "d_sae": D_SAE}
    train |= {"hookpoint": ["layers.0.resid_post", "layers.2.resid_post"], "variant": ["k=2", "k=8"]}
    points = [{"sae": ["{saes}/layers.2.resid_post/k=2"]}]
    points += [{"sae": [f"{{saes}}/layers.{i}.resid_post/k=8" for i in (0, 2)], "placement": "all"}]
    recipe = write(tmp_path / "r.yaml", base=base(workspace, rank=2), points=points, train_sae=train, x="n_saes")
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "one")]) == 0
    assert "training the recipe's SAEs" in capsys.readouterr().err
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "two")]) == 0
    assert "training the recipe's SAEs" not in capsys.readouterr().err
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [row["n_saes"] for row in one] == [1, 2]
    assert [row["id"] for row in one] == [row["id"] for row in two]
    assert [row["ce_adapted"] for row in one] == [row["ce_adapted"] for row in two]
    assert str(tmp_path) not in json.dumps([row["sae"] for row in one])  # the recipe's words, not this machine's path


def test_a_group_that_cannot_run_leaves_the_others_rows(workspace: Workspace, tmp_path: Path, capsys: Any) -> None:
    bad = write_sae(tmp_path / "narrow", layer=1, d_in=16)
    points = [{"sae": [str(workspace.sae)]}, {"sae": [str(bad)], "seed": 1}]
    recipe = write(tmp_path / "r.yaml", base=base(workspace, rank=2), points=points)
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 groups failed" in error
    assert "d_in 16" in error
    assert len(rows_of(tmp_path / "out")) == 1


def test_a_point_that_diverges_says_so_and_spoils_no_other(workspace: Workspace, tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", base=base(workspace, rank=2, clip=0), grid={"alpha": [2, 1e30]}, x="alpha")
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out")]) == 0
    good, bad = rows_of(tmp_path / "out")
    assert (good["status"], bad["status"]) == ("done", "diverged")
    assert good["gap_closed"] > 0
    assert "diverged" in (tmp_path / "out" / "results.md").read_text()


def test_memory_splits_a_group_and_changes_no_figure(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path / "r.yaml", base=base(workspace), grid={"rank": [1, 2, 4]})
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(sweep_groups, "free_bytes", lambda device: 1)
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "parts")]) == 0
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [row["n_branches"] for row in parts] == [1, 1, 1]
    assert [row["ce_adapted"] for row in parts] == [row["ce_adapted"] for row in whole]


BAD = {
    "unknown-key": ({"gird": {"rank": [1]}}, [], "did you mean 'grid'"),
    "unknown-option": ({"grid": {"rnak": [1]}}, [], "did you mean 'rank'"),
    "no-list": ({"grid": {"rank": 4}}, [], "expected a list"),
    "empty-list": ({"grid": {"rank": []}}, [], "expected a list"),
    "value": ({"grid": {"rank": ["x"]}}, [], "rank: got 'x'"),
    "twice": ({"grid": {"rank": [4, 4]}}, [], "a point twice"),
    "points": ({"points": [3]}, [], "list of mappings"),
    "arms": ({"arms": ["sae"]}, [], "arms"),
    "no-saes": ({"points": [{"sae": ["{saes}/x"]}]}, [], "no train_sae"),
    "set": ({}, ["--set", "rank"], "KEY=VALUE"),
    "set where": ({}, ["--set", "points.rank=1"], "'points.rank=1': expected KEY=VALUE, such as --set tokens=10k"),
    "grid of mappings": ({"grid": {"k": {"a": 1}, "rank": 3}}, ["--set", "lr=1"], "expected a list of values"),
    "set mapping": ({}, ["--set", "points=3", "--set", "rank=3"], "--set points is 3, expected a list of mappings"),
    "mapping": ({"points": {"rank": 1}}, [], "points of"),
    "series": ({"series": "nonsense"}, [], "no such column"),
    "axis": ({"grid": {"rank": [1, 2]}, "x": "nonsense"}, [], "no such column"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipe_ends_with_one_line_and_exit_code_2(
    workspace: Workspace, tmp_path: Path, capsys: Any, case: str
) -> None:
    recipe, flags, expected = BAD[case]
    file = write(tmp_path / "r.yaml", **{"base": base(workspace), **recipe})
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
    assert not (tmp_path / "out" / "points").exists()


def test_out_folder_is_never_overwritten_silently(workspace: Workspace, tmp_path: Path, capsys: Any) -> None:
    recipe = write(tmp_path / "r.yaml", base=base(workspace))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for flags in ([], ["--resume"], ["--overwrite"]):
        assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), *flags]) == 2
        assert "no sweep, so it is left alone" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_points_that_differ_in_rows_or_model_run_apart(workspace: Workspace, tmp_path: Path) -> None:
    grid = {"rank": [1, 2], "seed": [0, 1], "context": [16, 32], "lr": [1e-3, 2e-3]}
    recipe = read_recipe(write(tmp_path / "r.yaml", base=base(workspace), grid=grid))
    groups = group_points(expand(recipe, "r.yaml"))
    assert sorted(map(len, groups)) == [4, 4, 4, 4]
    for group in groups:
        assert len({(p.config.seed, p.config.context) for p in group}) == 1


def test_set_replaces_an_option_wherever_the_recipe_gives_it(workspace: Workspace, tmp_path: Path) -> None:
    file = write(tmp_path / "r.yaml", base=base(workspace), grid={"rank": [1, 2]}, points=[{"lr": 1e-3}, {"lr": 2e-3}])
    made = expand(read_recipe(file, ["grid.rank=[8]", "tokens=1k"]), "r.yaml")
    assert [(p.config.rank, p.config.tokens) for p in made] == [(8, 1000), (8, 1000)]


@pytest.mark.parametrize(("n", "limit", "sizes"), [(5, 2, [1, 2, 2]), (4, 9, [4]), (3, 0, [1, 1, 1])])
def test_split_makes_even_parts_of_at_most_the_limit(n: int, limit: int, sizes: list[int]) -> None:
    parts = split(list(range(n)), limit)  # type: ignore[arg-type]
    assert sorted(map(len, parts)) == sizes
    assert [x for part in parts for x in part] == list(range(n))


def test_an_adapter_that_a_sweep_keeps_is_a_run_of_its_own(swept: tuple[Path, Path], capsys: Any) -> None:
    out, _ = swept
    row = rows_of(out)[3]
    run = out / "adapters" / row["id"]
    capsys.readouterr()
    assert main(["evaluate", "--adapter", str(run), "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    for figure in ("ce_base", "ce_sae", "ce_adapted", "ce_adapted_clean", "gap_closed", "kl_adapted"):
        assert again[figure] == row[figure], figure
    assert again["about"]["heldout"] == row["about"]["heldout"]
    assert main(["report", str(run), "--quiet"]) == 0
    assert (run / "report.html").exists()
    assert "beside 5 others" in (run / "README.md").read_text()


def test_adapters_asked_for_later_are_made_when_a_sweep_is_resumed(workspace: Workspace, tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", base=base(workspace, rank=2))
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out")]) == 0
    before = rows_of(tmp_path / "out")[0]
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), "--resume", "--save-adapters"]) == 0
    assert (tmp_path / "out" / "adapters" / before["id"] / "saelora.json").exists()
    assert rows_of(tmp_path / "out")[0]["ce_adapted"] == before["ce_adapted"]


def test_points_on_other_held_out_rows_are_said_not_to_compare(
    workspace: Workspace, tmp_path: Path, capsys: Any
) -> None:
    recipe = write(tmp_path / "r.yaml", base=base(workspace, rank=2), grid={"eval_tokens": [4 * CONTEXT, 8 * CONTEXT]})
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    for told in (capsys.readouterr().out, (tmp_path / "out" / "results.md").read_text()):
        assert "points marked b" in told
        assert "other held-out rows (8 rows of 32 tokens, not 4 rows of 32 tokens)" in told
