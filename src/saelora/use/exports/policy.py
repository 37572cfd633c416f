"""The token policy in words and in code that needs no saelora: without it other tools give other logits."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelora.core.splice import TokenMask, splice
from saelora.core.transcoding import transcoder_in
from saelora.models.anatomy import anatomy_of
from saelora.saes.processing import is_centred
from saelora.use.exports.target import largest

if TYPE_CHECKING:
    from torch import Tensor

    from saelora.models.hookpoints import Hookpoint
    from saelora.use.run import LoadedRun

SCRIPT = "spliced.py"


def in_words(loaded: LoadedRun) -> str:
    """Which positions the SAEs leave alone."""
    mask, tokens = loaded.token_mask, []
    for token_id in mask.exempt_ids:
        tokens.append(f"{token_id} ({loaded.tokenizer.convert_ids_to_tokens(token_id)!r})")
    parts = [f"token ids {', '.join(tokens)}"] if tokens else []
    if mask.exempt_first:
        parts.append("the first position" if mask.exempt_first == 1 else f"the first {mask.exempt_first} positions")
    parts += ["padding"] if mask.exempt_padding else []
    if mask.massive is not None:
        parts.append("activations with massive norms (limits in saelora.json)")
    return "SAEs leave alone: " + ("; ".join(parts) or "nothing") + "."


def note(loaded: LoadedRun, rows: list[Tensor], ours: list[Tensor]) -> str:
    """What is run right by the script, and by how much other tools' logits are others.

    Args:
        ours: logits of the rows in the current variant.
    """
    off = off_by(loaded, rows, ours)
    return (
        f"`{SCRIPT}` runs the model through its SAEs with this policy. SAELens's `run_with_saes` replaces every "
        f"position, BOS too: its logits differ by up to {off:.2f} on the same texts, and the run's figures do not hold "
        "for it."
    )


def off_by(loaded: LoadedRun, rows: list[Tensor], ours: list[Tensor]) -> float:
    """By how much logits differ where every position is replaced."""
    with loaded.as_variant(without_saes(loaded)), splice(loaded.model, loaded.saes_of_default, TokenMask((), 0, False)):
        return largest(ours, [loaded.logits(row) for row in rows])


def without_saes(loaded: LoadedRun) -> str:
    """The variant that is the default one but for its SAEs."""
    return "adapted_clean" if loaded.has_adapter else "original"


def why_no_script(loaded: LoadedRun) -> str | None:
    """Why the SAEs cannot be run by a few lines; None where they can."""
    if any(transcoder_in(sae) for sae in loaded.saes.values()):
        return "transcoders stand for MLPs"
    if any(is_centred(sae, hookpoint) for hookpoint, sae in loaded.saes.items()):
        return "its SAEs are of a model with centred weights"
    return "massive positions are told by their norms" if loaded.token_mask.massive is not None else None


# of a script, in a function that has ``kept``: a hook of the decoder that notes which positions [1, seq, 1] are exempt
READ_TOKENS = """    def read_tokens(module, args, kwargs):
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        cache = kwargs.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        position = torch.arange(start, start + ids.shape[1], device=ids.device)
        exempt = torch.tensor(EXEMPT_IDS, dtype=ids.dtype, device=ids.device)
        kept["exempt"] = (torch.isin(ids, exempt) | (position < EXEMPT_FIRST)).unsqueeze(-1)"""


def constants(loaded: LoadedRun) -> str:
    """Lines of a script: which positions the SAEs leave alone."""
    mask = loaded.token_mask
    return f"""EXEMPT_IDS = {list(mask.exempt_ids)}
EXEMPT_FIRST = {mask.exempt_first}  # positions at the beginning of a text"""


def script(loaded: LoadedRun, saes: dict[str, str]) -> str:
    """Python that runs a plain transformers model through SAELens's SAEs with the run's token policy.

    Args:
        saes: hookpoint -> folder of the SAE, beside the script or not.
    """
    lines = []
    for hookpoint in loaded.hookpoints:
        name, side = site_of(loaded, hookpoint)
        lines.append(f"    ({name!r}, {side!r}, {saes[str(hookpoint)]!r}),  # {hookpoint}")
    sites = "\n".join(lines)
    return f'''"""Run a model through its SAEs with the token policy of its run, by transformers and SAELens alone.

    with spliced(model):
        model.generate(**tokenizer(text, return_tensors="pt"))

One text at a time, without padding; with a key-value cache or not. SAELens's own run_with_saes replaces every position,
BOS too, and gives other logits.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from sae_lens import SAE

{constants(loaded)}
# module, whether its input or output is replaced, folder of the SAE
SITES = [
{sites}
]


@contextmanager
def spliced(model):
    kept = {{}}

{READ_TOKENS}

    def replaced(sae, x):
        recon = sae.decode(sae.encode(x.to(sae.dtype))).to(x.dtype)
        return torch.where(kept["exempt"], x, recon)

    def on_output(sae):
        def hook(module, args, output):
            if isinstance(output, torch.Tensor):
                return replaced(sae, output)
            return (replaced(sae, output[0]), *output[1:])

        return hook

    def on_input(sae):
        def hook(module, args, kwargs):
            if args:
                return (replaced(sae, args[0]), *args[1:]), kwargs
            return args, {{**kwargs, "hidden_states": replaced(sae, kwargs["hidden_states"])}}

        return hook

    handles = [model.get_decoder().register_forward_pre_hook(read_tokens, with_kwargs=True)]
    for name, side, folder in SITES:
        module = model.get_submodule(name)
        sae = SAE.load_from_disk(str(Path(__file__).parent / folder)).to(next(model.parameters()).device)
        if side == "input":
            handles.append(module.register_forward_pre_hook(on_input(sae), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(on_output(sae)))
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
'''


def site_of(loaded: LoadedRun, hookpoint: Hookpoint) -> tuple[str, str]:
    """The transformers module at a hookpoint, by its name in the model, and whether its input or output is meant."""
    module, side = anatomy_of(loaded.model).site(hookpoint)
    return name_of(loaded, module), side


def name_of(loaded: LoadedRun, module: Any) -> str:
    """A module's name in the plain transformers model."""
    names: dict[int, str] = {id(each): name for name, each in _plain(loaded.model).named_modules()}
    return names[id(module)].replace(".base_layer", "")


def write_script(
    loaded: LoadedRun, folder: Path, saes: dict[str, str], plain: Any, rows: list[Tensor], ours: list[Tensor]
) -> float:
    """Write the script, run it on a plain transformers model, and say by how much logits differ from ``ours``."""
    path = folder / SCRIPT
    path.write_text(script(loaded, saes), encoding="utf-8")
    spliced = runpy.run_path(str(path))["spliced"]
    with spliced(plain):
        return largest(ours, [plain(input_ids=row).logits for row in rows])


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
