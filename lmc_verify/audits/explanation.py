"""What explains a bias: causes, each with what it costs alone, and what they leave."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cause", "Explanation"]


@dataclass(frozen=True)
class Cause:
    """A cause of a bias.

    Attributes:
        id: short name, such as ``"batch-mean"``.
        words: what is wrong.
        remedy: what to do about it.
        removes: share of the bias that goes away when this alone is put right; negative where it grows.
        returns: the bias that comes back when this alone of the explanation is undone, in units of the exact gradient's
            norm; None outside of the explanation.
        cosine: of the bias and the one that the known defect gives; None for an intervention.
        explains: whether it is part of the explanation.
    """

    id: str
    words: str
    remedy: str
    removes: float
    returns: float | None = None
    cosine: float | None = None
    explains: bool = False


@dataclass(frozen=True)
class Explanation:
    """What was found.

    Attributes:
        causes: those of the explanation first, by what comes back; then others that take bias away, or look like it.
        complete: whether the step is unbiased without them, or shows no bias, where batches are drawn.
        rest: the bias that is left, in units of the exact gradient's norm.
        rest_share: the bias that is left as a share of the whole bias.
        open: a bias of this size, in units of the exact gradient's norm, could be left and not be seen; 0 where all
            batches were evaluated.
    """

    causes: tuple[Cause, ...] = ()
    complete: bool = False
    rest: float = 0.0
    rest_share: float = 0.0
    open: float = 0.0
