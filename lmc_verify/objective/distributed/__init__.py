"""The exact gradient over several processes: rows are partitioned over ranks, which exchange their halos."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.objective.distributed.run import distributed_gradient
    from lmc_verify.objective.distributed.watch import PATIENCE, Watch, joined
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["PATIENCE", "Watch", "distributed_gradient", "joined"]
