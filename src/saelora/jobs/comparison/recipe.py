"""A comparison's recipe: what is compared, read from its YAML file and checked to the last option."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from saelora.config import Count, build, check_limit, coerce, hints_of, limits_of, read_yaml
from saelora.errors import InputError
from saelora.jobs import adapt, finetune_sae, train_sae
from saelora.jobs.recipe_file import check_keys, options, override, with_underscores
from saelora.jobs.training_options import StudentConfig

SAEMethod = Literal["local", "e2e", "e2e+downstream"]
Method = Literal["lora", "linear", "lora+sae", "finetune-sae"]
_OWN = ("title", "base", "seeds", "evaluations", "tune", "saes", "methods")
_SECTIONS = {"sae": "saes", "method": "methods"}
_EXAMPLE = "--set context=128, --set seeds=[0] or --set methods.lora.tokens=5k"
# what the comparison decides for each run
_DECIDED = ("out", "resume", "overwrite", "track", "shard", "seed", "sae", "start", "variant")
# what may stand under base: options that all jobs have
_JOBS = (train_sae.Config, adapt.Config, finetune_sae.Config)
_SHARED = tuple(sorted(set.intersection(*(set(hints_of(job)) for job in _JOBS)) - {*_DECIDED}))


@dataclass(frozen=True)
class Start:
    """Where a method begins: an SAE entry's checkpoints (share None: each of them), or an SAE from anywhere (ref)."""

    name: str | None = None
    share: float | None = None
    ref: str | None = None


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: an SAE to be trained, or a method that starts from one.

    method: an SAE's objective (local, e2e, e2e+downstream), or lora, linear, lora+sae, finetune-sae.  values: options
    of its job, base included, without those that are fields here.  lr: empty for the job's default, one value, or
    several to choose from.  budgets: tokens, each of them a run of its own.  evaluations: along each run, evenly
    spaced in tokens, the last at its end.  checkpoints: shares of an SAE's run at which methods may start.
    """

    name: str
    kind: Literal["sae", "method"]
    method: str
    values: dict[str, Any]
    lr: tuple[float, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    evaluations: int
    checkpoints: tuple[float, ...] = (1.0,)
    start: Start | None = None


@dataclass(frozen=True)
class Tune:
    """How each lr of several is tried: on so many tokens, judged on so many held-out ones that are never reported."""

    tokens: int
    eval_tokens: int


@dataclass(frozen=True)
class ComparisonRecipe:
    """What a comparison's YAML file says."""

    title: str
    base: dict[str, Any]
    tune: Tune | None
    entries: tuple[Entry, ...]


JobConfig = train_sae.Config | adapt.Config | finetune_sae.Config


def config_type(entry: Entry) -> type[JobConfig]:
    """The class of the options of an entry's job."""
    return train_sae.Config if entry.kind == "sae" else student_type(entry)


def student_type(entry: Entry) -> type[StudentConfig]:
    """The class of the options of a method's job."""
    return finetune_sae.Config if entry.method == "finetune-sae" else adapt.Config


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> ComparisonRecipe:
    """Read and check a recipe.

    Args:
        overrides: KEY=VALUE with the value in YAML: an option, which then holds for every entry whatever the recipe
            says; base.KEY, which an entry's own wins over; seeds or evaluations; tune.KEY; or saes.NAME.KEY and
            methods.NAME.KEY for one entry alone.

    Raises:
        InputError: the file or a key of it cannot be used.
    """
    loaded = read_yaml(path)
    check_keys(loaded, _OWN, path)
    sections = {section: _entries_of(loaded, section, path) for section in _SECTIONS.values()}
    loaded |= {"base": options(loaded, "base", path), "tune": options(loaded, "tune", path), **sections}
    for text in overrides:
        _override(text, loaded)
    twice = [name for name in sections["saes"] if name in sections["methods"]]
    if twice:
        raise InputError(f"{path} has {twice[0]!r} under saes and under methods: give one of them another name")
    check_keys(loaded["base"], _SHARED, f"base of {path}")
    entries = [
        _entry(kind, name, values, loaded, path)
        for kind, section in _SECTIONS.items()
        for name, values in loaded[section].items()
    ]
    if not entries:
        raise InputError(f"{path} names nothing to compare: give saes, methods, or both")
    tuned = next((entry for entry in entries if len(entry.lr) > 1), None)
    tune = _tune(loaded["tune"], path)
    if tuned and not tune:
        raise InputError(
            f"{_where(tuned, path)} has several lr to choose from, but there is no tune: "
            "add tune: {tokens: 10k, eval_tokens: 5k}, or give one lr"
        )
    by_name = {entry.name: entry for entry in entries if entry.kind == "sae"}
    made = tuple(replace(entry, start=_checked_start(entry, by_name, path)) for entry in entries)
    return ComparisonRecipe(str(loaded.get("title", path.stem)), loaded["base"], tune, made)


def _entries_of(loaded: Mapping[str, Any], section: str, path: Path) -> dict[str, dict[str, Any]]:
    """Name -> options; names are kept as they are written."""
    value = loaded.get(section) or {}
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise InputError(f"{section} of {path}: expected name: {{option: value, ...}} lines")
    return {str(name): with_underscores(values) for name, values in value.items()}


def _override(text: str, loaded: dict[str, Any]) -> None:
    where, key, value = override(text, _EXAMPLE)
    section, _, name = where.partition(".")
    entries = [values for each in _SECTIONS.values() for values in loaded[each].values()]
    if section in _SECTIONS.values():
        if name not in loaded[section]:
            known = ", ".join(loaded[section]) or "none"
            raise InputError(f"--set {text!r}: there is no {name!r} under {section}, but {known}")
        loaded[section][name][key] = value
    elif where in ("base", "tune"):
        loaded[where][key] = value
    elif where:
        raise InputError(f"--set {text!r}: expected KEY=VALUE, such as {_EXAMPLE}")
    else:
        for values in entries:
            values.pop(key, None)
        (loaded if key in ("title", "seeds", "evaluations") else loaded["base"])[key] = value


def _tune(values: dict[str, Any], path: Path) -> Tune | None:
    if not values:
        return None
    check_keys(values, ("tokens", "eval_tokens"), f"tune of {path}")
    found = {key: coerce(Count, values.get(key, 0), f"tune.{key}") for key in ("tokens", "eval_tokens")}
    if not all(found.values()):
        raise InputError(f"tune of {path}: expected tokens and eval_tokens, each 1 or more")
    return Tune(**found)


def _entry(kind: Any, name: str, own: Mapping[str, Any], loaded: Mapping[str, Any], path: Path) -> Entry:
    """One entry, its options checked against its job's, its start not yet."""
    values, where = {**loaded["base"], **own}, f"{_SECTIONS[kind]}.{name} of {path}"
    lr = coerce(tuple[float, ...], values.pop("lr", ()), f"lr of {where}")
    budgets = coerce(tuple[Count, ...], values.pop("tokens", ()), f"tokens of {where}")
    seeds = coerce(tuple[int, ...], values.pop("seeds", loaded.get("seeds", 0)), f"seeds of {where}")
    evaluations = coerce(int, values.pop("evaluations", loaded.get("evaluations", 6)), f"evaluations of {where}")
    shares, start = (1.0,), None
    if kind == "sae":
        method = coerce(SAEMethod, values.get("objective", "local"), f"objective of {where}")
        shares += coerce(tuple[float, ...], values.pop("checkpoints", ()), f"checkpoints of {where}")
    else:
        method = coerce(Method, values.pop("method", "lora"), f"method of {where}")
        start = Start(ref=values.pop("from", None))
        if method != "finetune-sae":
            values["method"] = method
    entry = Entry(name, kind, method, values, lr, budgets, seeds, evaluations, tuple(sorted({*shares})), start)
    _check_entry(entry, own, where)
    build(config_type(entry), values, where)
    return entry


def _check_entry(entry: Entry, own: Mapping[str, Any], where: str) -> None:
    values = entry.values
    decided = next((key for key in _DECIDED if key in values), None)
    if decided:
        instead = {"seed": ": give seeds", "sae": ": give from", "variant": ": give an entry for each SAE"}
        raise InputError(
            f"{where} sets {decided}, which the comparison decides{instead.get(decided, ': leave it out')}"
        )
    for name in ("model", "data"):
        if not values.get(name):
            raise InputError(f"{where} names no {name}: give it under base")
    if not entry.budgets or min(entry.budgets) < 1:
        raise InputError(f"{where} needs tokens, 1 or more: one number, or a list with a run for each")
    for key, several in (("seeds", entry.seeds), *(("lr", entry.lr) for _ in own.keys() & {"lr"})):
        if not several:
            raise InputError(f"{key} of {where} is empty: give one or more, or leave it out")
    limits = limits_of(config_type(entry))
    for key, given in (("seed", entry.seeds), ("lr", entry.lr)):
        check_limit(limits.get(key), given, f"{key} of {where}")
    for key, given in (("tokens", entry.budgets), ("seeds", entry.seeds), ("lr", entry.lr)):
        if len(set(given)) < len(given):
            raise InputError(f"{key} of {where} holds a value twice: {list(given)}")
    if entry.evaluations < 1:
        raise InputError(f"evaluations of {where} is {entry.evaluations}, expected 1 or more")
    if not all(0 < share <= 1 for share in entry.checkpoints):
        raise InputError(f"checkpoints of {where} are {list(entry.checkpoints)}, expected shares above 0, up to 1")
    if entry.kind == "sae":
        hookpoints = values.get("hookpoint", [])
        if not hookpoints or (isinstance(hookpoints, list) and len(hookpoints) != 1):
            raise InputError(f"hookpoint of {where} is {hookpoints!r}, expected one: an entry trains one SAE")


def _checked_start(entry: Entry, saes: Mapping[str, Entry], path: Path) -> Start | None:
    """What the text after ``from`` means: NAME or NAME@SHARE of an entry of saes, else an SAE from elsewhere."""
    if entry.start is None:
        return None
    text, where = entry.start.ref, _where(entry, path)
    if not text or not isinstance(text, str):
        raise InputError(f"from of {where} is {text!r}, expected the name of an entry of saes, or an SAE to start from")
    name, at, share = text.partition("@")
    near = difflib.get_close_matches(name, saes, n=1, cutoff=0.75)
    if name not in saes:
        if near:
            raise InputError(f"from of {where} is {text!r}: there is no such entry of saes; did you mean {near[0]!r}?")
        return Start(ref=text)
    sae = saes[name]
    missing = [seed for seed in entry.seeds if seed not in sae.seeds]
    if missing:
        raise InputError(
            f"{where} has seed {missing[0]}, but the SAE that it starts from, {name}, has {list(sae.seeds)}: "
            "give both the same seeds"
        )
    if not at:
        return Start(name=name)
    wanted = coerce(float, share, f"share of {text!r}")
    if wanted not in sae.checkpoints:
        raise InputError(f"from of {where} is {text!r}, but the checkpoints of {name} are {list(sae.checkpoints)}")
    return Start(name=name, share=wanted)


def _where(entry: Entry, path: Path) -> str:
    return f"{_SECTIONS[entry.kind]}.{entry.name} of {path}"
