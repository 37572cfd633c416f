"""saelora chat: a conversation with the model as it was, spliced and adapted, each with its own history."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from saelora.config import configured
from saelora.console import Console
from saelora.errors import InputError
from saelora.use import talking

if TYPE_CHECKING:
    from saelora.use.run import LoadedRun

HELP = "/steer 3740=+4 12=0 steers from now on, /steer off ends it, /reset forgets what was said, /quit ends"


class Config(talking.Config):
    """Options of chat"""


def chat(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Talk with several variants of a run, line by line from stdin, until /quit or its end.

    Returns:
        "turns": what was said and what each variant answered.

    Raises:
        InputError: no such run, variant or latent, or a tokenizer without chat template.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    if not config.ref:
        raise InputError("no run given: saelora chat REF, as in saelora chat saelora-demo")
    steering = talking.steering_of(config.steer)
    loaded = talking.opened(config, console)
    conversation = Conversation(loaded, config, steering, console)
    console.say(HELP)
    while (line := _read()) is not None and conversation.take(line):
        pass
    console.say(f"from {loaded.run.folder}; one prompt alone: saelora generate {config.ref} PROMPT")
    return {"ref": config.ref, "turns": conversation.turns}


class Conversation:
    """What was said so far, to each variant and by it.

    Raises:
        InputError: the tokenizer has no chat template, or a latent is not there.
    """

    def __init__(self, loaded: LoadedRun, config: Config, steering: dict[str, str], console: Console):
        from saelora.use.prompts import check_template

        check_template(loaded.tokenizer, loaded.base)
        self.loaded, self.config, self.console = loaded, config, console
        self.variants = talking.variants_of(config, loaded)
        self.turns: list[dict[str, Any]] = []
        self.steering = self._checked(steering)
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.said: dict[str, list[dict[str, str]]] = {name: [] for name in self.variants}

    def take(self, line: str) -> bool:
        """A line of the user's; False where it ends the conversation; what is wrong with it is said."""
        command, _, rest = line.strip().partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return False
            if command == "/reset":
                self.reset()
                self.console.say("forgotten")
            elif command == "/steer":
                self._steer(rest)
            elif command.startswith("/"):
                self.console.say(HELP)
            elif line.strip():
                self._answer(line.strip())
        except InputError as error:
            self.console.say(f"saelora: {error}")
        return True

    def _steer(self, rest: str) -> None:
        if rest.strip():
            self.steering = {} if rest.strip() == "off" else self._checked(talking.steering_of(rest.split()))
        told = " ".join(f"{latent}={edit}" for latent, edit in self.steering.items())
        self.console.say(f"steered: {told or 'nothing'}")

    def _checked(self, steering: dict[str, str]) -> dict[str, str]:
        self.loaded.steer(steering)
        return steering

    def _answer(self, line: str) -> None:
        asked = {"role": "user", "content": line}
        prompts = {name: [*said, asked] for name, said in self.said.items()}
        self._check_length(prompts)
        answers = talking.say(self.loaded, prompts, self.steering, self.config)
        for name, answer in answers.items():
            self.said[name] = [*prompts[name], {"role": "assistant", "content": answer}]
        self.turns.append({"user": line, "steer": dict(self.steering), "answers": answers})

    def _check_length(self, prompts: dict[str, Any]) -> None:
        limit = self.loaded.positions
        longest = max(self.loaded.n_tokens(prompt) for prompt in prompts.values()) + self.config.max_new_tokens
        if limit is not None and longest > limit:
            raise InputError(f"the conversation would be {longest:,} tokens long, the model has {limit:,}: /reset")


def _read() -> str | None:
    """The next line of stdin; None at its end. A terminal is asked for it."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline() or None
