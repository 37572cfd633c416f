"""What clients send, in OpenAI's terms: checked entirely, so that nothing asked for is passed over without a word."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saelora.errors import InputError

Stop = str | Annotated[list[str], Field(max_length=4)] | None
Off = Annotated[float, Field(ge=0, le=0)] | None
No = Literal[False] | None


B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """The fields that both endpoints share; ``steer`` and ``latents`` are ours.

    Args:
        model: a variant: original, spliced, adapted, adapted_clean.
        steer: latent -> edit, as ``LoadedRun.steer`` takes it: {"3740": "+4", "12": 0}.
        latents: of each token of prompt and answer this many active latents come back, the strongest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stop = None
    stream: bool | None = None
    stream_options: dict[str, bool] | None = None
    steer: dict[str, str | float] = Field(default_factory=dict, max_length=1000)
    latents: int = Field(0, ge=0, le=1000)
    # of a client's bookkeeping: they change no answer
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: No = None
    # known, and not done here: refused unless they ask for nothing
    n: Literal[1] | None = None
    frequency_penalty: Off = None
    presence_penalty: Off = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionBody(Body):
    """POST /v1/completions; ``logprobs``: that many alternatives of each token."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1] | None = None
    echo: No = None
    suffix: None = None

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @property
    def longest(self) -> int | None:
        return self.max_tokens

    @property
    def prompts(self) -> list[Any]:
        """Each a text or token ids."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


class ChatBody(Body):
    """POST /v1/chat/completions; ``top_logprobs``: that many alternatives of each token."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def prompts(self) -> list[Any]:
        return [self.messages]


def read(kind: type[B], text: bytes) -> B:
    """A request's body.

    Raises:
        InputError: no JSON, or a field that is missing, unknown, or asks for what is not done here; in one line.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = "this field is not known here" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{where}: {message}" if where else message) from None
