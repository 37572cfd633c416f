"""Whether SAEs really run: hooks can be passed by without a word.

A module that was traced or captured into a graph runs without the hooks that came later, and code that calls a module's
``forward`` itself calls none. So what ran is counted in each pass.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint


class Passes:
    """What happens in each forward pass of a spliced decoder: every SAE runs once, where the pass goes through it."""

    def __init__(self) -> None:
        self._ran: dict[Hookpoint, int] = {}
        self._n = self._n_before = 0
        self._with_gradient: list[Tensor] = []  # masks of passes since gradients were last computed, two at most
        self._went_back = False

    def begin(self, mask_BS: Bool[Tensor, "batch seq"]) -> None:
        self._ran, self._n = {}, self._n + 1
        if torch.is_grad_enabled():
            self._with_gradient = [*([] if self._went_back else self._with_gradient[-1:]), mask_BS]
            self._went_back = False

    def count(self, hookpoint: Hookpoint) -> None:
        self._ran[hookpoint] = self._ran.get(hookpoint, 0) + 1

    def end(self, expected: dict[Hookpoint, int]) -> None:
        for hookpoint, n in expected.items():
            if self._ran.get(hookpoint, 0) != n:
                raise InputError(
                    f"the SAE at {hookpoint} ran {self._ran.get(hookpoint, 0)} times in a pass of the model, expected "
                    f"{n}: the module there was traced, captured or replaced, or is called past its hooks; splice the "
                    "model as it was loaded"
                )

    def mask_of_another(self, hookpoint: Hookpoint) -> Bool[Tensor, "batch seq"]:
        """The mask for a layer that runs outside a pass: gradient checkpointing runs it once more, going backward."""
        self._went_back = torch._C._current_graph_task_id() != -1
        if self._went_back and len(self._with_gradient) == 1:
            return self._with_gradient[0]
        if self._went_back:
            raise InputError(
                f"gradient checkpointing runs {hookpoint} again for one of several passes, and which one is not known: "
                "go backward after each forward pass, run what needs no gradient under torch.no_grad(), or turn it off"
            )
        raise InputError(
            f"{hookpoint} ran outside a pass of the model, so its tokens are not known: call the model, not its parts"
        )

    def enter(self) -> None:
        self._n_before = self._n

    def leave(self, enabled: bool) -> None:
        if enabled and self._n == self._n_before:
            raise InputError(
                "the model ran without its SAEs: its forward was traced, captured or replaced and does not call the "
                "decoder inside; splice the model as it was loaded"
            )
