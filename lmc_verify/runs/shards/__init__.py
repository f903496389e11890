"""A suite in shards, each run by itself, such as by the jobs of a CI matrix."""

from lmc_verify.runs.shards.shard import Shard

__all__ = ["Shard"]
