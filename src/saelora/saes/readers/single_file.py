"""SAEs that are one torch file: Qwen Scope's `layerN.sae.pt` (arXiv 2605.11887), Goodfire's and qresearch's
`MODEL-SAE-lN.pth`.

All are of the residual stream after a layer and do not subtract b_dec from their input. The files hold tensors alone;
what else there is to know is in their names. Matrices are those of torch's linear layers: encoder [d_sae, d_in],
decoder [d_in, d_sae].
"""

import re
from pathlib import Path

from torch import Tensor

from saelora.errors import InputError
from saelora.saes.formats import single_file
from saelora.saes.readers.common import Parts, Spec, account_for_tensors, check_floats, read_torch, take

_QWEN = ("W_enc", "W_dec", "b_enc", "b_dec")
_QWEN_REPOSITORY = re.compile(r"SAE-Res-(Qwen.+?)-W(\d+)K-L0_(\d+)")
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_GOODFIRE = tuple(name.replace("coder.", "coder_linear.") for name in LINEAR)
_OWNERS = {"Llama-": "meta-llama", "DeepSeek-": "deepseek-ai"}


def read_qwen_scope(folder: Path, name: str) -> Parts:
    """Read one layer's TopK SAE; `name` ends with its file, and names the repository, in whose name k is.

    Raises:
        InputError: no such repository in the name, a width other than the name's, unknown tensors, unreadable files.
    """
    path = folder / Path(name).name
    given = _QWEN_REPOSITORY.search(name)
    if given is None:
        raise InputError(
            f"{path} does not tell how many latents are active: expected it in a folder of its repository's name, "
            "such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    model, width, k = given[1], 1024 * int(given[2]), int(given[3])
    tensors = _tensors(path, _QWEN)
    if (d_sae := len(tensors["b_enc"])) != width:
        raise InputError(f"{path} has {d_sae} latents, and its repository's name says {width}: is it another's file?")
    weights = {key: tensor.T if tensor.ndim == 2 else tensor for key, tensor in tensors.items()}
    return _spec("topk", weights, path, f"Qwen/{model}", k=k, rescale_acts_by_decoder_norm=False)


def read_goodfire(folder: Path, name: str) -> Parts:
    """Read a ReLU SAE of Goodfire's or qresearch's; `name` ends with its file, which names the model.

    Raises:
        InputError: unknown tensors, or unreadable files.
    """
    path = folder / Path(name).name
    tensors = _tensors(path, _GOODFIRE, LINEAR)
    w_enc, b_enc, w_dec, b_dec = tensors.values()
    weights = {"W_enc": w_enc.T, "b_enc": b_enc, "W_dec": w_dec.T, "b_dec": b_dec}
    model = path.name.partition("-SAE-")[0]
    owner = next((owner for prefix, owner in _OWNERS.items() if model.startswith(prefix)), None)
    return _spec("standard", weights, path, f"{owner}/{model}" if owner else model)


def _tensors(path: Path, *choices: tuple[str, ...]) -> dict[str, Tensor]:
    """The file's tensors, which are those of one of the choices, in its order."""
    state = read_torch(path)
    names = next((names for names in choices if set(names) <= state.keys()), choices[0])
    account_for_tensors(map(str, state), names, path)
    tensors = {key: take(state, key, path) for key in names}
    check_floats(tensors, path)
    return tensors


def _spec(architecture: str, weights: dict[str, Tensor], path: Path, model: str, **extra: object) -> Parts:
    found = single_file(path.name)
    assert found is not None
    return Spec(
        architecture=architecture,
        weights={key: tensor.contiguous() for key, tensor in weights.items()},
        apply_b_dec_to_input=False,
        hook_name=f"blocks.{found.layer}.hook_resid_post",
        model_name=model,
        extra=dict(extra),
    ).parts(path)
