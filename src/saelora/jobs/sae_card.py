"""The card that train-sae leaves beside each SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelora.evals.estimate import number
from saelora.evals.loss_result import SAEFigures, SAEResult

if TYPE_CHECKING:
    from saelora.jobs import train_sae
    from saelora.sae_training.recipe import SAERecipe


_TRANSCODER = {
    "transcoder": "A transcoder",
    "skip-transcoder": "A transcoder with a skip connection, a linear map of its input",
}


def sae_card(config: train_sae.Config, name: str, recipe: SAERecipe, sae: Any, figures: SAEResult) -> str:
    """The model card of one SAE: recipe, tokens and what it does to the model.

    Args:
        config: of ``saelora train-sae``.
        recipe: the SAE's own ``SAERecipe``.
        figures: what its results.json holds.
    """
    hookpoint, _, variant = name.partition("/")
    passes = recipe.passes if config.objective == "local" else 1
    what, source = "SAE", "the activations"
    kind, at = f"A {recipe.architecture} sparse autoencoder", f"at {hookpoint}"
    if recipe.is_transcoder:
        what, source = "Transcoder", f"the MLP's inputs ({sae.reads}) and outputs"
        kind, at = _TRANSCODER[recipe.architecture], f"for {hookpoint}"
    title = f"{what} of {config.model} {at}" + (f", variant {variant}" if variant else "")
    return f"""---
library_name: saelens
---
# {title}

{kind}, d_in {sae.cfg.d_in}, d_sae {sae.cfg.d_sae}, trained with saelora
on {source} of {figures.n_tokens_trained:,} tokens of {config.data} (left out: {", ".join(config.exempt)}).
{_jumps(recipe)}{_how(config)}Load it with `SAE.load_from_disk(folder)` (SAELens) or `--sae folder` (saelora).

| on {figures.n_tokens_evaluated:,} held-out tokens | |
|---|---|
| FVU (fraction of variance unexplained) | {figures.fvu:.4f} |
{_spread(figures)}| L0 (active latents per token) | {figures.l0:.1f} |
| latents that never fired there | {figures.dead_frac:.1%} |
| cross entropy, clean model | {figures.ce_base:.4f} nats per token |
{_spliced(figures, what)}
Recipe: `{recipe.architecture}`, k {recipe.k}, lr {recipe.lr}, warm-up {recipe.warmup}, decay {recipe.decay},
{recipe.batch_tokens} tokens a step, passes {passes}, seed {recipe.seed} (of rows {config.seed}),
{config.tokens:,} tokens, context {config.context}. cfg.json holds it whole.
Documents were held out by a hash of their text (fraction {config.validation_fraction}); the SAE saw none of them.
"""


def _jumps(recipe: SAERecipe) -> str:
    """What becomes of a transcoder's k."""
    if not recipe.is_transcoder:
        return ""
    return "In training k latents a token were active on average; in use those above a threshold are (JumpReLU).\n"


def _spliced(figures: SAEResult, what: str) -> str:
    """Lines on the model with this one in it; none where several were put in at once (training.json has that)."""
    if figures.ce_sae is None:
        return ""
    name = "SAE" if what == "SAE" else what.lower()
    return (
        f"| cross entropy, {name} spliced in | {figures.ce_sae:.4f} nats per token |\n"
        f"| loss recovered against zero ablation | {number(figures.loss_recovered_sae):.4f} |\n"
    )


def _spread(figures: SAEFigures) -> str:
    """Lines on what FVU hides: a token or two may hold most of the variance."""
    lines = (
        ("FVU without the largest 0.1 % of tokens", (figures.fvu_rest,), ".4f"),
        ("share of the variance that those tokens hold", (figures.top_variance,), ".1%"),
        ("squared error of a token over its squared norm, median", (figures.relative_error,), ".4f"),
        ("the same, 10 % to 90 % of tokens", (figures.relative_error_q10, figures.relative_error_q90), ".4f"),
    )
    return "".join(
        f"| {told} | {' to '.join(format(value, form) for value in values)} |\n"
        for told, values, form in lines
        if None not in values
    )


def _how(config: train_sae.Config) -> str:
    """The card's lines on what was optimised and from where, where that is not the usual."""
    how = f"It went on from {config.start}.\n" if config.start is not None else ""
    if config.objective == "local":
        return how
    later = f" and its later layers' outputs (weight {config.downstream:g})" if "downstream" in config.objective else ""
    return f"Trained end to end: the model that runs through it is to keep its predictions (KL){later}.\n" + how
