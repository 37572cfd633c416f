"""saelora generate: one prompt, continued by the model as it was, spliced and adapted."""

from typing import Any

from saelora.config import configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.use import talking


class Config(talking.Config):
    """Options of generate"""

    prompt: str | None = option(None, "text to go on from", positional=True)


def generate(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Continue a prompt by several variants of a run, writing to stdout as the texts are made.

    Returns:
        "texts" by variant, and what they were asked for.

    Raises:
        InputError: no such run, variant or latent, or no prompt.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    if not config.ref:
        raise InputError("no run given: saelora generate REF PROMPT, as in saelora generate saelora-demo 'My fellow'")
    if not config.prompt:
        raise InputError(f"no prompt given: saelora generate {config.ref} 'Fellow citizens,'")
    steering = talking.steering_of(config.steer)
    loaded = talking.opened(config, console)
    variants = talking.variants_of(config, loaded)
    texts = talking.say(loaded, dict.fromkeys(variants, config.prompt), steering, config)
    console.say(f"from {loaded.run.folder}; talk with it: saelora chat {config.ref}")
    return {"ref": config.ref, "prompt": config.prompt, "steer": steering, "texts": texts}
