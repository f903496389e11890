"""What does not fit into memory: operators in memory-mapped files."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.graphs.mapped.operators import map_operators
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["map_operators"]
