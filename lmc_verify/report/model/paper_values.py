"""What the paper reports of its own experiments, to be printed next to measured values and never as one of them.

The numbers were taken from secondary sources and not from the paper's tables, so confidence in them is medium.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOTE", "REPORTED", "SOURCE", "Reported", "reported_for"]

SOURCE = "Shi, Liang and Wang, LMC, ICLR 2023 (arXiv 2302.00924)"
NOTE = "Reported by the paper, on its own data, code and GPU; taken from secondary sources; not measured here."


@dataclass(frozen=True)
class Reported:
    """One reported value.

    Attributes:
        figure: kind of the race that it belongs to, such as ``"time-to-accuracy"``.
        dataset: the paper's data set.
        model: the paper's model.
        quantity: what was measured.
        unit: of `value`; may be empty.
        estimator: name of the estimator, as in `lmc_verify.estimators.ESTIMATORS`.
        value: as reported.
    """

    figure: str
    dataset: str
    model: str
    quantity: str
    unit: str
    estimator: str
    value: float


def _values(figure: str, dataset: str, quantity: str, unit: str, **values: float) -> tuple[Reported, ...]:
    return tuple(
        Reported(figure, dataset, "GCN", quantity, unit, estimator.replace("_", "-"), value)
        for estimator, value in values.items()
    )


_SECONDS = "time to the full-batch accuracy"
_EPOCHS = "epochs to the full-batch accuracy"
_ACCURACY = "test accuracy"
_KEPT = "messages kept at batch size 1"

REPORTED: tuple[Reported, ...] = (
    *_values("time-to-accuracy", "ogbn-arxiv", _SECONDS, "s", gas=79, fm=115, lmc=55),
    *_values("time-to-accuracy", "ogbn-arxiv", _EPOCHS, "", gas=176, fm=152, lmc=124),
    *_values("time-to-accuracy", "Flickr", _SECONDS, "s", gas=117, lmc=85),
    *_values("time-to-accuracy", "Flickr", _EPOCHS, "", gas=389, lmc=334),
    *_values("time-to-accuracy", "Reddit", _SECONDS, "s", gas=790, lmc=381),
    *_values("time-to-accuracy", "Reddit", _EPOCHS, "", gas=372, lmc=167),
    *_values("time-to-accuracy", "PPI", _SECONDS, "s", gas=179, lmc=179),
    *_values("convergence", "Reddit", _ACCURACY, "%", gas=95.35, lmc=95.44),
    *_values("convergence", "ogbn-arxiv", _ACCURACY, "%", gas=71.54, lmc=71.44),
    *_values("batch-sizes", "ogbn-arxiv", "memory at batch size 1", "MB", gas=178, lmc=207),
    *_values("ablation", "ogbn-arxiv", f"{_KEPT}, forward", "%", cluster_gcn=67, gas=100, lmc=100),
    *_values("ablation", "ogbn-arxiv", f"{_KEPT}, backward", "%", cluster_gcn=67, gas=67, lmc=100),
)
"""Every value, in the order in which it is printed."""


def reported_for(figures: tuple[str, ...]) -> tuple[Reported, ...]:
    """Return the values that belong to these kinds of race; none for most kinds."""
    return tuple(item for item in REPORTED if item.figure in figures)
