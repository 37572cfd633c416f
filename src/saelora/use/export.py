"""saelora export: a run for other tools, each time tried on both sides."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saelora.config import Count, configured, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import in_use, whole_folder, write_whole
from saelora.limits import NOT_NEGATIVE
from saelora.manifest import check_writable
from saelora.use.options import RunOptions
from saelora.use.talking import opened

if TYPE_CHECKING:
    from saelora.use.exports.target import Export
    from saelora.use.run import LoadedRun

Format = Literal["merged", "peft", "saelens", "transformer-lens", "nnsight", "neuronpedia", "gguf"]
NEXT = {
    "merged": "AutoModelForCausalLM.from_pretrained({folder!r}) loads it",
    "peft": "PeftModel.from_pretrained(model, {folder!r}) loads it",
    "saelens": "SAE.load_from_disk reads each folder in it; --sae {folder}/HOOKPOINT names it",
    "transformer-lens": "python {folder}/bridged.py runs it; its load() and spliced() are for your own code",
    "nnsight": "python {folder}/traced.py runs it; its load() and splice() are for your own code",
    "neuronpedia": "python {folder}/upload.py sends it, with NEURONPEDIA_API_KEY set",
    "gguf": "llama-cli -m BASE.gguf --lora {folder}/adapter.gguf runs it",
}


class Config(RunOptions):
    """Options of export"""

    to: Format | None = option(
        None,
        "merged (transformers), peft (adapter), saelens (SAEs), transformer-lens, nnsight, neuronpedia (latents), "
        "gguf (adapter for llama.cpp)",
    )
    out: str | None = option(None, "folder to write; default: REF-TO, beside where you are; never overwritten")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "of what is written; auto is the base model's own for merged, else as it is"
    )
    eval_tokens: Count = option(
        4096,
        "tokens of held-out text, on which merged says what the rounding costs (0: do not), neuronpedia what fires",
        limit=NOT_NEGATIVE,
    )

    def loading(self) -> dict[str, Any]:
        """As it is asked for, but in float32: both sides are compared in it."""
        return {**super().loading(), "dtype": "float32"}


def export(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Write a run in another tool's format, load it by that tool, and say by how much logits differ.

    Returns:
        "folder", "difference" (the largest of logits) by what was compared, "notes", and figures of the rounding.

    Raises:
        InputError: no such run, nothing in it to export so, the folder is taken, or both sides disagree.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    if not config.ref:
        raise InputError("no run given: saelora export REF --to merged, as in saelora export saelora-demo --to merged")
    if config.to is None:
        raise InputError(f"no format given: --to {', '.join(NEXT)}")
    folder = Path(config.out or f"{Path(config.ref).name or 'run'}-{config.to}")
    if in_use(folder):
        raise InputError(f"{folder} exists and is not empty, so it is left alone: choose another --out")
    check_writable(folder)
    loaded = opened(config, console)
    from saelora.use.exports.notes import readme

    with whole_folder(folder) as part:
        found = _exported(config, loaded, part)
        write_whole(part / "README.md", readme(loaded, config.to, found))
    return {
        "folder": str(folder),
        "to": config.to,
        "difference": found.difference,
        "not_run": found.not_run,
        "notes": found.notes,
        **found.figures,
    }


def _exported(config: Config, loaded: LoadedRun, part: Path) -> Export:
    module: Any = import_module(f"saelora.use.exports.{str(config.to).replace('-', '_')}")
    text = [_text_of(config, loaded)] if config.to in ("merged", "neuronpedia") else []
    made: Export = module.export(loaded, part, config.dtype, *text)
    return made


def _text_of(config: Config, loaded: LoadedRun) -> Any:
    """The options of the text that the run held out."""
    from saelora.config import build
    from saelora.options import DataConfig

    if not config.eval_tokens:
        return None
    then = loaded.run.manifest.config if loaded.run.manifest is not None else {}
    values = {name: then[name] for name in DataConfig.model_fields if then.get(name) is not None}
    return build(DataConfig, {**values, "eval_tokens": config.eval_tokens}, "the run's recorded configuration")


def render(results: dict[str, Any]) -> str:
    """What was found, where it is, and how to go on."""
    lines = [
        f"largest difference {what if what.startswith('of ') else f'of logits, {what}'}: {value:.2g}"
        for what, value in results["difference"].items()
    ]
    if results["not_run"]:
        lines = [line.replace("of logits, ", "of ") for line in lines]
    go_on = NEXT[results["to"]].format(folder=results["folder"])
    return "\n".join([*lines, *results["notes"], f"In {results['folder']}/ (README.md): {go_on}"])
