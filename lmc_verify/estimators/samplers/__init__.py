"""Sampling estimators: those that draw which messages they keep."""
