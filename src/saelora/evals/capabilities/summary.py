"""What --parts capabilities found, in plain words."""

from saelora.evals.capabilities.result import Capabilities, Difference, Task
from saelora.evals.estimate import Estimate, numbers
from saelora.evals.trained import Trained
from saelora.evals.variant import Variant
from saelora.reporting.format import capital

_PREFERRED = {"acc_norm": 2, "acc": 1}
_NAMES = {
    Variant.BASE: "original",
    Variant.SPLICED: "spliced",
    Variant.ADAPTED: "adapted",
    Variant.ADAPTED_CLEAN: "adapted without the splice",
}
UNDEFINED: Estimate = {"value": None, "low": None, "high": None}
SHOWN = 12  # tasks; a table of all is in the result


def lines(result: Capabilities) -> list[str]:
    """The finding, then a line a task: each group or single task by its main metric."""
    rows = main_rows(result.tasks)
    if not rows:
        return ["No task gave a score."]
    said = [_finding(rows, result.trained), *(_row(row) for row in rows[:SHOWN])]
    if len(rows) > SHOWN:
        said.append(f"{len(rows) - SHOWN} more tasks are in the results.")
    if floor := [row.task for row in rows if _at_chance(row)]:
        said.append(
            f"On {', '.join(floor)} the original model itself is within two standard errors of guessing: what differs "
            f"there says nothing about capabilities."
        )
    if result.limit is not None:
        said.append(f"Only the first {result.limit} documents of each task were asked; these are not full scores.")
    return said


def main_rows(tasks: list[Task]) -> list[Task]:
    """One row for each task that is in no group, and each outermost group: by acc_norm or acc where there is one."""
    chosen: dict[str, Task] = {}
    for row in tasks:
        if row.group is None:
            chosen[row.task] = max(chosen.get(row.task, row), row, key=lambda r: _PREFERRED.get(r.metric, 0))
    return list(chosen.values())


def _finding(rows: list[Task], trained: Trained) -> str:
    """What the adaptation did to the spliced model, and to the model without the SAE."""
    who = trained.words
    won = [row.task for row in rows if _sign(row, "adapted_minus_sae") > 0]
    lost = [row.task for row in rows if _sign(row, "adapted_minus_sae") < 0]
    harmed = [row.task for row in rows if _sign(row, "adapted_clean_minus_base") < 0]
    parts = []
    if won:
        parts.append(f"{who} makes the spliced model better on {', '.join(won)}")
    if lost:
        parts.append(f"{who} makes the spliced model worse on {', '.join(lost)}")
    if not won and not lost:
        parts.append(f"no task shows a difference between the spliced model with and without {who}")
    if trained is not Trained.SAE:  # without the SAE that is the original model
        parts.append(
            f"without the splice the adapter costs on {', '.join(harmed)}"
            if harmed
            else "without the splice no task shows harm by the adapter"
        )
    return f"{capital('; '.join(parts))} (95 % intervals, paired by document)."


def _sign(row: Task, difference: Difference) -> int:
    """1 better, -1 worse, 0 where the interval holds 0 or there is none."""
    found = row.differences.get(difference, UNDEFINED)
    low, high = found["low"], found["high"]
    if low is None or high is None or low <= 0 <= high:
        return 0
    better = 1 if row.higher_is_better is not False else -1
    return better if low > 0 else -better


def _row(row: Task) -> str:
    scores = ", ".join(
        f"{_NAMES[variant]} {score['value']:.3f}" for variant, score in row.scores.items() if score["value"] is not None
    )
    text = f"{row.task} ({row.metric}, {row.n} documents): {scores}"
    change = row.differences.get("adapted_minus_sae", UNDEFINED)
    if change["low"] is not None:
        text += "; adapted less spliced {:+.3f} [{:+.3f}, {:+.3f}]".format(*numbers(change))
    return text + (f"; guessing gives {row.chance:.3f}." if row.chance is not None else ".")


def _at_chance(row: Task) -> bool:
    base = row.scores.get(Variant.BASE)
    if row.chance is None or base is None or base["value"] is None or base["stderr"] is None:
        return False
    return base["value"] - row.chance < 2 * base["stderr"]
