"""Cases: the graph, problem, design and estimator of one check, built from its settings.

Every case is built in float64 and from its own seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmc_verify.batches import BatchDesign, Clusters, EpochClusters, FusedClusters, OneBatch, UniformNodes
from lmc_verify.datasets import dataset_info, dataset_registry, load_graph
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import (
    ESTIMATORS,
    Estimator,
    History,
    Sampling,
    batch_law,
    make_estimator,
    unwrapped,
)
from lmc_verify.exact import ExactPass, exact_pass
from lmc_verify.graph import Graph
from lmc_verify.models import MODELS, LayeredModel, check_jump, check_options, graph_settings, make_model
from lmc_verify.partition import Partition, make_partition
from lmc_verify.plugins import plugin_versions
from lmc_verify.problem import Problem
from lmc_verify.seeds import generator
from lmc_verify.settings import (
    CaseSettings,
    DatasetSettings,
    DesignSettings,
    EstimatorSettings,
    ModelSettings,
    SamplingSettings,
    TrainingSettings,
    known_histories,
)

if TYPE_CHECKING:
    from lmc_verify.training import RunSettings

__all__ = [
    "Case",
    "Workspace",
    "assemble_case",
    "build_case",
    "build_design",
    "build_estimator",
    "case_plugins",
    "check_dataset",
    "sweep_batches",
]


@dataclass
class Workspace:
    """Where data come from, and what cases share: graphs, partitions and exact passes are made once.

    Attributes:
        data_root: folder with raw files of real data sets, or None.
        download: whether missing raw files may be downloaded.
    """

    data_root: Path | None = None
    download: bool = False
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)
    _exact: dict[Problem, ExactPass] = field(default_factory=dict, repr=False)

    def graph(self, settings: DatasetSettings, seed: int, dtype: torch.dtype = torch.float64) -> Graph:
        """Load a data set, by default in float64."""
        key = f"graph {settings.model_dump_json()} {seed} {dtype}"
        if key not in self._cache:
            self._cache[key] = load_graph(
                settings.name, data_root=self.data_root, download=self.download, seed=seed, **settings.settings
            ).to(dtype=dtype)
        graph: Graph = self._cache[key]
        return graph

    def partition(self, graph: Graph, method: str, parts: int, seed: int) -> Partition:
        """Partition a graph."""
        key = f"partition {graph.fingerprint} {method} {parts} {seed}"
        if key not in self._cache:
            self._cache[key] = make_partition(graph, method, parts, seed=seed)
        partition: Partition = self._cache[key]
        return partition

    def arranged(self, graph: Graph, partition: Partition) -> tuple[Graph, Partition]:
        """Rename a graph's nodes cluster by cluster; see `lmc_verify.Partition.arrange`."""
        key = f"arranged {graph.fingerprint} {partition.fingerprint}"
        if key not in self._cache:
            self._cache[key] = partition.arrange(graph)
        arranged: tuple[Graph, Partition] = self._cache[key]
        return arranged

    def problem(self, graph: Graph, settings: ModelSettings, seed: int) -> Problem:
        """Build a model for a graph in the graph's precision, in evaluation mode."""
        key = f"problem {graph.fingerprint} {settings.model_dump_json()} {seed}"
        if key not in self._cache:
            check_options(settings.name, settings.options)
            check_jump(settings.name, settings.jump)
            model = make_model(
                settings.name,
                graph.num_features,
                settings.width,
                graph.num_outputs,
                num_layers=settings.layers,
                activation_cut=settings.activation_cut,
                activation=settings.activation,
                encoder=settings.encoder,
                head=settings.head,
                norm=settings.norm,
                residual=settings.residual,
                dropout=settings.dropout,
                seed=seed,
                dtype=graph.dtype,
                **({} if settings.jump is None else {"jump": settings.jump}),
                **graph_settings(settings.name, graph),
                **settings.options,
            )
            _freeze(model, settings.frozen)
            self._cache[key] = Problem(graph, model.eval(), "bce" if graph.multi_label else "cross_entropy")
        problem: Problem = self._cache[key]
        return problem

    def exact(self, problem: Problem) -> ExactPass:
        """Return the exact pass of a problem."""
        # By identity: two problems may agree in graph and parameters and still differ, say in the activation cut.
        if problem not in self._exact:
            self._exact[problem] = exact_pass(problem)
        return self._exact[problem]


@dataclass(frozen=True, eq=False)
class Case:
    """One case: everything that a claim needs to be checked.

    Attributes:
        problem: in float64, in evaluation mode.
        design: the law of the batches: the design that was given and, with it, the samples of an estimator that has
            randomness of its own, at the case's initial state.
        estimator: the estimator under test.
        exact: the exact pass of `problem`.
        histories: ``"exact"``, ``"zero"`` or ``"sweeps:K"``, see `CaseSettings`.
        seed: root seed, for the record.
        settings: what the case was built from, or None if it was assembled from objects.
        sampling: error level and budget of statistical verdicts.
        training: the training runs along which convergence is checked.
    """

    problem: Problem
    design: BatchDesign
    estimator: Estimator
    exact: ExactPass
    histories: str = "exact"
    seed: int = 0
    settings: CaseSettings | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if isinstance(self.estimator, Sampling):
            law = batch_law(self.estimator, self.problem, self.initial_state(), self.design)
            object.__setattr__(self, "design", law)
        else:
            object.__setattr__(self, "design", unwrapped(self.design))

    @property
    def graph(self) -> Graph:
        """The graph of the problem."""
        return self.problem.graph

    @property
    def partition(self) -> Partition | None:
        """The clusters that the design draws from, or None."""
        partition = getattr(self.base_design, "partition", None)
        return partition if isinstance(partition, Partition) else None

    @property
    def normaliser(self) -> str:
        """The estimator's normaliser."""
        return str(getattr(self.estimator, "normaliser", "inclusion"))

    @property
    def conditioned(self) -> bool:
        """Whether the design is conditioned on clusters that an epoch has already visited."""
        return bool(getattr(self.base_design, "seen", ()))

    @property
    def base_design(self) -> BatchDesign:
        """The design of the batches, without the samples of the estimator."""
        return unwrapped(self.design)

    def initial_state(self) -> History:
        """Return a state with the histories that the case asks for."""
        return prepared_state(self, self.histories)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The case as flat values for records and reports."""
        graph, problem, design, settings = self.graph, self.problem, self.design, self.settings
        base = self.base_design
        out: dict[str, Any] = {
            "dataset": graph.name if settings is None else settings.dataset.describe(),
            "nodes": graph.num_nodes,
            "edges": graph.num_edges,
            "model": type(problem.model).__name__.lower() if settings is None else settings.model.name,
            "layers": problem.num_layers,
            "width": max(problem.widths[1:]) if settings is None else settings.model.width,
        }
        if settings is not None:
            model = settings.model
            out["activation_cut"] = model.activation_cut
            if model.activation != "relu":
                out["activation"] = model.activation
            out.update(
                {
                    key: getattr(model, key)
                    for key in ("encoder", "head", "residual", "norm", "jump", "dropout", "frozen")
                    if getattr(model, key)
                }
            )
            out.update(model.options)
        out |= {
            "estimator": self.estimator.name,
            "normaliser": self.normaliser,
            "design": type(base).__name__ if settings is None else settings.design.name,
            "per_batch": getattr(base, "per_batch", getattr(base, "size", None)),
            "support": design.support_size if design.support_size < 10**15 else readable_count(design.support_size),
            "histories": self.histories,
            "seed": self.seed,
            "dtype": str(graph.dtype).removeprefix("torch."),
        }
        if settings is not None:
            for key, value in settings.estimator.settings.items():
                out.setdefault(key, value)
        if hasattr(design, "normalisation"):
            out["normalisation"] = design.normalisation
        if self.partition is not None:
            out["partition"] = self.partition.method
            out["parts"] = self.partition.num_parts
        if self.sampling.replicate:
            out["replicate"] = self.sampling.replicate
        if self.conditioned:
            out["seen"] = ",".join(map(str, getattr(base, "seen", ())))
        return out

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """Content hashes of what the verdict depends on."""
        out = {"graph": self.graph.fingerprint, "parameters": self.problem.parameter_fingerprint()}
        if self.partition is not None:
            out["partition"] = self.partition.fingerprint
        return out | (case_plugins(self.settings) if self.settings is not None else {})


def case_plugins(settings: CaseSettings | RunSettings) -> dict[str, str]:
    """Return the fingerprints of the plug-ins that a case or a training run is built from, by kind and name.

    Raises:
        PluginError: one of them cannot be used.
    """
    return plugin_versions(
        (dataset_registry(), settings.dataset.name),
        (MODELS, settings.model.name),
        (ESTIMATORS, settings.estimator.name),
    )


def _freeze(model: LayeredModel, parts: Sequence[str]) -> None:
    """Exclude the parameters of some parts from training.

    Raises:
        InvalidInputError: the model has no such part, or nothing is left to train.
    """
    known: dict[str, nn.Module | None] = {
        "encoder": model.encoder,
        "head": model.head,
        **{f"layer {index}": model.layer(index) for index in range(1, model.num_layers + 1)},
    }
    known = {name: part for name, part in known.items() if part is not None}
    for name in parts:
        part = known.get(name)
        if part is None:
            raise InvalidInputError(f"model.frozen names {name!r}, the model has {', '.join(known)}; name one of these")
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidInputError(f"model.frozen is {list(parts)}, which leaves nothing to train; leave a part out of it")


def check_dataset(settings: DatasetSettings) -> None:
    """Refuse an unknown data set, or an option that it does not have, before anything is loaded.

    Raises:
        InvalidInputError: the message names it, with the known ones.
    """
    known = [name for name, _ in dataset_info(settings.name).options]
    for option in settings.settings:
        if option not in known:
            rest = f"its options are {', '.join(map(repr, known))}" if known else "it takes no options"
            raise InvalidInputError(f"data set {settings.name!r} has no option {option!r}: {rest}")


def build_estimator(settings: EstimatorSettings) -> Estimator:
    """Build an estimator from settings.

    Raises:
        InvalidInputError: an unknown name or setting, or a value of another type.
    """
    try:
        return make_estimator(settings.name, **settings.settings)
    except InvalidInputError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the settings of estimator {settings.describe()} do not fit: {error}") from error


def readable_count(number: int) -> str:
    """Return a number with thousands separators, or its power of ten where it is astronomic."""
    return f"{number:,}" if number < 10**15 else f"about 10^{math.log10(number):.0f}"


def build_case(settings: CaseSettings, workspace: Workspace | None = None) -> Case:
    """Build the objects of a case.

    Raises:
        InvalidInputError: anything in the settings that does not fit; the message names it.
    """
    workspace = workspace or Workspace()
    graph = workspace.graph(settings.dataset, settings.seed)
    problem = workspace.problem(graph, settings.model, settings.seed)
    return Case(
        problem=problem,
        design=build_design(settings.design, graph, workspace, settings.seed),
        estimator=build_estimator(settings.estimator),
        exact=workspace.exact(problem),
        histories=settings.histories,
        seed=settings.seed,
        settings=settings,
        sampling=settings.sampling,
        training=settings.training,
    )


def assemble_case(
    problem: Problem,
    design: BatchDesign,
    estimator: Estimator,
    *,
    histories: str = "exact",
    seed: int = 0,
    sampling: SamplingSettings | None = None,
    training: TrainingSettings | None = None,
) -> Case:
    """Make a case of objects: a user's own graph, model, design or estimator.

    Raises:
        InvalidInputError: the problem is not in float64, or `histories` is none of exact, zero and sweeps:K.
    """
    if problem.graph.dtype != torch.float64:
        raise InvalidInputError(
            f"the problem is in {problem.graph.dtype}, claims are checked in float64; pass problem.double()"
        )
    covered = design.inclusion_probabilities().numel()
    if covered != problem.graph.num_nodes:
        raise InvalidInputError(
            f"the batch design covers {covered} nodes, the graph has {problem.graph.num_nodes}; "
            "build the design from this graph"
        )
    return Case(
        problem,
        design,
        estimator,
        exact_pass(problem),
        known_histories(histories),
        seed,
        sampling=sampling or SamplingSettings(),
        training=training or TrainingSettings(),
    )


def build_design(wanted: DesignSettings, graph: Graph, workspace: Workspace, seed: int) -> BatchDesign:
    """Build a batch design on a graph; the seed is that of partitions.

    Raises:
        InvalidInputError: it does not fit the graph, such as more parts than nodes.
    """
    if wanted.name == "nodes":
        return UniformNodes(graph.num_nodes, wanted.per_batch)
    partition = workspace.partition(graph, wanted.partition, wanted.parts, seed)
    if wanted.name == "clusters":
        return Clusters(partition, wanted.per_batch)
    if wanted.name == "epoch":
        return EpochClusters(partition, wanted.per_batch, wanted.seen)
    return FusedClusters(partition, wanted.per_batch, seed)


def prepared_state(case: Case, histories: str) -> History:
    """Return a state of the case's estimator with ``"exact"``, ``"zero"`` or ``"sweeps:k"`` histories.

    Raises:
        InvalidInputError: sweeps were asked for a design without clusters.
    """
    state = case.estimator.init(case.problem)
    if state.exact_for is not None:  # holds exact values by definition
        return state
    if histories == "exact":
        return state.filled(case.exact)
    if histories.startswith("sweeps:"):
        rng = generator(case.seed, "samples of sweeps")
        for _ in range(int(histories.removeprefix("sweeps:"))):
            for batch in sweep_batches(case):
                if isinstance(case.estimator, Sampling):
                    law = batch_law(case.estimator, case.problem, state, OneBatch(batch, case.graph.num_nodes))
                    batch = law.draw(rng)
                state.apply(case.estimator.estimate(case.problem, state, batch).writes)
    return state


def sweep_batches(case: Case) -> list[Any]:
    """Return batches that visit every node exactly once: the clusters in order, `per_batch` at a time.

    Raises:
        InvalidInputError: the design has no clusters.
    """
    if case.partition is None:
        raise InvalidInputError("sweeps need a design over clusters, this case draws single nodes; set design.name")
    groups = case.partition.num_parts
    per_batch = min(int(getattr(case.base_design, "per_batch", 1)), groups)
    assignment = torch.arange(groups) // per_batch
    fused = Partition(assignment[case.partition.assignment], "sweep")
    return [batch for batch, _ in Clusters(fused, 1).enumerate()]
