"""What generate and chat have in common: a run, some of its variants, and what each of them says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from saelora.collector import resting
from saelora.console import Console
from saelora.errors import InputError
from saelora.use.options import RunOptions, TalkOptions
from saelora.use.reference import Run, find_run
from saelora.use.screen import Screen
from saelora.use.steering import from_flags, read_edit
from saelora.use.variants import SIDE_BY_SIDE

if TYPE_CHECKING:
    from saelora.use.run import LoadedRun


class Config(RunOptions, TalkOptions):
    """Options of generate and chat"""


def steering_of(flags: Sequence[str]) -> dict[str, str]:
    """``--steer`` as ``LoadedRun.steer`` takes it; whether the latents are there is seen once the SAEs are loaded.

    Raises:
        InputError: it is not written as LATENT=EDIT.
    """
    found = from_flags(flags)
    for latent, edit in found.items():
        read_edit(edit, latent)
    return found


def opened(config: RunOptions, console: Console) -> LoadedRun:
    """The run that is asked for; its name is looked at before anything that takes seconds.

    Raises:
        InputError: as ``saelora.load``.
    """
    run: Run = find_run(config.ref or "")
    console.say(f"loading {run.ref}")
    with resting(keep=True):
        from saelora.use.loading import load_run

        return load_run(run, config.loading())


def variants_of(config: Config, loaded: LoadedRun) -> list[str]:
    """The variants that are asked for, in order.

    Raises:
        InputError: the run does not have one of them.
    """
    asked = config.variants or tuple(name for name in SIDE_BY_SIDE if name in loaded.variants)
    for name in asked:
        if name not in loaded.variants:
            raise InputError(f"{config.ref} has no variant {name}: expected some of {' '.join(loaded.variants)}")
    return list(dict.fromkeys(asked))


def say(loaded: LoadedRun, prompts: Mapping[str, Any], steering: Mapping[str, str], config: Config) -> dict[str, str]:
    """What each variant says to its prompt, shown while it is made.

    A key interrupt ends the text in hand; what there is of it is kept.

    Args:
        prompts: by variant.
    """
    import torch

    screen = Screen(list(prompts))
    with screen.open():
        for name, prompt in prompts.items():
            torch.manual_seed(config.seed)
            with (
                loaded.as_variant(name),
                loaded.steer(steering),
                screen.writing(name),
                closing(loaded.stream(prompt, **config.generation())) as pieces,
            ):
                for piece in pieces:
                    screen.add(name, piece)
    return screen.texts
