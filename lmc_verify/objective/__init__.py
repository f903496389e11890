"""The objective of a problem, and its exact loss, embeddings, auxiliary variables and gradient."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.objective.closed_work import ClosedWork
    from lmc_verify.objective.conditioning import loss_conditioning, rounding_terms, summand_sizes
    from lmc_verify.objective.exact import ExactPass, exact_embeddings, exact_gradient, exact_pass, refuse_dropout
    from lmc_verify.objective.fixed_point import FixedPointPass, fixed_point_pass
    from lmc_verify.objective.plain_models import layered
    from lmc_verify.objective.problem import (
        Gradient,
        Problem,
        euclidean_norm,
        evaluating,
        gradient_norm,
        gradient_sum,
        same_bits,
    )
    from lmc_verify.objective.untouched import Untouched
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "ClosedWork",
    "ExactPass",
    "FixedPointPass",
    "Gradient",
    "Problem",
    "Untouched",
    "euclidean_norm",
    "evaluating",
    "exact_embeddings",
    "exact_gradient",
    "exact_pass",
    "fixed_point_pass",
    "gradient_norm",
    "gradient_sum",
    "layered",
    "loss_conditioning",
    "refuse_dropout",
    "rounding_terms",
    "same_bits",
    "summand_sizes",
]
