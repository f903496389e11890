"""Damaged records: what in a file is what was recorded, and a new file of it."""

from lmc_verify.runs.damage.check import Found, check_records
from lmc_verify.runs.damage.repair import repair_records

__all__ = ["Found", "check_records", "repair_records"]
