"""The figure of a race: accuracy against training time, and the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmc_verify.display.figures import curve, has_drawable, label_of, legend, panels, style_of
from lmc_verify.errors import InvalidInputError
from lmc_verify.races.record import RaceRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(record: RaceRecord) -> Figure:
    """Draw the accuracy of the target's split against training seconds, one curve for each run.

    Raises:
        InvalidInputError: no run has such an accuracy.
    """
    split = record.target.split
    runs = [(item, item.trace) for item in record.entries if item.trace is not None]
    runs = [(item, trace) for item, trace in runs if has_drawable(trace.column(split))]
    if not runs:
        raise InvalidInputError(
            f"no run of the race has a {split} accuracy to draw; why is in to_frame(), column reason"
        )
    figure, (axes,) = panels([4.0])
    places = {label: place for place, label in enumerate(dict.fromkeys(item.label for item in record.entries))}
    named: set[str] = set()
    for item, trace in runs:
        label = label_of(item.label) if item.label not in named else "_nolegend_"
        named.add(item.label)
        style = style_of(places[item.label])
        curve(axes, trace.column("seconds"), trace.column(split), item.label, **style).set_label(label)
        if item.reached is not None:
            axes.plot([item.reached.seconds], [item.reached.accuracy], marker="D", color=style["color"])
    if record.target.accuracy is not None:
        axes.axhline(record.target.accuracy, color="gray", linestyle="--", linewidth=1, label="target")
    axes.set_xlabel("training time in s")
    axes.set_ylabel(f"{split} {label_of(runs[0][1].metric)}")
    axes.set_title(label_of(record.settings.title or record.settings.dataset.describe(), 80), fontsize="medium")
    legend(axes)
    return figure
