"""The figure of a watched training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmc_verify.audits.watching.comparison import Record
from lmc_verify.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

_LABELS = {"error": "relative error", "cosine": "cosine", "norm_ratio": "norm ratio"}
_LIMITED = ("error", "norm_ratio")
"""Measures that can be of any size: their axes are logarithmic."""


def draw(records: Sequence[Record]) -> Figure:
    """Draw error, cosine and norm ratio over the steps, one curve for each layer and one for all together.

    Raises:
        InvalidInputError: there is no record.
    """
    from matplotlib.figure import Figure  # importing it takes a while

    if not records:
        raise InvalidInputError("there is no record to draw: no step was taken while watching; plot after the loop")
    figure = Figure(figsize=(8, 7), layout="constrained")
    steps = [record.step for record in records]
    layers = list(dict.fromkeys(name for record in records for name in record.layers))
    for place, (key, label) in enumerate(_LABELS.items(), start=1):
        axes = figure.add_subplot(3, 1, place)
        for name in layers:
            values = [
                getattr(record.layers[name], key) if name in record.layers else float("nan") for record in records
            ]
            axes.plot(steps, values, marker=".", linewidth=1, label=name)
        axes.plot(steps, [getattr(record.overall, key) for record in records], color="black", marker=".", label="all")
        axes.set_ylabel(label)
        if key in _LIMITED:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend(fontsize="small", ncols=4)
    axes.set_xlabel("step")
    return figure
