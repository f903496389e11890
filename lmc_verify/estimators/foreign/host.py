"""Running a user's step for one estimate: put its state back, run it, read what it left, and put everything back.

Outside of an estimate whatever the user owns has the values that it had before, in its own precision.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.estimators.foreign.state import StepState
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING
from lmc_verify.graphs import Batch, named_nodes
from lmc_verify.objective import Gradient, Problem, same_bits
from lmc_verify.steps import StateLike, Step, StepRunner
from lmc_verify.steps.runner import takes_data
from lmc_verify.steps.state import held

__all__ = ["Ran", "StepHost", "Table", "split_state"]

Table = tuple[str, int]
"""Which history: ``("embedding", l)`` or ``("auxiliary", l)``."""

Place = Tensor | Callable[[nn.Module], Tensor]
"""A table of the user's, or a function of the model that returns it."""


def split_state(state: StateLike) -> tuple[dict[Table, Place], StateLike]:
    """Return what a user has named as histories, and the rest."""
    if not isinstance(state, Mapping):
        return {}, state
    tables = {key: value for key, value in state.items() if _is_table(key)}
    rest = {key: value for key, value in state.items() if not _is_table(key)}
    for key, value in tables.items():
        if not isinstance(value, Tensor) and not callable(value):
            raise InvalidInputError(
                f"state[{key!r}] is a {type(value).__name__}; give the tensor [nodes, width], or a function of the "
                "model that returns it"
            )
    return tables, rest or None


def _is_table(key: Any) -> bool:
    if not isinstance(key, tuple):
        return False
    if len(key) != 2 or key[0] not in (EMBEDDING, AUXILIARY) or not isinstance(key[1], int):
        raise InvalidInputError(
            f"state has the key {key!r}; a history is named ('embedding', l) or ('auxiliary', l) with l = 1 ... L, "
            "anything else by a text"
        )
    return True


@dataclass(frozen=True, eq=False)
class Ran:
    """What a step left.

    Attributes:
        gradient: by the problem's parameter names.
        returned: what it returned.
        tables: its histories afterwards.
        kept: a snapshot of the rest.
        others: the tensors in it, by path.
        plain: the numbers, texts and the like in it that are not what they were at first, by path.
    """

    gradient: Gradient
    returned: Any
    tables: Mapping[Table, Tensor]
    kept: Any
    others: Mapping[str, Tensor]
    plain: Mapping[str, Any]


class StepHost:
    """A step with its copy of the model.

    Args:
        step: the user's step.
        model: the model that is copied.
        state: what the step keeps.
        names: problem's parameter name by the model's, where they differ.
        problem: whose parameters, precision and sizes are taken.

    Raises:
        InvalidInputError: model and problem have other parameters; or a table is of another size, or belongs to the
            model that is copied.
    """

    def __init__(
        self, step: Step, model: nn.Module, state: StateLike, names: Mapping[str, str], problem: Problem
    ) -> None:
        self._step, self._names = step, dict(names)
        self._places, self._rest = split_state(state)
        _refuse_held(model, self._places, self._rest)
        self._returned: Any = None
        self._drew = False
        graph = problem.graph
        self._runner = StepRunner(model, self._observed(), state=self._everything, dtype=graph.dtype)
        self._first = self._runner.state.plain()
        self._runner.close()  # what the user owns is lent during estimates only
        self._runner.model.to(graph.device)
        self._check_parameters(problem)

    def fresh(self, problem: Problem) -> StepState:
        """Return the state with the values that the user's tensors have now."""
        with self._lent():
            tables = self._tables()
            for (kind, layer), value in tables.items():
                _check_table(kind, layer, value, problem)
            kept, others = self._snapshot(tables)
            state = StepState(host=self, declared=self._rest is not None, kept=kept, others=others)
            for (kind, layer), value in tables.items():
                target = state.embeddings if kind == EMBEDDING else state.auxiliary
                target[layer] = value.detach().clone()
        return state

    def run(self, problem: Problem, state: StepState, batch: Batch, payload: Any, data: Data) -> Ran:
        """Run the step from a state.

        Raises:
            ContractError: it draws random numbers that change what it leaves; see also `StepRunner.run`.
        """
        with self._lent():
            found = self._once(problem, state, payload, data, seed=0)
            if self._drew and not _same(found, self._once(problem, state, payload, data, seed=1)):
                raise ContractError(
                    f"the step draws random numbers for the batch {named_nodes(batch.nodes)}, and gives something else "
                    "with others; make them part of the batch: draw in the loader, and read what it drew from the "
                    "batch (Batch.payload)"
                )
        return found

    def _once(self, problem: Problem, state: StepState, payload: Any, data: Data, *, seed: int) -> Ran:
        self._runner.state.restore(state.kept)
        self._load(problem)
        before = {
            (kind, layer): table
            for kind, tables in ((EMBEDDING, state.embeddings), (AUXILIARY, state.auxiliary))
            for layer, table in tables.items()
        }
        for table, value in self._tables().items():
            _set(value, before[table])
        gradient = self._runner.run(payload, data, seed)
        tables = {table: value.detach().clone() for table, value in self._tables().items()}
        kept, others = self._snapshot(self._tables())
        plain = self._changed()
        mapped = {self._names.get(name, name): value for name, value in gradient.items()}
        wanted = {name: mapped[name] for name in problem.parameter_names}
        return Ran(wanted, self._returned, tables, kept, others, plain)

    def _everything(self, model: nn.Module) -> list[Any]:
        """Return what is kept beside the tables: what the model's copy holds, and what the user has named."""
        rest = self._rest
        if isinstance(rest, Mapping):
            rest = {key: item(model) if _is_function(item) else item for key, item in rest.items()}
        elif _is_function(rest):
            rest = rest(model)
        return [model] if rest is None else [model, rest]

    def _observed(self) -> Step:
        """Return the step with a note of what it returned, and of whether it drew from the global generators."""

        def watch(*arguments: Any) -> Any:
            before = _drawn()
            self._returned = self._step(*arguments)
            self._drew = _drawn() != before
            return self._returned

        if takes_data(self._step):
            return lambda model, batch, data: watch(model, batch, data)
        return lambda model, batch: watch(model, batch)

    def _tables(self) -> dict[Table, Tensor]:
        """Return the user's tables, in the problem's precision."""
        found = {table: self._resolved(table) for table in self._places}
        for value in found.values():
            if value.dtype != self._runner.dtype:
                value.data = value.data.to(self._runner.dtype)
        return found

    def _resolved(self, table: Table) -> Tensor:
        place = self._places[table]
        value: Any = place if isinstance(place, Tensor) else place(self._runner.model)
        if not isinstance(value, Tensor):
            raise InvalidInputError(
                f"state[{table!r}] gave a {type(value).__name__} for the model's copy; it must return the tensor "
                "[nodes, width]"
            )
        return value

    def _snapshot(self, tables: Mapping[Table, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        named = {value.data_ptr() for value in tables.values()}
        known = {name for name, _ in self._runner.model.named_buffers()}
        others = {
            path: value.detach().clone()
            for path, value in self._runner.state.tensors().items()
            if value.data_ptr() not in named and path.removeprefix("state[0].") not in known
        }
        return self._runner.state.snapshot(), others

    def _changed(self) -> dict[str, Any]:
        """Return the numbers, texts and the like that are not what they were when the host was made."""
        now = self._runner.state.plain()
        gone = dict.fromkeys(path for path in self._first if path not in now)
        return gone | {path: value for path, value in now.items() if repr(value) != repr(self._first.get(path))}

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Hold what the user owns, in the problem's precision, and put it back."""
        outside = self._runner.state.snapshot()
        tables = {table: self._resolved(table) for table in self._places}
        values = {table: value.detach().clone() for table, value in tables.items()}
        self._runner.state.cast(self._runner.dtype)
        try:
            yield
        finally:
            self._runner.state.restore(outside)
            for table, value in values.items():
                _set(tables[table], value)
                _set(self._resolved(table), value)  # a step may have put another tensor in its place

    def _load(self, problem: Problem) -> None:
        """Take over the problem's parameters, buffers and mode."""
        model, given = self._runner.model, dict(problem.model.named_parameters())
        buffers = dict(problem.model.named_buffers())
        with torch.no_grad():
            for name, value in model.named_parameters():
                if (own := self._names.get(name, name)) in given:
                    value.copy_(given[own])
            for name, buffer in model.named_buffers():
                if name in buffers and buffers[name].shape == buffer.shape:
                    buffer.copy_(buffers[name])
        self._runner.modes = dict.fromkeys(model.modules(), problem.model.training)

    def _check_parameters(self, problem: Problem) -> None:
        given, own = dict(problem.model.named_parameters()), dict(self._runner.model.named_parameters())
        strange = [name for name in self._names if name not in own]
        if strange:
            raise InvalidInputError(
                f"names holds {', '.join(strange)}, which the model does not have; its parameters are {', '.join(own)}"
            )
        mapped = [self._names.get(name, name) for name in self._runner.names]
        missing = [name for name in problem.parameter_names if name not in mapped]
        extra = [name for name in mapped if name not in problem.parameter_names]
        if missing or extra or len(set(mapped)) < len(mapped):
            raise InvalidInputError(
                f"the problem trains {', '.join(problem.parameter_names)}, the step's model "
                f"{', '.join(self._runner.names)}; give names={{model's name: problem's name}} where they differ, and "
                "freeze the same parameters"
            )
        for name, value in own.items():
            target = given.get(self._names.get(name, name))
            if target is not None and target.shape != value.shape:
                raise InvalidInputError(
                    f"{name} of the step's model is {list(value.shape)}, {self._names.get(name, name)} of the problem "
                    f"{list(target.shape)}; give the model that the problem was made for, or other names="
                )


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module | Tensor) and not hasattr(value, "state_dict")


def _refuse_held(model: nn.Module, places: Mapping[Table, Place], rest: StateLike) -> None:
    """Refuse tensors of the model itself: the step runs on a copy, and would never write into them."""
    own = {id(slot.value) for slot in held(model) if isinstance(slot.value, Tensor)}
    given = [(repr(key), value) for key, value in places.items()]
    given += [(slot.path, slot.value) for slot in ([] if _is_function(rest) else held(rest, "state"))]
    for name, value in given:
        if isinstance(value, Tensor) and id(value) in own:
            raise InvalidInputError(
                f"state holds {name}, a tensor of the model, but the step is run on a copy of it; give a function of "
                "the model that returns it, such as lambda model: model.histories"
            )


def _check_table(kind: str, layer: int, value: Tensor, problem: Problem) -> None:
    if not 1 <= layer <= problem.num_layers:
        raise InvalidInputError(
            f"state names the {kind} history of layer {layer}, the model has layers 1 ... {problem.num_layers}"
        )
    wanted = (problem.graph.num_nodes, problem.widths[layer])
    if tuple(value.shape) != wanted:
        raise InvalidInputError(
            f"state[{(kind, layer)!r}] is {list(value.shape)}; the history of layer {layer} has a row for each node, "
            f"{list(wanted)}: name it by a text if it is something else"
        )


def _set(tensor: Tensor, values: Tensor) -> None:
    if tensor.shape == values.shape and tensor.dtype == values.dtype:
        with torch.no_grad():
            tensor.detach().copy_(values)
    else:
        tensor.data = values.clone()


def _drawn() -> tuple[bytes, bytes, Any]:
    """Return where the global generators are, to be compared."""
    found: Any = np.random.get_state()  # noqa: NPY002  (the step may draw from it)
    return torch.get_rng_state().numpy().tobytes(), found[1].tobytes(), (found[2:], random.getstate())


def _same(one: Ran, two: Ran) -> bool:
    pairs: list[tuple[Mapping[Any, Tensor], Mapping[Any, Tensor]]] = [
        (one.gradient, two.gradient),
        (one.tables, two.tables),
        (one.others, two.others),
    ]
    return all(
        left.keys() == right.keys() and all(same_bits(value, right[key]) for key, value in left.items())
        for left, right in pairs
    )
