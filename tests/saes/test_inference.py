"""The inference classes against SAELens': the same bits, files and state."""

import copy
import itertools
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes import SAE
from torch import Tensor

from saelora.saes import inference
from saelora.saes.build import migrated
from saelora.saes.readers import saelens
from saelora.saes.saelens import KEPT, saelens_version

D_IN, D_SAE = 12, 40
METADATA = {"model_name": "m", "hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.40.0", "more": [1, 2]}


def configurations() -> list[dict[str, Any]]:
    """Of every class, with each of its options on and off."""
    found = []
    for architecture, off, normalise, dtype in itertools.product(
        inference.CLASSES, (True, False), ("none", "layer_norm", "constant_norm_rescale"), ("float32", "bfloat16")
    ):
        plain = {"d_in": D_IN, "d_sae": D_SAE, "dtype": dtype, "device": "cpu", "apply_b_dec_to_input": off}
        plain |= {"architecture": architecture, "normalize_activations": normalise, "metadata": METADATA}
        if architecture == "topk":
            found += [{**plain, "k": 5, "rescale_acts_by_decoder_norm": rescale} for rescale in (True, False)]
        else:
            found.append(plain)
    return found


def name_of(cfg: dict[str, Any]) -> str:
    return "-".join(str(cfg[key]) for key in cfg if key not in ("d_in", "d_sae", "device", "metadata"))


def weights(cfg: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    names = inference.CLASSES[cfg["architecture"]][0].latent_vectors
    state = {"W_enc": torch.randn(D_IN, D_SAE), "W_dec": torch.randn(D_SAE, D_IN), "b_dec": torch.randn(D_IN)}
    state |= {name: torch.randn(D_SAE) * 0.3 for name in names}
    return {name: tensor.to(getattr(torch, cfg["dtype"])) for name, tensor in state.items()}


def both(cfg: dict[str, Any]) -> tuple[Any, Any]:
    theirs = SAE.load_from_disk("", converter=lambda *_, **__: (copy.deepcopy(cfg), weights(cfg)))
    return inference.inference_sae(copy.deepcopy(cfg), weights(cfg)), theirs


def assert_same_state(ours: Any, theirs: Any) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert ours.cfg.to_dict() == theirs.cfg.to_dict()


@pytest.mark.parametrize("cfg", configurations(), ids=name_of)
def test_latents_reconstructions_and_gradients_are_saelens_own_bits(cfg: dict[str, Any]) -> None:
    ours, theirs = both(cfg)
    torch.manual_seed(1)
    x = torch.randn(3, 4, D_IN)
    for sae in (ours, theirs):
        sae.requires_grad_(True)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert torch.equal(ours.encode(x), theirs.encode(x))
    outs = ours(inputs[0]), theirs(inputs[1])
    assert torch.equal(*outs)
    for out in outs:
        out.float().pow(2).sum().backward()
    assert inputs[0].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.grad is None or grads[name] is None:
            assert parameter.grad is grads[name], name
        else:
            assert torch.equal(parameter.grad, grads[name]), name


@pytest.mark.parametrize("cfg", configurations(), ids=name_of)
def test_files_are_saelens_own_bytes(cfg: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(cfg)
    assert_same_state(ours, theirs)
    for name, sae in (("ours", ours), ("theirs", theirs)):
        sae.save_model(tmp_path / name)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes(), file


@pytest.mark.parametrize("cfg", [c for c in configurations() if c["normalize_activations"] == "none"], ids=name_of)
def test_what_is_folded_in_is_folded_as_saelens_does(cfg: dict[str, Any]) -> None:
    ours, theirs = both(cfg)
    if not hasattr(theirs, "fold_activation_whitening"):
        pytest.skip(f"SAELens {saelens_version()} folds no whitening")
    torch.manual_seed(2)
    matrix = torch.eye(D_IN) + 0.1 * torch.randn(D_IN, D_IN)
    for sae in (ours, theirs):
        sae.fold_activation_norm_scaling_factor(2.5)
        sae.fold_activation_whitening(torch.ones(D_IN) * 0.2, matrix, torch.linalg.inv(matrix))
    assert_same_state(ours, theirs)
    if cfg["architecture"] == "topk":
        for sae in (ours, theirs):  # the whitening has folded the norms where that can be done
            with pytest.raises(NotImplementedError):
                sae.fold_W_dec_norm()
        return
    for sae in (ours, theirs):
        sae.fold_W_dec_norm()
    assert_same_state(ours, theirs)


def test_decoder_norms_of_a_topk_sae_are_folded_as_saelens_does() -> None:
    ours, theirs = both(next(c for c in configurations() if c.get("rescale_acts_by_decoder_norm")))
    for sae in (ours, theirs):
        sae.fold_W_dec_norm()
    assert_same_state(ours, theirs)


def test_moved_and_copied_saes_know_what_they_are() -> None:
    ours, theirs = both(configurations()[0])
    for sae in (ours, theirs):
        sae.to(torch.float64)
    assert_same_state(ours, theirs)
    copied = copy.deepcopy(ours)
    assert_same_state(copied, theirs)
    assert copied.cfg.metadata.not_there is None
    copied.cfg.metadata.more.append(3)
    assert ours.cfg.metadata.more == [1, 2]


def test_decoding_without_the_input_whose_scale_it_needs_is_an_error() -> None:
    ours, _ = both(next(c for c in configurations() if c["normalize_activations"] == "layer_norm"))
    with pytest.raises(RuntimeError, match="without encode"):
        ours.decode(torch.zeros(1, D_SAE))


OLD = [
    {"d_in": 4, "d_sae": 8, "hook_point": "blocks.0.hook_resid_pre", "model_name": "m", "lr": 1e-3},
    {
        "d_in": 4,
        "d_sae": 8,
        "hook_name": "blocks.0.attn.hook_z",
        "normalize_activations": False,
        "architecture": "gated",
    },
    {"d_in": 4, "d_sae": 8, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_name": "a"},
    {"d_in": 4, "d_sae": 8, "architecture": "topk", "k": 2, "activation_fn_kwargs": {"k": 2}, "hook_name": "a"},
    {"d_in": 4, "d_sae": 8, "architecture": "jumprelu", "normalize_activations": True, "sae_lens_version": "3.2.1"},
    {"d_in": 4, "d_sae": 8, "architecture": "standard", "metadata": {"sae_lens_version": "6.1.0", "hook_name": "a"}},
]


@pytest.mark.parametrize("old", OLD)
def test_older_configurations_become_what_saelens_makes_of_them(old: dict[str, Any]) -> None:
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    theirs = handle_config_defaulting(copy.deepcopy(old))
    ours = migrated(copy.deepcopy(old))
    kept = {name: ours[name] for name in theirs}
    assert json.dumps(kept, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    assert list(kept["metadata"]) == list(theirs["metadata"])
    left = set(ours) - set(theirs)
    own = {field.name for field in fields(SAE_CLASS_REGISTRY[ours["architecture"]][1])}
    assert not left & own  # SAELens takes them no further either


def test_the_architectures_and_their_entries_are_those_of_saelens() -> None:
    known_here = {*inference.CLASSES, *saelens._TRANSCODERS, *saelens._SAELENS_ALONE}
    assert known_here >= set(SAE_CLASS_REGISTRY)
    if saelens_version() == KEPT:  # earlier ones had fewer
        assert known_here == set(SAE_CLASS_REGISTRY)
    for architecture, (kind, config) in inference.CLASSES.items():
        theirs, their_config = SAE_CLASS_REGISTRY[architecture]
        assert kind.__name__ == theirs.__name__
        assert [field.name for field in fields(config)] == [field.name for field in fields(their_config)]
        assert inference.architecture_of(theirs(their_config(4, 8))) == architecture
        known = saelens.SAELENS_READ | saelens.SAELENS_NEUTRAL | saelens._fields(architecture)
        assert {field.name for field in fields(SAE_TRAINING_CLASS_REGISTRY[architecture][1])} <= known


def test_running_an_sae_imports_no_saelens(tmp_path: Path) -> None:
    import subprocess
    import sys

    ours, _ = both(configurations()[0])
    ours.save_model(tmp_path)
    code = (
        "import sys, torch; from saelora.saes.loading import load_sae; from saelora.saes.sparse import sparse; "
        f"from saelora.objectives.trainable_sae import TrainableSAE; sae = load_sae({str(tmp_path)!r}).sae; "
        "sparse(sae); TrainableSAE(sae, 'sae').export()(torch.zeros(2, 12)); print('sae_lens' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
