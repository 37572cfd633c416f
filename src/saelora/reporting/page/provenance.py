"""What made the numbers: model, SAEs, policy, options, versions, hardware, commands."""

from collections.abc import Mapping, Sequence
from typing import Any

from saelora.evals.registry import on_rows
from saelora.identity import About, SAEId, kind_of
from saelora.records import Record
from saelora.reporting.format import capital
from saelora.reporting.page.read import Run
from saelora.reporting.page.view import Section, Table, by_run, row_of, written


def section(runs: Sequence[Run]) -> Section:
    """Every run's provenance."""
    kind = kind_of(*(sae for run in runs for sae in run.manifest.saes))
    tables = [
        Table("Model", by_run(runs, _NAMED), _flat(runs, [(run, run.manifest.model) for run in runs])),
        Table(
            capital(kind.many), by_run(runs, _NAMED), _flat(runs, [(run, _numbered(run.manifest.saes)) for run in runs])
        ),
        Table(
            "Token policy (positions that are left alone)",
            by_run(runs, _NAMED),
            _flat(runs, [(run, run.manifest.token_policy or {}) for run in runs]),
        ),
        Table(
            "Held-out text that was measured on", by_run(runs, _NAMED), _flat(runs, [(r, _heldout(r)) for r in runs])
        ),
        Table("What was spent", by_run(runs, _NAMED), _flat(runs, [(run, _spent(run)) for run in runs])),
        Table(
            "Versions and hardware of the training",
            by_run(runs, _NAMED),
            _flat(runs, [(run, run.manifest.environment or {}) for run in runs]),
        ),
        _options(runs),
        *(_part(run, name, len(runs) > 1) for run in runs for name in run.parts),
    ]
    about = "Everything that it takes to make these numbers again."
    gist = [(run.label if len(runs) > 1 else "", _gist(run)) for run in runs]
    return Section("provenance", "Provenance", about, tables=[t for t in tables if t.rows], gist=gist)


_NAMED = [("what", "text"), ("value", "text")]


def _gist(run: Run) -> str:
    config = run.manifest.config
    told = [f"{name} {config[name]}" for name in ("rank", "placement", "lr", "tokens", "seed") if name in config]
    environment = run.manifest.environment
    saelora = None if environment is None else environment.versions.get("saelora")
    return ", ".join([*told, *([f"saelora {saelora}"] if saelora else [])])


def _flat(runs: Sequence[Run], values: Sequence[tuple[Run, Record | Mapping[str, object]]]) -> list[list[Any]]:
    """Rows of name and value; what is nested gets its names joined by dots."""
    return [row_of(runs, run, row) for run, each in values for row in _pairs(each)]


def _pairs(value: Record | Mapping[str, object], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, each in (value.to_json() if isinstance(value, Record) else value).items():
        if isinstance(each, Record | dict):
            out += _pairs(each, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", each))
    return out


def _numbered(saes: Sequence[SAEId]) -> SAEId | dict[str, SAEId]:
    return saes[0] if len(saes) == 1 else {str(i): sae for i, sae in enumerate(saes, 1)}


def _heldout(run: Run) -> dict[str, str]:
    """The rows of the result and of each part that was measured on rows."""
    abouts = {"result": run.about} | {
        f"part {name}": file.about or About() for name, file in run.parts.items() if on_rows(name)
    }
    return {name: rows_text(about) for name, about in abouts.items()}


def rows_text(about: About) -> str:
    """Held-out rows and precision, as a table says them."""
    rows = about.heldout
    if rows is None:
        return "unknown: an older version did not record it"
    half = f", autocast to {about.autocast}" if about.autocast else ""
    return f"{rows.n_rows} rows of {rows.context} tokens, {rows.fingerprint}{half}"


def _spent(run: Run) -> dict[str, float]:
    results = run.results
    spent = {
        "n_tokens_trained": results.n_tokens_trained,
        "seconds_training": results.seconds_training,
        "tokens_per_second": results.tokens_per_second,
        "n_tokens_evaluated": results.n_tokens_evaluated,
        "n_documents_trained": run.manifest.n_documents_trained,
    }
    spent |= {f"seconds, part {name}": file.seconds for name, file in run.parts.items()}
    return {name: value for name, value in spent.items() if value is not None}


def _options(runs: Sequence[Run]) -> Table:
    """The runs' options, a column a run."""
    names = list(dict.fromkeys(name for run in runs for name in run.manifest.config))
    columns = [("option", "text"), *((run.label if len(runs) > 1 else "value", "text") for run in runs)]
    rows = [[name, *(run.manifest.config.get(name) for run in runs)] for name in names]
    return Table("Options of the training", columns, rows, folded=True)


def _part(run: Run, name: str, several: bool) -> Table:
    """The options and environment of a part that the training's do not already say."""
    file = run.parts[name]
    config = run.manifest.config
    rows = [["options", key, value] for key, value in (file.options or {}).items() if value != config.get(key)]
    before = dict(_pairs(run.manifest.environment or {}))
    now = _pairs(file.environment or {})
    rows += [["environment", key, value] for key, value in now if value != before.get(key)]
    rows += [["measured on", key, value] for key, value in _about(file.about or About()).items()]
    told = f"Part {name}{f' of {run.label}' if several else ''}: options, versions and subject (where they differ)"
    columns = [("kind", "text"), ("what", "text"), ("value", "text")]
    return Table(told, columns, [[kind, key, written(value, "text")] for kind, key, value in rows], folded=True)


def _about(about: About) -> dict[str, str]:
    told = {"model": about.model.fingerprint if about.model is not None else None}
    told |= {f"{capital(kind_of(sae).one)} at {sae.hookpoint}": sae.fingerprint for sae in about.saes}
    return {key: value for key, value in told.items() if value}
