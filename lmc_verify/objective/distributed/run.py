"""The exact pass over ranks: each evaluates the layers at its own rows, and differentiates them there.

Forward, the rows of the halo come from their owners before each layer. Backward, what a rank's rows send to the halo
goes back to the owners after each layer. Gradients of parameters are summed over the ranks at the end.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import map_operators
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.differentiation import differentiate
from lmc_verify.objective.distributed.exchange import Halo, summed
from lmc_verify.objective.distributed.watch import Watch
from lmc_verify.objective.exact import refuse_dropout
from lmc_verify.objective.problem import Gradient, Problem

__all__ = ["distributed_gradient"]

_CHUNK = 2**18
"""Rows of a layer that a rank evaluates between two signs of life."""


def distributed_gradient(
    problem: Problem, watch: Watch, *, owner: Tensor | None = None, memory: int | None = None
) -> tuple[float, Gradient]:
    """Compute the exact loss and gradient together with the other ranks; every rank gets the same bits.

    Every rank is given the same problem, and holds embeddings and auxiliary variables of its own rows and their halo
    only; the graph is shared where it is in mapped files (`lmc_verify.datasets.open_graph`). Sums over ranks are taken
    in the order of the ranks.

    Args:
        problem: the problem; on a GPU, the group's backend must be NCCL.
        watch: the group, see `lmc_verify.objective.distributed.joined`.
        owner: rank of every node, int64 [n]; None for equal ranges of consecutive nodes.
        memory: bytes that building the operators may take, which are then in mapped files of each rank; None to build
            them in memory.

    Returns:
        The loss, and the gradient by parameter name.

    Raises:
        InvalidInputError: as `lmc_verify.exact_gradient`; or `owner` does not fit; or the ranks were given different
            problems.
        InfrastructureError: a rank died, hangs or failed; the message names it.
    """
    refuse_dropout(problem)
    problem.graph.check_unchanged(content=True)
    graph = problem.graph
    owner = _default_owner(graph.num_nodes, watch.size) if owner is None else _checked(owner, graph.num_nodes, watch)
    owner = owner.to(graph.device)
    _check_same(problem, owner, watch)
    with ExitStack() as stack:
        if memory is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lmc-verify-")))
            kinds = {problem.model.layer(index).operator for index in range(1, problem.num_layers + 1)}
            blocks = map_operators(graph, kinds, folder, memory=memory, listen=watch.beat)
            stack.enter_context(graph.using_operators(blocks))
        work = _RankPass(problem, owner, watch)
        work.forward()
        work.backward()
        return work.results()


class _RankPass:
    """One rank's part of a pass."""

    def __init__(self, problem: Problem, owner: Tensor, watch: Watch) -> None:
        self.problem, self._watch = problem, watch
        self.loss, self.gradient = problem.graph.x.new_zeros(1), problem.zero_gradient()
        self._own = (owner == watch.rank).nonzero()[:, 0]
        kinds = [problem.model.layer(index).operator for index in range(1, problem.num_layers + 1)]
        self._halos = {kind: Halo(problem.graph, kind, owner, watch) for kind in dict.fromkeys(kinds)}
        self._encoder = problem.parameters_of(problem.model.encoder)
        self._embeddings: list[Tensor] = []

    def forward(self) -> None:
        """Fill the rank's rows of every embedding."""
        problem = self.problem
        with torch.no_grad():
            x = problem.graph.x[self._own]
            self._embeddings.append(torch.cat([problem.model.encode(x[rows]) for rows in self._chunks()]))
            for index in range(1, problem.num_layers + 1):
                local = self._halo(index).gather(f"forward {index}", self._embeddings[-1])
                parts = [self._rows(index, local, self._embeddings[0], rows) for rows in self._chunks()]
                self._embeddings.append(torch.cat(parts))

    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect the rank's part of every gradient."""
        v = self._start()
        x0_term = torch.zeros_like(self._embeddings[0])
        for index in range(self.problem.num_layers, 0, -1):
            below = self._backward_layer(index, v, x0_term)
            if index > 1 or self._encoder:
                v = self._halo(index).send_back(f"backward {index}", below)
        if self._encoder:
            self._backward_encoder(v + x0_term)

    def results(self) -> tuple[float, Gradient]:
        """Return loss and gradient, summed over the ranks."""
        watch = self._watch
        gradient = {name: summed(f"gradient of {name}", value, watch) for name, value in self.gradient.items()}
        return float(summed("loss", self.loss, watch)), gradient

    def _start(self) -> Tensor:
        problem, found = self.problem, []
        head = problem.parameters_of(problem.model.head)
        for rows in self._chunks():
            h = self._embeddings[-1][rows].clone().requires_grad_()
            with torch.enable_grad():
                value = ordered_sum(problem.node_losses(problem.model.predict(h), self._own[rows]))
            self.loss += value.detach()
            found += differentiate(value, [h], head, None, self.gradient)
        return torch.cat(found)

    def _backward_layer(self, index: int, v: Tensor, x0_term: Tensor) -> Tensor:
        """Return what the rank's rows send to their local set, and add what they send to x0."""
        layer = self.problem.model.layer(index)
        own = self.problem.parameters_of(layer)
        needs_input, reads_x0 = index > 1 or bool(self._encoder), layer.reads_x0 and bool(self._encoder)
        local = self._halo(index).gather(f"backward {index}, rows", self._embeddings[index - 1])
        total = torch.zeros_like(local)
        for rows in self._chunks():
            h, x0 = local.detach().requires_grad_(needs_input), self._embeddings[0].detach().requires_grad_(reads_x0)
            with torch.enable_grad():
                out = self._rows(index, h, x0, rows)
            inputs = [value for value in (h, x0) if value.requires_grad]
            grads = differentiate(out, inputs, own, v[rows], self.gradient)
            if needs_input:
                total += grads.pop(0)
            if reads_x0:
                x0_term += grads.pop(0)
        return total

    def _backward_encoder(self, v: Tensor) -> None:
        x = self.problem.graph.x[self._own]
        for rows in self._chunks():
            with torch.enable_grad():
                out = self.problem.model.encode(x[rows])
            differentiate(out, [], self._encoder, v[rows], self.gradient)

    def _rows(self, index: int, local: Tensor, x0: Tensor, rows: slice) -> Tensor:
        layer, halo = self.problem.model.layer(index), self._halo(index)
        block = self.problem.graph.block(layer.operator, self._own[rows], halo.local)
        out: Tensor = layer(local, local[rows], x0[rows], block)
        return out

    def _halo(self, index: int) -> Halo:
        return self._halos[self.problem.model.layer(index).operator]

    def _chunks(self) -> Iterator[slice]:
        """Yield ranges of the rank's rows, one empty range where it has none; each is a sign of life."""
        for start in range(0, max(self._own.numel(), 1), _CHUNK):
            yield slice(start, min(start + _CHUNK, self._own.numel()))
            self._watch.beat()


def _default_owner(num_nodes: int, size: int) -> Tensor:
    return torch.arange(num_nodes) * size // num_nodes


def _checked(owner: Tensor, num_nodes: int, watch: Watch) -> Tensor:
    if owner.dtype != torch.int64 or owner.shape != (num_nodes,):
        raise InvalidInputError(f"owner must be int64 [{num_nodes}], got {owner.dtype} {tuple(owner.shape)}")
    if int(owner.min()) < 0 or int(owner.max()) >= watch.size:
        raise InvalidInputError(
            f"owner names rank {int(owner.max()) if int(owner.max()) >= watch.size else int(owner.min())}, there are "
            f"ranks 0 ... {watch.size - 1}"
        )
    return owner


def _check_same(problem: Problem, owner: Tensor, watch: Watch) -> None:
    """Refuse ranks that were given different problems: they would exchange rows of different functions."""
    about = {
        "graph": problem.graph.checksum,
        "parameters": problem.parameter_fingerprint(),
        "model": problem.function_fingerprint(),
        "trained parameters": " ".join(problem.parameter_names),
        "owner": repr(zlib.crc32(owner.cpu().numpy().tobytes())),
    }
    hashes = [
        int.from_bytes(hashlib.blake2b(value.encode(), digest_size=7).digest(), "big") for value in about.values()
    ]
    mine = torch.tensor(hashes, device=owner.device)
    every = [torch.empty_like(mine) for _ in range(watch.size)]
    watch.run("comparison of the problems", lambda: dist.all_gather(every, mine))
    for rank, other in enumerate(every):
        for name, same in zip(about, (other == mine).tolist(), strict=True):
            if not same:
                raise InvalidInputError(
                    f"rank {rank} was given another problem than rank {watch.rank}: its {name} differs; give every "
                    "rank the same one"
                )
