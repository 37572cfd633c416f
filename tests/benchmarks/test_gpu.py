"""``gpu.py`` runs every stage at tiny sizes, keeps what it has, and goes on where it was cut."""

import json
from pathlib import Path
from typing import Any

import gpu
import gpu_stages
import pytest
import torch

TINY = ["--tiny", "--device", "cpu", "--out"]
OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate")


def read(folder: Path) -> dict[str, Any]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main([*TINY, str(folder)])
    return folder


def test_every_stage_ends_and_leaves_its_file(whole: Path) -> None:
    found = read(whole)
    assert found.keys() == gpu_stages.STAGES.keys()
    for name, stage in found.items():
        assert stage["finished"], (name, stage["notes"], stage.get("traceback"))
        assert stage["environment"]["versions"]["torch"] == torch.__version__
    assert [name for name, stage in found.items() if not stage["found"]] == ["defaults"]
    assert "not measured" in found["defaults"]["notes"][0]


def test_figures_are_ratios_of_what_was_timed_in_the_same_round(whole: Path) -> None:
    found = read(whole)
    step = found["step_4x1024"]["found"]["rows_4"]
    ours, by_hand = (step["seconds"][arm]["values"] for arm in ("ours", "handwritten"))
    assert step["speedup_over_handwritten"]["values"] == pytest.approx(
        [b / a for a, b in zip(ours, by_hand, strict=True)]
    )
    assert step["ours_ms"] == pytest.approx(1e3 * step["seconds"]["ours"]["median"])
    assert step["tokens_per_second"]["ours"] == pytest.approx(64 / step["seconds"]["ours"]["median"])
    assert step["profile"]["milliseconds"]
    five = found["five_ranks"]["found"]
    loops = sum(five["seconds"][f"handwritten_{rank}"]["values"][0] for rank in gpu_stages.RANKS)
    ratio = loops / five["seconds"]["one_pass"]["values"][0]
    assert five["speedup_over_handwritten"]["values"][0] == pytest.approx(ratio)
    head = found["head"]["found"]["gemma2_2b"]
    assert head["relative_error_to_float64"]["chunked"]["kl"] < 1e-4
    assert {"three_products", "chunked"} <= head["seconds"].keys()
    assert {(p["kind"], p["dtype"], p["d_sae"]) for p in found["sae"]["found"]["points"]} == {
        (kind, f"torch.{dtype}", d)
        for kind in ("topk", "jumprelu")
        for dtype in ("float32", "bfloat16")
        for d in (128, 256)
    }


def test_a_second_call_measures_only_what_is_not_there(whole: Path, tmp_path: Path) -> None:
    for name in ("head", "sae"):
        (tmp_path / f"{name}.json").write_bytes((whole / f"{name}.json").read_bytes())
    half = json.loads((tmp_path / "head.json").read_text()) | {"finished": False}
    (tmp_path / "head.json").write_text(json.dumps(half))
    before = (tmp_path / "sae.json").read_bytes()
    gpu.main([*TINY, str(tmp_path), "--only", "head", "sae"])
    found = read(tmp_path)
    assert found["head"]["finished"]
    assert (tmp_path / "sae.json").read_bytes() == before
    gpu.main([*TINY, str(tmp_path), "--only", "sae", "--again"])
    assert (tmp_path / "sae.json").read_bytes() != before


def test_without_time_nothing_begins_and_nothing_is_written(tmp_path: Path, capsys: Any) -> None:
    gpu.main([*TINY, str(tmp_path), "--minutes", "0"])
    assert not read(tmp_path)
    assert capsys.readouterr().out.count("no time left") == len(gpu_stages.STAGES)


def test_steps_of_another_checkout_are_timed_by_its_own_code(tmp_path: Path) -> None:
    gpu.main([*TINY, str(tmp_path), "--only", "step_1x1024", "--baseline", str(Path(gpu.__file__).parents[1])])
    gpu.main([*TINY, str(tmp_path / "none"), "--only", "step_1x1024", "--baseline", str(tmp_path)])
    step = read(tmp_path)["step_1x1024"]["found"]["rows_1"]
    before, ours = (step["seconds"][arm]["median"] for arm in ("baseline", "ours"))
    assert step["speedup_over_baseline"] == pytest.approx(before / ours)
    without = read(tmp_path / "none")["step_1x1024"]
    assert without["finished"]
    assert "baseline" not in without["found"]["rows_1"]["seconds"]
    assert "is no checkout of saelora" in without["notes"][0]


def stage_of(monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    monkeypatch.setitem(gpu_stages.STAGES, "head", (stage, 1.0))


def test_a_stage_that_fails_keeps_what_it_found_and_stops_no_other(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(job: gpu_stages.Job) -> None:
        job.found["one"] = 1
        raise ValueError("a fault of ours")

    stage_of(monkeypatch, fails)
    gpu.main([*TINY, str(tmp_path), "--only", "head", "sae"])
    found = read(tmp_path)
    assert (found["head"]["finished"], found["head"]["found"]) == (False, {"one": 1})
    assert "a fault of ours" in found["head"]["notes"][0]
    assert "in fails" in found["head"]["traceback"]
    assert found["sae"]["finished"]


def test_a_stage_over_its_limit_keeps_the_rounds_that_were_whole(tmp_path: Path, monkeypatch: Any) -> None:
    def slow(job: gpu_stages.Job) -> None:
        calls = iter([0.0, 0.0, 0.0, 1e9])
        job.found["taken"] = job.interleaved({"a": lambda: setattr(job, "end", job.end - next(calls))}, rounds=5)

    stage_of(monkeypatch, slow)
    gpu.main([*TINY, str(tmp_path), "--only", "head"])
    head = read(tmp_path)["head"]
    assert head["finished"]
    assert len(head["found"]["taken"]["a"]) == 2
    assert head["notes"] == ["2 rounds instead of 5: no time for more"]


def test_a_stage_that_hangs_is_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    def hangs(job: gpu_stages.Job) -> None:
        job.found["begun"] = True
        while True:
            pass

    monkeypatch.setattr(gpu, "GRACE", -5.0)
    stage_of(monkeypatch, hangs)
    gpu.main([*TINY, str(tmp_path), "--only", "head", "--minutes", "0.1"])
    head = read(tmp_path)["head"]
    assert (head["finished"], head["found"]) == (False, {"begun": True})
    assert "stopped at its limit" in head["notes"][0]


class Hungry:
    """A step that needs more memory than there is for more than some rows."""

    def __init__(self, most: int):
        self.most, self.tried = most, []

    def step(self, rows: torch.Tensor) -> None:
        self.tried.append(len(rows))
        if len(rows) > self.most:
            raise OUT_OF_MEMORY

    def parameters(self) -> list[Any]:
        return []


def test_an_arm_that_does_not_fit_takes_fewer_rows_and_says_so() -> None:
    job = gpu_stages.Job(torch.device("cpu"), True, None, None)
    arm = Hungry(1)
    assert len(gpu_stages._fitting(job, "published", arm, torch.zeros(4, 3))) == 1
    assert arm.tried == [4, 2, 1, 1, 1]  # what fits runs until it is recorded
    assert [note.split(",")[0] for note in job.notes] == [
        "published: 4 rows do not fit the memory",
        "published: 2 rows do not fit the memory",
    ]
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu_stages._fitting(job, "published", Hungry(0), torch.zeros(4, 3))


def test_the_table_says_what_met_its_goal_what_missed_it_and_what_was_not_measured() -> None:
    found = {
        "head": {
            "found": {"gemma2_2b": {"speedup_over_chunked": {"median": 3.5}, "over_three_products": {"median": 2.0}}}
        }
    }
    lines = {line[:58].strip(): line[58:].split() for line in gpu.table(found)[2:]}
    assert lines["KL head, Gemma 2 2B: chunked / fused"] == ["3.5", ">=", "3.2", "met"]
    assert lines["KL head, Gemma 2 2B: fused / its three products"] == ["2", "<=", "1.4", "MISSED"]
    assert lines["five ranks in one pass: five hand-written / ours"] == ["not", "measured", ">=", "3"]
