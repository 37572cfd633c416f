"""Which options act only beside which others: one that is given and would do nothing is refused, not passed over.

Only values other than an option's default are refused: the default changes nothing, and a run's config.yaml, which can
be given again, holds all of them. A run that goes on with --resume goes on as it began. Base options
in recipes of sweeps and comparisons are not looked at: they are for all methods of a grid, of which each takes its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from saelora.config import Configuration
from saelora.errors import InputError
from saelora.evals.registry import EVALUATIONS


@dataclass(frozen=True)
class Acts:
    """``options`` act where the option ``where`` has one of these values, or is given at all, or is left out."""

    options: tuple[str, ...]
    where: str
    values: tuple[str, ...] | Literal["given", "left out"]


_TRANSCODERS = ("transcoder", "skip-transcoder")
_TOP_K = ("topk", "batchtopk", "matryoshka", *_TRANSCODERS)
_LAUNCHED = (Acts(("launcher_options", "launcher_jobs", "launcher_retries"), "launcher", "given"),)
_SAEBENCH_SIZES = ("saebench_train", "saebench_test", "saebench_context", "saebench_batch")
RULES: dict[str, tuple[Acts, ...]] = {
    "adapt": (
        Acts(("alpha", "placement", "dropout", "rslora", "dora", "init"), "method", ("lora", "lora+sae")),
        Acts(("part",), "method", ("lora+sae",)),
        Acts(("sae_lr",), "method", ("lora+sae", "linear")),
    ),
    "finetune-sae": (),
    "train-sae": (
        Acts(("downstream",), "objective", ("e2e+downstream",)),
        Acts(("passes",), "objective", ("local",)),
        Acts(("k", "aux_coefficient"), "architecture", _TOP_K),
        Acts(("l1_coefficient",), "architecture", ("standard", "gated")),
        Acts(("l0_coefficient",), "architecture", ("jumprelu",)),
        Acts(("expansion",), "d_sae", "left out"),
        Acts(("transcoder_layers", "circuit_tracer"), "architecture", _TRANSCODERS),
    ),
    "evaluate": (
        Acts(("other_weights",), "adapter", "given"),
        *(Acts(tuple(e.options.Options.model_fields), "parts", (e.name,)) for e in EVALUATIONS.values() if e.options),
        Acts(("steering_n", "steering_rates"), "steering_latents", "left out"),
        Acts(_SAEBENCH_SIZES, "saebench_small", "left out"),
    ),
    "sweep": (*_LAUNCHED, Acts(("launcher_points",), "launcher", "given")),
    "compare": _LAUNCHED,
}


def check_acting(config: Configuration, command: str, now: Mapping[str, Collection[str]] | None = None) -> None:
    """Look at what was given of a command's configuration.

    Args:
        now: what options that rules ask for amount to, where that is more than their own value; nothing: not known yet.

    Raises:
        InputError: an option that was given, and not as its default, does nothing.
    """
    if getattr(config, "resume", False):
        return
    fresh = type(config)()
    for rule in RULES[command]:
        own = getattr(config, rule.where)
        why = _idle(rule, own, (now or {}).get(rule.where, [own]))
        for name in rule.options if why else ():
            if name in config.given and getattr(config, name) != getattr(fresh, name):
                raise InputError(f"{_flag(name)} does nothing {why}")


def _idle(rule: Acts, own: Any, now: Collection[str]) -> str | None:
    """Why the rule's options do nothing, and what to do; None where they act, or may."""
    flag = _flag(rule.where)
    if rule.values == "given":
        return None if own else f"without {flag}: give that too, or leave it out"
    if rule.values == "left out":
        return f"beside {flag}: leave one of them out" if own else None
    if not now or {*now} & {*rule.values}:
        return None
    acting = " or ".join(filter(None, (", ".join(rule.values[:-1]), rule.values[-1])))
    return f"with {flag} {' '.join(now)}: leave it out, or take {flag} {acting}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
