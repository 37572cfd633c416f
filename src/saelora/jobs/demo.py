"""saelora demo: the whole job on a real model and real text, in minutes, without account or GPU."""

from typing import Any

from saelora.config import Configuration, Count, configured, option
from saelora.console import Console
from saelora.evals.loss_result import RunResult
from saelora.jobs import adapt as adapt_job
from saelora.jobs import evaluate as evaluate_job
from saelora.jobs import report as report_job
from saelora.limits import SEED, Within, device
from saelora.models.assets import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_SAE
from saelora.reporting.text import loss_table, samples_text

PAGE_TOKENS = 6144  # of held-out text, for what the page shows beside the losses
_CONTEXT, _EVAL_CONTEXT = 256, 512  # tokens per row


class Config(Configuration):
    """Demo"""

    out: str = option("saelora-demo", "folder for all results; never overwritten silently")
    tokens: Count = option(25_600, "tokens to adapt on", limit=Within(least=_CONTEXT))
    eval_tokens: Count = option(21_504, "tokens of held-out text to evaluate on", limit=Within(least=_EVAL_CONTEXT))
    seed: int = option(0, "of rows and initial weights", limit=SEED)
    resume: bool = option(False, "go on with an interrupted demo in --out")
    overwrite: bool = option(False, "delete what is in --out and start anew")
    device: str = option("auto", "cpu, cuda, mps; auto takes the GPU where there is one", limit=device)
    quiet: bool = option(False, "show no progress")


def demo(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Adapt SmolLM2-135M-Instruct around its shipped SAE on State of the Union addresses.

    Returns:
        As ``saelora.adapt`` does, with three sample continuations and the path of the page about it.
    """
    config = configured(Config, config, options)
    console = Console(quiet=config.quiet)
    console.say(
        "SmolLM2-135M-Instruct (30 layers), run through a TopK SAE at layer 12, adapted in the layers above it."
    )
    adapt_config = adapt_job.Config(
        model=DEFAULT_MODEL,
        sae=[DEFAULT_SAE],
        data=DEFAULT_DATA,
        samples=3,
        context=_CONTEXT,
        eval_context=_EVAL_CONTEXT,
        history_points=4,
        history_tokens=2048,
        **vars(config),
    )
    results = adapt_job.adapt(adapt_config)
    console.say("looking at single tokens and layers, for the page")
    evaluate_job.evaluate(
        evaluate_job.Config(
            adapter=config.out,
            parts=("tokens", "drift"),
            eval_tokens=PAGE_TOKENS,
            overwrite=True,  # a resumed demo measures them anew
            device=config.device,
            quiet=config.quiet,
        )
    )
    page = report_job.report(report_job.Config(dirs=[config.out], quiet=config.quiet))
    return {**results, "out": config.out, "page": page["report"]}


def render(results: dict[str, Any]) -> str:
    """The demo's closing page."""
    run, out = RunResult.model_validate(results), results["out"]
    return "\n".join(
        [
            loss_table(run),
            samples_text(run.samples),
            "",
            f"The page about it, with every token's loss: {results['page']}",
            f"Adapter, results.json, metrics.jsonl and learning_curve.png are in {out}/",
            f"Measure it again: saelora evaluate --adapter {out}",
        ]
    )
