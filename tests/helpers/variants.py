"""A tiny adapted model, and its variants run the plain way: whole forwards, hooks written down independently."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from families import BOS, EOS, PAD
from model_text import written_by
from saelora.core.lora import disabled, lora_config
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint

SPECIAL = (PAD, BOS, EOS)


def rows_of(model: nn.Module, n_rows: int = 5, n_tokens: int = 11) -> Tensor:
    """Rows that the model finds likely, with special tokens inside."""
    rows = torch.full((n_rows, n_tokens), 3)
    rows[:, 0] = BOS
    rows[1, 3:] = EOS
    rows[-1, 5] = BOS
    return written_by(model, rows)


def replaced(rows: Tensor) -> Tensor:
    return torch.tensor([[token not in SPECIAL for token in row] for row in rows.tolist()])


def with_adapter(model: nn.Module, layers: list[int], size: float = 0.3) -> nn.Module:
    model = get_peft_model(model, lora_config(model, layers, rank=2, alpha=4.0)).double()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval()


@contextmanager
def plainly_spliced(model: nn.Module, saes: dict[Hookpoint, Any], rows: Tensor) -> Iterator[dict[Hookpoint, Tensor]]:
    """SAEs at the outputs of layers or sublayers; yields what each got."""
    mask, got, handles = replaced(rows), {}, []
    for hookpoint, sae in saes.items():

        def hook(_module, _args, output, hookpoint=hookpoint, sae=sae):
            x = output if isinstance(output, Tensor) else output[0]
            got[hookpoint] = x
            new = x.clone()
            new[mask] = sae.decode(sae.encode(x[mask]))
            return new if isinstance(output, Tensor) else (new, *output[1:])

        module, side = anatomy_of(model).site(hookpoint)
        assert side == "output"
        handles.append(module.register_forward_hook(hook))
    try:
        yield got
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain_runs(model: nn.Module, saes: dict[Hookpoint, Any], rows: Tensor) -> dict[str, dict[str, Any]]:
    """For base, sae, adapted and adapted_clean: logits, the layers' outputs (after replacement), the SAEs' inputs."""
    runs = {}
    for name, with_sae, with_adapter_on in (
        ("base", False, False),
        ("sae", True, False),
        ("adapted", True, True),
        ("adapted_clean", False, True),
    ):
        with plainly_spliced(model, saes if with_sae else {}, rows) as got, outputs_of_layers(model) as outputs:
            if with_adapter_on:
                logits = model(input_ids=rows).logits
            else:
                with disabled(model):
                    logits = model(input_ids=rows).logits
        runs[name] = {"logits": logits, "layers": outputs, "inputs": got}
    return runs


@contextmanager
def outputs_of_layers(model: nn.Module) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def keep(_module, _args, output):
        found.append(output if isinstance(output, Tensor) else output[0])

    handles = [layer.register_forward_hook(keep) for layer in anatomy_of(model).layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
