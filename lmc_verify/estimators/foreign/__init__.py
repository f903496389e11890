"""Estimators that are made of a user's own code."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.estimators.foreign.wrapped import WrappedStep, wrap_step
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["WrappedStep", "wrap_step"]
