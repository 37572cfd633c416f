"""What a comparison found, in a few plain sentences."""

from collections.abc import Sequence

from saelora.evals.estimate import Estimate, numbers
from saelora.evals.loss_result import LossFigures
from saelora.identity import not_comparable
from saelora.reporting.comparison.curves import finite, speedup_to_e2e
from saelora.reporting.comparison.equal import EQUAL, equal_seconds, equal_tokens, main_group
from saelora.reporting.comparison.run import ComparisonRun
from saelora.reporting.text import ended_worse

_OF_COST = {"seconds": "training time", "n_tokens": "training tokens", "model_flops": "operations"}


def words(runs: Sequence[ComparisonRun]) -> list[str]:
    """What was found, and what must be known of it: ``findings`` and ``notes``."""
    return [*findings(runs), *notes(runs)]


def notes(runs: Sequence[ComparisonRun]) -> list[str]:
    """Which runs do not compare, since they were measured on something else, and which ended worse than they began."""
    worse = [f"{run.name} (seed {run.seed})" for run in runs if _ended_worse(run)]
    told = [f"Ended worse than the SAE that it began from: {_listed(list(dict.fromkeys(worse)))}."] if worse else []
    return [*not_comparable([run.about for run in runs], "runs"), *told]


def _ended_worse(run: ComparisonRun) -> bool:
    final = run.final
    if final.ce is None:
        return False
    losses = LossFigures(ce_base=final.ce_base, ce_sae=final.ce_sae, ce_adapted=final.ce, ci95=final.ci95)
    return bool(ended_worse(losses))


def findings(runs: Sequence[ComparisonRun]) -> list[str]:
    """Who reaches the end-to-end loss how much sooner, and which methods can be told apart; [] for nothing to tell."""
    told = [_reaching(runs), *_at_equal_tokens(runs), _in_equal_time(runs), _diverged(runs)]
    return [sentence for sentence in told if sentence]


def _reaching(runs: Sequence[ComparisonRun]) -> str | None:
    costs = speedup_to_e2e(runs)
    if not costs:
        return None
    best = costs["seconds"]
    loss, target = f"{best.loss:.3f} nats per token", best.target
    if best.median is None:
        return f"No other way that was tried reaches the lowest loss of {target}, {loss}."
    parts = [f"{_times(row.median)} {_OF_COST[cost]}" for cost, row in costs.items() if row.median]
    n, of = best.n_reached, len(best.per_seed)
    told = f"{best.rival} reaches the lowest loss of {target}, {loss}, with {_listed(parts)}, all training counted."
    if n < of:
        return f"{told} It does so with {n} of {of} seeds."
    if n == 1:
        return f"{told} This is one seed."
    return f"{told} The speed-up in time lies between {best.least:.2f} and {best.most:.2f} over {n} seeds."


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more"


def _at_equal_tokens(runs: Sequence[ComparisonRun]) -> list[str]:
    group = main_group(equal_tokens(runs))
    if not group:
        return []
    budget, start = group[0].budget, group[0].start
    best_first = sorted(group, key=lambda row: -row.value)
    closed = _listed([f"{row.name} {row.value:.1%}" for row in best_first])
    told = [f"Share of the SAE's gap that {budget:,} tokens of training close, from {start}: {closed}."]
    rest = [row for row in group if row.difference is not None]
    if not rest:
        return told if len(group) == 1 else [*told, "With one seed the methods cannot be told apart."]
    first = next(row.name for row in group if row.difference is None)
    n = min(len(row.per_seed) for row in rest)
    shares = [(row.name, row.difference) for row in rest if row.difference is not None]
    points = _told_apart(shares, first, ("closed more than", "closed less than"), "{:+.1f}", 100, "points")
    told.append(f"By 95 % intervals of differences paired over {n} seeds: {points}.")
    by_kl = [(row.name, row.kl_difference) for row in rest if row.kl_difference is not None]
    if by_kl:
        nats = _told_apart(by_kl, first, ("ended above", "ended below"), "{:+.4f}", 1, "nats")
        told.append(f"By KL to the original model, which is what all of them train on: {nats}.")
    return told


def _told_apart(
    found: Sequence[tuple[str, Estimate]], first: str, verbs: tuple[str, str], form: str, scale: float, unit: str
) -> str:
    """Which methods' differences from the first one exclude zero, and on which side."""
    kinds: dict[str, list[str]] = {"more": [], "less": [], "same": []}
    for name, difference in found:
        _, low, high = numbers(difference)
        kind = "more" if low > 0 else "less" if high < 0 else "same"
        kinds[kind].append(f"{name} ({form.format(low * scale)} to {form.format(high * scale)} {unit})")
    parts = [f"{_listed(kinds[k])} {verb} {first}" for k, verb in zip(("more", "less"), verbs, strict=True) if kinds[k]]
    if kinds["same"]:
        parts.append(f"{_listed(kinds['same'])} cannot be told apart from {first}")
    return "; ".join(parts)


def _in_equal_time(runs: Sequence[ComparisonRun]) -> str | None:
    group = main_group(equal_seconds(runs))
    equal = [row for row in group if row.how in EQUAL]
    if len(equal) < 2:
        return None
    best_first = sorted(equal, key=lambda row: -row.value)
    closed = _listed([f"{row.name} {row.value:.1%}" for row in best_first])
    return f"Share that {group[0].limit:,.0f} seconds of training close, from the same: {closed}."


def _diverged(runs: Sequence[ComparisonRun]) -> str | None:
    lost = [f"{run.name} (seed {run.seed})" for run in runs if not finite(run.final.ce)]
    return f"Diverged, and left out of all figures: {_listed(list(dict.fromkeys(lost)))}." if lost else None


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
