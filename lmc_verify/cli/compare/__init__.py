"""The command ``lmc-verify compare``."""

from lmc_verify.cli.compare.command import compare

__all__ = ["compare"]
