"""A sweep's recipe -> points -> groups of points that can share passes of the model. Pure but for reading the file."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from saelora.config import Options, build, coerce, option, read_yaml
from saelora.errors import InputError
from saelora.evals.variant import AGAINST_BASE
from saelora.jobs import adapt, train_sae
from saelora.jobs.run import NOT_COMPARED
from saelora.jobs.spec import Recipe, compared, digest, read
from saelora.reporting.sweep import AXES, SERIES

SAES = "{saes}"  # in a recipe: the folder of the SAEs that its train_sae names
# What may differ between students of one teacher on the same rows; points that differ in anything else run apart.
BRANCH_KEYS = {"transcoders", "transcoder_layers", "replacement_mode"}
BRANCH_KEYS |= {"sae", "hookpoint", "rank", "alpha", "placement", "rslora", "dora", "init", "dropout"}
BRANCH_KEYS |= {"lr", "schedule", "warmup", "weight_decay", "betas", "clip", "loss"}


class SweepSpec(Recipe):
    """A sweep's recipe: base holds options of ``saelora adapt``."""

    over: ClassVar = ("grid", "points")
    example: ClassVar = "--set tokens=10k or --set grid.rank=[4,64]"
    x: str = option("rank", "column of the results table that the figure is drawn over")
    series: str | None = option(None, "column that gives a line for each of its values")
    grid: Options = option({}, "option -> values, of which every combination is run at every point")
    points: list[Options] = option([{}], "sets of options that go together, over base")
    train_sae: Any = option(None, "options of ``saelora train-sae``, or a file of them, for the SAEs of {saes}")
    arms: tuple[str, ...] = option(("sae", "adapted", "adapted_clean"), "what is measured of each point")


@dataclass(frozen=True)
class Point:
    """One adapter of a sweep: ``values`` are the options that the recipe varies; ``id`` is a hash of all of them."""

    id: str
    values: dict[str, Any]
    config: adapt.Config


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read and check a recipe.

    Raises:
        InputError: as ``read`` does.
    """
    spec = read(SweepSpec, path, overrides)
    for key, values in spec.grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{key} is {values!r}, expected a list of values")
    if not {"sae", "adapted"} <= set(spec.arms) <= set(AGAINST_BASE):
        raise InputError(f"arms of {path} are {list(spec.arms)}, expected sae, adapted, and of adapted_clean, zero any")
    for name, value, known in (("x", spec.x, AXES), ("series", spec.series, SERIES)):
        if value is not None and value not in known:
            raise InputError(f"{name} of {path} is {value!r}: there is no such column, use one of {', '.join(known)}")
    return spec.model_copy(update={"train_sae": _train_sae(spec.train_sae, path)})


def _train_sae(value: Any, path: Path) -> Options | None:
    """Options of train-sae, given in place or as a file beside the recipe."""
    if value is None:
        return None
    if isinstance(value, str):
        value = read_yaml(path.parent / value)
    if not isinstance(value, dict):
        raise InputError(f"train_sae of {path}: expected a YAML file beside it, or options of saelora train-sae")
    values: Options = coerce(Options, value, "train_sae")
    build(train_sae.Config, values, f"train_sae of {path}")
    own = [name for name in train_sae.Config.model_fields if name in NOT_COMPARED and name in values]
    if own:
        raise InputError(f"train_sae of {path} sets {own[0]}, which the sweep sets itself: leave it out")
    return values


def expand(recipe: SweepSpec, source: str) -> list[Point]:
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
            given = {"model": config.model, "sae": config.sae or config.transcoders, "data": config.data}
            missing = next((name for name, value in given.items() if not value), None)
            if missing:
                raise InputError(f"{source} names no {missing}: give it under base, points or grid")
            if recipe.train_sae is None and any(SAES in ref for ref in config.sae):
                raise InputError(f"{source} names SAEs in {SAES} but has no train_sae that would make them")
            made = Point(digest(compared(config)), {key: getattr(config, key) for key in varied}, config)
            if made.id in found:
                raise InputError(f"{source} holds a point twice: {made.values}")
            found[made.id] = made
    return list(found.values())


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
