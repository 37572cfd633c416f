"""What generation is asked for, looked at before it runs: lengths that a model has no positions for, temperatures."""

from __future__ import annotations

from typing import Any

from torch import nn

from saelora.errors import InputError

COLDEST = 1e-5  # a smaller temperature makes infinities of logits; nothing but the likeliest token is left long before


def learnt_positions(model: Any) -> int | None:
    """The positions of a model that keeps a row for each, as GPT-2 does; None of one that computes them.

    Beyond these there is nothing to look up: an error on a CPU, on a GPU the end of the process.
    """
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = model.get_input_embeddings()
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or module is words or stated is None:
            continue
        if stated <= module.num_embeddings <= stated + 8:  # some keep a few rows for padding
            return int(stated)
    return None


def check_length(model: Any, n_tokens: int) -> None:
    """Raise InputError where a model has no positions for so many tokens."""
    most = learnt_positions(model)
    if most is not None and n_tokens > most:
        raise InputError(f"{n_tokens:,} tokens are more than the model's {most:,} positions: shorten the text")


def checked(model: Any, n_tokens: int, options: dict[str, Any], usual: int) -> dict[str, Any]:
    """Options of transformers' ``generate`` with a length where none is given: ``usual``, or what there is room for.

    Raises:
        InputError: more tokens than the model has positions, or a temperature that leaves no probabilities.
    """
    check_length(model, n_tokens)
    temperature = options.get("temperature")
    if isinstance(temperature, int | float) and 0 < temperature < COLDEST:
        raise InputError(
            f"temperature is {temperature}, expected {COLDEST:g} or more; leave it out for the likeliest token"
        )
    most = learnt_positions(model)
    room = None if most is None else most - n_tokens + 1  # the last new token is not read
    asked = _asked(n_tokens, options)
    if asked is None:
        if options.get("generation_config") is not None:
            return options
        return {**options, "max_new_tokens": usual if room is None else min(usual, room)}
    if room is not None and asked > room:
        raise InputError(
            f"{n_tokens:,} tokens of prompt and {asked:,} to generate are more than the model's {most:,} positions: "
            f"shorten the prompt, or generate {room:,} at most"
        )
    return options


def _asked(n_tokens: int, options: dict[str, Any]) -> int | None:
    """The new tokens that options allow, themselves or in a generation config; None where they do not say."""
    config = options.get("generation_config")
    for source in (options, {} if config is None else vars(config)):
        if isinstance(source.get("max_new_tokens"), int):
            return int(source["max_new_tokens"])
        if isinstance(source.get("max_length"), int):
            return int(source["max_length"]) - n_tokens
    return None
