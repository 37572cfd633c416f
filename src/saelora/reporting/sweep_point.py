"""One point of a sweep, as its file and the sweep's results.json hold it."""

import math
from typing import Annotated, Self

from pydantic import BeforeValidator, PlainSerializer

from saelora.evals.loss_result import LossFigures, MeanFigures, RowStarts
from saelora.identity import About
from saelora.manifest import Environment
from saelora.records import JsonObject, Number, Record

# NaN has no place in JSON; of a point that diverged, a figure is null
OrNull = Annotated[
    Number,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]


# Of several bases, the last one's fields are written first.
class _Subject(Record):
    """A point's model and SAEs.

    Args:
        status: done or diverged.
        n_parameters: of the model.  d_sae: of the widest SAE.  layer: of the lowest SAE.
    """

    id: str
    status: str
    model: str
    n_parameters: Number | None = None
    sae: list[str]
    hookpoint: list[str]
    layer: Number
    n_saes: Number
    d_sae: Number


class _Adapter(Record):
    """A point's adapter; ``adapted_layer`` where it is one alone."""

    rank: Number
    alpha: Number | None
    placement: str
    adapted_layer: Number | None
    n_adapted_layers: Number | None = None
    lr: Number
    seed: Number


class PointId(_Adapter, MeanFigures, _Subject):
    """What a point is; figures of several SAEs are their mean, n_massive their sum."""


class SweepPoint(LossFigures, PointId):
    """What a point is, what was measured of it, and what that cost.

    Args:
        seconds_group: of training, all points of its group.
        n_branches: points that were trained side by side.
    """

    ce_base: OrNull
    row_starts: RowStarts | None = None
    config: JsonObject
    n_tokens_trained: Number | None = None
    seconds_group: Number | None = None
    n_branches: Number | None = None
    environment: Environment | None = None
    rows_at_once: Number | None = None
    about: About | None = None

    def finite(self) -> Self:
        """What is not finite becomes None, an interval of it goes, and the point has diverged."""
        lost = [
            name
            for name in self.model_fields_set
            if isinstance(value := getattr(self, name), float) and not math.isfinite(value)
        ]
        ci95 = {name: pair for name, pair in self.ci95.items() if all(map(math.isfinite, pair))}
        gone = dict.fromkeys(name for name in lost if name != "ce_base")
        status = {"status": "diverged"} if lost else {}
        return self.model_copy(update={**gone, "ci95": ci95, **status})


class SweepResult(Record):
    """What a sweep's results.json holds; x and series are columns of its points."""

    title: str | None = None
    x: str = "rank"
    series: str | None = None
    points: list[SweepPoint]
