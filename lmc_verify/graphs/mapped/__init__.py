"""What does not fit into memory: operators in memory-mapped files."""

from lmc_verify.graphs.mapped.operators import map_operators

__all__ = ["map_operators"]
