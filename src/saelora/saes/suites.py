"""Published suites of SAEs, and the positions that their authors leave out: what `--exempt suite` stands for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saelora.errors import InputError
from saelora.limits import EXEMPT
from saelora.saes import registry
from saelora.saes.loading import LoadedSAE

NAME = "suite"


@dataclass(frozen=True)
class Suite:
    """A suite's name, its hub repositories, the token policy of its authors, and where they say so."""

    name: str
    repositories: re.Pattern[str]
    exempt: tuple[str, ...]
    source: str


def _suite(name: str, repositories: str, exempt: Sequence[str], source: str) -> Suite:
    return Suite(name, re.compile(rf"(^|[/-]){repositories}"), tuple(exempt), source)


SUITES = (
    _suite(
        "gemma-scope",
        r"google(/|--)gemma-scope-(2b|9b|27b)-",
        ("bos", "eos", "pad"),
        "arXiv 2408.05147: metrics leave out padding, start and end of sequence",
    ),
    _suite(
        "gemma-scope-2-it",
        r"google(/|--)gemma-scope-2-[^/]*-it\b",
        ("bos", "eos", "pad", "first:4"),
        "circuit-tracer leaves the first four positions, a chat template's beginning, of Gemma 3 it alone",
    ),
    _suite(
        "andyrdt-qwen2.5",
        r"andyrdt(/|--)saes-qwen2\.5-7b-instruct\b",
        ("first:8", "pad", "massive:10"),
        "model card: without each sample's first 8 tokens, and norms above 10 times the median",
    ),
    _suite(
        "adamkarvonen-qwen3",
        r"adamkarvonen(/|--)qwen3-[\w.]+-saes\b",
        ("first", "pad", "massive:10"),
        "model card: without norms above 10 times the median",
    ),
)


def suite_of(sae: LoadedSAE) -> Suite | None:
    """The suite that an SAE's reference names: the registry's release, a repository, or a folder of the hub cache."""
    entry = None if sae.revision is None else registry.find(sae.ref)
    where = sae.ref if entry is None else entry.repo
    return next((suite for suite in SUITES if suite.repositories.search(where)), None)


def with_suite(exempt: Sequence[str], saes: Iterable[LoadedSAE]) -> list[str]:
    """An option's positions, with those of the SAEs' suite in the place of "suite".

    Raises:
        InputError: it is asked for, and the SAEs are of no suite here, or of several with different policies.
    """
    if NAME not in exempt:
        return list(exempt)
    found = {sae.ref: suite_of(sae) for sae in saes}
    unknown = [ref for ref, suite in found.items() if suite is None]
    known = ", ".join(suite.name for suite in SUITES)
    if unknown or not found:
        what = f"{unknown[0]}" if unknown else "no SAE"
        raise InputError(
            f"exempt is suite, and what the authors of {what} leave out is not known here (known: {known}): name the "
            "positions, such as --exempt bos eos pad first"
        )
    policies = {suite.exempt for suite in found.values() if suite is not None}
    if len(policies) > 1:
        told = "; ".join(f"{ref}: {' '.join(suite.exempt)}" for ref, suite in found.items() if suite is not None)
        raise InputError(f"exempt is suite, and the SAEs' suites differ ({told}): name the positions with --exempt")
    (own,) = policies
    return list(dict.fromkeys(part for item in exempt for part in (own if item == NAME else (item,))))


def hint(exempt: Sequence[str], saes: Iterable[LoadedSAE]) -> str | None:
    """A line where the default policy is used with SAEs whose authors say theirs, and it is another."""
    if tuple(exempt) != EXEMPT:
        return None
    suites = dict.fromkeys(filter(None, map(suite_of, saes)))
    others = [suite for suite in suites if set(suite.exempt) - set(EXEMPT)]
    if not others:
        return None
    suite, now = others[0], " ".join(EXEMPT)
    return (
        f"the SAEs are of {suite.name}, whose authors leave out {' '.join(suite.exempt)} ({suite.source}); "
        f"left out now: {now}; --exempt {NAME} takes theirs"
    )
