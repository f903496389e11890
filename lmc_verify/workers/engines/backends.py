"""The engines by name, as ``--backend`` has them."""

from __future__ import annotations

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.workers.cores import number_of_jobs
from lmc_verify.workers.engines.engine import Engine
from lmc_verify.workers.pool import Pool

__all__ = ["BACKENDS", "LOCAL", "check_backend", "connect"]

LOCAL = "local"
"""The engine of this machine, `Pool`."""
BACKENDS = (LOCAL, "dask", "ray")


def check_backend(backend: str, scheduler: str | None, jobs: int) -> None:
    """Refuse options that do not go together, before anything else is done.

    Args:
        backend: one of `BACKENDS`.
        scheduler: address of a cluster's scheduler.
        jobs: number of processes of this machine.

    Raises:
        InvalidInputError: they do not; the message says what to give.
    """
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    number_of_jobs(jobs)
    if backend == LOCAL:
        if scheduler is not None:
            raise InvalidInputError(
                f"--scheduler {scheduler} is for clusters; give --backend dask or --backend ray with it"
            )
        return
    if jobs != 1:
        raise InvalidInputError(
            f"--jobs {jobs} is for this machine; with --backend {backend} the cluster has as many as its workers take"
        )
    if backend == "dask" and scheduler is None:
        raise InvalidInputError(
            "--backend dask needs the address of its scheduler: --scheduler tcp://HOST:8786, or a scheduler file"
        )


def connect(backend: str, scheduler: str | None = None, *, jobs: int = 1) -> Engine:
    """Return an engine that is ready for tasks.

    Args:
        backend: ``"local"``, ``"dask"`` or ``"ray"``.
        scheduler: address of a cluster's scheduler; of Ray, None is the cluster that this machine belongs to.
        jobs: number of processes of this machine, see `Pool`.

    Raises:
        InvalidInputError: the arguments do not go together, or the cluster's library is not installed.
        InfrastructureError: the cluster does not answer, or has other versions of Python, torch or lmc-verify.
    """
    check_backend(backend, scheduler, jobs)
    if backend == "ray":
        from lmc_verify.workers.engines.ray_cluster import RayEngine

        return RayEngine(scheduler)
    if backend == "dask":
        from lmc_verify.workers.engines.dask_cluster import DaskEngine

        assert scheduler is not None
        return DaskEngine(scheduler)
    return Pool(jobs)
