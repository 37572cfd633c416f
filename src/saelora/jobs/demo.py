"""saelora demo: the whole job on a real model and real text, in minutes, without account or GPU."""

from typing import Any

from saelora.config import Configuration, Count, configured, option
from saelora.console import Console
from saelora.evals.loss_result import RunResult
from saelora.evals.registry import EVALUATIONS
from saelora.jobs import adapt as adapt_job
from saelora.jobs import evaluate as evaluate_job
from saelora.jobs import report as report_job
from saelora.limits import SEED, Within, device
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE, DEFAULT_TRANSCODERS
from saelora.reporting.text import loss_table, samples_text

PAGE_TOKENS = 6144  # of held-out text, for what the page shows beside the losses
REPLACEMENT_TOKENS = 1024  # of held-out text, for the curve over the number of replaced MLPs
_REPLACEMENT = EVALUATIONS["replacement"]
_CONTEXT, _EVAL_CONTEXT = 256, 512  # tokens per row


class Config(Configuration):
    """Demo"""

    replacement: bool = option(False, "replace all 30 MLPs by transcoders, instead of one SAE, and adapt round them")
    out: str | None = option(
        None,
        "folder for all results; never overwritten silently; default: saelora-demo, saelora-replacement with "
        "--replacement",
    )
    tokens: Count = option(25_600, "tokens to adapt on", limit=Within(least=_CONTEXT))
    eval_tokens: Count | None = option(
        None,
        "tokens of held-out text to evaluate on; default: 21504, 8192 with --replacement",
        limit=Within(least=_EVAL_CONTEXT),
    )
    seed: int = option(0, "of rows and initial weights", limit=SEED)
    resume: bool = option(False, "go on with an interrupted demo in --out")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    device: str = option("auto", "cpu, cuda, mps; auto takes the GPU where there is one", limit=device)
    quiet: bool = option(False, "show no progress")


def demo(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Adapt SmolLM2-135M-Instruct on State of the Union addresses, around its shipped SAE or transcoders.

    Returns:
        As ``saelora.adapt`` does, with three sample continuations and the path of the page about it; of a replacement,
        also what it costs by the number of MLPs replaced, as ``saelora.evaluate`` gives it.
    """
    config = configured(Config, config, options)
    return _replacement(config) if config.replacement else _one_sae(config)


def _one_sae(config: Config) -> dict[str, Any]:
    out = config.out or "saelora-demo"
    console = Console(quiet=config.quiet)
    console.say(
        "SmolLM2-135M-Instruct (30 layers), run through a TopK SAE at layer 12, adapted in the layers above it."
    )
    results = _adapt(config, out, 21_504, sae=[DEFAULT_SAE], history_points=4, history_tokens=2048)
    console.say("looking at single tokens and layers, for the page")
    _measure(config, out, parts=("tokens", "drift"), eval_tokens=PAGE_TOKENS)
    return {**results, "out": out, "page": _page(config, out)}


def _replacement(config: Config) -> dict[str, Any]:
    out = config.out or "saelora-replacement"
    console = Console(quiet=config.quiet)
    console.say(
        "SmolLM2-135M-Instruct with a transcoder of 960 latents in the place of each of its 30 MLPs, adapted in the "
        "attention of all layers."
    )
    results = _adapt(config, out, 8_192, transcoders=[DEFAULT_TRANSCODERS], placement="all")
    console.say("replacing 1, 3, 5, 10, 15 and 30 MLPs, and each alone")
    found = _measure(
        config,
        out,
        parts=("replacement",),
        replacement_modes=("cascading", "independent"),
        replacement_tokens=REPLACEMENT_TOKENS,
    )
    return {**results, "replacement": found["replacement"], "out": out, "page": _page(config, out)}


def _adapt(config: Config, out: str, eval_tokens: int, **of_kind: Any) -> dict[str, Any]:
    own = ("tokens", "seed", "resume", "overwrite", "device", "quiet")
    return adapt_job.adapt(
        adapt_job.Config(
            model=DEFAULT_MODEL,
            data=DEFAULT_DATA,
            samples=3,
            context=_CONTEXT,
            eval_context=_EVAL_CONTEXT,
            out=out,
            eval_tokens=config.eval_tokens or eval_tokens,
            **{name: getattr(config, name) for name in own},
            **of_kind,
        )
    )


def _measure(config: Config, out: str, **asked: Any) -> dict[str, Any]:
    return evaluate_job.evaluate(
        evaluate_job.Config(
            adapter=out,
            overwrite=True,  # a resumed demo measures it anew
            device=config.device,
            quiet=config.quiet,
            **asked,
        )
    )


def _page(config: Config, out: str) -> str:
    return str(report_job.report(report_job.Config(dirs=[out], quiet=config.quiet))["report"])


def render(results: dict[str, Any]) -> str:
    """The demo's closing page."""
    run, out = RunResult.model_validate(results), results["out"]
    curve = results.get("replacement")
    what = "the cost by number of MLPs replaced" if curve else "every token's loss"
    return "\n".join(
        [
            loss_table(run),
            *(["", *_REPLACEMENT.lines(_REPLACEMENT.read(curve, "the result"))] if curve else []),
            samples_text(run.samples),
            "",
            f"The page about it, with {what}: {results['page']}",
            f"Adapter, results.json, metrics.jsonl and learning_curve.png are in {out}/",
            f"Measure it again: saelora evaluate --adapter {out}",
            f'Talk to it: saelora generate {out} "Fellow citizens,"; in the browser: saelora open {out}',
        ]
    )
