"""Run a model through SAEs: put them in, take them out exactly.

Only hooks are used, so the model's own code, ``generate()`` and a key-value cache work as before, and the
model is bit for bit the old one once the context is left.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saelora.core import lora
from saelora.core.cross_layer import Ahead, check_whole, crosses
from saelora.core.filler import filler
from saelora.core.partial import capturing, is_partial, keep_read, runs
from saelora.core.passes import Passes
from saelora.core.positions import arguments, check_signature, given_positions
from saelora.core.replacement import CASCADING, Replacement
from saelora.core.token_mask import EXEMPT_NAMES, TokenMask, TokenPolicy
from saelora.core.transcoding import (
    Exempt,
    Forward,
    StandIn,
    check_widths,
    check_writers,
    only_at,
    skipped,
    transcoder_in,
)
from saelora.errors import InputError
from saelora.models.anatomy import Anatomy, anatomy_of
from saelora.models.compiling import hooks_obeyed, is_compiled
from saelora.models.hookpoints import Hookpoint, ReadPoint
from saelora.saes.processing import check_centring, is_centred
from saelora.saes.saelens import AT_RUN_TIME, configuration_of

__all__ = [
    "EXEMPT_NAMES",
    "SAE",
    "Observer",
    "Splice",
    "TokenMask",
    "TokenPolicy",
    "ZeroAblation",
    "check_width",
    "splice",
]


@runtime_checkable
class SAE(Protocol):
    """What a splice needs of an SAE; SAELens's and sparsify-like objects both have it."""

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]: ...
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]: ...


Seen = Mapping[Any, Float[Tensor, "batch seq _"]]  # activations of the clean pass, by Hookpoint or ReadPoint
Observer = Callable[
    [
        Hookpoint,
        Float[Tensor, "batch seq d"],
        Float[Tensor, "batch seq d_sae"],
        Float[Tensor, "batch seq d"],
        Bool[Tensor, "batch seq"],
    ],
    None,
]
"""Called as observer(hookpoint, x, latents, recon, mask) whenever an SAE has run; True where it replaces x.

Latents that an edit has changed are given as it left them. Of a transcoder, x is what it is to rebuild: the output of
the MLP that it stands for, on the input of that pass (of the original's, where it reads that).
x and recon are without the mean over d_model where the SAE was trained on a centred model (``saes.processing``).
"""

Edit = Callable[[Hookpoint, Float[Tensor, "batch seq d_sae"]], Float[Tensor, "batch seq d_sae"]]
"""Called as edit(hookpoint, latents); gives the latents that are decoded in their place."""


class Splice:
    """The SAEs in a model while a ``splice`` context is open."""

    def __init__(
        self,
        saes: Mapping[Hookpoint, SAE],
        token_mask: TokenMask,
        observer: Observer | None,
        replacement: Replacement = CASCADING,
    ):
        self.saes = dict(saes)
        self.enabled = True
        self.observer = observer
        self._edit: Edit | None = None
        self._keeps_error = False
        self._policy = token_mask
        self._mask: Tensor | None = None
        self._passes = Passes()
        self._fillers: dict[Hookpoint, float] = {}
        transcoders = {hookpoint: transcoder_in(sae) for hookpoint, sae in self.saes.items()}
        self._transcoders = {hookpoint: found for hookpoint, found in transcoders.items() if found is not None}
        self.reads = {h: ReadPoint(h.layer, found.reads) for h, found in self._transcoders.items()}
        self._read: dict[Hookpoint, Tensor] = {}  # what transcoders have read and not yet been run on
        self.replacement = replacement if self.reads else CASCADING
        needs_clean = self.replacement.needs_clean
        # what a spliced pass needs of the original's pass on its tokens
        self.clean_points: list[Hookpoint | ReadPoint] = [*self.reads, *self.reads.values()] if needs_clean else []
        self._clean: Seen | None = None
        self._own_clean = False  # it is of the pass that is under way alone
        self._exempt = Exempt()
        self.crossing = {hookpoint for hookpoint, sae in self.saes.items() if crosses(sae)}
        # what latents write into later layers: those of the pass, and where errors are added the original's
        self._ahead, self._ahead_there = Ahead(), Ahead()
        self._centred = {hookpoint for hookpoint, sae in self.saes.items() if is_centred(sae, hookpoint)}

    def disabled(self) -> AbstractContextManager[None]:
        """The clean model, for as long as this context is open."""
        return self.switched(False)

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """The SAEs in the model or not, for as long as this context is open."""
        before, self.enabled = self.enabled, on
        try:
            yield
        finally:
            self.enabled = before

    @contextmanager
    def observed_by(self, observer: Observer | None) -> Iterator[None]:
        """Let another observer watch the SAEs (None: nobody) for as long as this context is open."""
        before, self.observer = self.observer, observer
        try:
            yield
        finally:
            self.observer = before

    @contextmanager
    def edited_by(self, edit: Edit, *, keep_error: bool = False) -> Iterator[None]:
        """Change the latents before they are decoded, for as long as this context is open.

        Args:
            keep_error: what the SAE does not reconstruct stays: x becomes x + decode(edited) - decode(latents), so that
                an edit that changes nothing leaves the clean model.
        """
        before = self._edit, self._keeps_error
        self._edit, self._keeps_error = edit, keep_error
        try:
            yield
        finally:
            self._edit, self._keeps_error = before

    @contextmanager
    def beside(self, seen: Seen) -> Iterator[None]:
        """Let the passes while this is open take from ``seen`` what the original's pass gives at ``clean_points``.

        Without it, a pass of the whole model has the original run first.
        """
        before = self._clean, self._own_clean  # its own: of a pass that failed
        self._clean, self._own_clean = seen if self.clean_points else None, False
        try:
            yield
        finally:
            self._clean, self._own_clean = before

    def _run_clean(self, model: nn.Module, anatomy: Anatomy, given: dict[str, Any]) -> None:
        """Let the original model run on what a whole pass is given, and keep what it gives at ``clean_points``."""
        caches = [value for value in given.values() if callable(getattr(value, "get_seq_length", None))]
        assert not is_partial(anatomy), "a part of the model is run without what the original's pass gave"
        if any(int(cache.get_seq_length()) for cache in caches):
            raise InputError(
                "what transcoders read of the original's stream is known for whole texts alone, and this pass goes on "
                "from cached tokens: run it with use_cache=False, or with replacement_mode cascading and no add_error"
            )
        plain = {key: value for key, value in given.items() if not any(value is cache for cache in caches)}
        seen: dict[Any, Tensor] = {}
        with torch.no_grad(), self.disabled(), lora.disabled(model), capturing(anatomy, self.clean_points, seen):
            anatomy.body(**{**plain, "use_cache": False})
        self._clean = seen

    def _read_tokens(
        self, model: nn.Module, anatomy: Anatomy, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep the token mask of the forward pass that begins."""
        if not self.enabled:
            return
        given = arguments(module, args, kwargs)
        position_BS = given_positions(given)
        mask = self._policy.at(given["input_ids"], position_BS)
        if self.clean_points and (self._clean is None or self._own_clean):
            self._run_clean(model, anatomy, given)
            self._own_clean = True
        self._mask = mask
        self._passes.begin(self._mask)

    def _check_pass(self, anatomy: Anatomy) -> None:
        """Let no pass end in which an SAE did not do its part."""
        if self.enabled:
            self._mask = None
            self._read.clear()
            self._ahead.clear()
            self._ahead_there.clear()
            if self._own_clean:
                self._clean, self._own_clean = None, False
            self._passes.end({hookpoint: int(runs(anatomy, hookpoint)) for hookpoint in self.saes})

    def replace(self, hookpoint: Hookpoint, x: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        """[batch, seq, d] -> the SAE's reconstruction where the token mask is True and x not massive, x elsewhere.

        An SAE that can reconstruct without forming its latents does so, unless an observer wants to see them.
        """
        mask_BS = self._tokens(hookpoint)
        self._passes.count(hookpoint)
        mask_BS = self._policy.replaced(hookpoint, x, mask_BS)
        if hookpoint in self.reads:
            recon = self._transcoded(hookpoint, self._read.pop(hookpoint), x, mask_BS)
        else:
            recon = self._rebuilt(hookpoint, x, x, mask_BS)
            if hookpoint in self._centred:
                recon = (recon + _mean(x)).to(x.dtype)
        return torch.where(mask_BS.unsqueeze(-1), recon, x)

    def _transcoded(self, hookpoint: Hookpoint, read: Tensor, x: Tensor, mask_BS: Tensor) -> Tensor:
        """What a transcoder writes, by the mode, with what it misses where that is added."""
        if not self.clean_points:
            return self._rebuilt(hookpoint, read, x, mask_BS)
        if self._clean is None:
            raise InputError(
                f"{hookpoint} runs again outside a pass of the model (gradient checkpointing does that), and what it "
                "read of the original's stream is gone: turn checkpointing off, or use replacement_mode cascading"
            )
        clean, target = self._clean[self.reads[hookpoint]], self._clean[hookpoint]
        if self.replacement.mode == "parallel":
            read, x = clean, target
        recon = self._rebuilt(hookpoint, read, x, mask_BS)
        if not self.replacement.add_error or self._keeps_error:
            return recon
        own: SAE = self._transcoders[hookpoint]
        with torch.no_grad():
            given = self.given(hookpoint, clean, mask_BS)
            there = self._made_by(own, hookpoint, given, mask_BS, x.dtype, self._ahead_there)[1]
        return target + (recon - there)

    def _rebuilt(self, hookpoint: Hookpoint, read: Tensor, x: Tensor, mask_BS: Tensor) -> Tensor:
        """The reconstruction of what is read, told to the observer beside x."""
        given = self.given(hookpoint, read, mask_BS)
        latents: Tensor | None
        if self._edit is None:
            latents, recon = self._made_by(self.saes[hookpoint], hookpoint, given, mask_BS, x.dtype, self._ahead)
        else:
            latents, recon = self._edited(self._edit, hookpoint, given, mask_BS, x)
        if self.observer is not None:
            assert latents is not None
            self.observer(hookpoint, self.seen(hookpoint, x), latents, recon, mask_BS)
        return recon

    def _made_by(
        self, sae: SAE, hookpoint: Hookpoint, given: Tensor, mask_BS: Tensor, dtype: torch.dtype, ahead: Ahead
    ) -> tuple[Tensor | None, Tensor]:
        """Latents, where they are formed, and reconstruction."""
        watched = self.observer is not None or self._edit is not None or hookpoint in self.crossing
        reconstruct = None if watched else getattr(sae, "reconstruct", None)
        if reconstruct:
            return None, self._whole(hookpoint, reconstruct(given), given).to(dtype)
        latents = sae.encode(given)
        below = ahead.into(sae, hookpoint, latents, mask_BS)
        return latents, self._whole(hookpoint, sae.decode(latents), given, below).to(dtype)

    def made(
        self,
        hookpoint: Hookpoint,
        given: Float[Tensor, "*batch d_in"],
        mask: Bool[Tensor, "*batch"],
        dtype: torch.dtype,
        ahead: Ahead,
    ) -> tuple[Float[Tensor, "*batch d_sae"], Float[Tensor, "*batch d"]]:
        """Latents [..., d_sae] and reconstruction [..., d] of what ``given`` gives, by the steps that observers see.

        Args:
            ahead: one for all hookpoints of a pass, which are to come in the order of their layers.
        """
        sae = self.saes[hookpoint]
        latents = sae.encode(given)
        below = ahead.into(sae, hookpoint, latents, mask)
        return latents, self._whole(hookpoint, sae.decode(latents), given, below).to(dtype)

    def _edited(
        self, edit: Edit, hookpoint: Hookpoint, given: Tensor, mask_BS: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The edited latents, and what they make of x."""
        sae = self.saes[hookpoint]
        latents = sae.encode(given)
        edited = edit(hookpoint, latents)
        if not self._keeps_error:
            below = self._ahead.into(sae, hookpoint, edited, mask_BS)
            return edited, self._whole(hookpoint, sae.decode(edited), given, below).to(x.dtype)
        own = sae.decode(latents)
        if _normalises(sae):
            sae.encode(given)  # decoding has used up the scale of the input, which the second one needs as well
        change = sae.decode(edited) - own
        below = self._ahead.into(sae, hookpoint, edited - latents, mask_BS)  # linear: changes write changes
        change = change if below is None else change + below
        kept = x if hookpoint in self.reads else self.seen(hookpoint, x)
        return edited, (kept + change).to(x.dtype)

    def _whole(self, hookpoint: Hookpoint, recon: Tensor, given: Tensor, below: Tensor | None = None) -> Tensor:
        """With what a transcoder's skip connection adds, and latents of the layers below."""
        skip = skipped(self._transcoders[hookpoint], given) if hookpoint in self.reads else None
        recon = recon if skip is None else recon + skip
        return recon if below is None else recon + below

    def _tokens(self, hookpoint: Hookpoint) -> Tensor:
        return self._passes.mask_of_another(hookpoint) if self._mask is None else self._mask

    def seen(self, hookpoint: Hookpoint, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """An activation as observers see it, to set reconstructions against."""
        return x - _mean(x).to(x.dtype) if hookpoint in self._centred else x

    def given(
        self, hookpoint: Hookpoint, x: Float[Tensor, "*batch d"], mask: Bool[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d"]:
        """What the SAE is given of an activation [batch, seq, d]: nothing of it where the mask is False.

        A transcoder's is what it reads (``reads``); a centred model's norms give what the plain model's give.
        """
        sae = self.saes[hookpoint]
        point = self.reads.get(hookpoint)
        if hookpoint in self._centred and (point is None or point.site.startswith("resid")):
            x = x - _mean(x)
        dtype = next((p.dtype for p in sae.parameters()), x.dtype) if isinstance(sae, nn.Module) else x.dtype
        spared = torch.full((), self._fillers.get(hookpoint, 0.0), dtype=x.dtype, device=x.device)
        return torch.where(mask.unsqueeze(-1), x, spared).to(dtype)

    def _hook(self, hookpoint: Hookpoint) -> Callable[..., Any]:
        def on_output(module: nn.Module, args: Any, output: Any) -> Any:
            if not self.enabled:
                return None
            if isinstance(output, Tensor):
                return self.replace(hookpoint, output)
            return (self.replace(hookpoint, output[0]), *output[1:])

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.enabled:
                return None
            if args:
                return (self.replace(hookpoint, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self.replace(hookpoint, kwargs["hidden_states"])}

        return on_input if hookpoint.site in ("resid_pre", "attn_z") else on_output

    def _instead_of_mlp(self, hookpoint: Hookpoint) -> Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]:
        """The MLP runs where its output is kept, and wholly where somebody wants to see that.

        Compiled code and CUDA graphs run it wholly too: the number of kept positions differs from batch to batch. So it
        does with errors added, which are to leave every bit of the original.
        """

        def instead(mlp: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen = self.observer is not None or self._policy.massive is not None
            seen = seen or self._keeps_error or self.replacement.add_error
            if not self.enabled or seen or torch.compiler.is_compiling() or _recorded(args):
                return mlp(*args, **kwargs)
            return only_at(mlp, self._exempt.index(self._tokens(hookpoint)), args, kwargs)

        return instead

    def _attach_transcoder(self, anatomy: Anatomy, hookpoint: Hookpoint) -> list[Any]:
        def keep(x: Tensor) -> None:
            if self.enabled:
                self._read[hookpoint] = x

        # beside the hook, compiled code sees by it that the forward is another one
        mlp = anatomy.mlp(hookpoint.layer)
        reading = keep_read(anatomy, self.reads[hookpoint], keep)
        return [reading, StandIn(mlp, self._instead_of_mlp(hookpoint))]

    def attach(self, model: nn.Module, anatomy: Anatomy, handles: list[Any]) -> None:
        """Put the hooks in, each of them into ``handles``, which remove them."""
        reading = partial(self._read_tokens, model, anatomy)
        handles.append(anatomy.body.register_forward_pre_hook(reading, with_kwargs=True))
        handles.append(anatomy.body.register_forward_hook(lambda *_: self._check_pass(anatomy)))
        if model is not anatomy.body:
            handles.append(model.register_forward_pre_hook(lambda *_: self._passes.enter()))
            handles.append(model.register_forward_hook(lambda *_: self._passes.leave(self.enabled)))
        for hookpoint, sae in self.saes.items():
            self._fillers[hookpoint] = filler(sae, anatomy.width(hookpoint))
            if hookpoint in self.reads:
                handles += self._attach_transcoder(anatomy, hookpoint)
            module, side = anatomy.site(hookpoint)
            if side == "input":
                handles.append(module.register_forward_pre_hook(self._hook(hookpoint), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(self._hook(hookpoint)))


@contextmanager
def splice(
    model: nn.Module,
    saes: Mapping[Hookpoint, SAE],
    token_mask: TokenMask,
    *,
    observer: Observer | None = None,
    replacement: Replacement = CASCADING,
) -> Iterator[Splice]:
    """Replace activations by their SAE reconstructions while the context is open.

    Args:
        model: a transformers decoder, PEFT-wrapped or not.
        saes: hookpoint -> SAE, or transcoder (one that says what it ``reads``) by where it writes: mlp_out; any number
            of them at once. The MLP that a transcoder stands for runs at exempt positions alone.
        token_mask: which positions are replaced, from ``TokenPolicy(...).resolve(tokenizer)``.
        observer: sees every SAE's input, latents, reconstruction and token mask.
        replacement: what transcoders read, and whether what they miss is added.

    A model that was compiled runs uncompiled for as long, unless ``compile_layers`` compiled it.

    Raises:
        InputError: a hookpoint is out of range, an SAE is of another width, or of a centred model that this cannot be,
            a transcoder is not the only one at its MLP or reads what this model does not have, a cross-layer one is not
            whole, or massive positions are spared by a limit that has not been measured there; while the context is
            open, a pass of the model in which an SAE did not run once, since what it hooks is passed by, or whose
            tokens' positions cannot be told.
    """
    anatomy = anatomy_of(model)
    check_signature(anatomy.body)
    check_writers(dict(saes))
    check_whole(saes, anatomy.n_layers)
    for hookpoint, sae in saes.items():
        check_width(anatomy, hookpoint, sae)
        check_centring(anatomy, hookpoint, sae)
        if token_mask.massive is not None:
            token_mask.massive.limit(hookpoint)
    spliced = Splice(saes, token_mask, observer, replacement)
    if spliced.clean_points and is_compiled(model):
        raise InputError(
            "--compile on is not tested where transcoders read the original's stream: leave it out, or use "
            "replacement_mode cascading without add_error"
        )
    handles: list[Any] = []
    with hooks_obeyed(anatomy.body):
        try:
            spliced.attach(getattr(model, "_orig_mod", model), anatomy, handles)
            yield spliced
        finally:
            for handle in handles:
                handle.remove()


def _normalises(sae: SAE) -> bool:
    """Whether an SAE scales its input as it runs, and keeps the scale from encoding to decoding."""
    return getattr(configuration_of(sae), "normalize_activations", None) in AT_RUN_TIME


def _recorded(args: tuple[Any, ...]) -> bool:
    """Whether what is run now is recorded, to be replayed on other tokens."""
    return bool(args) and args[0].is_cuda and torch.cuda.is_current_stream_capturing()


def _mean(x: Tensor) -> Tensor:
    """The mean over d_model [..., 1], in float32 at least."""
    return x.mean(-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def check_width(anatomy: Anatomy, hookpoint: Hookpoint, sae: SAE) -> None:
    """Raise InputError where an SAE's d_in is not the width of its hookpoint."""
    width = anatomy.width(hookpoint)
    if (transcoder := transcoder_in(sae)) is not None:
        return check_widths(anatomy, hookpoint, transcoder)
    d_in = getattr(getattr(sae, "cfg", sae), "d_in", width)
    if d_in != width:
        raise InputError(f"SAE expects d_in {d_in}, {hookpoint} has {width}: is this SAE for another model?")


class ZeroAblation:
    """Stands where an SAE would, and reconstructs everything as zero: the baseline of loss_recovered."""

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(x)

    def decode(self, feature_acts: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(feature_acts)
