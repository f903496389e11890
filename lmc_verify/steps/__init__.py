"""A user's training step: its batches, its generators, what it keeps between batches, and the gradient that it leaves.

Nothing here knows a claim or an estimator. A step is run on a private copy of the model, in the precision that is asked
for, and leaves the caller's model, data, histories and random generators as they were.
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.steps.batches import induced_data
    from lmc_verify.steps.data import cast, clone, describe, node_attributes
    from lmc_verify.steps.generators import forked_generators
    from lmc_verify.steps.objective import Objective, call_model, mean_loss, objective_gradient, unwrapped
    from lmc_verify.steps.runner import NoGradientError, Step, StepRunner
    from lmc_verify.steps.state import KeptState, StateLike
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "KeptState",
    "NoGradientError",
    "Objective",
    "StateLike",
    "Step",
    "StepRunner",
    "call_model",
    "cast",
    "clone",
    "describe",
    "forked_generators",
    "induced_data",
    "mean_loss",
    "node_attributes",
    "objective_gradient",
    "unwrapped",
]
