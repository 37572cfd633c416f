"""What the latents browser shows, against counting by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import saelora
from saelora.core.splice import splice
from saelora.reporting.counted import find_counted
from saelora.use.census import Census, cache_file, count, held_out_rows, load, save
from saelora.use.census_told import keep_in_short
from saelora.use.directions import decoder_of, logit_weights, nearest
from saelora.use.run import LoadedRun
from saelora.use.serving.page.browsing import LEAST, ListBody, listed, seen


@pytest.fixture(scope="module")
def rows(run: LoadedRun) -> torch.Tensor:
    return held_out_rows(run, 300)


@pytest.fixture(scope="module")
def census(run: LoadedRun, rows: torch.Tensor) -> Census:
    found: list[Census] = []
    for _ in count(run, rows, lambda census, n: found.append(census) if census else None):
        assert run.variant == "adapted"  # nothing is open between steps
    return found[0]


def latents_by_hand(run: LoadedRun, rows: torch.Tensor, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense activations [rows, seq, d_sae] and the mask of replaced positions [rows, seq]."""
    found: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    with run.adapted_clean() if variant == "adapted" else run.original():

        def see(where, x, latents, recon, mask):
            found.append(latents)
            masks.append(mask)

        with torch.no_grad(), splice(run.model, run.saes, run.token_mask, observer=see):
            run.model(input_ids=rows)
    return found[0] * masks[0].unsqueeze(-1), masks[0]


def test_density_and_largest_activation_are_those_of_each_latent(run: LoadedRun, rows, census: Census) -> None:
    (hookpoint,) = run.hookpoints
    found = census.summary(hookpoint)
    dense, mask = latents_by_hand(run, rows, "adapted")
    fires = (dense != 0).flatten(0, 1)
    assert found.density == pytest.approx((fires.sum(0) / mask.sum()).numpy())
    assert found.most == pytest.approx(dense.flatten(0, 1).clamp(min=0).amax(0).numpy(), abs=1e-5)
    before, _ = latents_by_hand(run, rows, "spliced")
    assert found.density_spliced == pytest.approx(((before != 0).flatten(0, 1).sum(0) / mask.sum()).numpy())


def test_the_effect_is_the_mean_change_of_kl_where_a_latent_fires(run: LoadedRun, rows, census: Census) -> None:
    (hookpoint,) = run.hookpoints
    dense, _ = latents_by_hand(run, rows, "adapted")
    with run.original():
        p = run.logits(rows).double().log_softmax(-1)
    kl = {}
    for variant in ("spliced", "adapted"):
        with run.as_variant(variant):
            q = run.logits(rows).double().log_softmax(-1)
        kl[variant] = (p.exp() * (p - q)).sum(-1)[:, :-1]
    change = kl["adapted"] - kl["spliced"]
    found = census.summary(hookpoint)
    for latent in range(dense.shape[-1]):
        there = dense[:, :-1, latent] != 0
        assert found.n[latent] == int(there.sum())
        own = float(change[there].mean()) if there.any() else math.nan
        assert float(found.effect[latent]) == pytest.approx(own, abs=1e-5, nan_ok=True)
    assert abs(change.mean()) > 1e-3


def test_passages_are_the_rows_with_the_strongest_activations(run: LoadedRun, rows, census: Census) -> None:
    (hookpoint,) = run.hookpoints
    dense, _ = latents_by_hand(run, rows, "adapted")
    latent = int((dense != 0).flatten(0, 1).sum(0).argmax())
    found = seen(census, hookpoint, latent)
    best = dense[..., latent].amax(1).sort(descending=True)
    assert [max(each["values"]) for each in found["passages"]] == pytest.approx(best.values[:10].tolist(), rel=1e-3)
    for each in found["passages"]:
        stop = each["start"] + len(each["values"])
        own = dense[each["row"], each["start"] : stop, latent]
        assert each["values"] == pytest.approx(own.tolist(), rel=1e-3, abs=1e-5)
        tokens = [run.tokenizer.decode([i]) for i in rows[each["row"], each["start"] : stop].tolist()]
        assert each["tokens"] == tokens
    counts = found["histogram"]["counts"]
    values = dense[..., latent][dense[..., latent] != 0]
    own, _ = np.histogram(values.numpy(), len(counts), (0, float(values.max())))
    assert sum(counts) == len(values)
    assert np.abs(np.array(counts) - own).sum() <= 2  # a value at an edge may fall to either side


def test_logit_weights_are_the_decoder_row_through_final_norm_and_unembedding(run: LoadedRun) -> None:
    (hookpoint,) = run.hookpoints
    decoder = decoder_of(run.saes[hookpoint])
    assert decoder is not None
    model = run.loaded.model
    for adapted in (False, True):
        weights = logit_weights(run, hookpoint, adapted=adapted)
        assert weights is not None
        for latent in (0, 7):
            row = decoder[latent]
            own = model.lm_head.weight @ (model.model.norm.weight * row)
            assert torch.allclose(weights(range(latent, latent + 1))[0], own, rtol=1e-3, atol=1e-5)


def test_nearest_latents_have_the_largest_cosine(run: LoadedRun) -> None:
    (hookpoint,) = run.hookpoints
    decoder = decoder_of(run.saes[hookpoint])
    assert decoder is not None
    unit = torch.nn.functional.normalize(decoder.double() * torch.rand(len(decoder), 1).add(0.5), dim=-1)
    cosines = unit @ unit[5]
    own = sorted((i for i in range(len(unit)) if i != 5), key=lambda i: -float(cosines[i]))[:6]
    scaled = decoder * torch.rand(len(decoder), 1).add(0.5)
    found = nearest(scaled, 5, 6)
    assert [i for i, _ in found] == own
    assert [c for _, c in found] == pytest.approx([float(cosines[i]) for i in own], abs=1e-5)


def test_the_list_is_sorted_and_searched(run: LoadedRun, census: Census) -> None:
    (hookpoint,) = run.hookpoints
    summary = census.summary(hookpoint)
    peaks = [[f"token{i}"] for i in range(len(summary.density))]

    def of(**given):
        return listed(census, hookpoint, ListBody(limit=200, **given), peaks)["rows"]

    for sort in ("density", "most"):
        for descending in (True, False):
            told = [row[sort] for row in of(sort=sort, descending=descending) if row["density"]]
            assert told == sorted(told, reverse=descending)
            assert len(told) == int((summary.density > 0).sum())
    silent = [row["density"] == 0 for row in of(sort="density", descending=False)]
    assert silent == sorted(silent)  # those that never fire come last
    ranked = [row["effect"] for row in of(sort="effect", descending=False) if row["n"] >= LEAST]
    assert ranked == sorted(ranked)
    assert [row["latent"] for row in of(search="#12")] == [12]
    assert {row["latent"] for row in of(search="EN6")} == {6, *range(60, len(peaks))}
    assert listed(census, hookpoint, ListBody(offset=3, limit=2), peaks)["rows"] == of()[3:5]


def test_a_kept_census_is_the_same_and_a_damaged_one_is_none(run: LoadedRun, rows, census, tmp_path: Path) -> None:
    (hookpoint,) = run.hookpoints
    path = tmp_path / "kept" / "it.safetensors"
    save(census, path)
    again = load(run, path)
    assert again is not None
    for name, value in vars(census.summary(hookpoint)).items():
        np.testing.assert_array_equal(getattr(again.summary(hookpoint), name), value)
    assert seen(again, hookpoint, 3) == seen(census, hookpoint, 3)
    path.write_bytes(path.read_bytes()[:100])
    assert load(run, path) is None
    assert load(run, tmp_path / "nothing") is None


def test_what_a_report_shows_is_the_first_of_each_order_with_its_passages(
    run: LoadedRun, rows, census: Census, tmp_path: Path
) -> None:
    (hookpoint,) = run.hookpoints
    keep_in_short(census, run, tmp_path / "it.json")
    (tmp_path / "damaged.json").write_text('{"about": 3}')
    told, other = find_counted(tmp_path, [run.about, run.about.having(adapter="another")])
    assert other is None
    assert told is not None
    found, summary = told.saes[str(hookpoint)], census.summary(hookpoint)
    assert (found.n_tokens, found.n_latents) == (census.activations[hookpoint].n_tokens, len(summary.density))
    ranked = np.where(summary.n >= LEAST, summary.effect, np.nan)
    assert found.orders["helped"][0] == int(np.nanargmin(ranked))
    assert found.orders["strongest"][0] == int(summary.most.argmax())
    by_number = {latent.latent: latent for latent in found.latents}
    assert all(by_number[i].effect > 0 for i in found.orders["hurt"])
    strongest = by_number[found.orders["strongest"][0]]
    best = seen(census, hookpoint, strongest.latent)["passages"][0]
    assert (strongest.passages[0].tokens, strongest.passages[0].values) == (best["tokens"], best["values"])


def test_a_pass_of_several_rows_counts_what_single_rows_do(
    run: LoadedRun, rows, census: Census, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hookpoint,) = run.hookpoints
    assert len(rows) > 3
    monkeypatch.setattr("saelora.use.census._TOKENS_AT_ONCE", {"cpu": 2 * rows.shape[1]})  # else one row a pass
    found: list[Census] = []
    done: list[int] = []
    for _ in count(run, rows, lambda census, n: found.append(census) if census else done.append(n)):
        pass
    assert done == [*range(2, len(rows), 2), len(rows)]
    pairs, single = found[0].activations[hookpoint], census.activations[hookpoint]
    np.testing.assert_array_equal(pairs.fired, single.fired)
    np.testing.assert_allclose(pairs.values, single.values, rtol=1e-4)
    np.testing.assert_allclose(found[0].kl, census.kl, atol=1e-5)


def test_other_rows_or_another_adapter_are_kept_elsewhere(run: LoadedRun, rows, workspace, tmp_path: Path) -> None:
    here = cache_file(run, rows)
    assert cache_file(run, rows[:-1]) != here
    out = tmp_path / "other"
    assert workspace.adapt(out, "--quiet", seed=5) == 0
    assert cache_file(saelora.load(out), rows) != here
