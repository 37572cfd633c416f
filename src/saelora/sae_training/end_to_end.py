"""Train sparse autoencoders end to end: the model that runs through one is to predict what it did without.

Source: Braun et al., Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning
(arXiv 2405.12241). Two things differ. The error of later layers is relative to their variance there (Braun: a plain
mean squared error), so that one weight means the same in any model. And the sparsity is the recipe's own.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelora.core.check import check_activations, check_against_whole
from saelora.core.eval_mode import eval_mode
from saelora.core.kl_head import kl_heads
from saelora.core.partial import cache_outputs
from saelora.core.splice import splice
from saelora.core.spread import Spread
from saelora.core.students import Shared, Student, Students
from saelora.errors import InputError, NonFiniteLoss
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.sae_training.base import SAETraining, summary
from saelora.sae_training.tally import Tally
from saelora.sae_training.trainer import SAETrainer

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepOutput


class EndToEnd(SAETraining):
    """SAEs trained to leave the model's predictions as they are: by KL(clean || spliced), each spliced in alone.

    The loss of a piece of rows is the mean KL over all its tokens; plus the SAE's own regularisers (l1, l0, auxiliary
    loss of dead latents) divided by d_in, since they are made to stand beside a squared error summed over d_in; plus
    ``downstream`` times the mean, over the layers above the SAE, of their outputs' squared error relative to the
    variance of the clean outputs, at the replaced positions. The SAE's own reconstruction error is no part of it.

    The SAEs share the clean passes of the model, and of each other see nothing. Several processes share none: each
    runs the model for its own SAEs. `passes` of a recipe do nothing here: every chunk is gone through once.
    """

    def __init__(
        self, *args: Any, downstream: float = 0.0, autocast: torch.dtype | None = None, **options: Any
    ) -> None:
        """As `SAETraining`, with a `saelora.core.splice.TokenMask` for token_mask, and:

        Args:
            downstream: weight of the later layers' error; 0 leaves the KL alone.
            autocast: half precision to run model and SAEs in.

        Raises:
            InputError: also where downstream is negative or without a layer above an SAE, and for matryoshka SAEs,
                whose nested losses are reconstruction errors.
        """
        super().__init__(*args, **options)
        nested = [name for name, recipe in self.recipes.items() if recipe.architecture == "matryoshka"]
        if nested:
            raise InputError(
                f"{nested[0]}: a matryoshka SAE's nested errors are reconstruction errors, which end-to-end training "
                "leaves out: train it with --objective local, or use batchtopk"
            )
        if self.reads:
            raise InputError(
                "end-to-end training is for SAEs, whose own input is at hand where they stand: train transcoders with "
                "--objective local, and the model around them with adapt --transcoders"
            )
        if not 0 <= downstream < math.inf:
            raise InputError(f"downstream is {downstream}, expected 0 or more")
        self.downstream, self.autocast = downstream, autocast
        n_layers = anatomy_of(self.model).n_layers
        self._above = {h: list(range(h.layer + (h.site != "resid_pre"), n_layers)) for h in self.names if downstream}
        for hookpoint, layers in self._above.items():
            if not layers:
                raise InputError(f"no layer above {hookpoint} for a downstream error: use --objective e2e there")

    def step(self, rows: Int[Tensor, "n_rows context"], progress: float) -> dict[str, Float[Tensor, ""]]:
        """Go once through packed rows [n_rows, context], in pieces of about the recipe's batch_tokens, whole rows each.

        Args:
            progress: share of the run's tokens done before this step, 0 <= progress < 1.

        Returns:
            0-d tensors, each measured before the step that learns from the tokens in question: `loss` as optimised,
            `kl` in nats per token; `mse` per token and dimension in raw units, `fvu`, `relative_error`
            with its quantiles, `top_variance` (see `saelora.core.spread`) and `l0` over the tokens that the SAE sees.
            `dead_frac`: after the chunk. If there are several SAEs, "/name" is appended, and `loss`,
            `kl` and `fvu` by themselves are their means.

        Raises:
            InputError: the token mask exempts every token of the rows.
            NonFiniteLoss: on a CPU, with every SAE as it was before the step.
        """
        n_tokens = int(self.token_mask(rows, None).sum())
        if n_tokens == 0:
            raise InputError(f"rows of {rows.numel()} tokens left none to train the SAE on: the token mask exempts all")
        undo, failure = self._undo(rows), ""
        if self.n_steps == 0:
            self._start(rows)
        tallies = {name: Tally(Spread(n_tokens)) for name in self.trainers}
        try:
            self._go_through(rows, progress, tallies)
        except NonFiniteLoss as error:
            failure = str(error)
        failures = [said for said in self.group.gather(failure) if said]
        if failures:
            undo()
            raise NonFiniteLoss(failures[0])
        self.n_steps += 1
        self.n_tokens += n_tokens
        return summary(self._of_all({name: tally.metrics(self.trainers[name]) for name, tally in tallies.items()}))

    def check(self, rows: Int[Tensor, "n_rows context"]) -> None:
        """Raise InputError where the parts of the model that steps run are not what the model itself runs."""
        check_activations(self.model, list(self.names), rows)
        check_against_whole(self.model, None, rows, autocast=self.autocast)

    def _start(self, rows: Tensor) -> None:
        acts = self._activations(rows.to(self.device))
        for hookpoint, names in self.names.items():
            for name in self._own(names):
                self.trainers[name].start(acts[hookpoint].float())

    def _n_pieces(self, rows: Tensor, trainer: SAETrainer) -> int:
        return math.ceil(len(rows) / max(1, trainer.recipe.batch_tokens // rows.shape[1]))

    def _undo(self, rows: Tensor) -> Callable[[], None]:
        """What puts all SAEs back to where they are now. A single update needs no copy: it is checked before."""
        n_updates = sum(self._n_pieces(rows, trainer) for trainer in self.trainers.values())
        checked = self.device.type == "cpu" and (n_updates > 1 or len(self.recipes) > 1)
        before = copy.deepcopy({n: t.state_dict() for n, t in self.trainers.items()}) if checked else {}

        def undo() -> None:
            for name, trainer in self.trainers.items():
                trainer.optimizer.zero_grad()
                if checked:
                    trainer.load_state_dict(before[name])

        return undo

    def _go_through(self, rows: Tensor, progress: float, tallies: dict[str, Tally]) -> None:
        """All optimiser steps of a chunk. SAEs whose pieces are cut alike share the clean passes."""
        span = rows.numel() / self.n_tokens_total
        cuts: dict[int, list[str]] = {}
        for name, trainer in self.trainers.items():
            cuts.setdefault(self._n_pieces(rows, trainer), []).append(name)
        with eval_mode(self.model), self._opened() as spliced:
            for n_pieces, names in cuts.items():
                for i, piece in enumerate(rows.tensor_split(n_pieces)):
                    batch = self._clean(piece, spliced)
                    for name in names if batch is not None else ():
                        found = self._learn(name, batch, spliced, progress + span * (i + 0.5) / n_pieces)
                        tallies[name].add(*found, piece.numel())

    @contextmanager
    def _opened(self) -> Iterator["_Spliced"]:
        """Every SAE of this process in the model, each to be switched on alone."""
        saes = {
            name: _InTraining(trainer, self.token_mask.massive is not None) for name, trainer in self.trainers.items()
        }
        where = {name: hookpoint for hookpoint, names in self.names.items() for name in names if name in saes}
        with ExitStack() as stack:
            students: dict[str, Student] = {}
            for name, sae in saes.items():
                opened = splice(self.model, {where[name]: sae}, self.token_mask)
                students[name] = Student(stack.enter_context(opened))
            yield _Spliced(saes, students, where, Students(self.model, list(students.values())))

    def _clean(self, piece: Tensor, spliced: "_Spliced") -> "_Batch | None":
        """The clean pass of some rows; None where the SAEs see none of their tokens."""
        kept_N = self.token_mask(piece, None).flatten().nonzero().squeeze(1)  # on the CPU: a GPU is not waited for
        if not len(kept_N):
            return None
        layers = {layer for layers in self._above.values() for layer in layers}
        outputs: dict[int, Tensor] = {}
        with self._autocast(), cache_outputs(anatomy_of(self.model), outputs, layers):
            shared = spliced.together.teacher(piece.to(self.device, non_blocking=True))
        return _Batch(shared, kept_N.to(self.device, non_blocking=True), outputs)

    def _learn(
        self, name: str, batch: "_Batch | None", spliced: "_Spliced", progress: float
    ) -> tuple[Tensor, Tensor, "TrainStepOutput", Tensor]:
        """One optimiser step of one SAE; returns loss, KL, the SAE's output and its active latents per token."""
        assert batch is not None
        trainer, sae = self.trainers[name], spliced.saes[name]
        sae.kept_N, sae.progress = batch.kept_N, progress
        outputs: dict[int, Tensor] = {}
        above = self._above.get(spliced.where[name], [])
        with self._autocast(), cache_outputs(anatomy_of(self.model), outputs, above):
            hidden = spliced.together.hidden(spliced.students[name], batch.shared).flatten(0, 1)
        output = sae.take()
        head = spliced.together.head()
        kl = kl_heads([hidden], batch.shared.clean.hidden.flatten(0, 1), head)[0].kl / len(hidden)
        penalties = [value for key, value in output.losses.items() if key != "mse_loss"]
        loss = kl + sum(penalties) / output.sae_in.shape[-1]
        if above:
            errors = [relative_error(outputs[i], batch.outputs[i], sae.kept_N) for i in above]
            loss = loss + self.downstream * torch.stack(errors).mean()
        weights = list(trainer.sae.parameters())
        loss.backward(inputs=weights)
        if self.device.type == "cpu":
            norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise NonFiniteLoss(f"{name}: loss is {loss.item()}, KL {kl.item()}, the gradient's norm {norm.item()}")
        trainer.update(progress)
        return loss.detach(), kl.detach(), output, trainer.count(output)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)


def relative_error(
    output: Float[Tensor, "batch seq d_model"], clean: Float[Tensor, "batch seq d_model"], kept_N: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Squared error of a layer's output over its variance in the clean model, at some tokens."""
    dtype = torch.promote_types(clean.dtype, torch.float32)
    x_KD, y_KD = (found.flatten(0, 1)[kept_N].to(dtype) for found in (clean, output))
    return (y_KD - x_KD).pow(2).sum() / (x_KD - x_KD.mean(dim=0)).pow(2).sum()


class _InTraining(nn.Module):
    """An SAE in training where a splice wants a finished one. It sees the kept tokens alone."""

    def __init__(self, trainer: SAETrainer, spares_massive: bool = False):
        super().__init__()
        self.spares_massive = spares_massive
        self.sae, self.trainer = trainer.sae, trainer  # the splice reads the weights' type off the module
        self.kept_N = torch.empty(0)  # indices of the kept tokens among all of the batch's, in order
        self.progress = 0.0
        self._output: TrainStepOutput | None = None

    def reconstruct(self, x: Tensor) -> Tensor:
        """[batch, seq, d_in] -> the same with the kept tokens replaced, in raw units."""
        x_ND = x.flatten(0, 1)
        if self.spares_massive:  # they come with one number in all dimensions, as all do that are not replaced
            x_KD = x_ND[self.kept_N]
            self.kept_N = self.kept_N[(x_KD != x_KD[:, :1]).any(dim=-1)]
        self._output = self.trainer.forward(x_ND[self.kept_N] * self.trainer.scale, self.progress)
        recon_ND = (self._output.sae_out / self.trainer.scale).to(x.dtype)
        return x_ND.index_copy(0, self.kept_N, recon_ND).view_as(x)

    def encode(self, x: Tensor) -> Tensor:
        """Not used while there is ``reconstruct``; for whoever observes the splice."""
        latents: Tensor = self.sae.encode(x * self.trainer.scale)
        return latents

    def decode(self, feature_acts: Tensor) -> Tensor:
        recon: Tensor = self.sae.decode(feature_acts) / self.trainer.scale
        return recon

    def take(self) -> "TrainStepOutput":
        """What the last forward pass gave, once."""
        output, self._output = self._output, None
        assert output is not None
        return output


@dataclass(frozen=True)
class _Spliced:
    """This process's SAEs while they are in the model, by name."""

    saes: dict[str, _InTraining]
    students: dict[str, Student]
    where: dict[str, Hookpoint]
    together: Students


@dataclass(frozen=True)
class _Batch:
    """The clean pass of some rows."""

    shared: Shared
    kept_N: Tensor  # long: tokens that the SAEs see, as indices into all tokens
    outputs: dict[int, Tensor]  # of the layers whose error counts
