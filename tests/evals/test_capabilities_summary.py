"""What capabilities are said to have shown."""

from saelora.evals.capabilities.result import Capabilities
from saelora.evals.capabilities.summary import lines
from saelora.records import from_json


def estimate(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def row(task="hellaswag", metric="acc", change=(0.05, 0.02), clean=(0.0, 0.02), base=0.4, **more):
    scores = {"base": base, "sae": 0.3, "adapted": 0.35, "adapted_clean": base}
    return {
        "task": task,
        "metric": metric,
        "n": 100,
        "n_shot": 0,
        "scores": {arm: {"value": value, "stderr": 0.01} for arm, value in scores.items()},
        "differences": {"adapted_minus_sae": estimate(*change), "adapted_clean_minus_base": estimate(*clean)},
        "chance": 0.25,
        "higher_is_better": True,
        "group": None,
        "subtasks": [],
        **more,
    }


def said(*rows, limit=None):
    found = {"arms": [], "tasks": list(rows), "limit": limit, "lm_eval": "0.4.13"}
    return lines(from_json(Capabilities, found, "capabilities.json", ""))


def test_the_finding_names_what_got_better_worse_and_what_shows_nothing() -> None:
    assert said(row())[0].startswith(
        "The adapter makes the spliced model better on hellaswag; without the splice no task"
    )
    assert "worse on hellaswag" in said(row(change=(-0.05, 0.02)))[0]
    assert said(row(change=(0.01, 0.02)))[0].startswith("No task shows a difference")
    assert "without the splice the adapter costs on hellaswag" in said(row(clean=(-0.05, 0.01)))[0]


def test_a_metric_that_should_be_low_is_better_when_it_falls() -> None:
    assert "better on wikitext" in said(row("wikitext", change=(-0.5, 0.1), higher_is_better=False))[0]


def test_one_line_a_task_prefers_acc_norm_and_leaves_subtasks_to_their_group() -> None:
    text = said(row(), row(metric="acc_norm"), row("mmlu"), row("mmlu_law", group="mmlu"))
    assert [line.split(":")[0] for line in text[1:3]] == [
        "hellaswag (acc_norm, 100 documents)",
        "mmlu (acc, 100 documents)",
    ]
    assert not any("mmlu_law" in line for line in text)


def test_a_task_at_chance_and_a_limit_are_owned_up_to() -> None:
    text = " ".join(said(row(base=0.26), limit=20))
    assert "within two standard errors of guessing" in text
    assert "first 20 documents" in text
    assert "guessing gives" in text


def test_undefined_differences_and_no_rows_do_not_break_the_page() -> None:
    bare = row(differences={"adapted_minus_sae": {"value": None, "low": None, "high": None}}, chance=None)
    assert said(bare)[0].startswith("No task shows a difference")
    assert said() == ["No task gave a score."]
