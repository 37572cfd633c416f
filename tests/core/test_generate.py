"""Generation through an SAE: a key-value cache feeds some tokens at a time, and the token mask follows, whatever the
library calls its cache and whichever mask it hands on."""

import inspect

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StaticCache

import families
from families import BOS, EOS, PAD, VOCAB
from saelora.core.splice import TokenPolicy, splice
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from tiny_saes import SpecialTokens, saes_at

PROMPTS = {
    "padded": [[PAD, PAD, BOS, 44, 8, 21], [BOS, 5, 9, 33, 12, 50]],
    "padded, without BOS": [[PAD, PAD, 61, 44, 8, 21], [7, 5, 9, 33, 12, 50]],
    "whole, without BOS": [[44, 8, 21, 30, 18], [5, 9, 33, 12, 50]],
    "whole, without mask": [[44, 8, 21, 30, 18], [5, 9, 33, 12, 50]],
}
SPECIAL, FIRST, BOTH = ("bos", "eos", "pad"), ("first", "pad"), ("bos", "eos", "pad", "first")
N_NEW = 7
WHERE = [Hookpoint(1), Hookpoint(2, "attn_z")]
# The others' norms round to float32 on the way, which magnifies differences of 1e-16 now and then.
FLOAT64_THROUGHOUT = ("gpt2", "gpt_neox", "phi")


class Force(LogitsProcessor):
    """Puts given tokens at given positions, as a model would that ends one text and begins the next."""

    def __init__(self, tokens: dict[int, int]):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        token = self.tokens.get(input_ids.shape[1])
        return scores if token is None else torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(token), 0)


def generate(model, prompt, attention, **options):
    settings = GenerationConfig(
        max_new_tokens=N_NEW,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    forced = LogitsProcessorList([Force({8: EOS, 9: BOS})])
    given = {} if attention is None else {"attention_mask": attention}
    return model.generate(prompt, generation_config=settings, logits_processor=forced, **given)


@pytest.fixture
def endless(fresh, model):
    """A model whose texts go on after EOS."""
    model = fresh(model)
    model.generation_config.eos_token_id = None
    return model


def masks_of(model, policy, run):
    """What ``run`` returns under a splice, and the token masks that its first SAE saw."""
    masks = []

    def observer(hookpoint, _x, _latents, _recon, mask):
        if hookpoint == WHERE[0]:
            masks.append(mask)

    policy = TokenPolicy(policy).resolve(SpecialTokens())
    with splice(model, saes_at(anatomy_of(model), WHERE), policy, observer=observer):
        return run(), masks


def replaced(ids, real, policy):
    """What a policy replaces, written down independently, row by row."""
    spared = {PAD} | ({BOS, EOS} if "bos" in policy else set())
    rows = []
    for row, seen in zip(ids.tolist(), real.tolist(), strict=True):
        first = seen.index(True) if "first" in policy else None
        rows.append([s and t not in spared and i != first for i, (t, s) in enumerate(zip(row, seen, strict=True))])
    return torch.tensor(rows)


def atol(model):
    return 1e-9 if model.config.model_type in FLOAT64_THROUGHOUT else 1e-5


def cached_texts():
    """Every family with every prompt and both caches, every policy and both caches with every prompt: by turns."""
    for i, family in enumerate(families.NAMES):
        for j, prompt in enumerate(PROMPTS):
            policies = (SPECIAL, FIRST, BOTH) if prompt == "padded" else (BOTH,)
            yield family, policies[i % len(policies)], prompt, ("dynamic", "static")[(i + j) % 2]


@pytest.mark.parametrize(("model", "policy", "prompt", "cache"), list(cached_texts()), indirect=["model"])
# SPEC 11.5
def test_generation_with_and_without_cache_agrees(endless, policy, prompt, cache):
    ids = torch.tensor(PROMPTS[prompt])
    attention = None if "without mask" in prompt else (ids != PAD).long()
    options = {"cache_implementation": "static"} if cache == "static" else {"use_cache": True}
    cached, masks = masks_of(endless, policy, lambda: generate(endless, ids, attention, **options))
    plain, plain_masks = masks_of(endless, policy, lambda: generate(endless, ids, attention, use_cache=False))
    made = cached.sequences
    assert made[:, 8:10].tolist() == [[EOS, BOS]] * 2
    assert torch.equal(made, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), rtol=0, atol=atol(endless))
    expected = replaced(made, torch.cat([ids != PAD, torch.ones(2, N_NEW, dtype=torch.bool)], 1), policy)
    assert torch.equal(torch.cat(masks, 1), expected[:, :-1])
    assert torch.equal(plain_masks[-1], expected[:, :-1])
    assert {m.shape[1] for m in masks[1:]} == {1}


def test_generation_through_an_sae_is_not_the_clean_models(endless):
    ids = torch.tensor(PROMPTS["padded"])
    attention = (ids != PAD).long()
    spliced, _ = masks_of(endless, FIRST, lambda: generate(endless, ids, attention))
    clean = generate(endless, ids, attention)
    assert (torch.stack(spliced.logits) - torch.stack(clean.logits)).abs().max() > 0.01


@pytest.mark.parametrize("prompt", ["padded, without BOS", "whole, without mask"])
def test_beams_with_and_without_cache_agree(endless, prompt):
    ids = torch.tensor(PROMPTS[prompt])
    attention = None if "without mask" in prompt else (ids != PAD).long()
    run = lambda cache: generate(endless, ids, attention, num_beams=3, use_cache=cache).sequences  # noqa: E731
    cached, plain = (masks_of(endless, FIRST, lambda c=c: run(c))[0] for c in (True, False))
    assert torch.equal(cached, plain)


def test_tokens_looked_up_ahead_and_dropped_again_change_nothing(endless):
    """Assisted generation feeds several tokens after a cache, and takes back those that the model does not want."""
    ids = torch.randperm(VOCAB)[None, :-8]  # most tokens have come before, so what followed them is looked up
    run = lambda **more: generate(endless, ids, None, **more).sequences  # noqa: E731
    ahead = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    looked_up, masks = masks_of(endless, ("first",), lambda: run(**ahead))
    plain, _ = masks_of(endless, ("first",), lambda: run(use_cache=False))
    assert torch.equal(looked_up, plain)
    assert any(mask.shape[1] > 1 for mask in masks[1:])
    assert all(mask[:, 1:].all() for mask in masks)


@pytest.mark.parametrize("prompt", ["padded, without BOS", "whole, without mask"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
# SPEC 11.5
def test_a_text_given_in_pieces_to_a_cache_is_the_whole_text(endless, prompt, kind):
    ids = torch.cat([torch.tensor(PROMPTS[prompt]), torch.tensor([[3, BOS, 21, 40], [17, 60, 11, 4]])], 1)
    real = ids != PAD
    masked = "without mask" not in prompt
    positions = (real.cumsum(1) - 1).clamp(min=0)  # as generate() gives them
    name = "cache" if "cache" in inspect.signature(endless.forward).parameters else "past_key_values"
    text = endless.config.get_text_config()
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=ids.shape[1])

    def in_pieces():
        out = []
        for start, end in ((0, 3), (3, 7), (7, 8), (8, ids.shape[1])):
            given = {"attention_mask": real[:, :end].long()} if masked else {}
            given |= {name: cache, "use_cache": True, "position_ids": positions[:, start:end]}
            out.append(endless(input_ids=ids[:, start:end], **given).logits)
        return torch.cat(out, 1)

    def whole():
        given = {"attention_mask": real.long(), "position_ids": positions} if masked else {}
        return endless(input_ids=ids, use_cache=False, **given).logits

    pieces, masks = masks_of(endless, BOTH, in_pieces)
    expected, [mask] = masks_of(endless, BOTH, whole)
    assert torch.equal(torch.cat(masks, 1), mask)
    assert torch.equal(mask, replaced(ids, real, BOTH))
    torch.testing.assert_close(pieces[real], expected[real], rtol=0, atol=atol(endless))
