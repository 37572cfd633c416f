"""Where latents fire, which are chosen, and which texts are theirs, against plain loops."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

import families
from families import BOS, D_MODEL, EOS, PAD
from saelora.core.splice import splice
from saelora.evals.spliced import SplicedModel
from saelora.evals.steering.latents import Firing, Reader, choose, firing, negatives, passages, positives
from saelora.evals.steering.texts import Text
from saelora.models.anatomy import anatomy_of
from saelora.models.hookpoints import Hookpoint
from saelora.records import to_json
from tiny_saes import SPARE_SPECIAL, SpecialTokens, TinySAE


class Numbers(SpecialTokens):
    def decode(self, ids):
        return f"<{ids[0]}>"


def some_texts(n=21):
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(4, 12, (n,), generator=draw).tolist()
    return [Text(str(i), (BOS, *torch.randint(2, 64, (k,), generator=draw).tolist())) for i, k in enumerate(lengths)]


def latents_by_hand(model, sae, text):
    """Latents of every position of one text; None where the SAE is not applied."""
    kept = []
    layer = anatomy_of(model).layers[1]
    handle = layer.register_forward_hook(lambda m, a, o: kept.append(o if isinstance(o, torch.Tensor) else o[0]))
    model(input_ids=torch.tensor([text.ids]))
    handle.remove()
    return [None if t in (PAD, BOS, EOS) else sae.encode(kept[0][0, i]) for i, t in enumerate(text.ids)]


@pytest.fixture(params=["llama", "gpt2"])
def reader(request):
    model = families.tiny(request.param)
    with splice(model, {Hookpoint(1): TinySAE(D_MODEL)}, SPARE_SPECIAL) as spliced:
        yield Reader(SplicedModel(model, spliced, SPARE_SPECIAL), Hookpoint(1))


def test_peaks_and_rates_are_those_of_a_plain_loop(reader):
    texts = some_texts()
    found = firing(reader, texts)
    reader.subject.spliced.enabled = False
    by_hand = np.zeros((len(texts), 24))
    halves = np.zeros((2, len(texts), 24), bool)
    for i, text in enumerate(texts):
        for t, latents in enumerate(latents_by_hand(reader.subject.model, reader.sae, text)):
            if latents is not None:
                by_hand[i] = np.maximum(by_hand[i], latents.numpy())
                halves[int(t >= len(text.ids) / 2), i] |= latents.numpy() > 0
    for latent in range(24):
        assert found.peaks(latent) == pytest.approx(by_hand[:, latent], rel=1e-5, abs=1e-6)
    assert found.rates() == pytest.approx((by_hand > 0).mean(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        phi = [np.corrcoef(halves[0, :, j], halves[1, :, j])[0, 1] for j in range(24)]
    assert found.selectivity() == pytest.approx(np.nan_to_num(phi), abs=1e-9)
    assert np.ptp(found.selectivity()) > 0.1


def made_up(first, second):
    first, second = np.asarray(first, float), np.asarray(second, float)
    texts = [Text(str(i), tuple(range(5 + i % 7))) for i in range(len(first))]
    return Firing(texts, csc_array(first), csc_array(second))


def test_chosen_latents_fire_moderately_and_are_about_whole_texts():
    first, second = np.zeros((2, 200, 6))
    first[:10, 0], second[:10, 0] = 1, 1  # fires in both halves of the same texts
    first[:10, 1], second[10:20, 1] = 1, 1  # in one half or the other
    first[:100, 2], second[:100, 2] = 1, 1  # everywhere
    first[:2, 3], second[:2, 3] = 1, 1  # hardly ever; latent 4 is dead
    first[:10, 5], second[:8, 5] = 1, 1
    assert choose(made_up(first, second), 6, 0.02, 0.15) == [0, 5, 1]
    assert choose(made_up(first, second), 2, 0.02, 0.15) == [0, 5]


def test_positives_fire_most_and_negatives_never_with_matching_lengths():
    first, second = np.zeros((2, 40, 1))
    first[:12, 0] = range(1, 13)
    second[3, 0] = 99
    found = made_up(first, second)
    chosen = positives(found, 0, 5)
    assert [text.text for text in chosen] == ["3", "11", "10", "9", "8"]
    others = negatives(found, 0, [len(text.ids) for text in chosen])
    assert [len(text.ids) for text in others] == [len(text.ids) for text in chosen]
    assert all(int(text.text) >= 12 for text in others)
    assert len(set(others)) == 5
    assert [text.text for text in positives(found, 0, 100)][-1] == "0"  # those that do not fire are left out
    assert len(negatives(found, 0, [5] * 100)) == 28


def test_passages_show_each_token_with_its_activation(reader):
    found = firing(reader, some_texts())
    latent = int(found.rates().argmax())
    shown = to_json(passages(reader, found, latent, Numbers(), 3))
    reader.subject.spliced.enabled = False
    for passage, text in zip(shown, positives(found, latent, 3), strict=True):
        rows = latents_by_hand(reader.subject.model, reader.sae, text)
        acts = [0.0 if row is None else float(row[latent]) for row in rows]
        assert passage["tokens"] == [f"<{i}>" for i in text.ids]
        assert passage["activations"] == pytest.approx(acts, abs=1e-4)
        assert passage["focus"] == int(np.argmax(acts))
        assert max(acts) == pytest.approx(found.peaks(latent)[int(text.text)], rel=1e-5)


def test_a_dead_latent_has_no_passages(reader):
    found = made_up(np.zeros((3, 24)), np.zeros((3, 24)))
    assert passages(reader, found, 3, Numbers()) == []
