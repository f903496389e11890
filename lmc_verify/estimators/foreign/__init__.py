"""Estimators that are made of a user's own code."""

from lmc_verify.estimators.foreign.wrapped import WrappedStep, wrap_step

__all__ = ["WrappedStep", "wrap_step"]
