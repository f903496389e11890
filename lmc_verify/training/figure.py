"""The figure of a training run: losses, accuracies, and the gradient's error where it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmc_verify.display.figures import curve, has_drawable, label_of, legend, panels, scale
from lmc_verify.errors import InvalidInputError
from lmc_verify.training.trace import WHOLE, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

_PANEL = 2.6  # inches
_LOSSES = {"training_loss": "objective", "batch_loss": "mean of the estimates' losses"}
_SPLITS = ("training", "validation", "test")


def draw(trace: Trace) -> Figure:
    """Draw a run over its epochs; a panel is there if something was measured for it.

    Raises:
        InvalidInputError: the run has no evaluation.
    """
    if not trace.evaluations:
        raise InvalidInputError(f"the run ({trace.status}) has no evaluation to draw; plot a run that took steps")
    splits = [split for split in _SPLITS if has_drawable(trace.column(split))]
    figure, axes = panels([_PANEL] * (1 + bool(splits) + bool(trace.gradients)))
    epochs = trace.column("epoch")
    for name, words in _LOSSES.items():
        curve(axes[0], epochs, trace.column(name), words)
    axes[0].set_ylabel("loss")
    for split in splits:
        curve(axes[1], epochs, trace.column(split), split)
    if splits:
        axes[1].set_ylabel(label_of(trace.metric))
    if trace.gradients:
        _errors(axes[-1], trace)
    for place in axes:
        legend(place)
    axes[-1].set_xlabel("epoch")
    return figure


def _errors(axes: Axes, trace: Trace) -> None:
    epochs = [item.step / trace.steps_per_epoch for item in trace.gradients]
    for name in ("relative_error", "relative_bias"):
        curve(axes, epochs, [getattr(item, name).get(WHOLE) for item in trace.gradients], name.replace("_", " "))
    scale(axes, y=True)
    axes.set_ylabel("of the exact gradient")
