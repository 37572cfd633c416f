"""A sweep's recipe -> points -> groups of points that can share passes of the model. Pure but for reading the file."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saelora.config import build, read_yaml
from saelora.errors import InputError
from saelora.jobs import adapt, train_sae
from saelora.jobs.recipe_file import check_keys, compared, digest, options, override, with_underscores
from saelora.jobs.run import NOT_COMPARED
from saelora.reporting.sweep import AXES, SERIES

SAES = "{saes}"  # in a recipe: the folder of the SAEs that its train_sae names
# What may differ between students of one teacher on the same rows; points that differ in anything else run apart.
BRANCH_KEYS = {"sae", "hookpoint", "rank", "alpha", "placement", "rslora", "dora", "init", "dropout"}
BRANCH_KEYS |= {"lr", "schedule", "warmup", "weight_decay", "betas", "clip", "loss"}
_OWN = ("title", "x", "series", "base", "grid", "points", "train_sae", "arms")
_ARMS = ("sae", "adapted", "adapted_clean", "zero")


@dataclass(frozen=True)
class SweepRecipe:
    """What a sweep's YAML file says.

    base: options of ``saelora adapt`` for all points.  points: one or more mappings over it.  grid: option -> values;
    every combination is run at every point.  x, series: columns of the results table for the figure.  train_sae:
    options of ``saelora train-sae`` for the SAEs that ``{saes}`` stands for.
    """

    title: str = ""
    x: str = "rank"
    series: str | None = None
    base: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    train_sae: dict[str, Any] | None = None
    arms: tuple[str, ...] = ("sae", "adapted", "adapted_clean")


@dataclass(frozen=True)
class Point:
    """One adapter of a sweep: ``values`` are the options that the recipe varies; ``id`` is a hash of all of them."""

    id: str
    values: dict[str, Any]
    config: adapt.Config


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> SweepRecipe:
    """Read and check a recipe; overrides are KEY=VALUE with the value in YAML: base options, or grid.KEY=[...].

    Raises:
        InputError: the file or a key of it cannot be used.
    """
    loaded = read_yaml(path)
    check_keys(loaded, _OWN, path)
    base, grid = options(loaded, "base", path), options(loaded, "grid", path)
    points = loaded.get("points", [{}])
    if not isinstance(points, list) or not points or not all(isinstance(p, dict) for p in points):
        raise InputError(f"points of {path}: expected a list of mappings, each with options of saelora adapt")
    points = [with_underscores(point) for point in points]
    for text in overrides:
        _override(text, base, grid, points)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{key} is {values!r}, expected a list of values")
    arms = tuple(loaded.get("arms", SweepRecipe.arms))
    if not {"sae", "adapted"} <= set(arms) or not set(arms) <= set(_ARMS):
        raise InputError(f"arms of {path} are {list(arms)}, expected sae, adapted, and of adapted_clean, zero any")
    title, x, series = loaded.get("title", path.stem), loaded.get("x", "rank"), loaded.get("series")
    for name, value, known in (("x", x, (*AXES,)), ("series", series, (None, *SERIES))):
        if value not in known:
            raise InputError(
                f"{name} of {path} is {value!r}: there is no such column, use one of {', '.join(filter(None, known))}"
            )
    saes = _train_sae(loaded.get("train_sae"), path)
    return SweepRecipe(str(title), x, series, base, grid, points, saes, arms)


def expand(recipe: SweepRecipe, source: str) -> list[Point]:
    """All points, in the recipe's order.

    Raises:
        InputError: an option that adapt lacks, a value of the wrong kind, or two points that are the same.
    """
    varied = [*dict.fromkeys(key for point in recipe.points for key in point), *recipe.grid]
    found: dict[str, Point] = {}
    for point in recipe.points:
        for combination in itertools.product(*recipe.grid.values()):
            values = {**recipe.base, **point, **dict(zip(recipe.grid, combination, strict=True))}
            config = build(adapt.Config, values, source)
            if not config.model or not config.sae or not config.data:
                missing = next(name for name in ("model", "sae", "data") if not getattr(config, name))
                raise InputError(f"{source} names no {missing}: give it under base, points or grid")
            if recipe.train_sae is None and any(SAES in ref for ref in config.sae):
                raise InputError(f"{source} names SAEs in {SAES} but has no train_sae that would make them")
            made = Point(point_id(config), {key: getattr(config, key) for key in varied}, config)
            if made.id in found:
                raise InputError(f"{source} holds a point twice: {made.values}")
            found[made.id] = made
    return list(found.values())


def point_id(config: adapt.Config) -> str:
    """12 hex digits over all options that bear on a run's result."""
    return digest(compared(config))


def adapter_folder(folder: Path, point: Point) -> Path:
    """Where a finished point's adapter is written, as a run of its own."""
    return folder / "adapters" / point.id


def row_file(folder: Path, point: Point) -> Path:
    """Where a finished point's row is written."""
    return folder / "points" / f"{point.id}.json"


def group_points(points: Sequence[Point]) -> list[list[Point]]:
    """Points that can share their teacher's passes, together; groups of one model follow one another."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        values = {key: value for key, value in compared(point.config).items() if key not in BRANCH_KEYS}
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(point)
    order = list(dict.fromkeys(str(point.config.model) for point in points))
    return sorted(groups.values(), key=lambda group: order.index(str(group[0].config.model)))


def split(points: Sequence[Point], limit: int) -> list[list[Point]]:
    """Groups of at most ``limit`` points, as even as possible."""
    n = -(-len(points) // max(1, limit))
    bounds = [len(points) * i // n for i in range(n + 1)]
    return [list(points[a:b]) for a, b in itertools.pairwise(bounds)]


def _override(text: str, base: dict[str, Any], grid: dict[str, Any], points: list[dict[str, Any]]) -> None:
    """An option set from outside holds for all points, whatever the recipe says of it."""
    where, name, value = override(text, "--set tokens=10k or --set grid.rank=[4,64]")
    if where not in ("", "grid"):
        name = f"{where}.{name}"  # no option's name: the check of all options says so
    for mapping in (base, grid, *points):
        mapping.pop(name, None)
    (grid if where == "grid" else base)[name] = value


def _train_sae(value: Any, path: Path) -> dict[str, Any] | None:
    """Options of train-sae, given in place or as a file beside the recipe."""
    if value is None:
        return None
    if isinstance(value, str):
        value = read_yaml(path.parent / value)
    if not isinstance(value, dict):
        raise InputError(f"train_sae of {path}: expected a YAML file beside it, or options of saelora train-sae")
    values = with_underscores(value)
    build(train_sae.Config, values, f"train_sae of {path}")
    own = [name for name in train_sae.Config.model_fields if name in NOT_COMPARED and name in values]
    if own:
        raise InputError(f"train_sae of {path} sets {own[0]}, which the sweep sets itself: leave it out")
    return values
