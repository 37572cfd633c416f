"""What all ways of training SAEs share: the SAEs with their names and owners, their first activations, their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from saelora.core.eval_mode import eval_mode
from saelora.core.group import ALONE, Group
from saelora.core.partial import activations
from saelora.core.splice import TokenMask
from saelora.core.transcoding import check_writer
from saelora.errors import InputError
from saelora.models.anatomy import Anatomy, anatomy_of
from saelora.models.hookpoints import Hookpoint, ReadPoint
from saelora.records import JsonObject
from saelora.sae_training.export import inference_parts, inference_sae
from saelora.sae_training.recipe import SAERecipe
from saelora.sae_training.trainer import SAETrainer
from saelora.sae_training.transcoder_trainer import TranscoderTrainer
from saelora.sae_training.warm_start import Start
from saelora.train.checkpoint import StateDict

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAE

Point = Hookpoint | ReadPoint
ROWS_PER_FORWARD = 4  # of the model's prefix; on CPUs larger batches fall out of the cache and are slower


class SAETraining:
    """SAEs at one or several hookpoints of a frozen model, trained side by side: every recipe at every hookpoint.

    Each SAE has a name: its hookpoint, then "/" and its recipe's name unless that is empty. It ends up exactly
    as if it had been trained alone. Nothing carries over between chunks but what `state_dict` holds, so a run
    resumed between two steps goes on bit for bit. Of several processes, each trains its own part of the SAEs.

    A subclass says what a `step` is.
    """

    def __init__(
        self,
        model: nn.Module,
        hookpoints: Sequence[Hookpoint],
        recipes: Mapping[str, SAERecipe],
        *,
        token_mask: TokenMask,
        device: torch.device | str,
        n_tokens_total: int,
        metadata: JsonObject,
        begin: Start | None = None,
        rows_per_forward: int = ROWS_PER_FORWARD,
        group: Group = ALONE,
    ) -> None:
        """Build the SAEs with seeded weights; the first chunk centres, scales and points them.

        Args:
            model: on `device`; left as it is.
            hookpoints: where the SAEs sit; no two alike.
            recipes: by name; {"": recipe} for a single one.
            token_mask: which tokens the SAE sees: True, and not massive at its hookpoint.
            n_tokens_total: tokens of the whole run, exempt ones included: the length of the schedules.
            metadata: what the saved SAEs say about their origin in SAELens' terms: model_name, dataset_path,
                context_size, prepend_bos and so on. hook_name is added here.
            begin: a finished SAE that every SAE goes on from, instead of the seeded weights.
            rows_per_forward: rows that go through the model at a time; no effect beyond speed and memory.
            group: the processes that share the work; `step`, `state_dict` and `inference_sae` are collective.

        Raises:
            InputError: no recipe, no hookpoint or a repeated one, one that the model lacks, or a recipe or
                start that does not fit.
        """
        if not hookpoints or len(set(hookpoints)) != len(hookpoints):
            raise InputError(
                f"SAE training got hookpoints {[str(h) for h in hookpoints]}: expected one or more, no two alike"
            )
        if not recipes:
            raise InputError("SAE training got no recipe: expected one or more")
        if n_tokens_total < 1:
            raise InputError(f"SAE training got {n_tokens_total} tokens for the whole run: expected 1 or more")
        self.model, self.token_mask = model, token_mask
        self.device = torch.device(device)
        self.n_tokens_total, self.rows_per_forward = n_tokens_total, rows_per_forward
        self.group = group
        self.n_steps = self.n_tokens = 0
        anatomy = anatomy_of(model)
        self.names = {h: [f"{h}/{variant}" if variant else str(h) for variant in recipes] for h in hookpoints}
        self.recipes = {
            name: recipe for names in self.names.values() for name, recipe in zip(names, recipes.values(), strict=True)
        }
        self.reads = self._what_is_read(anatomy)
        self.owners = {name: i % group.world for i, name in enumerate(self.recipes)}
        self.trainers: dict[str, SAETrainer] = {}  # this process's own
        for hookpoint, names in self.names.items():
            about = {"hook_head_index": None, **metadata, "hook_name": hookpoint.tl_name}
            if hookpoint in self.reads:
                about |= {"hook_name": self.reads[hookpoint].tl_name, "hook_name_out": hookpoint.tl_name}
            for name in self._own(names):
                try:
                    width = anatomy.width(hookpoint)
                    kind = TranscoderTrainer if hookpoint in self.reads else SAETrainer
                    self.trainers[name] = kind(self.recipes[name], width, about, self.device, begin)
                except InputError as error:
                    raise InputError(f"{name}: {error}") from None

    def _what_is_read(self, anatomy: Anatomy) -> dict[Hookpoint, ReadPoint]:
        """What transcoders read, by where they write; empty for SAEs.

        Raises:
            InputError: SAEs and transcoders together, two transcoders for one MLP, or one for something else.
        """
        kinds = {recipe.is_transcoder for recipe in self.recipes.values()}
        if len(kinds) > 1:
            raise InputError("SAEs and transcoders cannot be trained in one run: what they rebuild differs; use two")
        if kinds == {False}:
            return {}
        for hookpoint in self.names:
            check_writer(hookpoint, self.names)
            anatomy.site(hookpoint)
        reads = {hookpoint: ReadPoint(hookpoint.layer, "mlp_in") for hookpoint in self.names}
        for point in reads.values():
            anatomy.reading(point)
        return reads

    def _own(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.owners[name] == self.group.rank]

    def _of_all(self, found: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Every process's figures, by the names of the SAEs in their order."""
        if self.group.world == 1:
            return found
        on_cpu = {name: {key: value.cpu() for key, value in one.items()} for name, one in found.items()}
        together = {name: one for part in self.group.gather(on_cpu) for name, one in part.items()}
        return {name: together[name] for name in self.recipes}

    @torch.no_grad()
    def _activations(self, rows: Tensor) -> dict[Point, Tensor]:
        """Activations [n_kept_tokens, d] at each hookpoint, and those that transcoders read.

        Exempt tokens are left out; layers above never run.
        """
        points = self.points
        parts: dict[Point, list[Tensor]] = {point: [] for point in points}
        with eval_mode(self.model):
            pieces = rows.split(self.rows_per_forward)
            for index, counts in self.group.turns(len(pieces)):
                keep = self.token_mask(pieces[index], None) & counts
                found = activations(self.model, pieces[index], None, points)
                for hookpoint in self.names:
                    mask_BS = self.token_mask.replaced(hookpoint, found[hookpoint], keep)
                    for point in (hookpoint, self.reads.get(hookpoint)):
                        if point is not None:
                            parts[point].append(found[point][mask_BS])
        return {point: torch.cat(self.group.tensors_in_turn(parts.pop(point))) for point in points}

    @property
    def points(self) -> list[Point]:
        """All activations that training needs: hookpoints, and what transcoders read."""
        return [*self.names, *self.reads.values()]

    def state_dict(self) -> StateDict:
        """Weights, optimisers, counters and scales of all SAEs: tensors and plain values only."""
        own = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        if self.group.world > 1:
            own = tree_map_only(Tensor, Tensor.cpu, own)
        trainers = {name: state for part in self.group.gather_on_main(own) for name, state in part.items()}
        return {"trainers": trainers, "n_steps": self.n_steps, "n_tokens": self.n_tokens}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: the state is of other SAEs.
        """
        if self.recipes.keys() != state["trainers"].keys():
            raise InputError(
                f"checkpoint has SAEs at {sorted(state['trainers'])}, this run trains {sorted(self.recipes)}"
            )
        for name, trainer in self.trainers.items():
            trainer.load_state_dict(state["trainers"][name])
        self.n_steps, self.n_tokens = state["n_steps"], state["n_tokens"]

    def inference_sae(self, name: str) -> SAE[Any]:
        """The SAE as it is now, as SAELens' inference class, for raw activations; an independent copy."""
        owner = self.owners[name]
        return inference_sae(*self.group.on(owner, lambda: inference_parts(self.trainers[name], self.n_tokens)))


def summary(found: dict[str, dict[str, Float[Tensor, ""]]]) -> dict[str, Float[Tensor, ""]]:
    """What a step reports of its SAEs, by name: means of loss, KL, FVU and its companions, then each SAE's own."""
    loss = torch.stack([one["loss"] for one in found.values()]).mean()
    if len(found) == 1:
        return {**next(iter(found.values())), "loss": loss}
    own = {f"{key}/{name}": value for name, one in found.items() for key, value in one.items() if key != "loss"}
    shared = [
        key for key in ("fvu", "relative_error", "top_variance", "kl") if all(key in one for one in found.values())
    ]
    return {"loss": loss, **{key: torch.stack([one[key] for one in found.values()]).mean() for key in shared}, **own}
