"""Damaged records: what in a file is what was recorded, and a new file of it."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.runs.damage.check import Found, check_records
    from lmc_verify.runs.damage.repair import repair_records
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["Found", "check_records", "repair_records"]
