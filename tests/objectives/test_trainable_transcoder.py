"""Transcoders in training, and the ordinary transcoders that they end as."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saelora.errors import InputError
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.objectives.trainable_transcoder import TrainableTranscoder, trainable
from saelora.saes.loading import load_sae
from saelora.saes.saving import save_sae
from saelora.saes.sparse import sparse
from saelora.saes.transcoder import CrossLayerTranscoder, Transcoder, TranscoderParts, build_transcoder
from trainable_saes import made

D_IN, D_SAE, D_OUT = 6, 20, 5
WRITES = {"sae.W_dec", "sae.b_dec", "sae.W_skip"}


def transcoder(activation: Any = "jumprelu", *, skip: bool = True, ahead: int = 0) -> Transcoder:
    draw = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_OUT), "b_dec": (D_OUT,)}
    shapes |= {"W_skip": (D_OUT, D_IN)} if skip else {}
    shapes |= {"W_ahead": (D_SAE, ahead, D_OUT)} if ahead else {}
    weights = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
    if activation == "jumprelu":
        weights["threshold"] = torch.rand(D_SAE, generator=draw, dtype=torch.float64)
    k = 4 if activation in ("topk", "groupmax") else None
    names = {"hook_in": "blocks.1.mlp.hook_in", "hook_out": "blocks.1.hook_mlp_out"}
    return build_transcoder(TranscoderParts(weights, activation, k=k, **names), "made up", torch.float64).eval()


def inputs() -> Tensor:
    return torch.randn(3, 7, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def plain(weights: dict[str, Tensor], x: Tensor, activation: str) -> Tensor:
    pre = torch.einsum("bsd,df->bsf", x, weights["W_enc"]) + weights["b_enc"]
    floor = weights["threshold"] if activation == "jumprelu" else torch.zeros(D_SAE, dtype=pre.dtype)
    latents = torch.where(pre > floor.clamp(min=0), pre, 0)
    out = torch.einsum("bsf,fo->bso", latents, weights["W_dec"]) + weights["b_dec"]
    return out + torch.einsum("bsd,od->bso", x, weights["W_skip"]) if "W_skip" in weights else out


def written(tuned: Any, x: Tensor) -> Tensor:
    out, skip = tuned.decode(tuned.encode(x)), tuned.skip(x)
    return out if skip is None else out + skip


def moved(tuned: TrainableTranscoder) -> TrainableTranscoder:
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in tuned.tuned_parameters().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return tuned


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "none"])
@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
@pytest.mark.parametrize("part", ["decoder", "sae"])
def test_value_and_gradient_are_those_of_the_arithmetic_written_plainly(part: Any, activation: str, skip: bool) -> None:
    given, x = transcoder(activation, skip=skip), inputs().requires_grad_()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    tuned = moved(trainable(sparse(given), part, rank=1, seed=0))
    assert isinstance(tuned, TrainableTranscoder)
    trained = {"decoder": WRITES, "sae": WRITES | {"sae.W_enc", "sae.b_enc"}}[part] - (
        set() if skip else {"sae.W_skip"}
    )
    assert set(tuned.tuned_parameters()) == trained

    weights = {
        name: tensor.clone().requires_grad_(f"sae.{name}" in trained) for name, tensor in tuned.sae.state_dict().items()
    }
    again = x.detach().clone().requires_grad_()
    expected = plain(weights, again, activation)
    found = written(tuned, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (found - plain(before, x, activation)).abs().max() > 0.1
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-10, atol=1e-10)
    for name, parameter in tuned.tuned_parameters().items():
        torch.testing.assert_close(parameter.grad, weights[name.removeprefix("sae.")].grad, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in given.parameters())


@pytest.mark.parametrize("activation", ["jumprelu", "relu"])
def test_what_it_ends_as_computes_the_same_also_from_disk_and_in_saelens(activation: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    tuned, x = moved(TrainableTranscoder(transcoder(activation), "sae")), inputs()
    out = written(tuned, x)
    exported = tuned.export()
    exported.cfg.metadata.model_name = "changed"  # of this one alone
    assert not hasattr(tuned.sae.cfg.metadata, "model_name")
    save_sae(exported, tmp_path / "saved")
    loaded = load_sae(str(tmp_path / "saved"), dtype=torch.float64)
    theirs = SAE.load_from_disk(str(tmp_path / "saved")).to(torch.float64)
    for found in (exported, loaded.sae, theirs):
        assert not any(p.requires_grad for p in getattr(found, "sae", exported).parameters())
        torch.testing.assert_close(found(x), out, rtol=1e-10, atol=1e-10)
    assert (str(loaded.hookpoint), loaded.sae.reads) == ("layers.1.mlp_out", "mlp_in")
    with torch.no_grad():
        exported.W_dec.zero_()
    torch.testing.assert_close(written(tuned, x), out, rtol=0, atol=0)


def test_what_cannot_be_trained_or_saved_is_refused_before_training() -> None:
    for activation in ("topk", "groupmax"):
        with pytest.raises(InputError, match=rf"{activation} transcoder.*could not be saved.*use method lora"):
            trainable(transcoder(activation), "decoder", rank=1, seed=0)
    crossing = transcoder(ahead=2)
    assert isinstance(crossing, CrossLayerTranscoder)
    with pytest.raises(InputError, match=r"cross-layer transcoder.*could not be saved.*use method lora"):
        trainable(crossing, "decoder", rank=1, seed=0)
    with pytest.raises(InputError, match=r"method linear maps what an SAE rebuilds.*lora\+sae"):
        trainable(transcoder(), "linear", rank=1, seed=0)

    class OfOnesOwn(torch.nn.Module):
        reads = "mlp_in"

    with pytest.raises(InputError, match=r"OfOnesOwn cannot be trained"):
        trainable(OfOnesOwn(), "decoder", rank=1, seed=0)
    assert type(trainable(made("topk"), "decoder", rank=1, seed=0)) is TrainableSAE
