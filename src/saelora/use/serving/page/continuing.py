"""Continuations for the page: streamed token by token, then scored."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request

from saelora.errors import InputError
from saelora.use.scores import Scores, scores
from saelora.use.serving.choices import Choice, leave, listener, together
from saelora.use.serving.engine import Engine, check_ask
from saelora.use.serving.http import Limits, Refused, on_engine
from saelora.use.serving.page.bodies import ContinueBody
from saelora.use.serving.rows import Ask, Ended, Event, Failed


def choices_of(body: ContinueBody, engine: Engine, limits: Limits) -> list[Choice]:
    """One for each variant.

    Raises:
        InputError: no such variant or latent, too long, or no chat template.
    """
    ids = engine.ids([{"role": "user", "content": body.prompt}] if body.chat else body.prompt)
    deadline, made = time.monotonic() + limits.timeout, []
    for variant in dict.fromkeys(body.variants):
        tell, events = listener()
        ask = Ask(
            ids=ids,
            variant=variant,
            longest=body.max_new_tokens,
            tell=tell,
            deadline=deadline,
            steer=body.steer,
            temperature=body.temperature,
            seed=body.seed,
            alternatives=0,
        )
        check_ask(engine.run, ask, limits.most_tokens)
        made.append(Choice(ask, events))
    if len(made) > engine.most_waiting:
        raise InputError(f"{len(made)} variants: this server lets {engine.most_waiting} requests wait")
    return made


async def lines(request: Request, engine: Engine, limits: Limits, choices: Sequence[Choice]) -> AsyncIterator[str]:
    """One JSON object a line: first the prompt's tokens, then each variant's as they are made, its end, its scores.

    Where the client leaves, this is closed, and the generation ends.
    """
    try:
        prompt = list(choices[0].ask.ids)
        yield _line(prompt={"ids": prompt, "tokens": [engine.token(i) for i in prompt]})
        async for index, event in together(choices):
            choice = choices[index]
            yield _line(variant=choice.ask.variant, **_told(engine, event))
            if isinstance(event, Ended):
                ids = [*prompt, *(i for piece in choice.pieces for i in piece.token_ids)]
                ask = choice.ask
                score = partial(scores, ids=ids, variant=ask.variant, steer=ask.steer)
                found: Scores = await on_engine(request, engine, limits, score)
                yield _line(variant=ask.variant, scores={name: _rounded(each) for name, each in vars(found).items()})
    except Refused as error:
        yield _line(**error.told)
    finally:
        leave(choices)


def _told(engine: Engine, event: Event) -> dict[str, Any]:
    assert not isinstance(event, Failed)
    if isinstance(event, Ended):
        return {"ended": event.reason}
    return {
        "ids": list(event.token_ids),
        "tokens": [engine.token(i) for i in event.token_ids],
        "loss": [-own.logprob for own, _ in event.likely],
    }


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _line(**told: Any) -> str:
    return json.dumps(told) + "\n"
