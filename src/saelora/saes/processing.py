"""What TransformerLens did to the model's weights before an SAE was trained on it, as the SAE's metadata say.

`center_writing_weights` takes the mean over d_model off every weight and bias that writes to the residual stream, so
that activations there lose their mean, and the sublayers' outputs lose theirs. A model whose norms take the mean off
anyway (LayerNorm) computes the same as before. In the plain model such an SAE is to see activations without their
mean, and what was taken off is to be added to its reconstruction: `core.splice` does both.

`fold_ln` and `center_unembed` change no activation that an SAE can sit at here; `fold_value_biases` and
`refactor_factored_attn_matrices` change attn_z alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelora.errors import InputError
from saelora.models.hookpoints import Hookpoint
from saelora.records import JsonObject
from saelora.saes.saelens import configuration_of

if TYPE_CHECKING:
    from saelora.models.anatomy import Anatomy

_KEY = "model_from_pretrained_kwargs"
_SHIFTS_Z = ("fold_value_biases", "refactor_factored_attn_matrices")
# of TransformerLens' and transformers' from_pretrained: which weights, where and how they are loaded
_NEUTRAL = frozenset(
    word
    for line in (
        "fold_ln center_unembed n_devices device device_map dtype torch_dtype move_to_device default_padding_side",
        "default_prepend_bos first_n_layers n_ctx tokenizer revision checkpoint_index checkpoint_value cache_dir",
        "local_files_only trust_remote_code token use_auth_token force_download low_cpu_mem_usage attn_implementation",
        "use_safetensors max_memory offload_folder variant subfolder code_revision use_cache output_hidden_states",
        "load_in_4bit load_in_8bit quantization_config",
    )
    for word in line.split()
)


def check_processing(metadata: JsonObject, hookpoint: Hookpoint, ref: str) -> None:
    """Raise InputError where the model's weights were changed in a way that this project cannot follow."""
    options = metadata.get(_KEY) or {}
    if not isinstance(options, dict):
        raise InputError(f"{ref} has {_KEY} {options!r}, expected an object")
    for key, value in options.items():
        if key in ("center_writing_weights", *_SHIFTS_Z) and value not in (None, True, False):
            raise InputError(f"{ref} has {_KEY}.{key} {value!r}, expected true or false")
        if key in _SHIFTS_Z and value and hookpoint.site == "attn_z":
            raise InputError(
                f"{ref} was trained on a model loaded with {key}, which changes the activations at {hookpoint} and no "
                "others: only SAEs of the model as it is can be spliced in there"
            )
        if value and key not in ("center_writing_weights", *_SHIFTS_Z, *_NEUTRAL):
            raise InputError(
                f"{ref} was trained on a model loaded with {key}={value!r}, which is not known and may have changed "
                f"its activations: take the entry out of {_KEY} in its configuration if it did not"
            )


def is_centred(sae: Any, hookpoint: Hookpoint) -> bool:
    """Whether an SAE, or one in a wrapper, is to see the activations at a hookpoint without their mean."""
    options = getattr(getattr(configuration_of(sae), "metadata", None), _KEY, None)
    return isinstance(options, dict) and bool(options.get("center_writing_weights")) and hookpoint.site != "attn_z"


def check_centring(anatomy: Anatomy, hookpoint: Hookpoint, sae: Any) -> None:
    """Raise InputError where an SAE of centred activations meets a model that centring would change."""
    if is_centred(sae, hookpoint) and not anatomy.removes_mean:
        raise InputError(
            f"the SAE at {hookpoint} says that its model's writing weights were centred, but this model's norms "
            "(RMSNorm) keep the mean, so that it has no centred form: is the SAE for another model? TransformerLens "
            "leaves such models as they are; if it was trained so, take center_writing_weights out of its "
            f"configuration's {_KEY}"
        )
