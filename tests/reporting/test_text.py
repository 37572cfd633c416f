"""Tables and sentences, from results alone."""

from typing import Any

import pytest

from run_results import RESULTS, result, without
from saelora.evals.loss_result import RunResult
from saelora.evals.variant import Variant
from saelora.reporting.names import of_results
from saelora.reporting.text import (
    ended_worse,
    has_gap,
    headline,
    loss_rows,
    loss_table,
    markdown_table,
    row_starts,
    samples_text,
)


def test_table_has_a_row_for_each_model_with_its_numbers():
    assert loss_rows(result()) == [
        ("original model", "3.0000", "", "", ""),
        ("spliced (SAE in)", "3.2500", "0.2000", "80.0%", "90.0%"),
        ("spliced + adapted", "3.1500", "0.1000", "88.0%", "94.0%"),
        ("adapted, SAE taken out", "3.0100", "0.0200", "95.0%", ""),
    ]


@pytest.mark.parametrize(
    "gone", [("adapted", "adapted_clean", "gap_closed"), ("sae", "ce_gap"), ("zero", "loss_recovered")]
)
def test_arms_that_were_not_measured_leave_no_trace(gone):
    results = without(RESULTS, *gone)
    table = loss_table(result(results))
    assert "None" not in table
    assert "nan" not in table
    for arm, name in (("adapted", "spliced + adapted"), ("sae", "spliced (SAE in)")):
        assert (name in table) == (f"ce_{arm}" in results)


def test_columns_of_the_terminal_table_line_up():
    lines = loss_table(result()).splitlines()[:5]
    ends = [
        line.index(value) + len(value)
        for line, value in zip(lines, ["cross entropy", "3.0000", "3.2500", "3.1500", "3.0100"], strict=True)
    ]
    assert len(set(ends)) == 1


def test_markdown_table_has_the_same_number_of_cells_in_every_line():
    lines = markdown_table(result()).splitlines()
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {6}


def test_headline_tells_gap_share_and_interval():
    expected = "The SAE costs 0.250 nats per token; the adapter wins back 40.0% of that (95 % interval 35.0% to 45.0%)."
    assert headline(result()) == expected
    alone = headline(result(without(RESULTS, "adapted", "adapted_clean", "gap_closed")))
    assert alone == "The SAE costs 0.250 nats per token (95 % interval 0.240 to 0.260)."


def test_headline_says_so_where_the_adapter_makes_it_worse():
    results = {**RESULTS, "gap_closed": -0.12, "ci95": {**RESULTS["ci95"], "gap_closed": [-0.15, -0.1]}}
    assert "makes it worse: gap closed -12.0% (95 % interval -15.0% to -10.0%)" in headline(result(results))
    assert "wins back" not in headline(result(results))


@pytest.mark.parametrize(
    ("gap", "interval"), [(-0.05, [-0.06, -0.04]), (0.0, [0.0, 0.0]), (1e-5, [-0.001, 0.001])],
    ids=["the SAE helps", "a perfect SAE", "within the noise"],
)  # fmt: skip
def test_headline_gives_no_share_of_a_gap_that_is_none(gap, interval):
    results = {**RESULTS, "ce_sae": 3.0 + gap, "ce_gap": gap, "ci95": {**RESULTS["ci95"], "ce_gap": interval}}
    results["gap_closed"] = -5000.0  # what dividing by next to nothing gives
    assert not has_gap(result(results))
    told = headline(result(results))
    assert "no measurable cost" in told
    assert "no gap to close" in told
    assert "%" not in told.replace("95 % interval", "")
    assert "costs" not in told
    assert headline(result(without(results, "gap_closed"))) == told
    assert "no gap to close" not in headline(result(without(results, "adapted", "adapted_clean", "gap_closed")))


def test_small_gaps_are_not_rounded_to_nothing():
    results = {**RESULTS, "ce_gap": 0.0004, "ci95": {**RESULTS["ci95"], "ce_gap": [0.0003, 0.0005]}}
    assert "costs 0.0004 nats" in headline(result(results))


def test_samples_cannot_steer_the_terminal_or_forge_lines():
    sample = {
        "prompt": "a\nb",
        "original": "red \x1b[31mtext\r\nadapted: forged",
        "spliced": "x\x00y\u009bz",
        "adapted": "",
    }
    text = samples_text([sample])
    assert not [c for c in text if c != "\n" and not c.isprintable()]
    assert "… a b" in text
    assert not [line for line in text.splitlines() if line.startswith("adapted: forged")]


def test_fvu_stands_beside_what_does_not_hang_on_a_token_or_two():
    sae = {"fvu": 0.076, "l0": 32.0, "dead_frac": 0.0, "fvu_rest": 0.132, "top_variance": 0.574}
    sae |= {"relative_error": 0.1234, "relative_error_q10": 0.08, "relative_error_q90": 0.2}
    table = loss_table(result({**RESULTS, "saes": {"layers.1.resid_post": sae}}))
    assert (
        "SAE at layers.1.resid_post: FVU 0.076 (0.132 without the largest 0.1 % of tokens, which hold 57% of the "
        "variance), L0 32.0 (active latents per token).\n"
        "  Squared error of a token over its squared norm: median 0.123, 10 % to 90 % of tokens 0.080 to 0.200."
    ) in table


def test_results_that_are_older_than_those_figures_are_shown_as_before():
    assert "SAE at layers.1.resid_post: FVU 0.200, L0 32.0 (active latents per token)." in loss_table(result())


@pytest.mark.parametrize(
    ("n_without", "n_spared", "expected"),
    [
        (0, 1, ""),
        (3, 1, "3 of 42 rows begin with a token that is not exempt: position 0 was left to the model all the same."),
        (
            3,
            4,
            "3 of 42 rows begin with a token that is not exempt: positions 0 to 3 were left to the model all the same.",
        ),
        (42, 0, "42 of 42 rows begin with a token that is not exempt, and it was replaced; "),
    ],
)
def test_rows_that_begin_without_an_exempt_token_are_told_of(n_without, n_spared, expected):
    starts = {"n_rows": 42, "n_without_exempt_token": n_without, "n_positions_spared": n_spared}
    results = result({**RESULTS, "row_starts": starts})
    told = row_starts(results)
    assert told.startswith(expected)
    assert bool(told) == bool(expected)
    assert told in loss_table(results).splitlines() or not told
    assert row_starts(result()) == ""


def of_transcoders(n: int) -> dict:
    sae = next(iter(RESULTS["saes"].values()))
    saes = {f"layers.{i}.mlp_out": {**sae, "fvu": 0.1 + i / 100, "l0": 30 + i} for i in range(n)}
    ids = [{"hookpoint": name, "architecture": "jumprelu_transcoder", "fingerprint": "x"} for name in saes]
    return {**RESULTS, "saes": saes, "about": {"saes": ids}}


@pytest.mark.parametrize(("n", "told"), [(1, "The transcoder costs 0.250"), (30, "The 30 transcoders cost 0.250")])
def test_transcoders_are_called_so(n: int, told: str) -> None:
    results = result(of_transcoders(n))
    assert headline(results).startswith(told)
    assert [row[0] for row in loss_rows(results)][1] == f"spliced (transcoder{'s' if n > 1 else ''} in)"


def test_of_many_saes_a_terminal_shows_ranges() -> None:
    table = loss_table(result(of_transcoders(30)))
    assert "30 transcoders: FVU 0.100 to 0.390, median 0.245, L0 30.0 to 59.0, median 44.5" in table
    assert "the largest FVU is that of layers.29.mlp_out" in table
    assert len(table.splitlines()) < 12
    assert "Transcoder at layers.7.mlp_out" in loss_table(result(of_transcoders(8)))


def test_several_saes_are_counted() -> None:
    results = of_transcoders(3)
    assert headline(result({**results, "about": None})).startswith("The 3 SAEs cost 0.250 nats")


PARALLEL, ADDED = {"mode": "parallel", "add_error": False}, {"mode": "cascading", "add_error": True}
BOTH = {"mode": "parallel", "add_error": True}


def replaced(n: int, replacement: dict | None, **more: Any) -> RunResult:
    results = of_transcoders(n)
    about = {**results["about"], **({} if replacement is None else {"replacement": replacement})}
    return result({**results, "about": about, **more})


@pytest.mark.parametrize(
    ("n", "replacement", "told", "row"),
    [
        (4, None, "The 4 transcoders cost", "spliced (transcoders in)"),
        (
            4,
            PARALLEL,
            "The 4 transcoders, each reading the original's stream (parallel), cost",
            "spliced (transcoders in, parallel)",
        ),
        (
            1,
            PARALLEL,
            "The transcoder, reading the original's stream (parallel), costs",
            "spliced (transcoder in, parallel)",
        ),
        (
            4,
            ADDED,
            "The 4 transcoders, with their errors added back, cost",
            "spliced (transcoders in, cascading with errors added)",
        ),
        (
            4,
            BOTH,
            "The 4 transcoders, each reading the original's stream (parallel), with their errors added back, cost",
            "spliced (transcoders in, parallel with errors added)",
        ),
    ],
)
def test_how_transcoders_were_put_in_is_told(n: int, replacement: dict | None, told: str, row: str) -> None:
    results = replaced(n, replacement)
    assert headline(results).startswith(f"{told} 0.250 nats")
    names = [each[0] for each in loss_rows(results)]
    mode = "" if replacement is None else f" ({row.partition(', ')[2]}"
    assert names[1:3] == [row, f"spliced + adapted{mode}"]
    assert row in loss_table(results)
    assert row in markdown_table(results)


def test_saes_and_transcoders_are_each_called_what_they_are() -> None:
    results = of_transcoders(3)
    results["about"]["saes"][1]["architecture"] = "topk"
    results["about"]["replacement"] = PARALLEL
    told = loss_table(result(results))
    start = "The 3 SAEs and transcoders, each transcoder reading the original's stream (parallel), cost 0.250 nats"
    assert headline(result(results)).startswith(start)
    assert "spliced (SAEs and transcoders in, parallel)" in told
    for line in ("Transcoder at layers.0.mlp_out:", "SAE at layers.1.mlp_out:", "Transcoder at layers.2.mlp_out:"):
        assert line in told


@pytest.mark.parametrize(
    ("method", "adapted", "clean"),
    [
        ("lora", "spliced + adapted", "adapted, transcoders taken out"),
        ("lora+sae", "adapted, transcoders trained", "adapted, transcoders taken out"),
        ("sae", "spliced, transcoders finetuned", "transcoders taken out"),
    ],
)
def test_what_a_method_made_is_called_what_it_is(method: str, adapted: str, clean: str) -> None:
    names = of_results(replaced(4, None, method=method))
    assert (names[Variant.ADAPTED], names[Variant.ADAPTED_CLEAN]) == (adapted, clean)


def test_only_a_run_is_said_to_have_ended_worse_than_it_began() -> None:
    """An evaluation may put transcoders in otherwise than the training did."""
    worse = {"ce_adapted": 3.5, "ci95": {}}
    run = replaced(4, ADDED, **worse)
    evaluated = run.model_copy(update={"n_tokens_trained": None})
    figures = "cross entropy 3.5000 against 3.2500, KL to the original 0.1000 against 0.2000 nats per token"
    assert ended_worse(run) == f"This ended worse than the spliced model that it began from: {figures}"
    assert ended_worse(evaluated) == f"As measured here, the adapted model is worse than the spliced one: {figures}"
