"""The operations that progress counts a step at, against torch's own count of a step that runs."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from peft import get_peft_model
from sae_lens import StandardSAE, StandardSAEConfig
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from saelora.core.lora import lora_config
from saelora.core.splice import splice
from saelora.models.hookpoints import Hookpoint
from saelora.objectives.branch import Branch
from saelora.objectives.distill import Distill
from saelora.objectives.trainable_sae import TrainableSAE
from saelora.objectives.useful import Share, matrix_rate, useful_flops
from saelora.saes.sparse import sparse
from saelora.train.cost import Costed
from tiny_saes import SPARE_SPECIAL

D_MODEL, CONTEXT = 128, 8
SIZES: dict[str, Any] = {"hidden_size": D_MODEL, "intermediate_size": 512, "num_hidden_layers": 5, "vocab_size": 400}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


def model_of(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).eval().requires_grad_(False)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval().requires_grad_(False)


def objective_of(model: Any, layers: list[int], sae: Any, stack: ExitStack) -> Distill:
    if layers:
        model = get_peft_model(model, lora_config(model, layers, rank=4, alpha=4.0))
    spliced = stack.enter_context(splice(model, {Hookpoint(1): sae}, SPARE_SPECIAL))
    return Distill(model, [Branch("default", spliced)], n_rows=12)


def standard_sae() -> StandardSAE:
    torch.manual_seed(0)
    return StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=24))


def test_the_encoder_is_counted_however_the_sae_is_wrapped() -> None:
    found = {}
    for name, sae in {"plain": standard_sae(), "sparse": sparse(standard_sae()), "wide": wide()}.items():
        with ExitStack() as stack:
            found[name] = useful_flops(objective_of(model_of(), [3, 4], sae, stack), CONTEXT)
    assert found["sparse"] == found["plain"]
    assert found["wide"] - found["plain"] == 2 * D_MODEL * 24


def wide() -> StandardSAE:
    return StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=48))


@pytest.mark.parametrize(
    ("layers", "part"), [([2, 3, 4], None), ([3, 4], None), ([0, 1, 2, 3, 4], None), ([], "decoder"), ([3, 4], "sae")]
)
def test_what_is_counted_from_shapes_is_what_torch_counts_of_a_step(layers: list[int], part: Any) -> None:
    sae = standard_sae() if part is None else TrainableSAE(standard_sae(), part)
    with ExitStack() as stack:
        objective = objective_of(model_of(), layers, sae, stack)
        costed = Costed(objective, torch.device("cpu"))
        for i in range(2):
            costed.step(torch.randint(3, 400, (2, CONTEXT)), i / 3)
        assert useful_flops(objective, CONTEXT) == pytest.approx(costed.flops_per_token, rel=0.03)


def test_experts_of_which_a_token_takes_its_own_are_not_counted() -> None:
    with ExitStack() as stack:
        assert useful_flops(objective_of(model_of("mixtral"), [2, 3], standard_sae(), stack), CONTEXT) is None


def test_the_share_is_of_the_tokens_since_the_last_row() -> None:
    asked = []
    share = Share(1e9, lambda: asked.append(1) or 1e12)
    assert share.of({"n_tokens": 0, "seconds": 0.0}) is None
    assert share.of({"n_tokens": 1000, "seconds": 2.0}) == "50% of the GPU's matrix rate"
    assert share.of({"n_tokens": 1000, "seconds": 2.0}) is None  # an evaluation's row
    assert share.of({"n_tokens": 1250, "seconds": 3.0}) == "25% of the GPU's matrix rate"
    assert len(asked) == 1
    assert Share(None, lambda: 1.0).of({"n_tokens": 1, "seconds": 1.0}) is None


def test_the_rate_of_a_product_is_positive() -> None:
    assert matrix_rate(torch.device("cpu"), torch.float32, side=64) > 0
