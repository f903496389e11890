"""The exact gradient from files: embeddings, auxiliary variables and operators are mapped, memory is bounded."""

from lmc_verify.objective.streamed.progress import StreamProgress
from lmc_verify.objective.streamed.run import streamed_gradient

__all__ = ["StreamProgress", "streamed_gradient"]
