"""What the page shows, as JSON: tokens with their text, latents with their activations."""

from typing import Any

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint, parse_hookpoint
from saelora.use.latents import TokenLatents
from saelora.use.run import LoadedRun
from saelora.use.serving.engine import Engine
from saelora.use.serving.http import Limits
from saelora.use.serving.page.bodies import TokenBody
from saelora.use.steering import resolve
from saelora.use.token_view import Ablations, NextToken, latents_at, next_tokens


def about(engine: Engine, limits: Limits) -> dict[str, Any]:
    """The run, its variants and SAEs, and what may be asked for."""
    run = engine.run
    return {
        "run": run.run.ref,
        "model": run.base,
        "variants": list(run.variants),
        "default": run.default_name,
        "hookpoints": [{"name": str(hookpoint), "n_latents": n} for hookpoint, n in run.sizes.items()],
        "chat": bool(getattr(run.tokenizer, "chat_template", None)),
        "most_tokens": limits.most_tokens,
    }


def check_token(run: LoadedRun, body: TokenBody, limits: Limits) -> None:
    """Raise InputError where what is asked of a token could only fail later."""
    if body.variant not in run.variants:
        raise InputError(f"variant {body.variant[:80]!r} is not served: expected one of {', '.join(run.variants)}")
    if len(body.ids) > limits.most_tokens:
        raise InputError(f"{len(body.ids)} tokens are more than the {limits.most_tokens} that this server takes")
    if max(body.ids) >= run.n_embedded:
        raise InputError(f"token id {max(body.ids)} is not one of the model's {run.n_embedded:,}")
    resolve(body.steer, run.sizes)


def hookpoint_of(run: LoadedRun, name: str | None) -> Hookpoint:
    """One of the run's; the first by default.

    Raises:
        InputError: it has no SAE there.
    """
    if name is None:
        return run.hookpoints[0]
    found = parse_hookpoint(name)
    if found not in run.hookpoints:
        raise InputError(f"there is no SAE at {name[:80]}: expected {', '.join(map(str, run.hookpoints))}")
    return found


def token_view(engine: Engine, run: LoadedRun, body: TokenBody) -> dict[str, Any]:
    """A token's latents, and what each variant says comes next."""
    found = latents_at(run, body.ids, body.variant, body.steer)
    following = {name: next_tokens(run, body.ids, name, body.steer, body.n) for name in run.variants}
    if body.steer:
        following = {"original, not steered": next_tokens(run, body.ids, "original", {}, body.n), **following}
    return {
        "variant": body.variant,
        "hookpoints": [_latents(hookpoint, each) for hookpoint, each in found.items()],
        "next": [{"variant": name, "likely": [_next(engine, t) for t in told]} for name, told in following.items()],
    }


def ablations_view(engine: Engine, found: Ablations) -> dict[str, Any]:
    """What each latent does to the prediction."""
    return {
        "hookpoint": str(found.hookpoint),
        "before": _next(engine, found.before),
        "effects": [
            {
                "latent": each.firing.latent,
                "activation": each.firing.activation,
                "probability": each.likeliest.probability,
                "change": each.likeliest.probability - found.before.probability,
                "kl": each.kl,
                "now": _next(engine, each.now),
            }
            for each in found.effects
        ],
    }


def _latents(hookpoint: Hookpoint, seen: TokenLatents) -> dict[str, Any]:
    active = [[firing.latent, firing.activation] for firing in seen.active]
    return {"hookpoint": str(hookpoint), "replaced": seen.replaced, "active": active}


def _next(engine: Engine, each: NextToken) -> dict[str, Any]:
    return {"id": each.token_id, "token": engine.token(each.token_id), "probability": each.probability}
