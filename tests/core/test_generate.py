"""Generation through an SAE: a key-value cache feeds one token at a time, and the token mask follows."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from families import BOS, EOS, PAD
from saelora.core.splice import TokenPolicy, splice
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SpecialTokens, saes_at

PROMPT = torch.tensor([[PAD, PAD, BOS, 44, 8, 21], [BOS, 5, 9, 33, 12, 50]])
N_NEW = 7
# The others' norms round to float32 on the way, which magnifies differences of 1e-16 now and then.
FLOAT64_THROUGHOUT = ("gpt2", "gpt_neox", "phi")


class Force(LogitsProcessor):
    """Puts given tokens at given positions, as a model would that ends one text and begins the next."""

    def __init__(self, tokens: dict[int, int]):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        token = self.tokens.get(input_ids.shape[1])
        return scores if token is None else torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(token), 0)


def generate(model, use_cache):
    settings = GenerationConfig(
        max_new_tokens=N_NEW,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=PAD,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    forced = LogitsProcessorList([Force({8: EOS, 9: BOS})])
    attention = (PROMPT != PAD).long()
    return model.generate(PROMPT, attention_mask=attention, generation_config=settings, logits_processor=forced)


@pytest.mark.parametrize("exempt", [("bos", "eos", "pad"), ("first", "pad")])
def test_generation_with_and_without_cache_agrees(fresh, model, exempt):
    model = fresh(model)
    model.generation_config.eos_token_id = None  # texts go on after EOS here
    saes = saes_at(anatomy_of(model), [Hookpoint(1), Hookpoint(2, "attn_z")])
    policy = TokenPolicy(exempt).resolve(SpecialTokens())
    masks: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    out = {}
    for use_cache in (True, False):

        def observer(hookpoint, _x, _latents, _recon, mask, kept=masks[use_cache]):
            if hookpoint == Hookpoint(1):
                kept.append(mask)

        with splice(model, saes, policy, observer=observer):
            out[use_cache] = generate(model, use_cache)
    ids = out[True].sequences
    assert ids.shape == (2, PROMPT.shape[1] + N_NEW)
    assert ids[:, 8:10].tolist() == [[EOS, BOS]] * 2
    assert torch.equal(ids, out[False].sequences)
    atol = 1e-9 if model.config.model_type in FLOAT64_THROUGHOUT else 1e-5
    torch.testing.assert_close(torch.stack(out[True].logits), torch.stack(out[False].logits), rtol=0, atol=atol)
    assert (torch.stack(out[True].logits) - torch.stack(generate(model, True).logits)).abs().max() > 0.01

    expected = torch.tensor([[token not in (PAD, BOS, EOS) for token in row] for row in ids.tolist()])
    if "first" in exempt:
        expected = ids != PAD  # a model may well generate it
        expected[0, 2] = expected[1, 0] = False
    assert torch.equal(torch.cat(masks[True], 1), expected[:, :-1])
    assert torch.equal(masks[False][-1], expected[:, :-1])
    assert {m.shape[1] for m in masks[True][1:]} == {1}
