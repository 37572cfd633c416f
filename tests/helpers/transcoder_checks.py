"""What holds for transcoders of single layers and for cross-layer ones alike."""

import pytest
import torch

from saelora.core.lora import disabled
from saelora.core.splice import splice
from saelora.evals.drift.measure import measure_drift
from saelora.evals.faithfulness.interventions import faithfulness
from saelora.evals.loss import evaluate_loss
from saelora.evals.spliced import SplicedModel
from saelora.models.compiling import compile_layers
from tiny_saes import SPARE_SPECIAL
from variants import replaced


def run(model, batch, **more):
    return model(input_ids=batch.ids, attention_mask=batch.attention, **more).logits


def close(a, b, batch, atol=1e-10):
    seen = batch.attention.bool()
    torch.testing.assert_close(a[seen], b[seen], rtol=0, atol=atol)


def figures_are_those_of_whole_passes(model, saes, rows, replacement):
    """Losses, drift and faithfulness of an adapted model against plain passes of it; returns losses and drift."""
    found = evaluate_loss(model, saes, SPARE_SPECIAL, rows, replacement=replacement)
    counted = replaced(rows)[:, :-1].flatten()

    def ce():
        logits = model(input_ids=rows).logits[:, :-1].flatten(0, 1).detach()
        return float(torch.nn.functional.cross_entropy(logits[counted], rows[:, 1:].flatten()[counted]))

    with splice(model, saes, SPARE_SPECIAL, replacement=replacement) as spliced:
        assert found["ce_adapted"] == pytest.approx(ce(), rel=1e-9)
        with disabled(model):
            assert found["ce_sae"] == pytest.approx(ce(), rel=1e-9)
        subject = SplicedModel(model, spliced, SPARE_SPECIAL)
        faithful, drift = faithfulness(subject, rows), measure_drift(subject, rows)
    assert faithful.ce["adapted"]["value"] == pytest.approx(found["ce_adapted"], rel=1e-9)
    assert (drift.layers[-1].l2["sae"]["value"] == 0) == replacement.add_error
    return found, drift


def compiled_layers_take_and_give_back(model, saes, batch):
    torch._dynamo.reset()
    with torch.no_grad():
        clean = run(model, batch)
        with splice(model, saes, SPARE_SPECIAL):
            expected = run(model, batch)
        compile_layers(model, backend="eager")
        for _ in range(2):
            close(run(model, batch), clean, batch, 1e-9)
            with splice(model, saes, SPARE_SPECIAL):
                close(run(model, batch), expected, batch, 1e-9)
