"""One run of the records of several: shards of a suite, or the same suite on several machines."""

from lmc_verify.runs.merging.merge import Merged, merge_records

__all__ = ["Merged", "merge_records"]
