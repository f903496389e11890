"""Callbacks that pass the records of `lmc_verify.watch` on; neither TensorBoard nor Weights & Biases is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmc_verify.audits.watching.comparison import Record
from lmc_verify.errors import InvalidInputError

__all__ = ["TensorBoard", "WandB"]


def _scalars(record: Record, prefix: str) -> Iterator[tuple[str, float]]:
    """Yield tags such as ``"watch/error/convs.0"`` with their values: the loss, all together, and by layer."""
    yield f"{prefix}/loss", record.loss
    for kind, name, value in record.rows():
        if kind != "parameter":
            yield f"{prefix}/error/{name}", value.error
            yield f"{prefix}/cosine/{name}", value.cosine
            yield f"{prefix}/norm_ratio/{name}", value.norm_ratio


class TensorBoard:
    """Write the scalars of every record to a TensorBoard writer, at the record's step.

    Args:
        writer: has ``add_scalar(tag, value, step)``, as ``torch.utils.tensorboard.SummaryWriter``.
        prefix: of the tags.

    Raises:
        InvalidInputError: it has no ``add_scalar``.
    """

    def __init__(self, writer: Any, prefix: str = "watch") -> None:
        self._writer, self._prefix = _with(writer, "add_scalar", "a SummaryWriter"), prefix

    def __call__(self, record: Record) -> None:
        """Write a record."""
        for tag, value in _scalars(record, self._prefix):
            self._writer.add_scalar(tag, value, record.step)


class WandB:
    """Log the scalars of every record to a run of Weights & Biases, in one call.

    The record's step is a value of its own, ``"watch/step"``, to be chosen as the x axis: the run's own counter belongs
    to the training loop's calls of ``log``.

    Args:
        run: has ``log(values)``, as what ``wandb.init()`` returns.
        prefix: of the names.

    Raises:
        InvalidInputError: it has no ``log``.
    """

    def __init__(self, run: Any, prefix: str = "watch") -> None:
        self._run, self._prefix = _with(run, "log", "what wandb.init() returns"), prefix

    def __call__(self, record: Record) -> None:
        """Log a record."""
        self._run.log({f"{self._prefix}/step": record.step, **dict(_scalars(record, self._prefix))})


def _with(value: Any, method: str, example: str) -> Any:
    if not callable(getattr(value, method, None)):
        raise InvalidInputError(f"{type(value).__name__} has no {method}(); give {example}")
    return value
