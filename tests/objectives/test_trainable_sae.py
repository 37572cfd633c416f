"""SAEs in training, and the ordinary SAEs that they are folded into."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.saes.loading import load_sae
from saelora.saes.sparse import SparseSAE, sparse
from trainable_saes import D_IN, made, moved

PARTS = ["sae", "decoder", "linear"]
KINDS = ["topk", "topk-rescaled", "topk-bare", "jumprelu", "standard"]


def inputs() -> Tensor:
    return torch.randn(3, 7, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def values(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_the_exported_sae_computes_the_same_also_from_disk(part: Any, kind: str, tmp_path: Path) -> None:
    sae, x = made(kind), inputs()
    tuned = moved(TrainableSAE(sae, part, rank=3))
    latents = tuned.encode(x)
    recon = tuned.decode(latents)
    assert (latents != 0).any()
    assert (recon - sae.decode(sae.encode(x))).abs().max() > 0.1  # else nothing was trained
    exported = tuned.export()
    assert type(exported) is type(sae)
    assert not any(p.requires_grad for p in exported.parameters())
    exported.save_model(tmp_path / "sae")
    loaded = load_sae(str(tmp_path / "sae"), dtype=torch.float64).sae
    for found in (exported, loaded):
        assert torch.equal(found.encode(x) != 0, latents != 0)
        torch.testing.assert_close(found.encode(x), latents, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.decode(found.encode(x)), recon, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_it_starts_as_the_sae_that_it_was_given(part: Any, kind: str) -> None:
    sae, x = made(kind), inputs()
    tuned = TrainableSAE(sae, part, rank=3)
    exact = {"rtol": 0.0, "atol": 1e-12 if kind == "topk-rescaled" else 0.0}
    torch.testing.assert_close(tuned.encode(x), sae.encode(x), **exact)
    torch.testing.assert_close(tuned.decode(tuned.encode(x)), sae.decode(sae.encode(x)), **exact)


TRAINED = {
    "sae": {"sae.W_enc", "sae.b_enc", "sae.W_dec", "sae.b_dec"},
    "decoder": {"W_dec", "bias"},
    "linear": {"down", "up", "bias"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_the_named_part_alone_has_a_gradient_and_the_given_sae_is_left_alone(part: Any, kind: str) -> None:
    sae = made(kind)
    before = values(sae)
    tuned = moved(TrainableSAE(sae, part, rank=3))
    assert set(tuned.tuned_parameters()) == TRAINED[part]
    tuned.decode(tuned.encode(inputs())).square().sum().backward()
    assert {name for name, p in tuned.named_parameters() if p.grad is not None} == TRAINED[part]
    with torch.no_grad():
        for parameter in tuned.tuned_parameters().values():
            parameter -= 0.1 * parameter.grad
    tuned.export().W_dec.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in sae.parameters())


@pytest.mark.parametrize("part", PARTS)
def test_gradients_reach_the_input_through_the_encoder(part: Any) -> None:
    sae, x = made("standard"), inputs().requires_grad_()
    tuned = moved(TrainableSAE(sae, part, rank=3))
    tuned.reconstruct(x).square().sum().backward()
    exported, again = tuned.export(), x.detach().clone().requires_grad_()
    exported.decode(exported.encode(again)).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["topk", "topk-rescaled", "jumprelu"])
def test_a_linear_map_on_a_gathering_sae_equals_one_on_the_plain_sae(kind: str) -> None:
    x, y = inputs().requires_grad_(), inputs().requires_grad_()
    plain, gathering = (moved(TrainableSAE(sae, "linear", rank=3)) for sae in (made(kind), sparse(made(kind))))
    assert isinstance(gathering.sae, SparseSAE)
    plain.decode(plain.encode(x)).square().sum().backward()
    gathering.reconstruct(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)
    for name, parameter in plain.tuned_parameters().items():
        torch.testing.assert_close(parameter.grad, gathering.tuned_parameters()[name].grad, rtol=1e-9, atol=1e-9)


def test_the_seed_draws_the_map_and_torchs_own_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    first = TrainableSAE(made("topk"), "linear", rank=3, seed=1)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    sae = made("topk")
    torch.set_rng_state(state)  # SAELens draws initial weights
    second, other = (TrainableSAE(sae, "linear", rank=3, seed=seed) for seed in (1, 2))
    TrainableSAE(sae, "sae").export()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.down, second.down)
    assert not torch.equal(first.down, other.down)


def test_a_run_time_normalisation_trains_and_exports_as_a_whole_sae() -> None:
    sae, x = made("standard", normalize_activations="layer_norm"), inputs()
    tuned = moved(TrainableSAE(sae, "sae"))
    recon, exported = tuned.decode(tuned.encode(x)), tuned.export()
    assert (recon - sae.decode(sae.encode(x))).abs().max() > 0.1
    assert torch.equal(exported.decode(exported.encode(x)), recon)


@pytest.mark.parametrize("part", ["decoder", "linear"])
@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_what_cannot_be_folded_is_refused_before_training(part: Any, normalisation: str) -> None:
    with pytest.raises(InputError, match=rf"run time \({normalisation}\).*finetune-sae"):
        TrainableSAE(made("standard", normalize_activations=normalisation), part)
    with pytest.raises(InputError, match=r"gated SAE cannot be folded.*finetune-sae"):
        TrainableSAE(made("gated"), part)
    TrainableSAE(made("gated"), "sae")


def test_an_sae_that_splits_heads_and_a_rank_of_zero_are_refused() -> None:
    sae = made("topk")
    sae.hook_z_reshaping_mode = True
    with pytest.raises(InputError, match=r"saelora\.load_sae"):
        TrainableSAE(sae, "sae")
    with pytest.raises(InputError, match="rank 0"):
        TrainableSAE(made("topk"), "linear", rank=0)
