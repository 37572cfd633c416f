"""The sparse TopK step against SAELens' dense one: value and every gradient, in float64."""

import pytest
import torch

D_IN, D_SAE, N = 24, 96, 50


def both(rescale):
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    from saelora.sae_training.sparse_topk import SparseTopKTrainingSAE

    torch.manual_seed(0)
    options = {"d_in": D_IN, "d_sae": D_SAE, "k": 6, "dtype": "float64", "rescale_acts_by_decoder_norm": rescale}
    dense = TopKTrainingSAE(TopKTrainingSAEConfig(**options, decoder_init_norm=None, aux_loss_coefficient=0.3))
    sparse = SparseTopKTrainingSAE(TopKTrainingSAEConfig(**options, aux_loss_coefficient=0.3))
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn_like(parameter))
        dense.b_enc -= 20  # so that some of the k highest pre_acts are negative, and cut to 0
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


def run(sae, x, dead):
    from sae_lens.saes.sae import TrainStepInput

    output = sae.training_forward_pass(
        TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False)
    )
    (1.7 * output.loss).backward()
    return output


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("n_dead", [0, 5, 40])  # none, fewer and more than d_in / 2, where the ranking begins
def test_sparse_step_equals_saelens_dense_step_in_value_and_gradient(rescale, n_dead):
    dense, sparse = both(rescale)
    x = torch.randn(N, D_IN, dtype=torch.float64)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[torch.randperm(D_SAE)[:n_dead]] = True
    expected, got = run(dense, x, dead), run(sparse, x, dead)
    assert 0 < (expected.feature_acts > 0).sum() < N * 6
    torch.testing.assert_close(got.loss, expected.loss)
    torch.testing.assert_close(got.sae_out, expected.sae_out)
    torch.testing.assert_close(got.feature_acts.to_dense(), expected.feature_acts.detach())
    torch.testing.assert_close(got.hidden_pre, expected.hidden_pre.detach())
    for name, loss in expected.losses.items():
        torch.testing.assert_close(got.losses[name], loss)
    for (name, want), (_, have) in zip(dense.named_parameters(), sparse.named_parameters(), strict=True):
        torch.testing.assert_close(have.grad, want.grad, msg=lambda m, name=name: f"{name}: {m}")
