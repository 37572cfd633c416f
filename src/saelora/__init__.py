"""Low-rank adapt a language model around its frozen sparse autoencoders (SAEs).

Importing this is cheap: transformers, PEFT and SAELens are imported when a name that needs them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saelora.collector import resting
from saelora.errors import InputError

if TYPE_CHECKING:
    from saelora.core.kl_head import kl_head
    from saelora.core.splice import TokenPolicy, splice
    from saelora.data.corpus import open_corpus
    from saelora.data.pack import pack
    from saelora.evals.loss import evaluate_loss
    from saelora.jobs.adapt import adapt
    from saelora.jobs.compare import compare
    from saelora.jobs.demo import demo
    from saelora.jobs.evaluate import evaluate
    from saelora.jobs.figure import figure
    from saelora.jobs.finetune_sae import finetune_sae
    from saelora.jobs.report import report
    from saelora.jobs.sweep import sweep
    from saelora.jobs.train_sae import train_sae
    from saelora.models.adapters import load_adapter
    from saelora.models.hookpoints import Hookpoint, parse_hookpoint
    from saelora.models.loading import load_model
    from saelora.saes.loading import load_sae
    from saelora.use.loading import load

_HOMES = {
    "Hookpoint": "models.hookpoints",
    "TokenPolicy": "core.splice",
    "adapt": "jobs.adapt",
    "compare": "jobs.compare",
    "demo": "jobs.demo",
    "evaluate": "jobs.evaluate",
    "evaluate_loss": "evals.loss",
    "figure": "jobs.figure",
    "finetune_sae": "jobs.finetune_sae",
    "kl_head": "core.kl_head",
    "load": "use.loading",
    "load_adapter": "models.adapters",
    "load_model": "models.loading",
    "load_sae": "saes.loading",
    "open_corpus": "data.corpus",
    "pack": "data.pack",
    "parse_hookpoint": "models.hookpoints",
    "splice": "core.splice",
    "sweep": "jobs.sweep",
    "train_sae": "jobs.train_sae",
    "report": "jobs.report",
    "write_report": "jobs.report",
}

__all__ = [
    "Hookpoint",
    "InputError",
    "TokenPolicy",
    "adapt",
    "compare",
    "demo",
    "evaluate",
    "evaluate_loss",
    "figure",
    "finetune_sae",
    "kl_head",
    "load",
    "load_adapter",
    "load_model",
    "load_sae",
    "open_corpus",
    "pack",
    "parse_hookpoint",
    "report",
    "splice",
    "sweep",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("saelora")
    if name in _HOMES:
        with resting():
            return getattr(import_module(f"saelora.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'saelora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
