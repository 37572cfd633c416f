"""Tasks of lm-evaluation-harness: the section of --parts capabilities."""

from collections.abc import Sequence

from saelora.evals.capabilities.result import Capabilities, Difference, Score, Task
from saelora.reporting.page import charts
from saelora.reporting.page.charts import Series, style
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import (
    Figure,
    Section,
    Table,
    by_run,
    estimates,
    measured,
    named,
    notes,
    row_of,
    shared_names,
)

_DIFFERENCES: dict[Difference, str] = {
    "adapted_minus_sae": "adapted − spliced",
    "sae_minus_base": "spliced − original",
    "adapted_clean_minus_base": "splice taken out − original",
}
Found = Sequence[tuple[int, Run, Capabilities]]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Tasks of lm-evaluation-harness."""
    found = measured(runs, Capabilities)
    figure, tables = (
        _tasks(runs, found),
        [table for table in (_scores(runs, found), _differences(runs, found)) if table.rows],
    )
    used = dict.fromkeys(f"lm-eval {r.lm_eval}" for _, _, r in found)
    limits = dict.fromkeys(f"at most {r.limit} documents a task" for _, _, r in found if r.limit)
    about = "Tasks that the model can do, measured by the language model evaluation harness"
    about += f" ({', '.join([*used, *limits])})." if used or limits else "."
    return [
        Section(
            "capabilities",
            "Capabilities",
            about,
            notes(runs, "capabilities"),
            [figure] if figure else [],
            tables,
            measured=bool(found),
        )
    ]


def _tasks(runs: Sequence[Run], found: Found) -> Figure | None:
    names = list(dict.fromkeys(f"{t.task} ({t.metric})" for _, _, r in found for t in _outermost(r)))
    series, rows = [], []
    for i, run, result in found:
        tasks = _outermost(result)
        at = [names.index(f"{task.task} ({task.metric})") for task in tasks]
        for j, (key, told) in enumerate(_DIFFERENCES.items()):
            values = [task.differences.get(key) for task in tasks]
            look = style(i) | {"marker": "osD"[j]} if len(runs) > 1 else style(j)
            series.append(Series(named(runs, run, told), at, *estimates(values), style=look))
            rows += [row_of(runs, run, [names[a], told, value]) for a, value in zip(at, values, strict=True)]
    if not names:
        return None
    told = "Differences between variants of the model, paired by document, with 95 % intervals."
    svg = charts.dots(names, series, "capability-differences", "difference of the metric")
    columns = [("task", "text"), ("variants", "text"), ("difference", "number")]
    return Figure("capability-differences", told, svg, Table("Differences by task", by_run(runs, columns), rows))


def _outermost(result: Capabilities) -> list[Task]:
    """Groups and single tasks: what the parts of a group are is in the tables."""
    return [task for task in result.tasks if task.group is None]


def _scores(runs: Sequence[Run], found: Found) -> Table:
    arms = list(dict.fromkeys(arm for _, _, r in found for task in r.tasks for arm in task.scores))
    columns = [("task", "text"), ("metric", "text"), ("documents", "count"), ("shots", "count")]
    columns += [("guessing gives", "number")]
    called = {str(variant): name for variant, name in shared_names(runs, "capabilities").items()}
    columns += [(called.get(arm, arm), "text") for arm in arms]
    rows = []
    for _, run, result in found:
        for task in result.tasks:
            scores = [_score(task.scores.get(arm)) for arm in arms]
            rows.append(row_of(runs, run, [task.task, task.metric, task.n, task.n_shot, task.chance, *scores]))
    return Table("Scores, ± standard error", by_run(runs, columns), rows)


def _score(score: Score | None) -> str | None:
    if score is None or score["value"] is None:
        return None
    return f"{score['value']:.4f}" + (f" ± {score['stderr']:.4f}" if score["stderr"] is not None else "")


def _differences(runs: Sequence[Run], found: Found) -> Table:
    columns = [("task", "text"), ("metric", "text"), *((told, "number") for told in _DIFFERENCES.values())]
    rows = []
    for _, run, result in found:
        for task in result.tasks:
            values = [task.differences.get(key) for key in _DIFFERENCES]
            rows.append(row_of(runs, run, [task.task, task.metric, *values]))
    return Table("Differences, paired by document", by_run(runs, columns), rows, folded=True)
