"""saelora evaluate: what SAEs cost a model, and what an adapter buys back."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from saelora.assemble import (
    Assembled,
    DataOptions,
    ModelOptions,
    SAEOptions,
    assemble,
    autocast_dtype,
    validation_rows,
)
from saelora.config import build, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.evals.loss import evaluate_loss
from saelora.jobs.run import processes
from saelora.manifest import MANIFEST, describe, read_json, write_json
from saelora.models.loading import pick_device
from saelora.report.text import loss_table
from saelora.train.distributed import ALONE, Group
from saelora.train.shard import shard_layers


@dataclass(kw_only=True)
class EvaluateOptions:
    """Evaluation"""

    adapter: str | None = option(None, "a saelora run's folder; model, SAEs and data default to those it was made with")
    out: str | None = option(None, "JSON file to write the results to")


@dataclass(kw_only=True)
class Config(ModelOptions, SAEOptions, DataOptions, EvaluateOptions):
    """Options of evaluate"""


def evaluate(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Measure a model, its splice, and (with ``adapter``) an adapter on held-out text.

    Returns:
        ce_base, ce_sae, kl_sae, loss_recovered_sae, and with an adapter ce_adapted, ce_adapted_clean, gap_closed, ...,
        with intervals, the SAEs' fvu and l0, and what identifies model, SAEs and token policy.

    Raises:
        InputError: bad input, with its remedy.
    """
    config = config or build(Config, options)
    group = processes(config)
    console = Console(quiet=config.quiet or not group.is_main)
    if config.out and Path(config.out).exists():
        raise InputError(f"{config.out} exists: choose another --out")
    if config.out and not Path(config.out).absolute().parent.is_dir():
        raise InputError(f"{config.out} cannot be written: there is no folder {Path(config.out).parent}")
    recorded = _recorded(Path(config.adapter) / MANIFEST) if config.adapter else None
    own_model, own_sae = bool(config.model), bool(config.sae)
    if recorded is not None:
        config = _with_recorded(config, recorded["config"])
        if not own_model and config.revision is None:
            config.revision = recorded["model"]["revision"]  # the commit, where a branch may have moved on
    console.say(f"loading {config.model} and {', '.join(config.sae) or 'no SAE'}")
    assembled = assemble(config)
    if recorded is not None and not own_model:
        _check_same(describe(assembled)["model"], recorded["model"], "model", "as MODEL")
    if recorded is not None and not own_sae:
        for now, then in zip(describe(assembled)["saes"], recorded["saes"], strict=True):
            _check_same(now, then, "SAE", "with --sae")
    rows = group.on_main(lambda: validation_rows(config, assembled.loaded))
    model: nn.Module = assembled.loaded.model
    if config.adapter:
        model = load_adapter(model, config.adapter)
    if config.shard:
        shard_layers(model, pick_device(config.device), group)
    results = {**measure(console, assembled, model, rows, group), "about": describe(assembled)}
    if config.out and group.is_main:
        write_json(Path(config.out), results)
    return results


def render(results: dict[str, Any]) -> str:
    """The results as a person reads them."""
    return loss_table(results)


def measure(
    console: Console, assembled: Assembled, model: nn.Module, rows: Tensor, group: Group = ALONE
) -> dict[str, Any]:
    """``evaluate_loss`` of an assembled model on held-out rows [n_rows, context], with progress."""
    with console.progress("evaluating", rows.numel()) as bar:
        return evaluate_loss(
            model,
            assembled.sae_modules,
            assembled.token_mask,
            rows,
            autocast=autocast_dtype(assembled.loaded),
            progress=bar.advance,
            group=group,
        )


def load_adapter(model: nn.Module, folder: str) -> nn.Module:
    """A PEFT adapter on a loaded model.

    Raises:
        InputError: there is none, it is damaged, or it is for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, folder).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"adapter {folder} does not load on this model: {reason}") from error


def _with_recorded(config: Config, recorded: dict[str, Any]) -> Config:
    """Options that were left at their defaults are taken from the adapter's own run."""
    fresh = Config()
    names = {f.name for f in fields(Config)} - {"adapter", "out", "quiet", "device", "dtype", "shard", "compile"}
    unset = {name for name in names if getattr(config, name) == getattr(fresh, name) and name in recorded}
    values = {f.name: getattr(config, f.name) for f in fields(Config)}
    return build(Config, {**values, **{name: recorded[name] for name in unset}}, "the adapter's recorded configuration")


def _recorded(path: Path) -> dict[str, Any]:
    """The manifest of an adapter's run."""
    found = read_json(path)
    if not isinstance(found, dict) or not {"config", "model", "saes"} <= found.keys():
        raise InputError(f"{path} is no manifest of an adapter: is {path.parent} the output folder of saelora adapt?")
    return found


def _check_same(now: dict[str, Any], then: dict[str, Any], kind: str, how: str) -> None:
    if now["fingerprint"] != then["fingerprint"]:
        raise InputError(
            f"{kind} {now['ref']} has changed since the adapter was made (fingerprint {then['fingerprint']}, now "
            f"{now['fingerprint']}): name one {how} to evaluate the adapter with it all the same"
        )
