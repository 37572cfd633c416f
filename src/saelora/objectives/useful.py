"""What share of a GPU's matrix rate a training uses: the operations it needs, against those of a large product."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from saelora.core import lora
from saelora.core.transcoding import transcoder_in
from saelora.models.anatomy import anatomy_of
from saelora.models.layout import is_linear, widths
from saelora.objectives.branch import BranchRun
from saelora.objectives.distill import Distill

LARGE = 8192  # side of the square matrices whose product is the measure
_PRODUCTS = 5  # timed, of which the fastest counts


def useful_flops(objective: Distill, context: int) -> float | None:
    """Floating-point operations per token that a step needs, from the model's shapes; a multiply-add is two.

    Counted: the teacher's forward; each student's forward from where it leaves the clean model, and the gradient of its
    activations from the lowest layer that trains; adapters, forward and backward; attention's products over causal
    pairs (windows are ignored); the SAEs' encoders; all logits, and the gradient of the students' hidden states. Not
    counted: gradients of frozen weights, what is computed twice, element-wise work. What students share is counted for
    each of them.

    Returns:
        None where it cannot be told from shapes: experts, of which each token takes its own; transcoders; models whose
        attention is not the usual one.
    """
    model, anatomy = objective.model, anatomy_of(objective.model)
    saes = [sae for run in objective.runs for sae in run.branch.spliced.saes.values()]
    attention = _attention(model, context)
    if attention is None or any(map(transcoder_in, saes)) or any("expert" in name for name, _ in model.named_modules()):
        return None
    total = 2.0 * anatomy.d_model * anatomy.d_vocab * (1 + 2 * len(objective.runs))
    starts = [(objective.students.enters(run.student), _lowest_trained(model, run)) for run in objective.runs]
    for index, layer in enumerate(anatomy.layers):
        forward = sum(2.0 * d_in * d_out for d_in, d_out in _linears(layer)) + attention
        total += forward
        for entry, trained in starts:
            total += forward * ((index > entry) + (index >= trained)) + attention * (index >= trained)
    adapters = sum(p.numel() for run in objective.runs for p in run.adapter.values())
    encoders = sum(p.numel() for sae in saes for name, p in _weights(sae) if name.endswith("W_enc"))
    return total + 6.0 * adapters + 2.0 * encoders


def _lowest_trained(model: nn.Module, run: BranchRun) -> int:
    """The lowest layer that gradients go back through: the first adapter's, or the first above an SAE that trains."""
    layers = [h.layer + 1 for h in run.branch.spliced.saes if str(h) in run.saes]
    return min(layers + lora.adapted_layers(model, run.branch.name)[:1] * bool(run.adapter))


def _weights(sae: object) -> Iterator[tuple[str, nn.Parameter]]:
    return sae.named_parameters() if isinstance(sae, nn.Module) else iter(())


def _linears(layer: nn.Module) -> Iterator[tuple[int, int]]:
    """Widths of the frozen linear maps inside a layer."""
    for name, module in layer.named_modules():
        if is_linear(module) and not lora.is_wrapper(module) and "lora_" not in name:
            yield widths(module)


def _attention(model: nn.Module, context: int) -> float | None:
    """Scores and weighted values of one layer's forward, per token."""
    config = anatomy_of(model).stack.config
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "head_dim", None)
    if not isinstance(heads, int):
        return None
    width = width if isinstance(width, int) else getattr(config, "hidden_size", 0) // heads
    return 2.0 * 2 * heads * width * (context + 1) / 2


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = LARGE) -> float:
    """Floating-point operations a second of one large matrix product on a device."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn_like(a)
    best = float("inf")
    for _ in range(_PRODUCTS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Share:
    """What progress says of the share: from each row of metrics to the next.

    Args:
        flops: per token; None: nothing is said.
        rate: operations a second, asked for once, at the second row.
    """

    flops: float | None
    rate: Callable[[], float]
    _rate: float = field(default=0.0, init=False)
    _before: tuple[float, float] | None = field(default=None, init=False)

    def of(self, row: dict[str, float]) -> str | None:
        """Words for what a row's ``n_tokens`` and ``seconds`` are ahead of the last one's; None without a last one."""
        if self.flops is None:
            return None
        now, before = (row["n_tokens"], row["seconds"]), self._before
        self._before = now
        if before is None or now[0] <= before[0] or now[1] <= before[1]:
            return None
        self._rate = self._rate or self.rate()
        return f"{self.flops * (now[0] - before[0]) / (now[1] - before[1]) / self._rate:.0%} of the GPU's matrix rate"
