"""GraphSAINT: the model on a sampled subgraph, with weights that make each aggregate and the loss unbiased.

A subgraph S is induced by the union of independent atoms: single nodes, edges' ends, or random walks. A message u -> v
inside of S has weight ``P(v in S) / P(u, v in S)``, a node's loss ``1 / P(v in S)``. With a_v the probability that an
atom holds v, and a_uv that it holds u or v,

    P(v in S) = 1 - (1 - a_v)^t,    P(u, v in S) = 1 - (1 - a_u)^t - (1 - a_v)^t + (1 - a_uv)^t,

so normalisation constants are known wherever the atoms' are: always for nodes and edges, for walks on graphs that are
small enough to follow the walk that avoids u and v. Elsewhere they are estimated from subgraphs drawn in advance.

PyTorch Geometric's loaders of the same names draw from other distributions and weight messages in another way:
``convention="pyg"``.

Source: Zeng, Zhou, Srivastava, Kannan and Prasanna, ICLR 2020; torch_geometric.loader.GraphSAINTSampler.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators.history import History
from lmc_verify.estimators.samplers.laws import COUNTED, device_generator, row_entries
from lmc_verify.estimators.samplers.saint_atoms import Atoms, Distribution, EdgeAtoms, NodeAtoms, WalkAtoms
from lmc_verify.estimators.samplers.saint_pyg import PygEdgeAtoms, PygNodeAtoms, PygWalkAtoms
from lmc_verify.estimators.samplers.sampled import Departure, Sampled
from lmc_verify.graphs import AnyGenerator, Batch, BatchDesign, Block, Graph, LayerSample, Sample
from lmc_verify.objective import Problem
from lmc_verify.seeds import require_seed, torch_generator

__all__ = ["GraphSAINT", "GraphSAINTEdge", "GraphSAINTNode", "GraphSAINTWalk", "Subgraphs"]

CONVENTIONS = ("paper", "pyg")
"""Whose probabilities and weights are used: the paper's, or those of PyTorch Geometric's loaders."""

UNSEEN = 0.1
"""What PyTorch Geometric counts for a node that was never drawn, and its weight of a message whose source never was."""

LARGEST_NORM = 1e4
"""PyTorch Geometric's largest weight of a message."""

LEAN = 1e-6
"""By how much, relative, the probabilities of a message's ends must differ for enumeration to be sure to see it."""


@dataclass(frozen=True, eq=False)
class Subgraphs:
    """The design of GraphSAINT: node sets of `times` atoms, with the messages inside and their weights.

    Attributes:
        base: the design whose place it takes.
        problem: gives the graph and the layers.
        atoms: what subgraphs are made of.
        times: atoms per subgraph.
        presamples: subgraphs from which constants are estimated where they have no closed form.
        seed: of these subgraphs.
        convention: whose weights messages get, see `GraphSAINT`.
    """

    carries_samples: ClassVar[bool] = True
    base: BatchDesign
    problem: Problem
    atoms: Atoms
    times: int
    presamples: int
    seed: int
    convention: str = "paper"
    _cache: dict[str, object] = field(default_factory=dict, repr=False)

    @property
    def normalisation(self) -> str:
        """Whether normalisation constants are in closed form, or estimated, and from what."""
        return f"estimated from {self.presamples:,} subgraphs" if self.atoms.hit() is None else "closed form"

    def inclusion_probabilities(self) -> Tensor:
        """Return ``P(v in S)``, estimated where there is no closed form, float64 [n]."""
        return self._inclusion.cpu()

    def draw(self, generator: AnyGenerator) -> Batch:
        """Draw a subgraph."""
        nodes = self.atoms.draw(self.times, device_generator(generator, self.problem.graph.device))
        return self._batch(torch.unique(nodes))

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield every node set with its probability."""
        for nodes, probability in self._sets().items():
            yield self._batch(torch.tensor(sorted(nodes), device=self.problem.graph.device)), probability

    @property
    def support_size(self) -> int:
        """Number of node sets: exact up to 100,000 sequences of atoms, an upper bound above."""
        if "size" not in self._cache:
            known = self.problem.graph.num_edges <= COUNTED
            kinds = len(self.atoms.distribution()) if known and self._walks <= COUNTED else self._walks
            bound = math.comb(kinds + self.times - 1, self.times)
            self._cache["size"] = len(self._sets()) if bound <= COUNTED else bound
        size = self._cache["size"]
        assert isinstance(size, int)
        return size

    @property
    def _walks(self) -> int:
        """An upper bound of the number of atoms."""
        if not isinstance(self.atoms, WalkAtoms):
            return self.problem.graph.num_nodes + self.problem.graph.num_edges
        rowptr = self.atoms.walked.rowptr
        most = int((rowptr[1:] - rowptr[:-1]).max())
        walks: int = self.problem.graph.num_nodes * max(most, 1) ** self.atoms.length
        return walks

    def _sets(self) -> Distribution:
        if "sets" not in self._cache:
            one = self.atoms.distribution()
            union: Distribution = {frozenset(): 1.0}
            for _ in range(self.times):
                further: Distribution = {}
                for (left, p), (right, q) in product(union.items(), one.items()):
                    further[left | right] = further.get(left | right, 0.0) + p * q
                union = further
            self._cache["sets"] = union
        sets = self._cache["sets"]
        assert isinstance(sets, dict)
        return sets

    @cached_property
    def _counts(self) -> Tensor:
        """Presampled node sets as rows of zeros and ones [presamples, n]."""
        graph = self.problem.graph
        source = torch_generator(self.seed, "graphsaint presamples")
        rng = torch.Generator(graph.device).manual_seed(source.initial_seed())
        drawn = self.atoms.draw(self.presamples * self.times, rng).reshape(self.presamples, -1)
        inside = torch.zeros(self.presamples, graph.num_nodes, dtype=torch.bool, device=graph.device)
        return inside.scatter_(1, drawn, True)

    @cached_property
    def _inclusion(self) -> Tensor:
        hit = self.atoms.hit()
        if hit is None:
            # Of a node that was never seen all that is known is that it is rare.
            least = UNSEEN if self.convention == "pyg" else 1.0
            return self._counts.sum(dim=0).double().clamp(min=least) / self.presamples
        return _at_least_once(hit, self.times)

    def _pairs(self, operator: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Return entries, sources u and destinations v of the messages between two nodes."""
        row, col = operator.csr.row, operator.csr.col.long()
        proper = (row != col).nonzero()[:, 0]
        return proper, col[proper], row[proper]

    def _never_together(self, hit: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return whether two nodes of positive probability are in no subgraph together, bool [pairs]."""
        if self.times > 1:
            return torch.zeros_like(u, dtype=torch.bool)  # two atoms can hold them
        return hit[u] + hit[v] - self.atoms.hit_either(u, v) <= hit[v] * 1e-12

    def misses_messages(self, operator: Block) -> bool:
        """Whether both ends of some message between two nodes of positive probability are never drawn together."""
        hit = self.atoms.hit()
        if hit is None:
            return False  # unknown
        _, u, v = self._pairs(operator)
        positive = (hit[u] > 0) & (hit[v] > 0)
        return bool(self._never_together(hit, u[positive], v[positive]).any())

    def leans(self, operator: Block) -> bool:
        """Whether PyTorch Geometric's weights have another mean than 1 at some message: ``P(u in S) / P(v in S)``."""
        hit = self.atoms.hit()
        if self.convention != "pyg" or hit is None:
            return False
        proper, u, v = self._pairs(operator)
        kept = (hit[u] > 0) & (hit[v] > 0) & (operator.csr.value[proper] != 0)
        u, v = u[kept], v[kept]
        off = (self._inclusion[u] - self._inclusion[v]).abs() > LEAN * self._inclusion[v]
        return bool((off & ~self._never_together(hit, u, v)).any())

    def scales(self, operator: Block) -> Tensor:
        """Return the weight of every message if both ends are in the subgraph, float64 [entries]."""
        out = torch.ones(operator.csr.num_entries, dtype=torch.float64, device=operator.csr.col.device)
        proper, u, v = self._pairs(operator)
        counted = u if self.convention == "pyg" else v  # the end whose probability is divided
        hit = self.atoms.hit()
        if hit is None:
            inside = self._counts
            together = torch.cat([(inside[:, a] & inside[:, b]).sum(dim=0) for a, b in _chunks(u, v)])
            alone = inside.sum(dim=0)[counted].double()
            if self.convention == "pyg":
                out[proper] = (alone / together).nan_to_num(nan=UNSEEN, posinf=LARGEST_NORM).clamp(max=LARGEST_NORM)
            else:
                out[proper] = torch.where(together > 0, alone / together.clamp(min=1), torch.ones_like(alone))
            return out
        either, p = self.atoms.hit_either(u, v), self._inclusion[counted]
        # P(u, v) = P(u) - P(u in S, v not in S), the latter (1 - a_v)^t (1 - ((1 - a_uv) / (1 - a_v))^t).
        rest = (1 - hit[v]).clamp(min=torch.finfo(torch.float64).tiny)
        without = (1 - hit[v]) ** self.times * _at_least_once(((either - hit[v]) / rest).clamp(0, 1), self.times)
        both = self._inclusion[u] - without
        out[proper] = torch.where(both > 0, p / both.clamp(min=torch.finfo(torch.float64).tiny), torch.ones_like(p))
        return out

    def _scale(self, kind: str) -> Tensor:
        key = f"scale {kind}"
        if key not in self._cache:
            self._cache[key] = self.scales(self.problem.graph.operator(kind))
        scale = self._cache[key]
        assert isinstance(scale, Tensor)
        return scale

    def _batch(self, nodes: Tensor) -> Batch:
        problem, known = self.problem, dict[str, LayerSample]()
        for index in range(1, problem.num_layers + 1):
            kind = problem.model.layer(index).operator
            if kind not in known:
                known[kind] = self._inside(kind, nodes)
        layers = tuple(known[problem.model.layer(index).operator] for index in range(1, problem.num_layers + 1))
        batch = Batch(nodes.cpu(), self._inclusion[nodes].cpu())
        return replace(batch, sample=Sample(layers))

    def _inside(self, kind: str, nodes: Tensor) -> LayerSample:
        operator = self.problem.graph.operator(kind)
        position, entry = row_entries(operator, nodes)
        source = operator.csr.col[entry].long()
        place = torch.searchsorted(nodes, source).clamp(max=nodes.numel() - 1)
        inside = nodes[place] == source
        kept = entry[inside]
        return LayerSample(nodes, nodes, position[inside], place[inside], kept, self._scale(kind)[kept])


def _at_least_once(probability: Tensor, times: int) -> Tensor:
    """Return ``1 - (1 - p)^t`` without cancellation."""
    return -torch.expm1(times * torch.log1p(-probability.clamp(max=1.0)))


def _chunks(u: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(u.split(10_000), v.split(10_000), strict=True)


@dataclass(frozen=True)
class GraphSAINT(Sampled, ABC):
    """Base of GraphSAINT's samplers: the model on a weighted random subgraph. One subgraph serves every layer.

    Attributes:
        presamples: subgraphs from which normalisation constants are estimated where they have no closed form.
        seed: of these subgraphs.
        constants: ``"closed form"`` where there is one, or ``"estimated"`` always.
        convention: ``"paper"``, or ``"pyg"`` for the distributions and weights of PyTorch Geometric's loaders: nodes by
            their number of out-edges (paper: squared column norms), edges u -> v by in-degree of u plus out-degree of v
            (paper: ``1/deg(u) + 1/deg(v)``), walks along edges (here: along messages backwards), and a message u -> v
            weighted by ``P(u in S) / P(u, v in S)`` (paper: ``P(v in S) / P(u, v in S)``), whose mean at a row v is
            ``P(u in S) / P(v in S)``.

    Raises:
        InvalidInputError: a size below 1.
        UnknownNameError: an unknown way to get the constants, or an unknown convention.
    """

    independent_layers: ClassVar[bool] = False
    reweights: ClassVar[bool] = True
    presamples: int = field(default=1000, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    constants: str = field(default="closed form", kw_only=True)
    convention: str = field(default="paper", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        if self.constants not in ("closed form", "estimated"):
            raise UnknownNameError("constants", self.constants, ("closed form", "estimated"))
        if self.convention not in CONVENTIONS:
            raise UnknownNameError("convention", self.convention, CONVENTIONS)
        for name, value in (("presamples", self.presamples), *self._sizes):
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} is {value}, it must be a whole number of at least 1")

    @property
    @abstractmethod
    def _sizes(self) -> tuple[tuple[str, int], ...]:
        """Names and values of the sizes, the number of atoms first."""

    @abstractmethod
    def atoms(self, graph: Graph) -> Atoms:
        """Return what subgraphs are made of."""

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> Subgraphs:
        """Return the distribution of subgraphs, which takes the place of the design."""
        atoms = self.atoms(problem.graph)
        if self.constants == "estimated":
            atoms = _Unknown(atoms.graph, atoms)
        return Subgraphs(design, problem, atoms, self._sizes[0][1], self.presamples, self.seed, self.convention)

    def estimated_weights(self, problem: Problem) -> str:
        """Return where the constants come from, if they are estimated."""
        unknown = self.constants == "estimated" or self.atoms(problem.graph).hit() is None
        return "normalisation constants are estimated from drawn subgraphs" if unknown else ""

    def departure(self, problem: Problem, design: BatchDesign) -> Departure | None:
        """Return that PyTorch Geometric's weights are used, where the paper's are others."""
        assert isinstance(design, Subgraphs)
        kinds = {problem.model.layer(index).operator for index in range(1, problem.num_layers + 1)}
        if not any(design.leans(problem.graph.operator(kind)) for kind in kinds):
            return None
        return Departure(
            "messages are divided by the probability of their source, not by that of the row", certain=True
        )

    def missed(self, problem: Problem, design: BatchDesign) -> str:
        """Return that some labelled nodes, or some messages of nodes that are drawn, are in no subgraph."""
        assert isinstance(design, Subgraphs)
        inclusion = design.inclusion_probabilities()
        if bool((inclusion[problem.graph.train_mask.cpu()] == 0).any()):
            return "some labelled nodes are in no subgraph"
        kinds = {problem.model.layer(index).operator for index in range(1, problem.num_layers + 1)}
        if any(design.misses_messages(problem.graph.operator(kind)) for kind in kinds):
            return "some messages' ends are never in a subgraph together"
        return ""

    def largest_scales(self, problem: Problem, design: BatchDesign) -> tuple[Tensor, ...]:
        """Return every message's weight."""
        assert isinstance(design, Subgraphs)
        kinds = [problem.model.layer(index).operator for index in range(1, problem.num_layers + 1)]
        return tuple(design.scales(problem.graph.operator(kind)) for kind in kinds)


@dataclass(frozen=True, eq=False)
class _Unknown(Atoms):
    """Atoms whose probabilities are taken as unknown."""

    graph: Graph
    atoms: Atoms

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw from the atoms."""
        return self.atoms.draw(count, generator)

    def distribution(self) -> Distribution:
        """Return the atoms' distribution."""
        return self.atoms.distribution()

    def hit(self) -> None:
        """Return None."""

    def hit_either(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the atoms' own."""
        return self.atoms.hit_either(u, v)


@dataclass(frozen=True)
class GraphSAINTNode(GraphSAINT):
    """GraphSAINT's node sampler: subgraphs of nodes drawn by the squared norms of the GCN operator's columns.

    Attributes:
        nodes: draws per subgraph, with replacement.
    """

    name: ClassVar[str] = "graphsaint-node"
    nodes: int = 8

    @property
    def _sizes(self) -> tuple[tuple[str, int], ...]:
        return (("nodes", self.nodes),)

    def atoms(self, graph: Graph) -> Atoms:
        """Return single nodes."""
        return PygNodeAtoms(graph) if self.convention == "pyg" else NodeAtoms(graph)


@dataclass(frozen=True)
class GraphSAINTEdge(GraphSAINT):
    """GraphSAINT's edge sampler: subgraphs of the ends of edges, drawn by ``1/deg(u) + 1/deg(v)``.

    An isolated node is never in a subgraph, so its part of the gradient is missed.

    Attributes:
        edges: draws per subgraph, with replacement.
    """

    name: ClassVar[str] = "graphsaint-edge"
    edges: int = 8

    @property
    def _sizes(self) -> tuple[tuple[str, int], ...]:
        return (("edges", self.edges),)

    def atoms(self, graph: Graph) -> Atoms:
        """Return ends of edges."""
        return PygEdgeAtoms(graph) if self.convention == "pyg" else EdgeAtoms(graph)


@dataclass(frozen=True)
class GraphSAINTWalk(GraphSAINT):
    """GraphSAINT's random-walk sampler: subgraphs of walks from uniform roots.

    Attributes:
        roots: walks per subgraph.
        length: steps of a walk.
    """

    name: ClassVar[str] = "graphsaint-walk"
    roots: int = 4
    length: int = 2

    @property
    def _sizes(self) -> tuple[tuple[str, int], ...]:
        return (("roots", self.roots), ("length", self.length))

    def atoms(self, graph: Graph) -> Atoms:
        """Return walks."""
        return PygWalkAtoms(graph, self.length) if self.convention == "pyg" else WalkAtoms(graph, self.length)
