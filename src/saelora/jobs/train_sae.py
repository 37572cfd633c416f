"""saelora train-sae: train SAEs or transcoders on a model's activations, saved in SAELens's native format."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from saelora.config import Configuration, Count, configured, hints_of, limits_of, option
from saelora.console import Console
from saelora.errors import InputError
from saelora.files import in_use
from saelora.jobs.acting import check_acting
from saelora.jobs.run import CHECKPOINTS, RunConfig, check_out, processes, taken_up
from saelora.jobs.sae_folder import FINISHED, names_of, target_of
from saelora.limits import EXEMPT, NOT_NEGATIVE, POSITIVE, ROW, SHARE, OneOf, Within, exempt, transcoder_layers
from saelora.locks import tidy
from saelora.manifest import RESULTS, read_json
from saelora.named import check_named, check_sae_path
from saelora.options import SourceConfig
from saelora.options import hookpoint as known_hookpoint
from saelora.records import JsonObject
from saelora.sae_training.recipe import Architecture, SAERecipe, variant_recipes
from saelora.saes.saelens import need_saelens

if TYPE_CHECKING:
    from saelora.sae_training.warm_start import Start

Objective = Literal["local", "e2e", "e2e+downstream"]


class SAETrainConfig(Configuration):
    """SAE and its training"""

    hookpoint: list[str] = option(
        [],
        "where to train, e.g. layers.12.resid_post; repeat it to train several SAEs in one pass of the model",
        limit=known_hookpoint,
    )
    transcoder_layers: str | None = option(
        None,
        "of transcoders, instead of --hookpoint: the layers whose MLPs they stand for: all, every:3, or 0,4,8-12",
        limit=transcoder_layers,
    )
    circuit_tracer: str | None = option(
        None, "of transcoders: a folder to write them to for circuit-tracer as well, one layer_N.safetensors a layer"
    )
    variant: list[str] = option(
        [],
        "changed options of one SAE, e.g. k=16 or architecture=batchtopk,k=64; repeat it to train several at each "
        "hookpoint in the same pass",
    )
    tokens: Count = option(
        2_000_000, "tokens to train on; more than the data holds means several epochs", limit=POSITIVE
    )
    objective: Objective = option(
        "local",
        "local: reconstruct the activation; e2e: through the layers above, keep the model's predictions (KL alone); "
        "e2e+downstream: those and the later layers' outputs",
    )
    downstream: float = option(1.0, "weight of the later layers' error in e2e+downstream", limit=Within(above=0))
    start: str | None = option(
        None, "a finished SAE to go on from (topk, standard, jumprelu; references as in adapt's --sae)"
    )
    architecture: Architecture | None = option(
        None,
        f"one of {', '.join(get_args(Architecture))}; default: topk, or the start's; transcoders rebuild an MLP's "
        "output from its input, skip-transcoders beside a linear map",
    )
    expansion: int | None = option(
        None, f"d_sae / d_in; default: {SAERecipe.expansion}, or the start's", limit=POSITIVE
    )
    d_sae: int | None = option(None, "number of latents; overrides --expansion", limit=POSITIVE)
    k: int | None = option(
        None,
        "active latents per token (topk), or their mean (batchtopk, matryoshka, transcoders); "
        f"default: {SAERecipe.k}, or the start's",
        limit=POSITIVE,
    )
    lr: float = option(SAERecipe.lr, "peak learning rate", limit=Within(above=0, most=1))
    warmup: float = option(SAERecipe.warmup, "share of the run over which lr rises from 0", limit=SHARE)
    decay: float = option(SAERecipe.decay, "share of the run, at its end, over which lr falls to 0", limit=SHARE)
    batch_tokens: int = option(SAERecipe.batch_tokens, "tokens per optimiser step", limit=POSITIVE)
    passes: int = option(
        SAERecipe.passes, "times each chunk of activations is used; end to end always once", limit=POSITIVE
    )
    dead_after_tokens: Count = option(SAERecipe.dead_after_tokens, "a latent silent for longer is dead", limit=POSITIVE)
    aux_coefficient: float = option(
        SAERecipe.aux_coefficient, "weight of the dead latents' auxiliary loss (topk, transcoders)", limit=NOT_NEGATIVE
    )
    l1_coefficient: float = option(SAERecipe.l1_coefficient, "sparsity of standard and gated SAEs", limit=NOT_NEGATIVE)
    l0_coefficient: float = option(SAERecipe.l0_coefficient, "sparsity of jumprelu SAEs", limit=NOT_NEGATIVE)
    exempt: list[str] = option(
        list(EXEMPT),
        "positions not trained on: bos, eos, pad, first, first:4, none, token ids, massive (norms above 10 times the "
        "median; massive:20: 20 times)",
        limit=exempt,
    )
    save_dtype: str = option(
        "float32", "of the saved weights: float32 or bfloat16", limit=OneOf(("float32", "bfloat16"))
    )


class Config(SourceConfig, SAETrainConfig, RunConfig):
    """Options of train-sae"""

    context: int = option(512, "tokens per packed row, BOS included", limit=ROW)
    batch_rows: int = option(32, "rows per chunk: activations are shuffled within a chunk", limit=POSITIVE)
    eval_tokens: Count = option(25_000, "tokens of held-out text for the card's figures", limit=POSITIVE)


def train_sae(config: Config | None = None, **options: Any) -> dict[str, Any]:
    """Train SAEs and measure them on held-out text; each is saved under ``out``.

    Several hookpoints make folders ``out/<hookpoint>``, variants ``out/<hookpoint>/<variant>``.

    Returns:
        Per hookpoint, or "hookpoint/variant": fvu, what stands beside it (``saelora.core.spread``), l0, dead_frac,
        ce_base, ce_sae, loss_recovered_sae, with intervals.

    Raises:
        InputError: bad input, with its remedy.
        Interrupted: stopped by a signal after saving a checkpoint.
    """
    with ExitStack() as held:
        return _train(configured(Config, config, options), held)


def _train(config: Config, held: ExitStack) -> dict[str, JsonObject]:
    config = taken_up(config)
    group = processes(config)
    console = Console(quiet=config.quiet or not group.is_main)
    group.check_rows(config.batch_rows)
    folder = group.on_main(lambda: check_out(config))
    if config.resume and group.on_main((folder / FINISHED).exists):
        console.say(f"{folder} is finished already; nothing to resume")
        group.on_main(lambda: tidy(folder, CHECKPOINTS))
        return {name: read_json(target_of(config, folder, name) / RESULTS) for name in names_of(config, folder)}
    check(config)
    known = config.start is None or config.architecture is not None
    architectures = {recipe.architecture for recipe in recipes_of(config).values()} if known else set()
    check_acting(config, "train-sae", {"architecture": sorted(architectures)})
    console.say(f"loading {config.model}")
    from saelora.jobs.train_sae_run import train  # seconds: after what can be wrong without it

    return {name: found.to_json() for name, found in train(config, console, folder, group, held).items()}


def check(config: Config) -> None:
    """Raise InputError for what can be seen to be wrong before anything is loaded."""
    if not config.hookpoint and not config.transcoder_layers:
        raise InputError("no hookpoint given: name one with --hookpoint, e.g. --hookpoint layers.12.resid_post")
    if config.hookpoint and config.transcoder_layers:
        raise InputError("--hookpoint and --transcoder-layers both say where to train: give one of them")
    check_named(config)
    if config.start is not None:
        check_sae_path(config.start)
    k = config.k or (0 if config.start else SAERecipe.k)
    if config.d_sae is not None and config.d_sae < k:
        raise InputError(f"k is {k} but d_sae is {config.d_sae}: lower k or widen the SAE")
    if config.objective != "local" and config.shard:
        raise InputError(
            f"--objective {config.objective} does not run on sharded layers, since each process runs the model for its "
            "own SAEs: leave out --shard"
        )
    if any(recipe.is_transcoder for recipe in recipes_of(config).values()):
        _check_transcoders(config)
    if config.start is not None and len(config.hookpoint) != 1:
        raise InputError(f"start {config.start} is one SAE, got {len(config.hookpoint)} hookpoints: give one")
    need_saelens("training SAEs")


def _check_transcoders(config: Config) -> None:
    if config.objective != "local":
        raise InputError(
            f"--objective {config.objective} trains SAEs, whose own input is at hand where they stand: train "
            "transcoders with --objective local, then through the model with finetune-sae --transcoders, or with the "
            "model around them by adapt --transcoders"
        )
    if config.start is not None:
        raise InputError(
            "--start goes on from an SAE: leave it out, or train transcoders further with finetune-sae --transcoders"
        )
    if config.circuit_tracer is None:
        return
    if config.variant:
        raise InputError("--circuit-tracer writes one transcoder a layer, --variant makes several: leave out one")
    if config.transcoder_layers != "all":
        raise InputError(
            "--circuit-tracer writes a whole set, since circuit-tracer reads no other: give --transcoder-layers all"
        )
    folder, out = Path(config.circuit_tracer).absolute(), Path(config.out or ".").absolute()
    if folder == out or out in folder.parents:
        raise InputError(
            f"--circuit-tracer {config.circuit_tracer} lies in --out, where --transcoders would find each layer twice: "
            "name another folder"
        )
    if in_use(folder) and not (config.resume or config.overwrite):
        raise InputError(f"--circuit-tracer {config.circuit_tracer} exists: choose another, or --overwrite")


def recipes_of(config: Config, begin: "Start | None" = None) -> dict[str, SAERecipe]:
    """Recipes by variant; what is not given is the start's, or the default."""
    kinds = {name: kind for name, kind in hints_of(Config).items() if name in SAERecipe.__dataclass_fields__}
    given = {name: value for name in kinds if (value := getattr(config, name)) is not None}
    if begin is not None:
        like_start = {"architecture": begin.architecture, "k": begin.k}
        like_start |= {} if "expansion" in given else {"d_sae": begin.d_sae}
        given = {**{name: value for name, value in like_start.items() if value is not None}, **given}
    return variant_recipes(config.variant, SAERecipe(**given), kinds, limits_of(Config))
