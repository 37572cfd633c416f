"""A finished run as one object: the model with its SAEs and adapter, to be talked to, looked into and steered."""

import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelora.assemble import Assembled, autocast_dtype
from saelora.core import lora
from saelora.core.eval_mode import evaluating
from saelora.core.replacement import CASCADING, Replacement
from saelora.core.splice import SAE, Observer, Splice, TokenMask, splice
from saelora.errors import InputError
from saelora.evals.variant import Variant
from saelora.identity import About
from saelora.models.anatomy import device_of
from saelora.models.hookpoints import Hookpoint
from saelora.models.loading import LoadedModel, quiet_transformers
from saelora.use.latents import Latents, active_of
from saelora.use.prompts import Prompt, Prompts, encode
from saelora.use.reference import Run
from saelora.use.room import check_length, checked
from saelora.use.steering import Change, Steering, edit_of, resolve
from saelora.use.streaming import Stopped, Stream, streamed
from saelora.use.variants import NAMES

NEW_TOKENS = 64  # where neither a caller nor a generation config says more
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True)
class _State:
    """What the model is at the moment; outside all contexts it is nothing but itself."""

    variant: Variant
    steering: tuple[Steering | Change, ...] = ()
    spliced: Splice | None = None
    inside: bool = False


class LoadedRun:
    """A model, its SAEs and its adapter, ready to be used: what ``saelora.load`` returns.

        m = saelora.load("saelora-demo")
        print(m.generate("Fellow citizens,"))
        with m.original():
            print(m.generate("Fellow citizens,"))

    A variant holds inside its context, the innermost one where they are nested; outside all of them ``default`` does:
    adapted, or spliced where the run trained no adapter and no SAE.

        original        the model as it was: no SAE, no adapter
        spliced         the SAEs in, as they came
        adapted         the SAEs in, and the adapter (or the SAEs that the run trained)
        adapted_clean   the adapter alone

    ``model`` is the model itself, with hooks and adapters in place only while a context is open: code that calls it
    directly does so inside one. One thread at a time.

    Args (attributes):
        model, tokenizer: transformers'; the model wrapped by PEFT where there is an adapter.
        hookpoints: where the SAEs sit.  saes: hookpoint -> the SAE that the current variant would run.
        token_mask: the run's token policy: which positions the SAEs replace, whatever batch or cache.
        about: model, SAEs and adapter by their fingerprints, and what of them could not be checked.
    """

    def __init__(
        self,
        run: Run,
        assembled: Assembled,
        model: nn.Module,
        tuned: Mapping[Hookpoint, SAE],
        about: About,
    ):
        self.run, self.about, self.model = run, about, model
        self.tokenizer: Any = assembled.loaded.tokenizer
        self.token_mask: TokenMask = assembled.token_mask
        self._replacement = assembled.replacement
        self.hookpoints: tuple[Hookpoint, ...] = tuple(assembled.saes)
        self._loaded, self._autocast = assembled.loaded, autocast_dtype(assembled.loaded)
        self._sizes = {hookpoint: found.d_sae for hookpoint, found in assembled.saes.items()}
        self._given, self._tuned = assembled.sae_modules, dict(tuned)
        self._adapter = lora.adapter_name(model)  # asked while it is on: inside a context it may be off
        self.default = Variant.ADAPTED if self._adapter or tuned else Variant.SPLICED
        self._state = _State(self.default)
        self._open: weakref.ref[Stream] | None = None  # a stream that somebody may still be reading

    @property
    def sizes(self) -> dict[Hookpoint, int]:
        """Hookpoint -> number of latents."""
        return dict(self._sizes)

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids that ``generate`` reads for a prompt.

        Raises:
            InputError: an empty prompt, or no chat template.
        """
        prompts = self._encoded(prompt)
        if not prompts.alone:
            raise InputError("ids are of one prompt: give one")
        return list(map(int, prompts.input_ids[0]))

    # variants

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of those that this run has."""
        if self._adapter:
            return tuple(NAMES)
        return ("original", "spliced", "adapted") if self._tuned else ("original", "spliced")

    @property
    def variant(self) -> str:
        """The current one."""
        return _name_of(self._state.variant)

    @property
    def default_name(self) -> str:
        """That which holds outside all contexts."""
        return _name_of(self.default)

    @property
    def saes(self) -> dict[Hookpoint, SAE]:
        return {**self._given, **(self._tuned if self._state.variant.has_adapter else {})}

    @property
    def replacement(self) -> Replacement:
        """How transcoders are put in."""
        return self._replacement

    @property
    def saes_of_default(self) -> dict[Hookpoint, SAE]:
        """Those of the variant that holds outside all contexts."""
        return {**self._given, **self._tuned}

    @property
    def saes_before(self) -> dict[Hookpoint, SAE]:
        """The SAEs as they came, before the run trained any."""
        return dict(self._given)

    def original(self) -> AbstractContextManager["LoadedRun"]:
        """The model as it was, while the context is open."""
        return self.as_variant("original")

    def spliced(self) -> AbstractContextManager["LoadedRun"]:
        """The SAEs in, no adapter, while the context is open."""
        return self.as_variant("spliced")

    def adapted(self) -> AbstractContextManager["LoadedRun"]:
        """The SAEs in, and what the run trained, while the context is open."""
        return self.as_variant("adapted")

    def adapted_clean(self) -> AbstractContextManager["LoadedRun"]:
        """The adapter without the SAEs, while the context is open."""
        return self.as_variant("adapted_clean")

    def as_variant(self, name: str) -> AbstractContextManager["LoadedRun"]:
        """One of ``variants`` by its name, while the context is open.

        Raises:
            InputError: this run does not have it.
        """
        if name not in self.variants:
            raise InputError(f"{self.run.ref} has no variant {name!r}: expected one of {', '.join(self.variants)}")
        return self._as(NAMES[name], self._state.steering)

    def steer(self, latents: Mapping[Any, Any]) -> AbstractContextManager["LoadedRun"]:
        """Steer latents, any number at once, in whatever variant runs while the context is open.

            with m.steer({3740: "+4", 12: 0, 7: "x2"}): ...

        "+4" or ``Add(4.0)`` adds 4 to the latent's activation a (in a's own units, whether it fired or not), "x2" or
        ``Scale(2.0)`` doubles it, 0 or ``Clamp(0.0)`` sets it to 0. With several SAEs a latent is
        (hookpoint, number) or "layers.12.resid_post:3740". Of nested steerings the inner one acts on what the outer
        one left.

        Where an SAE is in the model (spliced, adapted) the edited latents are decoded in place of its own; what it does
        not reconstruct is left out, as always there. Where it is not (original, adapted_clean) the activation moves by
        decode(edited) - decode(latents), along the latents' decoder rows, and the SAE's error stays, as when
        ``saelora evaluate --parts steering`` adds a direction; only by how much is here told in activations, there in
        norms. Either way it happens at every position that the token policy lets SAEs replace, of the prompt and of
        every token decoded with a key-value cache; BOS and the others are left alone.

        Raises:
            InputError: a latent that is not there, or no edit.
        """
        return self._as(self._state.variant, (*self._state.steering, resolve(latents, self._sizes)))

    def changing(self, change: Change) -> AbstractContextManager["LoadedRun"]:
        """Like ``steer``, by a function: ``change(hookpoint, latents [batch, seq, d_sae])`` gives those to decode."""
        return self._as(self._state.variant, (*self._state.steering, change))

    @contextmanager
    def _as(self, variant: Variant, steering: tuple[Steering | Change, ...]) -> Iterator["LoadedRun"]:
        if self._open is not None:
            raise InputError("a stream of this model is still open: read it to its end, or close() it, first")
        before = self._state
        with ExitStack() as stack:
            if before.spliced is not None:
                stack.enter_context(before.spliced.disabled())
            stack.enter_context(lora.only(self.model, self._adapter if variant.has_adapter else None))
            saes = {**self._given, **(self._tuned if variant.has_adapter else {})}
            opened = None
            if variant.has_saes or steering:
                replacement = self._replacement if variant.has_saes else CASCADING
                opened = stack.enter_context(splice(self.model, saes, self.token_mask, replacement=replacement))
                if steering:
                    stack.enter_context(opened.edited_by(edit_of(steering), keep_error=not variant.has_saes))
            self._state = _State(variant, steering, opened, inside=True)
            try:
                yield self
            finally:
                if self._open is not None and (stream := self._open()) is not None:
                    stream.close()  # it would go on in another variant
                self._state = before

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The current variant, its hooks in place, in evaluation mode and without gradient."""
        if self._open is not None:
            raise InputError("a stream of this model is still open: read it to its end, or close() it, first")
        state = self._state
        current = nullcontext(self) if state.inside else self._as(state.variant, state.steering)
        with current, evaluating(self.model, self._autocast):
            yield

    @property
    def base(self) -> str:
        """The model's name, as it was given."""
        return self._loaded.ref

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def n_embedded(self) -> int:
        """Token ids that the model has a row for: 0 to n - 1."""
        return self._loaded.n_embedded

    @property
    def has_adapter(self) -> bool:
        return self._adapter is not None

    @property
    def loaded(self) -> LoadedModel:
        """The model as it was loaded, with what identifies it."""
        return self._loaded

    @property
    def positions(self) -> int | None:
        """The most tokens that the model can read at once; None where it does not say."""
        found = getattr(self._loaded.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found is not None else None

    def n_tokens(self, prompt: Prompt) -> int:
        """The tokens that a prompt comes to."""
        return int(self._encoded(prompt).attention_mask.sum())

    # what it does

    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Any:
        """Continuations by the current variant.

        Args:
            prompt: text (BOS is put before it as in the rows that the run was made on), chat messages
                ([{"role": "user", "content": ...}], through the tokenizer's template), token ids; or a list of these,
                generated in one batch.
            options: of transformers' ``generate``. Left out, generation is greedy, of 64 tokens at most; a temperature,
                top_k, top_p, min_p or typical_p means sampling.

        Returns:
            The new text; a list where several prompts (or num_return_sequences) were asked for. With
            return_dict_in_generate what transformers returns.

        Raises:
            InputError: an empty prompt, no chat template, or an option that transformers refuses.
        """
        prompts = self._encoded(prompt)
        with self._running():
            made = self._generated(prompts, options)
        if not isinstance(made, Tensor):
            return made
        texts = [self._text(row[prompts.input_ids.shape[1] :]) for row in made]
        return texts[0] if prompts.alone and len(texts) == 1 else texts

    def stream(self, prompt: Prompt, **options: Any) -> Stream:
        """The same, of one prompt, piece by piece as it is made; closing the iterator ends the generation."""
        prompts = self._encoded(prompt)
        if not prompts.alone:
            raise InputError("a stream is of one prompt: give one, or use generate")
        if options.get("num_beams", 1) != 1 or options.get("num_return_sequences", 1) != 1:
            raise InputError("a stream is of one continuation: leave out num_beams and num_return_sequences")
        if self._open is not None:
            raise InputError("a stream of this model is still open: read it to its end, or close() it, first")
        itself: list[weakref.ref[Stream]] = []
        stream = Stream(self._stream(prompts, options, self._state, itself))
        itself.append(weakref.ref(stream))
        return stream

    def _stream(
        self, prompts: Prompts, options: dict[str, Any], state: _State, itself: "list[weakref.ref[Stream]]"
    ) -> Generator[str]:
        def run(streamer: Any, stopped: Stopped) -> None:
            with evaluating(self.model, self._autocast):
                self._generated(prompts, {**options, "streamer": streamer}, stopped)

        with self._as(state.variant, state.steering):
            pieces = streamed(self.tokenizer, run)
            self._open = itself[0]
            try:
                yield from pieces
            finally:
                pieces.close()
                self._open = None

    def logits(self, ids: Prompt | Sequence[Prompt], attention_mask: Tensor | None = None) -> Float[Tensor, "b s v"]:
        """Logits [batch, seq, vocabulary] of the current variant, of token ids [seq] or [batch, seq], or of prompts.

        Args:
            attention_mask: [batch, seq], 0 for padding; of ids alone.

        Raises:
            InputError: no ids, or some that the model does not have.
        """
        if isinstance(ids, Tensor) and ids.dim() == 2 and len(ids):
            if attention_mask is not None and attention_mask.shape != ids.shape:
                raise InputError(f"attention_mask is {tuple(attention_mask.shape)}, expected {tuple(ids.shape)} as ids")
            encode(self.tokenizer, list(ids), self._loaded.n_embedded, self._loaded.ref)
            given, mask = ids, torch.ones_like(ids) if attention_mask is None else attention_mask
        else:
            if attention_mask is not None:
                raise InputError("attention_mask belongs to ids [batch, seq]: prompts bring their own")
            prompts = self._encoded(ids)
            given, mask = prompts.input_ids, prompts.attention_mask
        check_length(self.model, given.shape[1])
        device = device_of(self.model)
        told = {"input_ids": given, "attention_mask": mask}
        if not mask.all():  # generate tells them too: a model that learnt its positions counts padding else
            told["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._running():
            found: Tensor = self.model(**{name: tensor.to(device) for name, tensor in told.items()}).logits
        return found.float()

    def latents(self, text: Prompt) -> Latents:
        """The active latents at each token of a prompt, in the current variant; of a steered one, as it is decoded.

        In variants without SAEs they are what the SAEs see there, while nothing is replaced.
        """
        prompts = self._encoded(text)
        if not prompts.alone:
            raise InputError("latents are of one text: give one")
        check_length(self.model, prompts.input_ids.shape[1])
        found: dict[Hookpoint, tuple[Tensor, Tensor]] = {}

        def watch(hookpoint: Hookpoint, x: Tensor, latents: Tensor, recon: Tensor, mask: Tensor) -> None:
            found[hookpoint] = latents[0], mask[0]

        device = device_of(self.model)
        with self.watched(watch):
            self.model(input_ids=prompts.input_ids.to(device), attention_mask=prompts.attention_mask.to(device))
        ids = prompts.input_ids[0]
        active = {hookpoint: active_of(*seen) for hookpoint, seen in found.items()}
        return Latents(
            self.variant,
            [str(self.tokenizer.decode([i])) for i in ids.tolist()],
            ids,
            {hookpoint: each[0] for hookpoint, each in active.items()},
            {hookpoint: each[1] for hookpoint, each in active.items()},
            {hookpoint: mask.cpu() for hookpoint, (_, mask) in found.items()},
        )

    @contextmanager
    def watched(self, observer: Observer) -> Iterator[nn.Module]:
        """The model as it is in the current variant, without gradient, with an observer of what its SAEs see."""
        state = self._state
        # without SAEs an edit that changes nothing, its error kept, lets them look on
        steering = state.steering if state.variant.has_saes or state.steering else ({},)
        with self._as(state.variant, steering), evaluating(self.model, self._autocast):
            assert self._state.spliced is not None
            with self._state.spliced.observed_by(observer):
                yield self.model

    def report(self, *, open_it: bool = False) -> Path:
        """The run's page, which is made where it is not there yet; of train-sae its card.

        Args:
            open_it: in a browser.
        """
        page = self.run.folder / "report.html"
        if self.run.manifest is None:
            page = self.run.saes[0] / "README.md"
        elif not page.is_file():
            from saelora.jobs.report import report

            report(dirs=[str(self.run.folder)], quiet=True)
        if open_it:
            import webbrowser

            webbrowser.open(page.resolve().as_uri())
        return page

    def _encoded(self, given: Prompt | Sequence[Prompt]) -> Prompts:
        return encode(self.tokenizer, given, self._loaded.n_embedded, self._loaded.ref)

    def _generated(self, prompts: Prompts, options: dict[str, Any], stopped: Stopped | None = None) -> Any:
        """Token ids [batch, seq], the prompts among them; or what ``return_dict_in_generate`` asks for."""
        options = checked(self.model, prompts.input_ids.shape[1], dict(options), NEW_TOKENS)
        if "do_sample" not in options and "generation_config" not in options:
            options["do_sample"] = any(options.get(name) is not None for name in _SAMPLING)
        if stopped is not None:
            options["stopping_criteria"] = [*(options.get("stopping_criteria") or []), stopped]
        if self._replacement.needs_clean and self._state.variant.has_saes:
            options.setdefault("use_cache", False)  # the original's stream is not in the cache
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        device = device_of(self.model)
        generate: Any = self.model.generate
        try:
            with (
                quiet_transformers()
            ):  # on options of the model's own generation config that greedy decoding passes over
                return generate(
                    input_ids=prompts.input_ids.to(device),
                    attention_mask=prompts.attention_mask.to(device),
                    **{"pad_token_id": pad, **options},
                )
        except (TypeError, ValueError) as error:
            raise InputError(f"transformers refuses these options: {' '.join(str(error).split())[:300]}") from error

    def _text(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    # how it shows itself

    def _facts(self) -> dict[str, str]:
        saes = ", ".join(f"{hookpoint} ({size:,} latents)" for hookpoint, size in self._sizes.items())
        steered = "; ".join(
            f"{where}:{latent}={how}"
            for s in self._state.steering
            if isinstance(s, dict)
            for (where, latent), how in s.items()
        )
        return {
            "run": self.run.ref,
            "model": f"{self._loaded.ref} ({self._loaded.dtype}, {device_of(self.model)})".replace("torch.", ""),
            "SAEs": saes,
            "variants": ", ".join(f"[{name}]" if name == self.variant else name for name in self.variants),
            **({"steered": steered} if steered else {}),
        }

    def __repr__(self) -> str:
        return "\n".join(f"{name + ':':10}{value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<table>{rows}</table>"


def _name_of(variant: Variant) -> str:
    return next(name for name, each in NAMES.items() if each is variant)
