"""What a configuration names -> loaded model, SAEs, rows of tokens: the only place where jobs meet loaders."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from saelora.core.calibration import TOKENS, calibrated
from saelora.core.cross_layer import check_whole
from saelora.core.massive import Massive
from saelora.core.replacement import CASCADING, Replacement, replacement_of
from saelora.core.splice import SAE, Splice, TokenMask, TokenPolicy, splice
from saelora.core.transcoding import check_widths, transcoder_in
from saelora.data.corpus import Corpus, open_corpus
from saelora.data.pack import Part, Rows, pack
from saelora.errors import InputError
from saelora.identity import PolicyRecord
from saelora.models.anatomy import Anatomy, anatomy_of
from saelora.models.compiling import compile_layers
from saelora.models.hookpoints import Hookpoint, ReadPoint, parse_hookpoint
from saelora.models.loading import LoadedModel, load_model, pick_device, resolve_dtype
from saelora.named import check_saes, data_of, model_of
from saelora.options import DataConfig, SourceConfig, SplicedConfig
from saelora.saes.loading import LoadedSAE, check_fits, load_sae
from saelora.saes.processing import check_centring
from saelora.saes.sets import transcoders_of
from saelora.saes.sparse import sparse, worthwhile
from saelora.saes.suites import with_suite

VALIDATION_SEED = 0  # the same held-out rows for every training seed, so that seeds compare


@dataclass(frozen=True)
class Assembled:
    """A model and its SAEs, checked against one another."""

    loaded: LoadedModel
    saes: dict[Hookpoint, LoadedSAE]
    token_mask: TokenMask
    anatomy: Anatomy
    replacement: Replacement = CASCADING

    def splice(self, model: nn.Module, saes: Mapping[Hookpoint, SAE] | None = None) -> AbstractContextManager[Splice]:
        """These SAEs, or others in their place, spliced into a model as the configuration says."""
        put_in = self.sae_modules if saes is None else saes
        return splice(model, put_in, self.token_mask, replacement=self.replacement)

    @property
    def sae_modules(self) -> dict[Hookpoint, SAE]:
        return {hookpoint: found.sae for hookpoint, found in self.saes.items()}  # type: ignore[misc]


SAECache = dict[tuple[str, Hookpoint | None], LoadedSAE]


def assemble(
    config: SplicedConfig,
    loaded: LoadedModel | None = None,
    cache: SAECache | None = None,
    recorded_policy: PolicyRecord | None = None,
) -> Assembled:
    """Load the model and the SAEs that a configuration names.

    Args:
        loaded: the model, where it is at hand already; bare.
        cache: SAEs that are loaded already; what is loaded joins them.
        recorded_policy: a run's token policy, whose limits on massive positions hold here too.

    Raises:
        InputError: anything is missing, damaged, or does not fit the rest.
    """
    model_of(config)
    check_saes(config)
    loaded = loaded or load_frozen(config)
    anatomy = anatomy_of(loaded.model)
    device = pick_device(config.device)
    saes: dict[Hookpoint, LoadedSAE] = {}
    cache = {} if cache is None else cache
    given: list[Hookpoint | None] = [parse_hookpoint(text) for text in config.hookpoint]
    places = given or [None] * len(config.sae)
    named = list(zip(config.sae, places, strict=True))
    for sets in config.transcoders:
        named += [(ref, None) for ref in transcoders_of(sets, config.transcoder_layers, anatomy.n_layers)]
    for ref, where in named:
        if (ref, where) not in cache:
            found = load_sae(ref, hookpoint=where, device=device, dtype=torch.float32)
            cache[ref, where] = _with_sparse_decode(found, config.sparse_decode, device.type)
        found = cache[ref, where]
        found = replace(found, hookpoint=anatomy.canonical(found.hookpoint))
        if (transcoder := transcoder_in(found.sae)) is None:
            check_fits(found, anatomy.width(found.hookpoint))
        else:
            check_widths(anatomy, found.hookpoint, transcoder)
            anatomy.reading(ReadPoint(found.hookpoint.layer, transcoder.reads))
        check_centring(anatomy, found.hookpoint, found.sae)
        if found.hookpoint in saes:
            raise InputError(f"two SAEs at {found.hookpoint}: {saes[found.hookpoint].ref} and {ref}; give one")
        saes[found.hookpoint] = found
    check_whole({hookpoint: found.sae for hookpoint, found in saes.items()}, anatomy.n_layers)
    exempt = with_suite(config.exempt, saes.values())
    token_mask = token_mask_of(exempt, config, loaded, saes, recorded_policy)
    return Assembled(loaded, saes, token_mask, anatomy, _replacement(config, saes))


def _replacement(config: SplicedConfig, saes: Mapping[Hookpoint, LoadedSAE]) -> Replacement:
    """How transcoders are put in; InputError where that is said and there is none."""
    found = replacement_of(config.replacement_mode, config.add_error)
    if found != CASCADING and not any(transcoder_in(each.sae) for each in saes.values()):
        said = "add_error" if config.add_error else f"replacement_mode {found.mode}"
        raise InputError(f"{said} is about transcoders, and there is none among the SAEs: leave it out")
    return found


def load_frozen(config: SourceConfig) -> LoadedModel:
    """The model that a configuration names, on its device; one that is to be sharded stays on the CPU until then.

    Text that is not there is said before, not after the minutes that a large model takes.

    Raises:
        InputError: it is missing or damaged, or no decoder of a known family; or the data are missing.
    """
    ref = model_of(config)
    device = pick_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    open_data(config, fingerprint=False)
    home = "cpu" if config.shard else device
    loaded = load_model(ref, device=home, dtype=dtype, revision=config.revision)
    if config.compile == "on":
        compile_layers(loaded.model)
    return loaded


def _with_sparse_decode(found: LoadedSAE, when: str, device_type: str) -> LoadedSAE:
    if when == "off" or (when == "auto" and not worthwhile(found.sae, device_type)):
        return found
    return replace(found, sae=sparse(found.sae))


def token_policy(exempt: Sequence[str]) -> TokenPolicy:
    """The exempt positions.

    Raises:
        InputError: a name that is none.
    """
    return TokenPolicy(tuple(int(name) if str(name).isdigit() else name for name in exempt))


_limited: WeakKeyDictionary[nn.Module, dict[Any, TokenMask]] = WeakKeyDictionary()


def token_mask_of(
    exempt: Sequence[str],
    config: DataConfig,
    loaded: LoadedModel,
    hookpoints: Collection[Hookpoint],
    recorded: PolicyRecord | None = None,
) -> TokenMask:
    """The token policy on a model's tokens, with the limits at these hookpoints if it spares massive positions.

    They are measured on the first training rows of the data, drawn with a seed of their own, or on held-out ones where
    there are no others: the same for every run on this model, data and context.

    Args:
        recorded: a run's token policy; its limits are taken over where it is of the same multiple.

    Raises:
        InputError: a name that no policy knows; for massive also no data.
    """
    token_mask = token_policy(exempt).resolve(loaded.tokenizer)
    if token_mask.massive is None:
        return token_mask
    known = None if recorded is None else recorded.massive
    if known is not None and known.multiple == token_mask.massive.multiple:
        limits = {parse_hookpoint(name): float(limit) for name, limit in known.limits.items()}
        token_mask = replace(token_mask, massive=token_mask.massive.with_limits(limits))
    about = (config.data, config.subset, config.split, config.text_column, config.validation_fraction, config.context)
    done = _limited.setdefault(loaded.model, {})
    found = done.get((about, token_mask), token_mask)
    assert found.massive is not None
    if not all(map(found.massive.knows, hookpoints)):
        found = calibrated(found, loaded.model, _calibration_rows(config, loaded), hookpoints)
        done[about, token_mask] = found
    assert found.massive is not None
    limits = {hookpoint: found.massive.limit(hookpoint) for hookpoint in hookpoints}
    return replace(found, massive=Massive(found.massive.multiple).with_limits(limits))


def _calibration_rows(config: DataConfig, loaded: LoadedModel) -> Tensor:
    n_tokens = max(TOKENS, config.context)
    try:
        return read_rows(config, loaded, n_tokens, "train", VALIDATION_SEED).input_ids
    except InputError:
        return read_rows(config, loaded, n_tokens, "validation", VALIDATION_SEED).input_ids


def read_rows(
    config: DataConfig, loaded: LoadedModel, n_tokens: int | None, part: Part, seed: int, context: int | None = None
) -> Rows:
    """Packed rows of the data that a configuration names.

    Raises:
        InputError: no data, or too little text for one row.
    """
    context = config.context if context is None else context
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and context > limit:
        raise InputError(f"context {context} is longer than the model's {limit} positions: lower --context")
    if context < 2:
        raise InputError(f"context {context} is too short: a row needs at least 2 tokens")
    if config.batch_rows is not None and config.batch_rows < 1:
        raise InputError(f"batch_rows is {config.batch_rows}, expected 1 or more")
    return pack(
        open_data(config).documents(),
        loaded.tokenizer,
        context=context,
        n_tokens=n_tokens,
        seed=seed,
        validation_fraction=config.validation_fraction,
        part=part,
        n_embedded=loaded.n_embedded,
    )


def open_data(config: DataConfig, *, fingerprint: bool = True) -> Corpus:
    """The corpus that a configuration names; without its fingerprint it costs no more than its first document."""
    return open_corpus(
        data_of(config),
        split=config.split,
        subset=config.subset,
        text_column=config.text_column,
        fingerprint=fingerprint,
    )


def validation_rows(config: DataConfig, loaded: LoadedModel) -> Tensor:
    """The held-out rows [n_rows, context] that every command evaluates on."""
    tokens, context = config.eval_tokens, config.eval_context
    return read_rows(config, loaded, tokens, "validation", VALIDATION_SEED, context).input_ids


def autocast_dtype(loaded: LoadedModel) -> torch.dtype | None:
    """Half-precision weights run under autocast, so that float32 adapters and SAEs join in."""
    return loaded.dtype if loaded.dtype in (torch.bfloat16, torch.float16) else None
