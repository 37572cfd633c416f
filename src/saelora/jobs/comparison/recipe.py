"""A comparison's recipe: what is compared, read from its YAML file and checked to the last option."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from saelora.config import Count, Named, Options, build, check_keys, check_limit, coerce, hints_of, limits_of, option
from saelora.errors import InputError
from saelora.jobs import adapt, finetune_sae, train_sae
from saelora.jobs.spec import Recipe, Spec, read
from saelora.jobs.training_options import StudentConfig
from saelora.limits import POSITIVE, SEED

SAEMethod = Literal["local", "e2e", "e2e+downstream"]
Method = Literal["lora", "linear", "lora+sae", "finetune-sae"]
JobConfig = train_sae.Config | adapt.Config | finetune_sae.Config
# what the comparison decides for each run, and what to do instead of giving it
_DECIDED = dict.fromkeys(("out", "resume", "overwrite", "track", "shard", "start"), "leave it out")
_DECIDED |= {"seed": "give seeds", "sae": "give from", "variant": "give an entry for each SAE"}
# what may stand under base: options that all jobs have
_JOBS = (train_sae.Config, adapt.Config, finetune_sae.Config)
_SHARED = set.intersection(*(set(hints_of(job)) for job in _JOBS)) - _DECIDED.keys()


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


class Tune(Spec):
    """How each lr of several is tried: on so many tokens, judged on so many held-out ones that are never reported."""

    tokens: Count = option(0, "tokens")
    eval_tokens: Count = option(0, "tokens")


class _Runs(Spec):
    """What an entry may give several of, a run for each, and what holds for all of them."""

    lr: tuple[float, ...] = option((), "learning rates to choose from")
    tokens: tuple[Count, ...] = option((), "budgets")
    seeds: tuple[int, ...] = option((0,), "seeds", limit=SEED)
    evaluations: int = option(6, "along each run", limit=POSITIVE)


class ComparisonSpec(Recipe):
    """A comparison's YAML file; seeds and evaluations are those of entries that have none of their own."""

    over: ClassVar = ("saes", "methods")
    example: ClassVar = "--set context=128, --set seeds=[0] or --set methods.lora.tokens=5k"
    seeds: tuple[int, ...] = option((0,), "seeds", limit=SEED)
    evaluations: int = option(6, "along each run", limit=POSITIVE)
    tune: Options = option({}, "tokens and eval_tokens, see Tune")
    saes: Named = option({}, "name -> options of train-sae")
    methods: Named = option({}, "name -> options of adapt or finetune-sae")


@dataclass(frozen=True)
class ComparisonRecipe:
    """What a comparison's YAML file says."""

    title: str
    base: dict[str, Any]
    tune: Tune | None
    entries: tuple[Entry, ...]


def config_type(entry: Entry) -> type[JobConfig]:
    """The class of the options of an entry's job."""
    return train_sae.Config if entry.kind == "sae" else student_type(entry)


def student_type(entry: Entry) -> type[StudentConfig]:
    """The class of the options of a method's job."""
    return finetune_sae.Config if entry.method == "finetune-sae" else adapt.Config


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> ComparisonRecipe:
    """Read and check a recipe.

    Raises:
        InputError: as ``read`` does, or the entries do not fit one another.
    """
    spec = read(ComparisonSpec, path, overrides)
    twice = [name for name in spec.saes if name in spec.methods]
    if twice:
        raise InputError(f"{path} has {twice[0]!r} under saes and under methods: give one of them another name")
    check_keys(spec.base, _SHARED, f"base of {path}")
    tune = build(Tune, spec.tune, f"tune of {path}") if spec.tune else None
    if tune and not (tune.tokens and tune.eval_tokens):
        raise InputError(f"tune of {path}: expected tokens and eval_tokens, each 1 or more")
    saes = {name: _sae(name, own, spec, f"saes.{name} of {path}") for name, own in spec.saes.items()}
    methods = [_method(name, own, spec, saes, f"methods.{name} of {path}") for name, own in spec.methods.items()]
    entries = (*saes.values(), *methods)
    if not entries:
        raise InputError(f"{path} names nothing to compare: give saes, methods, or both")
    tuned = next((entry for entry in entries if len(entry.lr) > 1), None)
    if tuned and not tune:
        raise InputError(
            f"{'saes' if tuned.kind == 'sae' else 'methods'}.{tuned.name} of {path} has several lr to choose from, "
            "but there is no tune: add tune: {tokens: 10k, eval_tokens: 5k}, or give one lr"
        )
    return ComparisonRecipe(spec.title, spec.base, tune, entries)


def _sae(name: str, own: Options, spec: ComparisonSpec, where: str) -> Entry:
    values = {**spec.base, **own}
    method = coerce(SAEMethod, values.get("objective", "local"), f"objective of {where}")
    shares = coerce(tuple[float, ...], values.pop("checkpoints", ()), f"checkpoints of {where}")
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f"checkpoints of {where} are {list(shares)}, expected shares above 0, up to 1")
    runs = _runs(values, train_sae.Config, spec, where)
    hookpoints = values.get("hookpoint", [])
    if not hookpoints or (isinstance(hookpoints, list) and len(hookpoints) != 1):
        raise InputError(f"hookpoint of {where} is {hookpoints!r}, expected one: an entry trains one SAE")
    shares = tuple(sorted({1.0, *shares}))
    return Entry(name, "sae", method, values, runs.lr, runs.tokens, runs.seeds, runs.evaluations, shares)


def _method(name: str, own: Options, spec: ComparisonSpec, saes: Mapping[str, Entry], where: str) -> Entry:
    values = {**spec.base, **own}
    method, start = coerce(Method, values.pop("method", "lora"), f"method of {where}"), values.pop("from", None)
    job = finetune_sae.Config if method == "finetune-sae" else adapt.Config
    if method != "finetune-sae":
        values["method"] = method
    runs = _runs(values, job, spec, where)
    begin = _start(start, runs.seeds, saes, where)
    return Entry(name, "method", method, values, runs.lr, runs.tokens, runs.seeds, runs.evaluations, (1.0,), begin)


def _runs(values: Options, job: type[JobConfig], spec: ComparisonSpec, where: str) -> _Runs:
    """What an entry says of its runs, taken out of its options; those that are left are checked against its job's."""
    own = {key: values.pop(key) for key in hints_of(_Runs) if key in values}
    for key, instead in _DECIDED.items():
        if key in values:
            raise InputError(f"{where} sets {key}, which the comparison decides: {instead}")
    for key in ("model", "data"):
        if not values.get(key):
            raise InputError(f"{where} names no {key}: give it under base")
    runs = build(_Runs, {"seeds": spec.seeds, "evaluations": spec.evaluations, **own}, where)
    if not runs.tokens or min(runs.tokens) < 1:
        raise InputError(f"{where} needs tokens, 1 or more: one number, or a list with a run for each")
    check_limit(limits_of(job)["lr"], runs.lr, f"lr of {where}")
    for key, given in (("tokens", runs.tokens), ("seeds", runs.seeds), ("lr", runs.lr)):
        if not given and key in runs.given:
            raise InputError(f"{key} of {where} is empty: give one or more, or leave it out")
        if len(set(given)) < len(given):
            raise InputError(f"{key} of {where} holds a value twice: {list(given)}")
    build(job, values, where)
    return runs


def _start(text: Any, seeds: Sequence[int], saes: Mapping[str, Entry], where: str) -> Start:
    """What the text after ``from`` means: NAME or NAME@SHARE of an entry of saes, else an SAE from elsewhere."""
    if not text or not isinstance(text, str):
        raise InputError(f"from of {where} is {text!r}, expected the name of an entry of saes, or an SAE to start from")
    name, at, share = text.partition("@")
    if name not in saes:
        near = difflib.get_close_matches(name, saes, n=1, cutoff=0.75)
        if near:
            raise InputError(f"from of {where} is {text!r}: there is no such entry of saes; did you mean {near[0]!r}?")
        return Start(ref=text)
    sae = saes[name]
    missing = [seed for seed in seeds if seed not in sae.seeds]
    if missing:
        raise InputError(
            f"{where} has seed {missing[0]}, but the SAE that it starts from, {name}, has {list(sae.seeds)}: "
            "give both the same seeds"
        )
    wanted = coerce(float, share, f"share of {text!r}") if at else None
    if wanted is not None and wanted not in sae.checkpoints:
        raise InputError(f"from of {where} is {text!r}, but the checkpoints of {name} are {list(sae.checkpoints)}")
    return Start(name=name, share=wanted)
