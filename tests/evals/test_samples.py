"""Sample continuations are what generate() gives, and leave nothing behind."""

import pytest
import torch
from peft import get_peft_model

from families import BOS, D_MODEL, EOS, PAD, VOCAB
from saelora.core.lora import disabled, lora_config
from saelora.core.splice import splice
from saelora.evals.samples import continuations, prompts_from
from saelora.evals.spliced import SplicedModel
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SPARE_SPECIAL, Broken, SpecialTokens, TinySAE, hooks_in

PROMPTS = torch.tensor([[BOS, 44, 8, 21, 3], [BOS, 5, 9, EOS, 12]])
N_NEW = 6


class Numbers(SpecialTokens):
    """Decodes ids to their numbers."""

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i in (PAD, BOS, EOS)))


@pytest.fixture
def adapted(fresh):
    model = fresh("llama")
    model = get_peft_model(model, lora_config(model, [2, 3], rank=2, alpha=4.0)).double().eval()
    for i, parameter in enumerate(p for n, p in model.named_parameters() if "lora_B" in n):
        generator = torch.Generator().manual_seed(i)
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def greedy(model):
    ids = model.generate(
        input_ids=PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        max_new_tokens=N_NEW,
        do_sample=False,
        pad_token_id=PAD,
    )
    return [Numbers().decode(row, skip_special_tokens=True) for row in ids[:, PROMPTS.shape[1] :].tolist()]


def test_continuations_equal_plain_greedy_generation(adapted):
    sae = {Hookpoint(1): TinySAE(D_MODEL)}
    with disabled(adapted):
        original = greedy(adapted)
        with splice(adapted, sae, SPARE_SPECIAL):
            spliced = greedy(adapted)
    with splice(adapted, sae, SPARE_SPECIAL):
        with_adapter = greedy(adapted)
    with splice(adapted, sae, SPARE_SPECIAL) as open_splice:
        found = continuations(SplicedModel(adapted, open_splice, SPARE_SPECIAL), Numbers(), PROMPTS, N_NEW)
    assert [s["original"] for s in found] == original
    assert [s["spliced"] for s in found] == spliced
    assert [s["adapted"] for s in found] == with_adapter
    assert [s["prompt"] for s in found] == ["44 8 21 3", "5 9 12"]
    assert original != spliced != with_adapter != original


def test_model_without_adapter_has_no_adapted_continuation(fresh):
    model = fresh("llama")
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as open_splice:
        found = continuations(SplicedModel(model, open_splice, SPARE_SPECIAL), Numbers(), PROMPTS, N_NEW)
    assert [set(sample) for sample in found] == [{"prompt", "original", "spliced"}] * 2


@pytest.mark.parametrize("sae", [TinySAE(D_MODEL), Broken()], ids=["to the end", "ended by an error"])
def test_sampling_leaves_the_model_as_it_was(adapted, sae):
    adapted.train()
    with splice(adapted, {Hookpoint(1): sae}, SPARE_SPECIAL) as open_splice:

        def state():
            modes = [m.training for m in adapted.modules()]
            trainable = [p.requires_grad for p in adapted.parameters()]
            return modes, trainable, hooks_in(adapted), open_splice.enabled, torch.get_rng_state().tolist()

        before = state()
        if isinstance(sae, Broken):
            with pytest.raises(RuntimeError, match="broken SAE"):
                continuations(SplicedModel(adapted, open_splice, SPARE_SPECIAL), Numbers(), PROMPTS, N_NEW)
        else:
            continuations(SplicedModel(adapted, open_splice, SPARE_SPECIAL), Numbers(), PROMPTS, N_NEW)
        assert state() == before


def test_prompts_are_the_beginnings_of_evenly_spaced_rows():
    rows = torch.randint(3, VOCAB, (10, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(prompts_from(rows, 5, 4), rows[::2, :4])
    assert torch.equal(prompts_from(rows, 2, 100), rows[[0, 5]])
    assert torch.equal(prompts_from(rows, 30, 4), rows[:, :4])  # no prompt twice
