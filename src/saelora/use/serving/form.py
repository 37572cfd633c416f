"""Answers in OpenAI's shapes."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from saelora.use.serving.bodies import Body, ChatBody
from saelora.use.serving.choices import Choice
from saelora.use.serving.engine import Engine
from saelora.use.serving.rows import Ended, Event, Failed


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    prompt = sum(len(choice.ask.ids) for choice in choices)
    made = sum(choice.ended.n_tokens for choice in choices if choice.ended is not None)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class Form:
    """An answer in the shape of its endpoint, whole or in parts."""

    def __init__(self, body: Body, engine: Engine):
        self.body, self.text_of = body, engine.token
        self.chat = isinstance(body, ChatBody)
        name = ("chat.completion" if self.chat else "text_completion") + (".chunk" if self.chat and body.stream else "")
        number = uuid.uuid4().hex[:24]
        self.about = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{number}",
            "object": name,
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        made = []
        for index, choice in enumerate(choices):
            assert choice.ended is not None
            likely = [each for piece in choice.pieces for each in piece.likely]
            made.append(self._choice(index, choice.text, likely, choice.ended, message=True))
        return {**self.about, "choices": made, "usage": usage(choices)}

    def first(self, index: int) -> dict[str, Any] | None:
        if not self.chat:
            return None
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self.about, "choices": [choice]}

    def part(self, index: int, event: Event) -> dict[str, Any]:
        assert not isinstance(event, Failed)
        if isinstance(event, Ended):
            return {**self.about, "choices": [self._choice(index, "", [], event)]}
        return {**self.about, "choices": [self._choice(index, event.text, list(event.likely), None)]}

    def _choice(
        self, index: int, text: str, likely: list[Any], ended: Ended | None, message: bool = False
    ) -> dict[str, Any]:
        content: dict[str, Any]
        if not self.chat:
            content = {"text": text}
        elif message:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            content = {"delta": {"content": text} if text else {}}
        logprobs = self._logprobs(likely) if likely else None
        found: dict[str, Any] = {"index": index, **content, "logprobs": logprobs, "finish_reason": None}
        if ended is not None:
            found["finish_reason"] = ended.reason
            if ended.latents is not None:
                found["latents"] = ended.latents
        return found

    def _logprobs(self, likely: list[Any]) -> dict[str, Any]:
        if self.chat:
            return {
                "content": [
                    {**self._token(own), "top_logprobs": list(map(self._token, others))} for own, others in likely
                ]
            }
        return {
            "tokens": [self.text_of(own.token_id) for own, _ in likely],
            "token_logprobs": [own.logprob for own, _ in likely],
            "top_logprobs": [self._by_name(others) for _, others in likely],
            "text_offset": None,
        }

    def _by_name(self, others: Any) -> dict[str, float]:
        """By their text; of several with one text, as halves of characters have, the likeliest."""
        found: dict[str, float] = {}
        for other in others:
            found.setdefault(self.text_of(other.token_id), other.logprob)
        return found

    def _token(self, likely: Any) -> dict[str, Any]:
        text = self.text_of(likely.token_id)
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else a part of a character, whose bytes are not told
        return {"token": text, "logprob": likely.logprob, "bytes": list(text.encode()) if whole else None}
