"""The exact gradient over several processes: rows are partitioned over ranks, which exchange their halos."""

from lmc_verify.objective.distributed.run import distributed_gradient
from lmc_verify.objective.distributed.watch import PATIENCE, Watch, joined

__all__ = ["PATIENCE", "Watch", "distributed_gradient", "joined"]
