"""What stands beside FVU, written down plainly: all tokens at once, in numpy and float64."""

import numpy as np


def plain_figures(x, recon):
    """saelora.core.spread.FIGURES of tokens [n, d] and their reconstructions."""
    x, recon = (np.asarray(each.detach(), dtype=np.float64) for each in (x, recon))
    error, square = ((x - recon) ** 2).sum(1), (x**2).sum(1)
    order = np.argsort(-square)
    n_top = int(np.ceil(len(x) / 1000))
    top, rest = order[:n_top], order[n_top:]
    apart = ((x - x.mean(0)) ** 2).sum(1)
    variation = ((x[rest] - x[rest].mean(0)) ** 2).sum()
    low, middle, high = np.quantile(error / square, [0.1, 0.5, 0.9])
    return {
        "relative_error": middle,
        "relative_error_q10": low,
        "relative_error_q90": high,
        "top_variance": apart[top].sum() / apart.sum(),
        "fvu_rest": error[rest].sum() / variation,
    }
