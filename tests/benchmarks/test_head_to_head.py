"""The quick head to head is the recipe made small, and its summary says what its header promises."""

import head_to_head
import pytest

from compared_runs import CE_BASE, method, sae, start_at
from saelora.jobs.comparison.plan import expand
from saelora.jobs.comparison.recipe import read_recipe


def test_quick_is_one_seed_of_every_entry_with_few_tokens_and_nothing_to_tune() -> None:
    recipe = read_recipe(head_to_head.RECIPE, head_to_head.quick(head_to_head.RECIPE))
    runs = expand(recipe)
    assert [run.entry.name for run in runs] == [entry.name for entry in read_recipe(head_to_head.RECIPE).entries]
    assert all(len(run.entry.lr) < 2 for run in runs)
    assert sum(run.budget for run in runs) < 70_000
    assert max(run.entry.evaluations for run in runs) == 2


def test_summary_counts_the_saes_training_and_takes_means_over_seeds_at_the_last_checkpoint() -> None:
    runs = [sae("local", "local", [(10.0, 4.0)]), sae("e2e", "e2e", [(40.0, 3.5)])]
    for seed, ce in ((0, 3.4), (1, 3.2)):
        closed = {"gap_closed": (4.0 - ce) / (4.0 - CE_BASE)}
        runs.append(method("lora", [(0.0, 4.0), (5.0, ce)], start=start_at(10, 1.0), seed=seed, final=closed))
    runs.append(method("lora", [(0.0, 5.0), (5.0, 4.5)], start=start_at(5, 0.5)))
    runs.append(method("x", [(0.0, 4.0), (5.0, 3.9)], start={"ref": "an SAE from elsewhere"}))
    found = head_to_head.summary(runs)
    keys = {"ce", "gap_closed", "seconds", "n_tokens", "model_flops", "with_sae"}
    assert all(each.keys() == keys for each in found.values())
    assert found["lora"] == pytest.approx(
        {"ce": 3.3, "gap_closed": 0.7, "seconds": 15, "n_tokens": 1500, "model_flops": 1.5e12, "with_sae": True}
    )
    assert found["e2e"]["gap_closed"] == pytest.approx(0.5)  # of what the local SAE leaves
    assert found["local"]["gap_closed"] is None
    assert (found["x"]["seconds"], found["x"]["with_sae"]) == (5, False)
