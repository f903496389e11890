"""A matplotlib figure that a notebook shows; imported by `lmc_verify.display.figures` when a figure is drawn."""

from __future__ import annotations

import io
import warnings

from matplotlib.figure import Figure

__all__ = ["NotebookFigure"]


class NotebookFigure(Figure):
    """A `matplotlib.figure.Figure` that notebooks show without pyplot, and so without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # A name in a script that the font lacks is drawn with boxes; that is no fault of the reader's.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
            self.savefig(buffer, format="png")
        return buffer.getvalue()
