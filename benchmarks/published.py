"""Two steps written by hand, which ours is compared with: the published code's, and the best loop of plain parts.

Both run two whole forwards around a plain hook, form both models' whole logits, and leave gradients to autograd.
Source: arXiv 2501.19406 and its published code (github.com/matchten/LoRA-Models-for-SAEs, commit 5067624). Where the
text leaves it open: the teacher's pass is PEFT's ``disable_adapter`` without gradient; BOS and EOS keep activations.
The published code also empties the CUDA cache every step, which is left out here: it would only slow that step down.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saelora.core.lora import layers_of, lora_config
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint

RANK, ALPHA, DROPOUT, LR, CLIP = 64, 32.0, 0.1, 5e-5, 1.0  # the published code's


def copy_sharing_weights(model: nn.Module) -> Any:
    """A copy whose modules are its own and whose weights are the original's."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def with_adapter(
    model: nn.Module, placement: str, hookpoint: Hookpoint, *, rank: int, alpha: float, dropout: float = 0.0
) -> Any:
    """The model, PEFT-wrapped in place, with an adapter on all linears of the placement's layers."""
    from peft import get_peft_model

    layers = layers_of(placement, [hookpoint], anatomy_of(model).n_layers)
    torch.manual_seed(0)
    return get_peft_model(model, lora_config(model, layers, rank=rank, alpha=alpha, dropout=dropout))  # type: ignore[arg-type]


def add_adapter(model: Any, name: str, placement: str, hookpoint: Hookpoint, *, rank: int, alpha: float) -> None:
    """One more adapter beside the first, with the weights that it would have alone."""
    layers = layers_of(placement, [hookpoint], anatomy_of(model).n_layers)
    torch.manual_seed(0)
    model.add_adapter(name, lora_config(model, layers, rank=rank, alpha=alpha))


@dataclass
class _ByHand:
    """What both steps have in common.

    Args:
        model: PEFT-wrapped.
        sae: put in at the output of decoder layer ``layer``.
        kept_ids: token ids (BOS, EOS) whose positions keep their activation.
    """

    model: Any
    sae: Any
    layer: int
    kept_ids: Sequence[int] = ()
    autocast: torch.dtype | None = None
    optimizer: Any = field(init=False)

    @contextmanager
    def hooked(self, rows: Tensor) -> Iterator[None]:
        """The SAE in the model, for one forward pass on these rows."""
        kept = torch.isin(rows, torch.tensor(self.kept_ids, dtype=rows.dtype, device=rows.device)).unsqueeze(-1)

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0]
            recon = self.sae.decode(self.sae.encode(x)).to(x.dtype)
            out = torch.where(kept, x, recon)
            return out if isinstance(output, Tensor) else (out, *output[1:])

        handle = anatomy_of(self.model).layers[self.layer].register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, rows: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Teacher's and student's [batch, seq, d_vocab]."""
        half = torch.autocast(rows.device.type, self.autocast) if self.autocast else nullcontext()
        with half:
            with torch.no_grad(), self.model.disable_adapter():
                teacher = self.model(input_ids=rows, **options).logits
            with self.hooked(rows):
                student = self.model(input_ids=rows, **options).logits
        return teacher, student

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def step(self, rows: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(rows).backward()
        nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        self.optimizer.step()

    def loss(self, rows: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass
class Published(_ByHand):
    """Eager attention, the adapter's dropout on, KL summed over the tokens of a sequence, AdamW one tensor at a time.

    Give it a model with dropout 0.1 and alpha 32 in float32.
    """

    def __post_init__(self) -> None:
        if not self.model.get_base_model().config._attn_implementation.startswith("eager"):
            self.model.get_base_model().set_attn_implementation("eager")
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=LR)

    def loss(self, rows: Tensor) -> Tensor:
        """ "batchmean" of [batch, seq, d_vocab] divides by the batch alone: a sum over each sequence's tokens."""
        return published_kl(*self.logits(rows))


@dataclass
class HandWritten(_ByHand):
    """The model's own attention (SDPA where it has it), no dropout, no cache, KL per token, fused AdamW."""

    def __post_init__(self) -> None:
        self.model.eval()
        fused = next(self.model.parameters()).device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=LR, weight_decay=0.0, fused=fused)

    def loss(self, rows: Tensor) -> Tensor:
        teacher, student = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in self.logits(rows, use_cache=False)
        )
        kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
        return kl / rows.numel()


def published_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """The published loss on whole logits [batch, seq, d_vocab]."""
    return F.kl_div(F.log_softmax(student, dim=-1), F.softmax(teacher, dim=-1), reduction="batchmean")
