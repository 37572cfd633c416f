"""Rows, recipes and comparisons for tests that train SAEs on tiny random models."""

import pytest
import torch

from saelora.core.splice import TokenMask
from saelora.models.hookpoints import Hookpoint
from saelora.sae_training.recipe import SAERecipe
from spread_reference import plain_figures

BOS, CONTEXT, D_MODEL = 1, 24, 16
NOT_BOS = TokenMask((BOS,))
MIDDLE, FIRST = Hookpoint(1), Hookpoint(0, "mlp_out")
METADATA = {"model_name": "tiny", "dataset_path": "none", "context_size": CONTEXT, "prepend_bos": True}


def tokens(seed, n_rows=16):
    rows = torch.randint(2, 64, (n_rows, CONTEXT), generator=torch.Generator().manual_seed(seed))
    rows[:, 0] = BOS
    return rows


def recipe(**changed):
    base = {"expansion": 4, "k": 4, "lr": 3e-3, "batch_tokens": 64, "passes": 1, "warmup": 0.0, "sparsity_warmup": 0.0}
    return SAERecipe(**{**base, "l1_coefficient": 0.1, "l0_coefficient": 0.1, **changed})


def activations_of(model, rows, layer):
    hidden = model(rows, output_hidden_states=True).hidden_states[layer + 1]
    return hidden[rows != BOS].detach()


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_figures_are_plain(metrics: dict[str, torch.Tensor], sae: torch.nn.Module, x: torch.Tensor) -> None:
    """A chunk's figures are those of the SAE on its activations [n_tokens, d], written out in float64."""
    error = (sae(x) - x).pow(2)
    torch.testing.assert_close(metrics["fvu"].double(), error.sum() / (x - x.mean(0)).pow(2).sum(), rtol=1e-4, atol=0)
    expected = plain_figures(x, sae(x))
    for name in ("relative_error", "relative_error_q10", "relative_error_q90", "top_variance"):
        assert float(metrics[name]) == pytest.approx(expected[name], rel=1e-4), name
    torch.testing.assert_close(metrics["mse"].double(), error.mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(metrics["l0"].double(), (sae.encode(x) > 0).double().sum(-1).mean(), rtol=1e-3, atol=0)
