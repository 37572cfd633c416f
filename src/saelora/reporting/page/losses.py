"""What every run has: arms, gap, learning curve, and several runs side by side."""

from collections.abc import Sequence

from saelora.evals.loss_result import LossResult
from saelora.identity import BOTH, SAE, Kind, groups, kind_of, not_comparable, replacement_name
from saelora.reporting import names
from saelora.reporting.format import capital, finite
from saelora.reporting.page import charts
from saelora.reporting.page.charts import GapBar, Series, style
from saelora.reporting.page.read import Run, apart
from saelora.reporting.page.view import Figure, Section, Table, by_run, names_of, row_of
from saelora.reporting.text import has_gap

# what stands beside FVU, which a token or two may make: key -> the column's name and form
SPREAD = {
    "fvu_rest": ("FVU without the largest 0.1 % of tokens", "number"),
    "top_variance": ("variance that those hold", "share"),
    "relative_error": ("error of a token, median", "number"),
    "relative_error_q10": ("10 %", "number"),
    "relative_error_q90": ("90 %", "number"),
}


def comparison(runs: Sequence[Run]) -> Table:
    """A row a run: what it was and what it bought."""
    spliced, by_mode = _kind(runs), any(run.about.replacement for run in runs)
    columns = [
        ("run", "text"),
        ("model", "text"),
        (spliced.many, "text"),
        *([("transcoders put in", "text")] if by_mode else []),
        ("rank", "number"),
        ("placement", "text"),
        ("tokens", "count"),
        ("CE original", "nats"),
        ("CE spliced", "nats"),
        ("CE adapted", "nats"),
        ("gap closed", "share"),
        ("KL adapted", "nats"),
        (f"CE, {spliced.one} out" if spliced is not BOTH else "CE, splice out", "nats"),
    ]
    letters = groups([run.about for run in runs])
    marked = len(set(letters)) > 1
    columns[1:1] = [("text", "text")] if marked else []
    rows = []
    for run, letter in zip(runs, letters, strict=True):
        config, results = run.manifest.config, run.results
        saes = ", ".join(sae.hookpoint for sae in run.manifest.saes)
        row = [
            run.label,
            *([letter] if marked else []),
            run.manifest.model.ref,
            saes,
            *([_put_in(run)] if by_mode else []),
            config.get("rank"),
            config.get("placement"),
        ]
        row += [results.n_tokens_trained, results.ce_base, results.ce_sae, results.ce_adapted]
        row += [results.estimate("gap_closed") if has_gap(results) else None]
        rows.append([*row, results.kl_adapted, results.ce_adapted_clean])
    return Table("The runs side by side (CE: cross entropy, nats per predicted token)", columns, rows)


def arms(
    results: Sequence[tuple[Run, LossResult]],
    caption: str = "Variants of the model",
    folded: bool = False,
    part: str = "",
) -> Table:
    """The variants of each run's model, with 95 % intervals.

    Args:
        part: that measured them; empty for the run itself.
    """
    columns = [
        ("model", "text"),
        ("cross entropy", "nats"),
        ("KL to original", "nats"),
        ("top-1 agreement", "share"),
        ("loss recovered", "share"),
    ]
    runs = [run for run, _ in results]
    rows = [
        row_of(runs, run, [name, *found.estimates(variant)])
        for run, found in results
        for variant, name in names_of(run, part).items()
        if found.of(variant) is not None
    ]
    return Table(f"{caption}: nats per predicted token, with 95 % intervals", by_run(runs, columns), rows, folded)


def _kind(runs: Sequence[Run]) -> Kind:
    """What is spliced in, in any of the runs."""
    return kind_of(*(sae for run in runs for sae in run.manifest.saes))


def _put_in(run: Run) -> str | None:
    """How the run's transcoders were put in; None where it has none."""
    return None if kind_of(*run.manifest.saes) is SAE else replacement_name(run.about.replacement)


def saes(runs: Sequence[Run]) -> Table:
    """The own figures of what is spliced in, as it came, and as trained where a run trained it."""
    kind, trained = _kind(runs), any(run.results.saes_adapted for run in runs)
    columns = [
        ("hookpoint", "text"),
        *([("kind", "text")] if kind is BOTH else []),
        (kind.one, "text"),
        *([("weights", "text")] if trained else []),
        ("latents", "count"),
        ("FVU", "number"),
        *SPREAD.values(),
        ("L0", "number"),
        ("dead share", "share"),
    ]
    keys = ["fvu", *SPREAD, "l0", "dead_frac"]
    if any(each.n_massive is not None for run in runs for each in run.results.saes.values()):
        columns += [("spared as massive", "count"), ("norm above", "number")]
        keys += ["n_massive", "massive_limit"]
    rows = []
    for run in runs:
        for sae in run.manifest.saes:
            own = [sae.hookpoint, *([kind_of(sae).one] if kind is BOTH else []), sae.ref]
            for weights, found in (("before training", run.results.saes), ("as trained", run.results.saes_adapted)):
                figures = found.get(sae.hookpoint)
                if figures is None and weights == "as trained":
                    continue
                row = [*own, *([weights] if trained else []), sae.d_sae]
                rows.append(row_of(runs, run, [*row, *(getattr(figures, key, None) for key in keys)]))
    told = f"{kind.many} (FVU: fraction of variance unexplained; error of a token: squared, over its squared norm; L0: "
    return Table(f"{capital(told)}active latents per token)", by_run(runs, columns), rows)


def _spliced_in(runs: Sequence[Run]) -> str:
    """Its name, in the plural where any run has several."""
    return _kind(runs).of(max(len(run.manifest.saes) for run in runs))


def gap(runs: Sequence[Run]) -> Figure | None:
    """The bar from the original model's cross entropy to the spliced one's."""
    bars, rows = [], []
    for run in runs:
        results = run.results
        base, spliced, adapted = results.ce_base, finite(results.ce_sae), finite(results.ce_adapted)
        if adapted is None or spliced is None:
            continue
        cost, left = spliced - base, adapted - base
        bars.append(GapBar(run.label if len(runs) > 1 else "", cost, left, ends_of_left(results)))
        closed = results.estimate("gap_closed") if has_gap(results) else None
        rows.append([run.label, base, spliced, adapted, cost, cost - left, closed])
    if not bars:
        return None
    columns = [("run", "text"), ("CE original", "nats"), ("CE spliced", "nats"), ("CE adapted", "nats")]
    columns += [(f"cost of the {_spliced_in(runs)}", "nats"), ("won back", "nats"), ("gap closed", "share")]
    told = "The gap: from the original model (0) to the spliced one, and how much of it was won back."
    if any(bar.interval for bar in bars):
        told += " The whisker is the 95 % interval of that share."
    return Figure("gap", told, charts.gap_bars(bars, "gap"), Table("The gap", columns, rows))


def ends_of_left(results: LossResult) -> list[float] | None:
    """Interval of what is left of the gap, in nats: that of the share closed; None where there is none."""
    interval, base, spliced = results.interval("gap_closed"), results.ce_base, results.ce_sae
    if not interval or spliced is None or not has_gap(results):
        return None
    return sorted((spliced - base) * (1 - share) for share in interval)


def learning_curve(runs: Sequence[Run]) -> Figure | None:
    """What was gained on a few held-out rows against tokens of adaptation."""
    shares = [run for run in runs if has_gap(run.results)]
    scale = 100.0 if shares else 1.0
    series, rows, levels = [], [], []
    for i, run in enumerate(runs):
        found = [(row, finite(row.gap_closed if shares else row.ce)) for row in run.results.history]
        points = [(row, value * scale) for row, value in found if value is not None]
        if not points or (shares and run not in shares):
            continue
        label = run.label if len(runs) > 1 else "while adapting (a few rows)"
        series.append(
            Series(label, [row.n_tokens for row, _ in points], [value for _, value in points], style=style(i))
        )
        rows += [row_of(runs, run, [row.n_tokens, row.gap_closed, row.ce, row.kl]) for row, _ in points]
    if not series:
        return None
    only = runs[0].results if len(runs) == 1 else None
    if only and shares and only.gap_closed is not None:
        levels = [("at the end (all rows)", only.gap_closed * 100)]
    elif only and only.ce_sae is not None:
        levels = [("original model", only.ce_base), ("spliced model", only.ce_sae)]
    y = "share of the gap closed (%)" if shares else "cross entropy (nats)"
    svg = charts.lines(
        series, "learning-curve", "tokens of adaptation", y, zero=bool(shares), levels=levels, thousands=True
    )
    columns = [("tokens", "count"), ("gap closed", "share"), ("cross entropy", "nats"), ("KL", "nats")]
    told = "Learning curve on held-out text."
    told += " " if shares else f" {_no_cost(runs)}, so the cross entropy itself is shown. "
    told += "The points are measured on a few rows only; the table above on all of them."
    return Figure("learning-curve", told, svg, Table("Learning curve", by_run(runs, columns), rows))


def _no_cost(runs: Sequence[Run]) -> str:
    name = _spliced_in(runs)
    return f"The {name} {'have' if name.endswith('s') else 'has'} no measurable cost"


def overview(runs: Sequence[Run]) -> Section:
    """The page's first section."""
    own = [(run, run.results) for run in runs]
    first = [comparison(runs), arms(own, folded=True)] if len(runs) > 1 else [arms(own)]
    again = [(run, run.again) for run in runs if run.again is not None]
    tables = [saes(runs)]
    if again:
        tables.append(arms(again, "Measured again by saelora evaluate", folded=True, part="loss"))
    figures = [figure for figure in (gap(runs), learning_curve(runs)) if figure is not None]
    about = (
        "Held-out text, each row read by every variant of the model. Loss recovered: 100 % is the original model, 0 % "
        f"the model with the {names.possessive(_spliced_in(runs))} output replaced by zeros."
    )
    told = not_comparable([run.about for run in runs], "runs") if len(runs) > 1 else []
    for run in runs:
        if "loss" in run.parts and (found := apart(run, "loss")):
            name = f"{run.label}: the" if len(runs) > 1 else "The"
            told.append(f"{name} losses that were measured again do not compare with the first ones: {found}.")
    gist = [(run.label if len(runs) > 1 else "", _gist(run.results)) for run in runs]
    return Section("results", "Result", about, figures=figures, tables=tables, first=first, warnings=told, gist=gist)


def _gist(results: LossResult) -> str:
    """What the lead leaves out: how near the original the predictions are."""
    told = []
    for name, before, after, form in (
        ("KL to the original", results.kl_sae, results.kl_adapted, "{:.4f}"),
        ("top-1 agreement", results.top1_sae, results.top1_adapted, "{:.1%}"),
    ):
        known = [form.format(value) for value in (before, after) if value is not None]
        told += [f"{name} {' → '.join(known)}"] if known else []
    return ", ".join(told) or f"cross entropy {results.ce_base:.4f} nats per token"
