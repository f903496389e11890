"""The command ``lmc-verify settings``, and the list that it prints."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.cli.settings.command import settings
    from lmc_verify.cli.settings.keys import COMMANDS, Key, all_keys
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["COMMANDS", "Key", "all_keys", "settings"]
