"""The benchmark scripts run at tiny sizes and write what they promise; their arithmetic is right."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import busy
import pytest
import scaling
import serving
import setting as settings
import sparse_decode
import start_up
import step
import sweep
import torch
from measure import MIB, exponent, interleaved, peak_bytes, ratios

TINY = ["--shape", "tiny", "--device", "cpu", "--rank", "2"]
CPU = torch.device("cpu")


def spread_of(found: dict[str, Any]) -> list[float]:
    low, high = found["spread"]
    assert low <= found["median"] <= high
    assert len(found["values"]) >= 1
    return found["values"]


def test_step_writes_all_keys(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    step.main([*TINY, "--context", "16", "--rows", "2", "--repeats", "2", "--json", str(file)])
    found = json.loads(file.read_text())
    keys = {f"speedup_{name}" for name in ("published_after", "published_all", "handwritten_after")}
    keys |= {"model_flops_fraction"}
    if sys.platform.startswith("linux"):
        keys |= {"peak_bytes"}
    assert keys <= found.keys()
    for key in keys - {"peak_bytes"}:
        assert all(value > 0 for value in spread_of(found[key]))
    arms = {"ours_after", "ours_all", "handwritten_after", "published_after", "published_all"}
    assert arms <= found["seconds"].keys()
    for arm in arms:
        assert len(spread_of(found["seconds"][arm])) == 2
    first = found["seconds"]["published_all"]["values"][0] / found["seconds"]["ours_all"]["values"][0]
    assert found["speedup_published_all"]["values"][0] == pytest.approx(first)
    assert found["environment"]["versions"]["torch"] == torch.__version__


def test_profile_names_operations() -> None:
    parser = step.argparse.ArgumentParser()
    settings.add_options(parser)
    setting = settings.make(parser.parse_args(TINY), 1, 8)
    assert "aten::mm" in step.profile(settings.Ours(setting, ranks=[2]), setting.rows)


def test_scaling_writes_every_axis(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    sizes = {"tokens": "16 32 64", "context": "8 16 32", "d-sae": "32 64 128", "rank": "1 2 4", "branches": "1 2 3"}
    flags = [word for axis, values in sizes.items() for word in (f"--{axis}-sizes", *values.split())]
    scaling.main([*TINY, "--context", "8", "--tokens", "16", "--repeats", "1", *flags, "--json", str(file)])
    found = json.loads(file.read_text())["axes"]
    assert found.keys() == {"tokens", "context", "d_sae", "rank", "branches"}
    for axis, values in sizes.items():
        axis_found = found[axis.replace("-", "_")]
        assert list(axis_found["points"]) == values.split()
        assert math.isfinite(axis_found["exponent_upper_half"])
        assert {"a", "b", "p", "relative_error"} == axis_found["fit"].keys()
        assert "dominates_from" in axis_found


def test_sweep_compares_one_pass_with_separate_runs_of_equal_losses(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    sweep.main([*TINY, "--ranks", "1", "2", "4", "--context", "16", "--repeats", "2", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["largest_loss_difference"] == 0
    seconds = {name: values["values"][1] for name, values in found["seconds"].items()}
    own = sum(value for name, value in seconds.items() if name.startswith("own_"))
    assert found["speedup_vs_own"]["values"][1] == pytest.approx(own / seconds["one_pass"])
    assert all(value > 0 for value in spread_of(found["speedup_vs_published"]))


def test_sparse_decode_writes_points_and_crossover(tmp_path: Path) -> None:
    file = tmp_path / "sparse.json"
    flags = "--d-in 8 --d-sae 32 64 --k 2 4 --tokens 6 --repeats 1 --device cpu"
    sparse_decode.main([*flags.split(), "--json", str(file)])
    found = json.loads(file.read_text())
    assert len(found["points"]) == 2 * 2 * 2
    assert found["crossover"].keys() == {"forward", "forward_backward"}


def test_crossover_is_where_all_wider_points_are_faster() -> None:
    speedups = {10: 0.9, 20: 1.1, 40: 0.95, 80: 1.2, 160: 1.5}
    points = [{"d_sae": d, "k": 1, "m": {"speedup": {"median": s}}} for d, s in speedups.items()]
    assert sparse_decode.crossover(points, "m") == 80
    assert sparse_decode.crossover(points[:1], "m") is None


def test_fit_finds_the_law_and_where_its_growing_part_takes_over() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    found = scaling.fit(sizes, [3 + 0.5 * size**1.5 for size in sizes])
    assert (found["a"], found["b"], found["p"]) == pytest.approx((3, 0.5, 1.5), rel=1e-6)
    assert scaling.dominates_from(found) == pytest.approx(6 ** (2 / 3))
    assert scaling.dominates_from(scaling.fit(sizes, [2.0] * 6)) is None
    assert exponent(sizes, [size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_interleaving_drops_the_first_round_and_alternates() -> None:
    calls: list[str] = []
    taken = interleaved({name: lambda n=name: calls.append(n) for name in "ab"}, 2, CPU)
    assert "".join(calls) == "ababab"
    assert [len(values) for values in taken.values()] == [2, 2]


def test_ratios_pair_rounds() -> None:
    assert ratios([2.0, 8.0, 3.0], [1.0, 2.0, 3.0])["values"] == [2.0, 4.0, 1.0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory on a CPU is read from Linux's /proc")
def test_peak_sees_memory_that_a_call_frees_again() -> None:
    def call() -> None:
        for _ in range(2):  # one after the other: 64 MiB at a time
            torch.ones(16 * MIB)

    assert 60 * MIB < peak_bytes(call, CPU) < 80 * MIB


def test_busy_compares_both_ways_of_waiting_on_equal_losses(tmp_path: Path) -> None:
    file = tmp_path / "busy.json"
    brief = "--context 16 --steps 1 --eval-rows 2 --repeats 2 --settle 0 --json"
    busy.main([*TINY, *brief.split(), str(file)])
    found = json.loads(file.read_text())
    assert found["largest_loss_difference"] == 0
    for work in busy.WORK:
        speed = found["tokens_per_second"][work]
        idle, loaded = (spread_of(speed["watched"][machine])[1] for machine in busy.MACHINE)
        assert spread_of(found["kept"][work]["watched"])[1] == pytest.approx(loaded / idle)
        assert spread_of(found["watched_idle"][work])[1] == pytest.approx(
            idle / spread_of(speed["spinning"]["idle"])[1]
        )


def test_serving_tells_answers_apart() -> None:
    alone = {("a", "x"): "one", ("b", "x"): "two", ("c", "x"): "two"}
    tally = serving.Tally()
    for prompt, answer in (("a", "one"), ("b", "two"), ("a", "two"), ("a", "on"), ("c", None)):
        tally.take((prompt, "x"), answer, alone)
    assert (tally.n, tally.lost, tally.not_as_alone, tally.of_another) == (5, 1, 2, 1)
    assert [each["served"] for each in tally.examples] == ["two", "on"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells another process's seconds")
def test_start_up_times_the_second_line_and_the_processors_seconds_until_then() -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint('a heading', flush=True)\n"
    work += "while time.process_time() < 1: pass\nprint('text', flush=True)\nwhile True: pass"
    wall, cpu = start_up.first_text(["-c", work], start_up.ROOT / "src")
    assert wall >= cpu - 0.02 >= 0.97
    with pytest.raises(SystemExit, match="no line"):
        start_up.first_text(["-c", "raise SystemExit('no line')"], start_up.ROOT / "src")


def test_start_up_times_help_and_errors(tmp_path: Path) -> None:
    file = tmp_path / "start_up.json"
    start_up.main(["--commands", "report", "sweep", "--repeats", "1", "--json", str(file)])
    found = json.loads(file.read_text())
    assert {kind: set(names) for kind, names in found["seconds"].items()} == {
        "help": {"report", "sweep"},
        "error": {"report", "sweep"},
        "first_line": {"sweep"},
    }
    for kind, names in found["seconds"].items():
        assert found["slowest"][kind] == max(spread_of(value)[0] for value in names.values())
