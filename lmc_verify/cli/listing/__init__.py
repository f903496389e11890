"""Commands that list what is available, and what they say without importing it."""

from lmc_verify.cli.listing.command import doctor, explain, list_names

__all__ = ["doctor", "explain", "list_names"]
