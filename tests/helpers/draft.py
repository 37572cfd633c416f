"""Figures of runs that no test looks at: laying one out and rendering it is half of a tiny run's time."""

import io
from typing import Any

import pytest


def without_rendering(patch: pytest.MonkeyPatch) -> None:
    """A run's figures are made as ever, and saved as files that hold their format's name. Pages keep their own."""
    from matplotlib.figure import Figure

    render = Figure.savefig

    def savefig(self: Figure, file: Any, *, format: str, **options: Any) -> None:
        if isinstance(file, io.BytesIO):  # saelora.reporting.figures.save_figure
            file.write(format.encode())
        else:
            render(self, file, format=format, **options)

    patch.setattr(Figure, "savefig", savefig)
