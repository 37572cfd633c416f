"""What was counted of a run's latents, in short: ``saelora open`` keeps it, ``saelora report`` shows it."""

from collections.abc import Sequence
from pathlib import Path

from saelora.errors import InputError
from saelora.identity import About, same_saes
from saelora.manifest import read_json
from saelora.records import Number, Record


class CountedPassage(Record):
    """Tokens around one of a latent's strongest activations, with the activation at each."""

    tokens: list[str]
    values: list[Number]


class CountedLatent(Record):
    """One latent: see ``saelora.use.census.Summary`` for its figures; effect: None where it is undefined."""

    latent: int
    density: Number
    density_spliced: Number
    most: Number
    n: int
    effect: Number | None
    passages: list[CountedPassage]


class CountedSAE(Record):
    """The latents of one SAE that lead in some order.

    Args:
        n_tokens: positions that the SAE replaces, of those read.
        n_silent: latents that never fire there.
        orders: name -> latents, the first of each order.
        least: times that a latent must fire to be ranked by its effect.
    """

    n_tokens: int
    n_latents: int
    n_silent: int
    least: int
    orders: dict[str, list[int]]
    latents: list[CountedLatent]


class Counted(Record):
    """All of a run's SAEs by hookpoint, counted in ``variant``; about: the run."""

    about: About
    variant: str
    saes: dict[str, CountedSAE]

    def is_of(self, about: About) -> bool:
        """Whether it was counted on this model, these SAEs and this adapter."""
        own, other = self.about, about
        if own.model is None or other.model is None or own.adapter != other.adapter:
            return False
        weights = (own.model.fingerprint, own.model.revision) == (other.model.fingerprint, other.model.revision)
        return weights and same_saes(own.saes, other.saes) and own.tuned_saes == other.tuned_saes

    @property
    def n_tokens(self) -> int:
        return max((each.n_tokens for each in self.saes.values()), default=0)


def find_counted(folder: Path, abouts: Sequence[About]) -> list[Counted | None]:
    """Of each run what was counted on the most text; None where nothing is kept. Damaged files are passed over."""
    kept = []
    for path in sorted(folder.glob("*.json")):
        try:
            kept.append(Counted.read(read_json(path), path, "it is made again when the latents are"))
        except InputError:
            continue
    found = []
    for about in abouts:
        own = [each for each in kept if each.is_of(about)]
        found.append(max(own, key=lambda each: each.n_tokens) if own else None)
    return found
