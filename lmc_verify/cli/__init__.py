"""The command line; the entry point is ``lmc_verify.cli:main``."""

from lmc_verify.cli.app import app, main

__all__ = ["app", "main"]
