"""Files damaged at random: the right arithmetic or one line, in every format.

Damage is drawn from a grammar: tensors left out, added, reshaped, retyped or made infinite; entries of the
configuration left out, added, or given a value of another kind; bytes changed in either file. An SAE that still loads
must compute what the undamaged one does, or what its own configuration plainly says (k, a threshold, ...).
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

import sae_files as files
from sae_files import D_IN, D_SAE, K, activations, weights
from saelora.errors import InputError
from saelora.saes.loading import LoadedSAE, load_sae

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -e .[dev]")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

F64 = torch.float64
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _saelens_6(root: Path) -> tuple[Path, str, str]:
    files.write_saelens(root, weights())
    return root, "sae_weights.safetensors", "cfg.json"


def _saelens_4(root: Path) -> tuple[Path, str, str]:
    files.write_saelens(root, {key: value for key, value in weights().items() if key != "threshold"})
    cfg = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "hook_name": "blocks.2.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        "sae_lens_training_version": "4.1.0",
    }
    (root / "cfg.json").write_text(json.dumps(cfg))
    return root, "sae_weights.safetensors", "cfg.json"


def _gemma_scope_2(root: Path) -> tuple[Path, str, str]:
    folder = root / "gemma-scope-2-1b-pt" / "resid_post" / "layer_9_width_16k"
    folder.mkdir(parents=True)
    save_file({key.lower(): value for key, value in weights().items()}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "hf_hook_point_in": "model.layers.9.output"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, "params.safetensors", "config.json"


def _llama_scope(root: Path) -> tuple[Path, str, str]:
    return files.write_llama_scope(root, weights()), "checkpoints/final.safetensors", "hyperparams.json"


def _sparsify(root: Path) -> tuple[Path, str, str]:
    coder = SparseCoder(D_IN, SparseCoderConfig(k=K, num_latents=D_SAE), dtype=F64)
    with torch.no_grad():
        coder.b_dec.copy_(weights()["b_dec"])
    coder.save_to_disk(root / "layers.1")
    return root / "layers.1", "sae.safetensors", "cfg.json"


def _batch_top_k(root: Path) -> tuple[Path, str, str]:
    state = {**files.linear_names(weights(), "b_dec"), "threshold": torch.tensor(0.7), "k": torch.tensor(K)}
    return files.write_dictionary_learning(root, "BatchTopKSAE", state, k=K), "ae.pt", "config.json"


def _top_k(root: Path) -> tuple[Path, str, str]:
    state = {**files.linear_names(weights(), "b_dec"), "threshold": torch.tensor(0.7), "k": torch.tensor(K)}
    return files.write_dictionary_learning(root, "AutoEncoderTopK", state, k=K), "ae.pt", "config.json"


WRITERS: dict[str, Callable[[Path], tuple[Path, str, str]]] = {
    "saelens 6": _saelens_6,
    "saelens 4": _saelens_4,
    "gemma scope 2": _gemma_scope_2,
    "llama scope": _llama_scope,
    "sparsify": _sparsify,
    "dictionary_learning BatchTopK": _batch_top_k,
    "dictionary_learning TopK": _top_k,
}
everywhere = pytest.mark.parametrize("format", list(WRITERS))


@contextmanager
def written(format: str) -> Iterator[tuple[Path, Path, Path]]:
    """A good SAE in a folder of its own: the folder, its weights, its configuration."""
    root = Path(tempfile.mkdtemp())
    try:
        folder, weights_name, cfg_name = WRITERS[format](root / "sae")
        yield folder, folder / weights_name, folder / cfg_name
    finally:
        shutil.rmtree(root)


def loaded_or_refused(folder: Path) -> LoadedSAE | None:
    """The SAE, or None where it is refused in one line; anything else is a fault."""
    try:
        return load_sae(str(folder), dtype=F64)
    except InputError as refusal:
        said = str(refusal)
    assert "\n" not in said
    assert len(said) > 20
    return None


def read_state(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def write_state(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous().clone() for key, value in state.items()}, path)


def same(one: LoadedSAE, other: LoadedSAE) -> bool:
    x = activations()
    return torch.allclose(one.sae(x), other.sae(x), rtol=1e-9, atol=1e-9) and one.hookpoint == other.hookpoint


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "one row less": lambda t: t[:-1] if t.ndim else t.reshape(1),
    "transposed": lambda t: t.T if t.ndim == 2 else t[None],
    "flat": lambda t: t.flatten()[:, None],
    "integers": lambda t: t.to(torch.int32),
    "a NaN": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t - t - 1,
    "infinite": lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else t + 10_000,
    "nothing": lambda t: t.new_zeros(0),
    "complex": lambda t: t.to(torch.complex64),
}


@everywhere
@FEW
@given(data=st.data())
def test_tensors_left_out_added_or_damaged_are_refused(format: str, data: st.DataObject) -> None:
    with written(format) as (folder, path, _):
        good = loaded_or_refused(folder)
        assert good is not None
        state = read_state(path)
        name = data.draw(st.sampled_from(sorted(state)))
        kind = data.draw(st.sampled_from(["left out", "added", "renamed", *DAMAGE]))
        added = data.draw(st.sampled_from(["W_skip", "scaling_factor", "threshold", "b_enc", "gate", "W_enc", "k"]))
        if kind in ("left out", "renamed"):
            tensor = state.pop(name)
            if kind == "renamed":
                state[f"{name}.weight"] = tensor
        elif kind == "added":
            state.setdefault(added, torch.full((D_SAE,), 2.0, dtype=F64))
        else:
            state[name] = DAMAGE[kind](state[name])
        unchanged = {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in read_state(path).items()
        } and all(torch.equal(state[key], value) for key, value in read_state(path).items())
        write_state(path, state)
        found = loaded_or_refused(folder)
        if found is None or unchanged:
            return
        # what may be missing stands elsewhere too: k in the configuration, a threshold that TopK does not use
        assert same(found, good), (kind, name)
        assert name in ("k", "threshold"), (kind, name)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 50),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["", "none", "relu", "topk", "tanh-relu", "layer_norm", "standard", "blocks.1.hook_mlp_out", "x"]),
)
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(st.sampled_from(["k", "in", "a"]), scalars))
# entries that say what the SAE computes or where it sits: another value may rightly make another SAE of it
MEANT = """
    architecture activation_fn_str activation_fn activation_fn_kwargs k apply_b_dec_to_input normalize_activations
    metadata hook_name hf_hook_point_in hook_point_in act_fn jump_relu_threshold top_k norm_activation
    dataset_average_activation_norm sparsity_include_decoder_norm apply_decoder_bias_to_pre_encoder
    rescale_acts_by_decoder_norm dict_class layer submodule_name trainer buffer sae_lens_version
"""


@everywhere
@FEW
@given(data=st.data())
def test_entries_left_out_added_or_of_another_kind_leave_the_same_sae_or_none(format: str, data: st.DataObject) -> None:
    with written(format) as (folder, _, path):
        good = loaded_or_refused(folder)
        assert good is not None
        cfg = json.loads(path.read_text())
        inner = cfg[data.draw(st.sampled_from(["trainer"]))] if "trainer" in cfg and data.draw(st.booleans()) else cfg
        known = sorted(
            set(inner) | {"activation_fn", "finetuning_scaling_factor", "hook_head_index", "signed", "transcode"}
        )
        key = data.draw(st.one_of(st.sampled_from(known), st.sampled_from(["new_option", "use_squares", "gain"])))
        if data.draw(st.booleans()) and key in inner:
            del inner[key]
        else:
            inner[key] = data.draw(values)
        path.write_text(json.dumps(cfg))
        found = loaded_or_refused(folder)
        if found is not None and key not in MEANT.split():
            assert same(found, good), (key, inner.get(key))


@everywhere
@FEW
@given(which=st.booleans(), place=st.floats(0, 1, exclude_max=True), bytes_=st.binary(min_size=1, max_size=4))
def test_bytes_changed_in_either_file_never_end_in_a_traceback(
    format: str, which: bool, place: float, bytes_: bytes
) -> None:
    with written(format) as (folder, weights_path, cfg_path):
        path = weights_path if which else cfg_path
        whole = path.read_bytes()
        at = int(place * len(whole))
        path.write_bytes(whole[:at] + bytes_ + whole[at + len(bytes_) :])
        loaded_or_refused(folder)
