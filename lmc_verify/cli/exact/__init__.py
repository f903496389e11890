"""The command ``lmc-verify exact``."""

from lmc_verify.cli.exact.command import bytes_of, exact

__all__ = ["bytes_of", "exact"]
