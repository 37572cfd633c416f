"""A step that does not fit memory is made in pieces, or refused before it is made."""

import pytest
import torch

from method_steps import METHODS, batches, objective, trained
from saelora.core.group import ALONE
from saelora.errors import InputError
from saelora.objectives import fitting
from saelora.objectives.fitting import fit_step, needs
from saelora.train.cost import Costed

ROWS = torch.cat([batches()[0]] * 8)


def free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: int(n_bytes / fitting.SHARE))


def test_pieces_give_the_whole_batchs_gradient_up_to_rounding() -> None:
    with objective([METHODS["lora"]]) as whole, objective([METHODS["lora"]]) as pieces:
        pieces.rows_at_once = 3  # the last piece is shorter
        losses = [one.step(ROWS, 0.0)["loss"].item() for one in (whole, pieces)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name, weight in trained(whole, 0).items():
            torch.testing.assert_close(trained(pieces, 0)[name], weight, rtol=1e-3, atol=1e-6)


def test_a_step_is_halved_until_it_fits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with objective([METHODS["lora"]]) as one:
        state = torch.get_rng_state()
        free(monkeypatch, 2**40)
        fit_step(one, ROWS, said.append, ALONE)
        assert one.rows_at_once is None
        assert not said
        fixed, row = needs(one, ROWS)
        free(monkeypatch, fixed + row * (len(ROWS) // 2) + row // 2)
        fit_step(one, ROWS, said.append, ALONE)
        assert one.rows_at_once == len(ROWS) // 2
        assert f"{len(ROWS) // 2} rows at a time" in said[0]
        assert f"needs about {(fixed + row * len(ROWS)) / 1e6:.1f} MB of memory" in said[0]
        assert torch.equal(torch.get_rng_state(), state)


def test_a_row_that_does_not_fit_is_refused_and_so_is_a_loss_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with objective([METHODS["lora"]]) as one:
        free(monkeypatch, 100)
        with pytest.raises(InputError, match="lower --context or --rank, or free"):
            fit_step(one, ROWS, print, ALONE)
    with objective([METHODS["sae, kl+mse"]]) as one:  # finetune-sae has no rank
        free(monkeypatch, 100)
        with pytest.raises(InputError, match="lower --context, or free"):
            fit_step(one, ROWS, print, ALONE)
    with objective([METHODS["sae, kl+mse"]]) as one:
        fixed, row = needs(one, ROWS)
        free(monkeypatch, fixed + row * 3 + row // 2)
        with pytest.raises(InputError, match="--batch-rows 3"):
            fit_step(one, ROWS, print, ALONE)


def test_the_estimate_is_what_a_step_takes() -> None:
    """From what a step was measured to take to twice that: it neither runs out of memory nor is cut without need."""
    with objective([METHODS["lora"]]) as one:
        costed = Costed(one, torch.device("cpu"))
        for i in range(2):
            costed.step(ROWS, i / 2)
        fixed, row = needs(one, ROWS)
        assert costed.step_bytes <= fixed + row * len(ROWS) <= 2 * costed.step_bytes


def test_a_run_goes_on_in_the_pieces_that_it_began_in() -> None:
    with objective([METHODS["lora"]]) as one, objective([METHODS["lora"]]) as other:
        one.rows_at_once = 2
        one.step(ROWS, 0.0)
        other.load_state_dict(one.state_dict())
        assert other.rows_at_once == 2
        other.rows_at_once = 5
        one.rows_at_once = None
        other.load_state_dict(one.state_dict())
        assert other.rows_at_once is None
