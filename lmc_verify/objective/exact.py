"""The exact pass: loss, every embedding ``H^l``, every auxiliary variable ``V^l`` and every gradient of a problem.

The backward pass is the backward message passing of the paper. Where every layer has a closed form it is written down
(`lmc_verify.objective.exact_closed`), else it takes autograd's vector-Jacobian product of one layer at a time
(`lmc_verify.objective.exact_autograd`). Both are tested against plain autograd through the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.display.markup import Align, paragraph, section, table
from lmc_verify.errors import InvalidInputError, require_kind
from lmc_verify.models.closed_forms import affine_layers
from lmc_verify.models.layered import active_dropout
from lmc_verify.objective.exact_autograd import AutogradPass
from lmc_verify.objective.exact_closed import ClosedPass
from lmc_verify.objective.problem import Gradient, Problem, gradient_norm

__all__ = ["ExactPass", "exact_embeddings", "exact_gradient", "exact_pass", "refuse_dropout"]


@dataclass(frozen=True, eq=False)
class ExactPass:
    """What `exact_pass` returns; nothing in it requires a gradient.

    Attributes:
        loss: the objective.
        embeddings: ``H^0 ... H^L``, each [n, width].
        auxiliary: ``V^l = dL/dH^l`` by layer, l = 1 ... L, each [n, width]; also l = 0 if the encoder has parameters.
        gradient: the gradient of the objective by parameter name.
    """

    loss: float
    embeddings: tuple[Tensor, ...]
    auxiliary: Mapping[int, Tensor]
    gradient: Gradient

    def __repr__(self) -> str:
        return (
            f"<ExactPass of {len(self.embeddings) - 1} layers and {len(self.embeddings[0]):,} nodes: "
            f"loss {self.loss:.6g}, gradient norm {gradient_norm(self.gradient):.6g}>"
        )

    def _repr_html_(self) -> str:
        """Return loss and norms for a notebook, in the notebook's own colours; the tensors are attributes."""
        whole = gradient_norm(self.gradient)
        parameters = [
            (name, " × ".join(map(str, value.shape)), f"{norm:.4g}", f"{norm / whole:.3g}" if whole else "")
            for name, value in self.gradient.items()
            for norm in [gradient_norm({name: value})]
        ]
        layers = [
            (index, h.shape[1], f"{float(h.norm()):.4g}", "" if v is None else f"{float(v.norm()):.4g}")
            for index, h in enumerate(self.embeddings)
            for v in [self.auxiliary.get(index)]
        ]
        right: dict[str, Align] = {"width": "right", "norm of H": "right", "norm of V": "right"}
        return section(
            paragraph(f"loss {self.loss:.6g}, gradient norm {whole:.6g}", bold="Exact pass"),
            table(
                {"parameter": "left", "shape": "right", "norm of its gradient": "right", "of the whole": "right"},
                parameters,
                more="the attribute gradient has all",
            ),
            table({"layer": "right", **right}, layers, more="the attributes embeddings and auxiliary have all"),
        )


@typed
def exact_pass(problem: Problem, *, chunk_size: int | None = None) -> ExactPass:
    """Compute the exact loss, embeddings, auxiliary variables and gradient.

    Args:
        problem: the problem; its dtype is the dtype of every result (float64 is the reference).
        chunk_size: rows evaluated at a time; smaller chunks bound the memory of the autograd graph, results agree to
            rounding. None takes as many as suit the machine where all layers have a closed form, else all at once.

    Raises:
        InvalidInputError: dropout is active (call ``model.eval()``), or `chunk_size` is below 1.

    Source: auxiliary variables and the recursion are equations of backward message passing in [LMC, ICLR 2023].
    """
    _check(problem, chunk_size)
    return _exact_pass(problem, chunk_size, closed=True)


@typed
def exact_gradient(problem: Problem, *, chunk_size: int | None = None) -> tuple[float, Gradient]:
    """Compute the exact loss and gradient, without keeping embeddings and auxiliary variables.

    Takes about half of the memory of `exact_pass`, and less time, where all layers have a closed form (see
    `lmc_verify.models.closed_forms`).

    Args:
        problem: the problem.
        chunk_size: see `exact_pass`.

    Returns:
        The loss, and the gradient by parameter name.

    Raises:
        InvalidInputError: see `exact_pass`.
    """
    _check(problem, chunk_size)
    layers = affine_layers(problem.model)
    if layers is None:
        exact = _exact_pass(problem, chunk_size, closed=False)
        return exact.loss, exact.gradient
    closed = ClosedPass(problem, layers, keep=False, chunk_size=chunk_size)
    closed.forward()
    closed.backward()
    return closed.loss, closed.gradient


@typed
def exact_embeddings(problem: Problem, *, chunk_size: int | None = None) -> tuple[Tensor, ...]:
    """Compute the exact embeddings alone, by the forward half of `exact_pass`.

    Args:
        problem: the problem.
        chunk_size: see `exact_pass`.

    Returns:
        ``H^0 ... H^L``, each [n, width].

    Raises:
        InvalidInputError: see `exact_pass`.
    """
    _check(problem, chunk_size)
    return _kept(problem, _forward(problem, chunk_size, closed=True))


def _check(problem: Problem, chunk_size: int | None) -> None:
    require_kind("problem", problem, Problem)
    refuse_dropout(problem)
    problem.graph.check_unchanged(content=True)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise InvalidInputError(
            f"chunk_size is {chunk_size}, it must be a whole number of at least 1, or None for all rows at once"
        )


def _exact_pass(problem: Problem, chunk_size: int | None, *, closed: bool) -> ExactPass:
    done = _forward(problem, chunk_size, closed=closed)
    done.backward()
    return ExactPass(done.loss, _kept(problem, done), done.auxiliary, done.gradient)


def _forward(problem: Problem, chunk_size: int | None, *, closed: bool) -> ClosedPass | AutogradPass:
    """Make the forward pass in closed form where there is one and it is wanted, else layer by layer with autograd."""
    layers = affine_layers(problem.model) if closed else None
    done: ClosedPass | AutogradPass
    if layers is None:
        done = AutogradPass(problem, chunk_size)
    else:
        done = ClosedPass(problem, layers, keep=True, chunk_size=chunk_size)
    done.forward()
    return done


def _kept(problem: Problem, done: ClosedPass | AutogradPass) -> tuple[Tensor, ...]:
    return tuple(done.embeddings[index] for index in range(problem.num_layers + 1))


def refuse_dropout(problem: Problem, *, allow_keyed: bool = False) -> None:
    """Raise InvalidInputError if dropout is on, or the problem is not ready for a pass (see `Problem.check_ready`).

    Keyed dropout (`lmc_verify.models.Dropout`) is a fixed function while its key is: estimates of a training run allow
    it, exact values and claims do not.
    """
    problem.check_ready()
    part = active_dropout(problem.model, allow_keyed=allow_keyed)
    if part is not None:
        raise InvalidInputError(
            f"dropout is active in {part}: gradients are undefined while units are dropped at random; "
            "call model.eval() before verifying"
        )
