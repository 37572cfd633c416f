"""Figures are written whatever the numbers are, and show something."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from run_results import RESULTS, result, without
from saelora.reporting.figures import learning_curve

NO_GAP = {**RESULTS, "ce_gap": -0.01, "ce_sae": 2.99, "ci95": {**RESULTS["ci95"], "ce_gap": [-0.02, -0.005]}}
CASES = {
    "two points": RESULTS,
    "one point": {**RESULTS, "history": RESULTS["history"][:1]},
    "no point": {**RESULTS, "history": []},
    "worse than spliced": {
        **RESULTS,
        "gap_closed": -0.3,
        "ci95": {**RESULTS["ci95"], "gap_closed": [-0.5, -0.1]},
        "history": [{"n_tokens": 50_000, "kl": 1.0, "ce": 3.4, "gap_closed": -0.28}],
    },
    "interval beside the point": {**RESULTS, "ci95": {**RESULTS["ci95"], "gap_closed": [0.41, 0.45]}},
    "SAE helps, share reported": NO_GAP,
    "SAE helps, no share": without(
        {**NO_GAP, "history": [{k: v for k, v in row.items() if k != "gap_closed"} for row in RESULTS["history"]]},
        "gap_closed",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_learning_curve_is_written(name, tmp_path):
    path = tmp_path / "curve.png"
    learning_curve(result(CASES[name]), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = plt.imread(path)[..., :3]
    assert pixels.shape[:2] == (630, 1050)
    blue, orange = (
        (np.abs(pixels - np.array(colour) / 255) < 0.02).all(-1).sum() for colour in ((0, 114, 178), (213, 94, 0))
    )
    assert blue > 20
    assert orange > 20
    assert not plt.get_fignums()


def test_learning_curve_without_gap_shows_the_cross_entropy(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plt, "close", seen.append)
    learning_curve(result(NO_GAP), tmp_path / "a.png")
    learning_curve(result(), tmp_path / "b.png")
    monkeypatch.undo()
    without_gap, with_gap = (figure.axes[0] for figure in seen)
    assert "cross entropy (nats" in without_gap.get_ylabel()
    assert "no gap" in without_gap.get_title()
    assert "gap closed (%)" in with_gap.get_ylabel()
    for axes, names in ((with_gap, {"spliced model"}), (without_gap, {"spliced model", "original model"})):
        assert {text.get_text() for text in axes.texts} == names
        assert axes.get_xlim()[0] <= 0  # else their labels, at 0, are not drawn
    assert list(with_gap.lines[0].get_ydata()) == pytest.approx([30, 41])
    assert list(with_gap.lines[0].get_xdata()) == [25_000, 50_000]
    plt.close("all")
