"""Options of the commands that use a finished run. Imports no torch."""

from typing import Any, Literal

from saelora.config import Configuration, option
from saelora.limits import POSITIVE, SEED, device
from saelora.limits import temperature as sampling
from saelora.use.variants import Name

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class RunOptions(Configuration):
    """Run"""

    ref: str | None = option(
        None,
        "a run's folder (of adapt, finetune-sae, train-sae), or a hub repository owner/name that holds one",
        positional=True,
    )
    model: str | None = option(None, "the run's model, where it lies elsewhere by now")
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the GPU where there is one", limit=device)
    other_weights: bool = option(False, "take a model or SAE that the run was not made with")
    quiet: bool = option(False, "say nothing but what is asked for")

    def loading(self) -> dict[str, Any]:
        """What ``saelora.load`` is to be told beside the run's name."""
        told = {
            name: getattr(self, name) for name in ("model", "device", "dtype", "other_weights") if name in self.given
        }
        return {name: value for name, value in told.items() if value is not None}


class TalkOptions(Configuration):
    """Generation"""

    dtype: Dtype = option("auto", "of the frozen weights; auto is bfloat16 on a GPU, float32 on a CPU")
    variants: tuple[Name, ...] | None = option(
        None, "any of original spliced adapted adapted_clean; default: the first three, as far as the run has them"
    )
    steer: list[str] = option(
        [],
        "LATENT=EDIT: 3740=+4 or =-4 adds to its activation, 12=0 sets it, 7=x2 scales it; with several SAEs "
        "HOOKPOINT:LATENT=EDIT; repeatable",
    )
    max_new_tokens: int = option(64, "tokens to generate at most, for each variant", limit=POSITIVE)
    temperature: float = option(0.0, "of sampling; 0 takes the likeliest token", limit=sampling)
    seed: int = option(0, "of sampling, the same for each variant", limit=SEED)

    def generation(self) -> dict[str, Any]:
        """Options of transformers' ``generate``."""
        told: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        return {**told, "temperature": self.temperature} if self.temperature else told
