"""The exact gradient from files: embeddings, auxiliary variables and operators are mapped, memory is bounded."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.objective.streamed.progress import StreamProgress
    from lmc_verify.objective.streamed.run import streamed_gradient
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["StreamProgress", "streamed_gradient"]
