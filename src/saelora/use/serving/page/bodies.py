"""What the page sends: checked entirely, like what OpenAI's clients send."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

Steer = Annotated[dict[str, StrictStr | StrictInt | StrictFloat], Field(max_length=100)]
Ids = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]


class PageBody(BaseModel):
    """``steer``: as ``LoadedRun.steer`` takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steer: Steer = Field(default_factory=dict)


class ContinueBody(PageBody):
    """A prompt, continued by several variants; ``chat`` sends it through the tokenizer's template."""

    prompt: StrictStr = Field(min_length=1)
    chat: StrictBool = False
    variants: list[StrictStr] = Field(min_length=1, max_length=4)
    max_new_tokens: StrictInt = Field(48, ge=1)
    temperature: float = Field(0.0, ge=0, le=100)
    seed: StrictInt = Field(0, ge=0, lt=2**63)


class TokenBody(PageBody):
    """The last token of a text, in a variant."""

    ids: Ids
    variant: StrictStr
    n: StrictInt = Field(8, ge=1, le=32)


class AblateBody(TokenBody):
    """The same, with the hookpoint whose latents are taken out; by default the first."""

    hookpoint: StrictStr | None = None
