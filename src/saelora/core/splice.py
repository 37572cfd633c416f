"""Run a model through SAEs: put them in, take them out exactly.

Only hooks are used, so the model's own code, ``generate()`` and a key-value cache work as before, and the
model is bit for bit the old one once the context is left.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saelora.core.filler import filler
from saelora.core.partial import keep_read, runs
from saelora.core.passes import Passes
from saelora.core.positions import arguments, check_signature, given_positions
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
from saelora.models.compiling import hooks_obeyed
from saelora.models.hookpoints import Hookpoint, ReadPoint
from saelora.saes.processing import check_centring, is_centred

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
the MLP that it stands for, on the input of that pass.
x and recon are without the mean over d_model where the SAE was trained on a centred model (``saes.processing``).
"""

Edit = Callable[[Hookpoint, Float[Tensor, "batch seq d_sae"]], Float[Tensor, "batch seq d_sae"]]
"""Called as edit(hookpoint, latents); gives the latents that are decoded in their place."""


class Splice:
    """The SAEs in a model while a ``splice`` context is open."""

    def __init__(self, saes: Mapping[Hookpoint, SAE], token_mask: TokenMask, observer: Observer | None):
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
        self._exempt = Exempt()
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

    def _read_tokens(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the token mask of the forward pass that begins."""
        if not self.enabled:
            return
        given = arguments(module, args, kwargs)
        position_BS = given_positions(given)
        self._mask = self._policy.at(given["input_ids"], position_BS)
        self._passes.begin(self._mask)

    def _check_pass(self, anatomy: Anatomy) -> None:
        """Let no pass end in which an SAE did not do its part."""
        if self.enabled:
            self._mask = None
            self._read.clear()
            self._passes.end({hookpoint: int(runs(anatomy, hookpoint)) for hookpoint in self.saes})

    def replace(self, hookpoint: Hookpoint, x: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        """[batch, seq, d] -> the SAE's reconstruction where the token mask is True and x not massive, x elsewhere.

        An SAE that can reconstruct without forming its latents does so, unless an observer wants to see them.
        """
        mask_BS = self._tokens(hookpoint)
        self._passes.count(hookpoint)
        mask_BS = self._policy.replaced(hookpoint, x, mask_BS)
        given = self.given(hookpoint, self._read.pop(hookpoint) if hookpoint in self.reads else x, mask_BS)
        watched = self.observer is not None or self._edit is not None
        reconstruct = None if watched else getattr(self.saes[hookpoint], "reconstruct", None)
        if reconstruct is not None:
            recon = self._whole(hookpoint, reconstruct(given), given).to(x.dtype)
        else:
            if self._edit is None:
                latents, recon = self.made(hookpoint, given, x.dtype)
            else:
                latents, recon = self._edited(self._edit, hookpoint, given, x)
            if self.observer is not None:
                self.observer(hookpoint, self.seen(hookpoint, x), latents, recon, mask_BS)
        if hookpoint in self._centred and hookpoint not in self.reads:
            recon = (recon + _mean(x)).to(x.dtype)
        return torch.where(mask_BS.unsqueeze(-1), recon, x)

    def made(
        self, hookpoint: Hookpoint, given: Float[Tensor, "*batch d_in"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*batch d_sae"], Float[Tensor, "*batch d"]]:
        """Latents [..., d_sae] and reconstruction [..., d] of what ``given`` gives, by the steps that observers see."""
        sae = self.saes[hookpoint]
        latents = sae.encode(given)
        return latents, self._whole(hookpoint, sae.decode(latents), given).to(dtype)

    def _edited(self, edit: Edit, hookpoint: Hookpoint, given: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The edited latents, and what they make of x."""
        sae = self.saes[hookpoint]
        latents = sae.encode(given)
        edited = edit(hookpoint, latents)
        if not self._keeps_error:
            return edited, self._whole(hookpoint, sae.decode(edited), given).to(x.dtype)
        change = sae.decode(edited) - sae.decode(latents)
        kept = x if hookpoint in self.reads else self.seen(hookpoint, x)
        return edited, (kept + change).to(x.dtype)

    def _whole(self, hookpoint: Hookpoint, recon: Tensor, given: Tensor) -> Tensor:
        """With what a transcoder's skip connection adds."""
        skip = skipped(self._transcoders[hookpoint], given) if hookpoint in self.reads else None
        return recon if skip is None else recon + skip

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

        Compiled code and CUDA graphs run it wholly too: the number of kept positions differs from batch to batch.
        """

        def instead(mlp: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen = self.observer is not None or self._policy.massive is not None or self._keeps_error
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
        handles.append(anatomy.body.register_forward_pre_hook(self._read_tokens, with_kwargs=True))
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
) -> Iterator[Splice]:
    """Replace activations by their SAE reconstructions while the context is open.

    Args:
        model: a transformers decoder, PEFT-wrapped or not.
        saes: hookpoint -> SAE, or transcoder (one that says what it ``reads``) by where it writes: mlp_out; any number
            of them at once. The MLP that a transcoder stands for runs at exempt positions alone.
        token_mask: which positions are replaced, from ``TokenPolicy(...).resolve(tokenizer)``.
        observer: sees every SAE's input, latents, reconstruction and token mask.

    A model that was compiled runs uncompiled for as long, unless ``compile_layers`` compiled it.

    Raises:
        InputError: a hookpoint is out of range, an SAE is of another width, or of a centred model that this cannot be,
            a transcoder is not the only one at its MLP or reads what this model does not have, or massive positions are
            spared by a limit that has not been measured there; while the context is open, a pass of the model in which
            an SAE did not run once, since what it hooks is passed by, or whose tokens' positions cannot be told.
    """
    anatomy = anatomy_of(model)
    check_signature(anatomy.body)
    check_writers(dict(saes))
    for hookpoint, sae in saes.items():
        check_width(anatomy, hookpoint, sae)
        check_centring(anatomy, hookpoint, sae)
        if token_mask.massive is not None:
            token_mask.massive.limit(hookpoint)
    spliced = Splice(saes, token_mask, observer)
    handles: list[Any] = []
    with hooks_obeyed(anatomy.body):
        try:
            spliced.attach(getattr(model, "_orig_mod", model), anatomy, handles)
            yield spliced
        finally:
            for handle in handles:
                handle.remove()


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
