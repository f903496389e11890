"""A matplotlib figure that a notebook shows; imported by `lmc_verify.display.figures` when a figure is drawn."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["NotebookFigure"]


class NotebookFigure(Figure):
    """A `matplotlib.figure.Figure` that notebooks show without pyplot, and so without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
