"""The look of every figure: colours, markers, and how one is written."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelora.files import write_whole

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY, BLACK = "#666666", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY)
MARKERS = "osD^vPX<>*"


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, in the format that the path's suffix names; it is whole or as it was before."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."), dpi=150)
    write_whole(path, drawn.getvalue())


def save_drawing(draw: Callable[[], Any], path: Path) -> list[Path]:
    """Write what ``draw`` makes as SVG and PNG beside each other; the paths, none where it makes nothing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = draw()
    if figure is None:
        return []
    paths = [path.with_name(path.name + suffix) for suffix in (".svg", ".png")]
    try:
        for each in paths:
            save_figure(figure, each)
    finally:
        plt.close(figure)
    return paths
