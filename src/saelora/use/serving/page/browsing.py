"""The latents browser's endpoints."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool, StrictInt, StrictStr

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint
from saelora.use.census import LEAST, Census
from saelora.use.directions import decoder_of, logit_weights, nearest
from saelora.use.run import LoadedRun
from saelora.use.serving.bodies import read
from saelora.use.serving.engine import Engine
from saelora.use.serving.http import Door, Limits, on_engine, read_json
from saelora.use.serving.page import files, views
from saelora.use.serving.page.bodies import PageBody
from saelora.use.serving.page.counting import Counting

BINS, NEAREST, LOGITS, PEAKS = 24, 8, 10, 3


class ListBody(PageBody):
    """Latents in an order; ``search``: a latent's number, or text of the tokens that it is strongest on."""

    hookpoint: StrictStr | None = None
    sort: Literal["density", "most", "effect", "latent"] = "density"
    descending: StrictBool = True
    search: StrictStr = Field("", max_length=100)
    offset: StrictInt = Field(0, ge=0)
    limit: StrictInt = Field(50, ge=1, le=200)


class LatentBody(PageBody):
    """One latent."""

    hookpoint: StrictStr | None = None
    latent: StrictInt = Field(ge=0)


def browsing(engine: Engine, limits: Limits, door: Door, n_tokens: int) -> APIRouter:
    """Progress, the list, and one latent."""
    router, counting = APIRouter(prefix="/page/api"), Counting(engine, n_tokens)
    peaks: dict[Hookpoint, list[list[str]]] = {}

    def peaks_of(hookpoint: Hookpoint, census: Census) -> list[list[str]]:
        if hookpoint not in peaks:
            peaks[hookpoint] = _peaks(census, hookpoint, engine.token)
        return peaks[hookpoint]

    @router.post("/latents")
    async def latents(request: Request) -> JSONResponse:
        door.check(request)
        body = read(ListBody, await read_json(request))
        where = views.hookpoint_of(engine.run, body.hookpoint)
        counting.begin()
        found = {"progress": counting.told()}
        if counting.census is not None:
            found |= listed(counting.census, where, body, peaks_of(where, counting.census))
        return JSONResponse(found, headers=files.HEADERS)

    @router.post("/latent")
    async def latent(request: Request) -> JSONResponse:
        door.check(request)
        body = read(LatentBody, await read_json(request))
        where = views.hookpoint_of(engine.run, body.hookpoint)
        if body.latent >= engine.run.sizes[where]:
            raise InputError(f"latent {body.latent} is not there: the SAE at {where} has {engine.run.sizes[where]:,}")
        counting.begin()
        found: dict[str, Any] = {"hookpoint": str(where), "latent": body.latent, "progress": counting.told()}
        found |= await on_engine(request, engine, limits, lambda run: weights(run, where, body.latent, engine.token))
        if counting.census is not None:
            found |= seen(counting.census, where, body.latent)
        return JSONResponse(found, headers=files.HEADERS)

    return router


def _peaks(census: Census, hookpoint: Hookpoint, text_of: Callable[[int], str]) -> list[list[str]]:
    """Of each latent the different tokens of its strongest activations."""
    activations = census.activations[hookpoint]
    texts: dict[int, str] = {}
    found: list[list[str]] = []
    for latent in range(activations.d_sae):
        tokens = [int(census.rows[row, at]) for row, at in activations.strongest(latent, 4 * PEAKS)]
        for token in set(tokens) - texts.keys():
            texts[token] = text_of(token)
        found.append(list(dict.fromkeys(texts[token] for token in tokens))[:PEAKS])
    return found


def listed(census: Census, hookpoint: Hookpoint, body: ListBody, peaks: list[list[str]]) -> dict[str, Any]:
    """The part of the list that is asked for. Latents that never fire, or too seldom to be ranked, come last."""
    found = census.summary(hookpoint)
    keys = {"density": found.density, "most": found.most, "latent": np.arange(len(found.density)) + 1.0}
    effect = np.where(found.n >= LEAST, found.effect, np.nan)
    key = effect if body.sort == "effect" else np.where(found.density > 0, keys[body.sort], np.nan)
    key = keys["latent"] if body.sort == "latent" else key
    order = np.argsort(-key if body.descending else key, kind="stable")  # nan last, either way
    if text := body.search.strip().casefold():
        kept = {i for i, tokens in enumerate(peaks) if any(text in token.casefold() for token in tokens)}
        if text.lstrip("#").isdigit():
            kept |= {int(text.lstrip("#"))}
        order = order[np.isin(order, list(kept))]
    part = order[body.offset : body.offset + body.limit].tolist()
    rows = [{"latent": i, **figures(census, hookpoint, i), "peaks": peaks[i]} for i in part]
    return {"total": len(order), "rows": rows, "least": LEAST, **about(census, hookpoint)}


def about(census: Census, hookpoint: Hookpoint) -> dict[str, Any]:
    """On what it was counted."""
    found = census.summary(hookpoint)
    return {
        "n_tokens": census.activations[hookpoint].n_tokens,
        "silent": int((found.density == 0).sum()),
        "variant": census.activations[hookpoint].loaded.default_name,
    }


def figures(census: Census, hookpoint: Hookpoint, latent: int) -> dict[str, Any]:
    """One latent's."""
    found = census.summary(hookpoint)
    effect = float(found.effect[latent])
    return {
        "density": float(found.density[latent]),
        "density_spliced": float(found.density_spliced[latent]),
        "most": float(found.most[latent]),
        "n": int(found.n[latent]),
        "effect": None if np.isnan(effect) else effect,
    }


def seen(census: Census, hookpoint: Hookpoint, latent: int) -> dict[str, Any]:
    """Where one latent fires: figures, histogram, the rows that it is strongest in."""
    activations = census.activations[hookpoint]
    values = activations.of(latent)
    least, most = float(values.min(initial=0)), float(values.max(initial=0))
    counts, edges = np.histogram(values, BINS, (least, most if most > least else least + 1))
    passages = [
        {"row": each.row, "start": each.start, "tokens": each.tokens, "values": each.values}
        for each in activations.examples(latent)
    ]
    histogram = {"counts": counts.tolist(), "edges": edges.tolist()}
    told = figures(census, hookpoint, latent)
    return {"figures": told, "histogram": histogram, "passages": passages, **about(census, hookpoint)}


def weights(run: LoadedRun, hookpoint: Hookpoint, latent: int, text_of: Callable[[int], str]) -> dict[str, Any]:
    """What one latent adds to the logits directly, before and after adaptation, and its nearest by the decoder."""
    decoder = decoder_of(run.saes_of_default[hookpoint])
    sides = {}
    for name, adapted in (("original", False), ("adapted", True)):
        of = logit_weights(run, hookpoint, adapted=adapted)
        sides[name] = None if of is None else of(range(latent, latent + 1))[0]
    before, after = sides["original"], sides["adapted"]
    same = before is None or after is None or bool((before == after).all())
    logits = {name: None if each is None else _ends(each, text_of) for name, each in sides.items()}
    near = [] if decoder is None else nearest(decoder, latent, NEAREST)
    return {"logits": logits, "same": same, "nearest": near}


def _ends(found: Any, text_of: Callable[[int], str]) -> dict[str, Any]:
    def side(sign: int) -> list[list[Any]]:
        best = (sign * found).topk(min(LOGITS, len(found)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[text_of(i), sign * value] for i, value in pairs]

    return {"up": side(1), "down": side(-1)}
