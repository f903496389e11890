"""The command ``lmc-verify settings``, and the list that it prints."""

from lmc_verify.cli.settings.command import settings
from lmc_verify.cli.settings.keys import COMMANDS, Key, all_keys

__all__ = ["COMMANDS", "Key", "all_keys", "settings"]
