"""The command ``lmc-verify init``: the files that put a project's training loop under audit."""

from lmc_verify.cli.init.command import init

__all__ = ["init"]
