"""What clients send, in OpenAI's terms: checked entirely, so that nothing asked for is passed over without a word."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from saelora.errors import InputError

_Text = Annotated[str, Field(min_length=1)]
Stop = _Text | Annotated[list[_Text], Field(max_length=4)] | None
Off = Annotated[float, Field(ge=0, le=0)] | None
No = Literal[False] | None


B = TypeVar("B", bound=BaseModel)


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
    stream_options: dict[Literal["include_usage"], StrictBool] | None = None
    steer: dict[str, StrictStr | StrictInt | StrictFloat] = Field(default_factory=dict, max_length=1000)
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

    @model_validator(mode="after")
    def _check(self) -> "Body":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options without stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionBody(Body):
    """POST /v1/completions; ``logprobs``: that many alternatives of each token."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
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


class Part(BaseModel):
    """A piece of a message; only text is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    content: str | list[Part]
    name: None = None
    refusal: None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Body):
    """POST /v1/chat/completions; ``top_logprobs``: that many alternatives of each token."""

    messages: list[Message] = Field(min_length=1)
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

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs without logprobs")
        return self

    @property
    def prompts(self) -> list[Any]:
        return [[{"role": message.role, "content": message.text} for message in self.messages]]


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
