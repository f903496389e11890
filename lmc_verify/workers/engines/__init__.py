"""What does the tasks of a run: processes of this machine, or a cluster of Dask or Ray."""

from lmc_verify.workers.engines.backends import BACKENDS, LOCAL, check_backend, connect
from lmc_verify.workers.engines.engine import Engine

__all__ = ["BACKENDS", "LOCAL", "Engine", "check_backend", "connect"]
