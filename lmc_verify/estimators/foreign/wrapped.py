"""An estimator made of a training step that keeps what it remembers itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.arguments import typed
from lmc_verify.errors import ContractError, InvalidInputError, UnknownNameError
from lmc_verify.estimators.base import Estimate, check_batch
from lmc_verify.estimators.compensated.policies import Policies
from lmc_verify.estimators.foreign.host import Ran, StepHost, split_state
from lmc_verify.estimators.foreign.state import StepState
from lmc_verify.estimators.history import History, HistoryWrite, OtherWrite, Write
from lmc_verify.estimators.weighting import LOSS_WEIGHTINGS
from lmc_verify.graphs import Batch, Graph
from lmc_verify.objective import Problem, evaluating
from lmc_verify.steps import StateLike, Step, clone, induced_data
from lmc_verify.steps.runner import takes_data

__all__ = ["WrappedStep", "wrap_step"]


class WrappedStep:
    """A training step as an estimator; see `wrap_step`.

    Attributes:
        name: in reports.
        post_activation: histories of H hold what the layer above reads, behind the activation.
        policies: the halo policies that it states, or None.
        weighting: the loss weighting that it states, or None.
    """

    def __init__(
        self,
        step: Step,
        model: nn.Module | None,
        *,
        state: StateLike,
        names: Mapping[str, str] | None,
        name: str,
        post_activation: bool,
        policies: Policies | None,
        weighting: str | None,
    ) -> None:
        self.name, self.post_activation = name, post_activation
        self.policies, self.weighting = policies, weighting
        self._step, self._model, self._state, self._names = step, model, state, dict(names or {})

    def __repr__(self) -> str:
        return f"wrap_step(name={self.name!r})"

    def init(self, problem: Problem) -> StepState:
        """Return a state with the values that the user's tensors have now.

        Raises:
            InvalidInputError: model and problem do not belong together, or a table is of another size.
        """
        model = problem.model if self._model is None else self._model
        return StepHost(self._step, model, self._state, self._names, problem).fresh(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Run the step for one batch, from a state that this estimator has made.

        Raises:
            ContractError: the step draws random numbers, leaves no gradient, or resizes a table.
            InvalidInputError: a state of another estimator, or a node that the graph does not have.
        """
        check_batch(problem, batch)
        if not isinstance(state, StepState) or state.host is None:
            raise InvalidInputError(
                f"the state is no state of {self.name!r}; make it with this estimator's init(problem)"
            )
        data = graph_data(problem.graph)
        payload = induced_data(data, batch.nodes, batch.inclusion) if batch.payload is None else clone(batch.payload)
        ran = state.host.run(problem, state, batch, payload, data)
        loss = _returned_loss(ran.returned)
        return Estimate(ran.gradient, _exact_loss(problem) if loss is None else loss, _writes(state, ran))


@typed(besides=("model",))
def wrap_step(
    step: Step,
    model: nn.Module | None = None,
    *,
    state: StateLike = None,
    names: Mapping[str, str] | None = None,
    name: str = "step",
    post_activation: bool = False,
    policies: Policies | None = None,
    weighting: str | None = None,
) -> WrappedStep:
    """Make an estimator of a training step, so that claims can be checked of it.

    The step runs on a copy of the model, with the problem's parameters, mode and precision. It must leave the gradient
    of the objective's estimate in ``.grad`` (or return it by parameter), and take no optimiser step. What it keeps is
    put back before every estimate, so that estimates are pure.

    Args:
        step: ``step(model, batch)`` or ``step(model, batch, data)``. The batch is the design's payload, where it has
            one (`BatchDesign.from_loader`); else the subgraph that the batch's nodes induce, a ``Data`` with ``n_id``
            and ``inclusion`` (see `lmc_verify.steps.induced_data`). `data` is the whole graph. It may return its loss,
            an estimate of the objective; without one the objective itself is reported, which costs a pass over the
            graph.
        model: a plain module whose parameters are the problem's; None for the problem's own model.
        state: what the step keeps between batches. A mapping; histories under ``("embedding", l)`` (``H^l``) and
            ``("auxiliary", l)`` (``V^l``, in units of the full objective, without a batch's weights), each a tensor
            [nodes, width] or a function of the model's copy that returns one. Under any other key, or in place of the
            mapping, whatever `lmc_verify.steps.state.StateLike` allows: it is carried along, and nothing can be said of
            it. What the model itself holds is carried anyway: tensors, and numbers such as a counter of calls.
        names: the problem's parameter name by the model's, where they differ.
        name: in reports.
        post_activation: the tables of H hold what the layer above reads of it, activated; those of the last layer H.
        policies: what the step puts at the halo, if that is to be stated: claims about these policies then apply, and
            are checked; nothing is taken on trust.
        weighting: one of `lmc_verify.estimators.LOSS_WEIGHTINGS`, if the step weights its loss by one of them.
            Reference estimates are weighted alike; without it by inverse inclusion probabilities.

    Raises:
        InvalidInputError: a step that takes other arguments, or a state that cannot be named.
        UnknownNameError: an unknown weighting.

    Example:
        >>> import torch, lmc_verify as lv
        >>> graph = lv.load_graph("karate").double()
        >>> problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2).double())
        >>> def step(model, batch, data):  # the whole graph, with the batch's rows of the loss
        ...     rows = model(graph)[batch.n_id]
        ...     losses = torch.nn.functional.cross_entropy(rows, batch.y, reduction="none")
        ...     ((batch.train_mask * losses) / batch.inclusion).sum().div(data.train_mask.sum()).backward()
        >>> design = lv.Clusters(lv.Partition.metis(graph, 4), per_batch=2)
        >>> lv.check_claim("theorem-1/unbiased", problem, design, lv.wrap_step(step)).outcome
        <Outcome.EXACT: 'EXACT'>
    """
    if not callable(step):
        raise InvalidInputError(f"step is a {type(step).__name__}; it must be a function step(model, batch)")
    if model is not None and not isinstance(model, nn.Module):
        raise InvalidInputError(f"model is a {type(model).__name__}, a torch.nn.Module is needed, or None")
    if not isinstance(name, str) or not name:
        raise InvalidInputError(f"name is {name!r}; it must be a text")
    if weighting is not None and weighting not in LOSS_WEIGHTINGS:
        raise UnknownNameError("loss weighting", weighting, LOSS_WEIGHTINGS)
    takes_data(step)
    split_state(state)
    return WrappedStep(
        step,
        model,
        state=state,
        names=names,
        name=name,
        post_activation=post_activation,
        policies=policies,
        weighting=weighting,
    )


def graph_data(graph: Graph) -> Data:
    """Return a graph as PyTorch Geometric's ``Data``, on the graph's own tensors."""
    given = {
        "x": graph.x,
        "edge_index": graph.edge_index,
        "y": graph.y,
        "train_mask": graph.train_mask,
        "val_mask": graph.val_mask,
        "test_mask": graph.test_mask,
        "edge_weight": graph.edge_weight,
        "edge_attr": graph.edge_attr,
    }
    return Data(**{key: value for key, value in given.items() if value is not None}, num_nodes=graph.num_nodes)


def _returned_loss(returned: Any) -> float | None:
    if isinstance(returned, Tensor) and returned.numel() == 1 and not returned.is_complex():
        return float(returned.detach())
    if isinstance(returned, int | float) and not isinstance(returned, bool):
        return float(returned)
    return None


def _exact_loss(problem: Problem) -> float:
    with torch.no_grad(), evaluating(problem.model):
        return float(problem.node_losses(problem.model(problem.graph)).sum())


def _writes(state: StepState, ran: Ran) -> tuple[Write, ...]:
    """Return the rows that differ from the state's, and a snapshot of everything else that is kept."""
    writes: list[Write] = []
    for (kind, layer), after in ran.tables.items():
        before = state.table(kind)[layer]
        if after.shape != before.shape:
            raise ContractError(
                f"the step makes the {kind} history of layer {layer} {list(after.shape)}, it was {list(before.shape)}; "
                "write rows of one table"
            )
        rows = (after != before.to(after.device)).any(dim=1).nonzero().flatten()
        if rows.numel():
            writes.append(HistoryWrite(kind, layer, rows, after[rows]))
    if state.keeps_other or ran.plain:
        writes.append(OtherWrite(ran.others, ran.kept, ran.plain))
    return tuple(writes)
