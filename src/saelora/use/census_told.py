"""A census in short, for ``saelora report``: the latents that lead in some order, with their strongest passages."""

import json
from pathlib import Path

import numpy as np

from saelora.files import write_whole
from saelora.models.hookpoints import Hookpoint
from saelora.reporting.counted import Counted, CountedLatent, CountedPassage, CountedSAE
from saelora.use.census import LEAST, Census, Summary
from saelora.use.exports.activations import Activations
from saelora.use.run import LoadedRun

FIRST, PASSAGES = 12, 3  # latents of an order; passages of a latent


def in_short(census: Census, run: LoadedRun) -> Counted:
    """What a page shows of it."""
    saes = {str(hookpoint): _sae(census, hookpoint) for hookpoint in run.hookpoints}
    return Counted(about=run.about, variant=run.default_name, saes=saes)


def keep_in_short(census: Census, run: LoadedRun, path: Path) -> None:
    """Write it atomically.

    Raises:
        InputError: the disk is full or not writable.
    """
    write_whole(path, json.dumps(in_short(census, run).to_json()).encode())


def _sae(census: Census, hookpoint: Hookpoint) -> CountedSAE:
    found, seen = census.summary(hookpoint), census.activations[hookpoint]
    orders = {name: _first(key) for name, key in _keys(found).items()}
    latents = [_latent(found, seen, i) for i in sorted({i for order in orders.values() for i in order})]
    silent = int((found.density == 0).sum())
    return CountedSAE(
        n_tokens=seen.n_tokens, n_latents=seen.d_sae, n_silent=silent, least=LEAST, orders=orders, latents=latents
    )


def _keys(found: Summary) -> dict[str, np.ndarray]:
    """What each order ranks by, the largest first; nan: not at all. An effect of the other sign is none of its own."""
    effect = np.where(found.n >= LEAST, found.effect, np.nan)
    changed = np.abs(found.density - found.density_spliced)
    return {
        "helped": np.where(effect < 0, -effect, np.nan),
        "hurt": np.where(effect > 0, effect, np.nan),
        "changed": np.where(changed > 0, changed, np.nan),
        "strongest": np.where(found.most > 0, found.most, np.nan),
    }


def _first(key: np.ndarray) -> list[int]:
    order = np.argsort(-key, kind="stable")[:FIRST]  # nan last
    return [int(i) for i in order if not np.isnan(key[i])]


def _latent(found: Summary, seen: Activations, latent: int) -> CountedLatent:
    effect = float(found.effect[latent])
    return CountedLatent(
        latent=latent,
        density=float(found.density[latent]),
        density_spliced=float(found.density_spliced[latent]),
        most=float(found.most[latent]),
        n=int(found.n[latent]),
        effect=None if np.isnan(effect) else effect,
        passages=[CountedPassage(tokens=e.tokens, values=e.values) for e in seen.examples(latent)[:PASSAGES]],
    )
