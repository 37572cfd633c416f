"""What an SAE is handed where it is not asked: finite in value and gradient, whatever it divides by."""

from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor, nn

from families import BOS, D_MODEL
from saelora.core.filler import filler
from saelora.core.splice import splice
from saelora.evals.faithfulness.ablation import Ablated
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.trainable_sae import TrainableSAE
from tiny_saes import SPARE_SPECIAL, Broken, Identity, TinySAE

NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


def saelens(normalisation: str, kind: str = "standard") -> Any:
    config = {"d_in": D_MODEL, "d_sae": 3 * D_MODEL, "normalize_activations": normalisation}
    sae = StandardSAE(StandardSAEConfig(**config)) if kind == "standard" else TopKSAE(TopKSAEConfig(**config, k=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae.double()


class OverNorm(TinySAE):
    """A foreign SAE whose value is not finite at zero."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x / x.norm(dim=-1, keepdim=True))


class OverRoot(TinySAE):
    """A foreign SAE whose value is finite at zero, but not its gradient."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x / (x.square().sum(-1, keepdim=True).sqrt() + 1e-3))


class CannotBeAsked(nn.Module):
    """Wraps an SAE, and works in its place only."""

    def __init__(self, sae: Any):
        super().__init__()
        self.sae = sae

    def encode(self, x: Tensor) -> Tensor:
        raise AssertionError("asked out of place")


def test_zeros_stay_unless_the_sae_is_not_finite_there() -> None:
    assert {name: filler(saelens(name), D_MODEL) for name in NORMALISATIONS} == {
        **dict.fromkeys(NORMALISATIONS, 0.0),
        "constant_norm_rescale": 1.0,
    }
    assert [filler(sae, D_MODEL) for sae in (TinySAE(D_MODEL), Identity(), Broken())] == [0.0, 0.0, 0.0]
    assert [filler(sae, D_MODEL) for sae in (OverNorm(D_MODEL), OverRoot(D_MODEL))] == [1.0, 1.0]


def test_what_wraps_an_sae_is_not_asked() -> None:
    singular = saelens("constant_norm_rescale")
    for wrapped in (CannotBeAsked(singular), Ablated(singular, torch.tensor([0])), TrainableSAE(singular, "sae")):
        assert filler(wrapped, D_MODEL) == 1.0
    assert filler(CannotBeAsked(saelens("none")), D_MODEL) == 0.0


def test_looking_leaves_no_gradient_and_no_random_number_behind() -> None:
    sae = OverNorm(D_MODEL).requires_grad_()
    state = torch.get_rng_state()
    filler(sae, D_MODEL)
    assert all(p.grad is None for p in sae.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["standard", "topk"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_value_and_gradients_are_those_of_the_kept_positions_alone(
    normalisation: str, kind: str, fresh: Any, batch: Any
) -> None:
    model, where = fresh("llama").requires_grad_(False), Hookpoint(1)
    found = []
    for spare in (True, False):
        sae = TrainableSAE(saelens(normalisation, kind), "sae")
        embedding = model.get_input_embeddings().weight.requires_grad_()
        embedding.grad = None
        with splice(model, {where: sae if spare else OnKept(sae, batch.replaced)}, SPARE_SPECIAL):
            logits = model(input_ids=batch.ids).logits
        logits.logsumexp(-1).sum().backward()
        found.append([logits.detach(), embedding.grad, *(p.grad for p in sae.tuned_parameters().values())])
    assert all(tensor.isfinite().all() for tensor in found[0])
    assert found[0][1][BOS].abs().max() > 0
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


class OnKept(nn.Module):
    """The plain way: the SAE never sees a spared position at all."""

    def __init__(self, sae: nn.Module, kept: Tensor):
        super().__init__()
        self.sae, self.kept = sae, kept

    def encode(self, x: Tensor) -> Tensor:
        sae: Any = self.sae
        return x.masked_scatter(self.kept.unsqueeze(-1), sae.decode(sae.encode(x[self.kept])))

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts


@pytest.mark.parametrize("foreign", [OverNorm, OverRoot])
def test_a_foreign_sae_that_is_not_finite_at_zero_gives_a_finite_gradient(foreign: Any, fresh: Any, batch: Any) -> None:
    model = fresh("llama").requires_grad_(False)
    sae = foreign(D_MODEL).requires_grad_()
    embedding = model.get_input_embeddings().weight.requires_grad_()
    with splice(model, {Hookpoint(1): sae}, SPARE_SPECIAL):
        model(input_ids=batch.ids).logits.logsumexp(-1).sum().backward()
    assert all(p.grad.isfinite().all() for p in (embedding, *sae.parameters()))
