"""What the step is measured on: a real model, SAE and text, or random weights of a named shape."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measure import random_sae
from published import add_adapter, copy_sharing_weights, with_adapter
from shapes import SAES, random_model
from torch import Tensor

from saelora.assemble import assemble, autocast_dtype, read_rows
from saelora.config import build
from saelora.core.splice import Splice, TokenMask
from saelora.models.anatomy import anatomy_of
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import pick_device, resolve_dtype
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.distill_recipe import DistillRecipe
from saelora.options import SplicedConfig
from saelora.saes.sparse import sparse, worthwhile


class _Options(SplicedConfig):
    """Options of a benchmark"""


@dataclass(frozen=True)
class Setting:
    """A frozen model, one SAE, and rows of tokens [n_rows, context], as many as asked for."""

    model: Any
    sae: Any
    hookpoint: Hookpoint
    token_mask: TokenMask
    rows: Tensor
    autocast: torch.dtype | None

    @property
    def device(self) -> torch.device:
        return self.rows.device


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--sae", default=DEFAULT_SAE)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--shape", choices=[*SAES], help="random weights and tokens instead of --model")
    parser.add_argument("--sae-kind", choices=["topk", "jumprelu"], default="topk", help="of a --shape's random SAE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)


def make(args: argparse.Namespace, n_rows: int, context: int) -> Setting:
    """The setting that the options name, with that many rows."""
    if args.shape is not None:
        return _random(args, n_rows, context)
    options = {"model": args.model, "sae": [args.sae], "data": args.data, "device": args.device, "dtype": args.dtype}
    config = build(_Options, {**options, "context": context, "sparse_decode": "off"})
    assembled = assemble(config)
    ((hookpoint, found),) = assembled.saes.items()
    rows = read_rows(config, assembled.loaded, n_rows * context, "train", 0).input_ids
    while len(rows) < n_rows:  # timings do not mind a repeated row
        rows = torch.cat([rows, rows])
    loaded = assembled.loaded
    on_device = rows[:n_rows].to(loaded.model.device)
    return Setting(loaded.model, found.sae, hookpoint, assembled.token_mask, on_device, autocast_dtype(loaded))


def _random(args: argparse.Namespace, n_rows: int, context: int) -> Setting:
    device = pick_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    torch.manual_seed(0)
    model = random_model(args.shape, device, dtype)
    layer, d_sae, k = SAES[args.shape]
    sae = random_sae(args.sae_kind, model.config.hidden_size, d_sae, k, device, torch.float32)
    rows = torch.randint(3, model.config.vocab_size, (n_rows, context), device=device)
    rows[:, 0] = model.config.bos_token_id
    half = dtype if dtype in (torch.bfloat16, torch.float16) else None
    mask = TokenMask((model.config.bos_token_id, model.config.eos_token_id))
    return Setting(model, sae, Hookpoint(layer), mask, rows, half)


def our_sae(sae: Any, device: torch.device) -> Any:
    """The SAE as `saelora adapt` would run it."""
    return sparse(sae) if worthwhile(sae, device.type) else sae


@dataclass
class Ours:
    """This project's step, with one branch or several, on modules of its own and the setting's weights.

    Hooks stay in the copied model for as long as it lives.
    """

    setting: Setting
    placement: str = "after"
    ranks: Sequence[int] = (64,)
    compiled: bool = False

    def __post_init__(self) -> None:
        setting, hookpoint = self.setting, self.setting.hookpoint
        copied = copy_sharing_weights(setting.model)
        self.model = with_adapter(copied, self.placement, hookpoint, rank=self.ranks[0], alpha=self.ranks[0])
        names = ["default", *(f"branch{i}" for i in range(1, len(self.ranks)))]
        for name, rank in zip(names[1:], self.ranks[1:], strict=True):
            add_adapter(self.model, name, self.placement, hookpoint, rank=rank, alpha=rank)
        spliced = Splice({hookpoint: our_sae(setting.sae, setting.device)}, setting.token_mask, None)
        spliced.attach(self.model, anatomy_of(self.model), [])
        branches = [Branch(name, spliced, DistillRecipe()) for name in names]
        self.distill = Distill(
            self.model, branches, n_rows=1_000_000, autocast=setting.autocast, compiled=self.compiled
        )

    def step(self, rows: Tensor) -> dict[str, Tensor]:
        return self.distill.step(rows, 0.5)

    def parameters(self) -> list[Any]:
        return [p for p in self.model.parameters() if p.requires_grad]
