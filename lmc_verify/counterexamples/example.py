"""What a counterexample is: an instance (graph, model with parameters, batch design) and the verdict that refutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictInt, StrictStr, TypeAdapter
from torch import Tensor

from lmc_verify.cases import Case, known_histories, prepared_state
from lmc_verify.claims import Verdict, find_claim
from lmc_verify.counterexamples.instance import Instance, ModelPlan, build_design, describe_design
from lmc_verify.counterexamples.storage import damaged, read_files, write_files
from lmc_verify.encoding import untagged
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.estimators import Estimator, make_estimator
from lmc_verify.estimators.registry import registered_settings
from lmc_verify.graphs import Batch, Graph
from lmc_verify.objective import exact_pass, gradient_sum
from lmc_verify.provenance import environment
from lmc_verify.seeds import MOST_SEED

__all__ = ["Counterexample", "load_counterexample", "measured_tensors", "save_counterexample"]

_GRAPH = ("edge_index", "edge_weight", "edge_attr", "x", "y", "train_mask")
_PARAMETERS = "parameters."
_MEASURED = ("history.", "mean.", "exact.")


@dataclass(frozen=True, eq=False)
class Counterexample:
    """An instance on which a claim is refuted for an estimator.

    Attributes:
        claim: id of the claim.
        estimator: the estimator.
        instance: graph, model and batch design.
        histories: what the case's histories hold: ``"exact"``, ``"zero"`` or ``"sweeps:K"``.
        seed: seed of the search, recorded in the verdict.
        verdict: the claim's own verdict, REFUTED.
        tensors: what was measured, by name: ``history.embedding.L`` and ``history.auxiliary.L`` (the tables that the
            estimates read), ``mean.PARAMETER`` (the mean estimate over the design) and ``exact.PARAMETER``.
        search: how it was found, for the record.
        environment: what it was found on.
    """

    claim: str
    estimator: Estimator
    instance: Instance
    histories: str
    seed: int
    verdict: Verdict
    tensors: Mapping[str, Tensor]
    search: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=environment)

    @property
    def name(self) -> str:
        """File name without suffix, such as ``theorem-1-unbiased-gas``."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.claim}-{self.estimator.name}").strip("-")

    @property
    def batches(self) -> list[tuple[Batch, float]]:
        """Every batch of the design with its probability."""
        return list(self.instance.design.enumerate())

    def case(self) -> Case:
        """Build the case and return it."""
        return self.instance.case(self.estimator, self.histories, self.seed)

    def replay(self) -> tuple[Verdict, dict[str, Tensor]]:
        """Check the claim again and return its verdict and what is measured now."""
        case = self.case()
        verdict = find_claim(self.claim).check(case)
        return verdict, measured_tensors(case, verdict)

    def save(self, folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
        """Write ``NAME.safetensors`` and ``NAME.json``, see `save_counterexample`."""
        return save_counterexample(self, folder, name)


def measured_tensors(case: Case, verdict: Verdict) -> dict[str, Tensor]:
    """Return history tables, mean estimate and exact gradient of a case, by name.

    The histories are those that the claim has used: some claims fix them themselves, and their verdict says so.
    """
    state = prepared_state(case, verdict.case.histories or case.histories)
    out = {f"history.embedding.{layer}": table.clone() for layer, table in state.embeddings.items()}
    out |= {f"history.auxiliary.{layer}": table.clone() for layer, table in state.auxiliary.items()}
    mean = case.problem.zero_gradient()
    for batch, probability in case.design.enumerate():
        mean = gradient_sum(mean, case.estimate(state, batch).gradient, probability)
    out |= {f"mean.{name}": value for name, value in mean.items()}
    out |= {f"exact.{name}": value for name, value in exact_pass(case.problem).gradient.items()}
    return {name: value.detach() for name, value in out.items()}


def save_counterexample(example: Counterexample, folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.safetensors`` into a folder and return their paths.

    An estimator that is not registered (a user's own, a seeded defect) is kept by name only: `load_counterexample`
    then has to be given the object.

    Raises:
        OutputError: the folder cannot be written.
        InvalidInputError: a name that is not a plain file name.
    """
    name = name or example.name
    if Path(name).name != name or "." in name:
        raise InvalidInputError(f"{name!r} is not a plain file name; leave out folders and dots")
    instance = example.instance
    tensors = {key: getattr(instance.graph, key) for key in _GRAPH if getattr(instance.graph, key) is not None}
    partition = getattr(instance.design, "partition", None)
    if partition is not None:
        tensors["partition"] = partition.assignment
    tensors |= {f"{_PARAMETERS}{key}": value for key, value in instance.parameters.items()}
    tensors |= dict(example.tensors)
    document = {
        "claim": example.claim,
        "estimator": {"name": example.estimator.name, "settings": registered_settings(example.estimator)},
        "model": {"name": instance.model.name, "settings": dict(instance.model.settings)},
        "design": describe_design(instance.design),
        "names": {"graph": instance.graph.name, "partition": None if partition is None else partition.method},
        "histories": example.histories,
        "seed": example.seed,
        "search": dict(example.search),
        "verdict": example.verdict.to_dict(),
        "environment": dict(example.environment),
    }
    return write_files(document, tensors, Path(folder), name)


def load_counterexample(path: str | Path, estimator: Estimator | None = None) -> Counterexample:
    """Read what `save_counterexample` wrote.

    Args:
        path: the JSON file or the safetensors file; the other one must be in the same folder.
        estimator: the estimator, where the file keeps one that is not registered by name only.

    Raises:
        InvalidInputError: a file that is missing, damaged, changed, foreign, or of a newer version.
    """
    document, tensors = read_files(Path(path))
    try:
        stored = _READ.validate_python(document)
        _require_fitting(stored.model.settings, tensors)
        return _assemble(stored, tensors, estimator)
    except LmcVerifyError:
        raise
    except _UNREADABLE as error:
        raise damaged(Path(path), f"a part is missing or of another type ({error!r:.500})") from error


_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError)
"""What the parts of the package raise at values of another type or size."""

_FEW = 1000
"""A number in a model's settings that is never too large: of propagation steps that share their parameters."""


@dataclass
class _Named:
    name: StrictStr
    settings: dict[str, Any] | None


@dataclass
class _Model:
    name: StrictStr
    settings: dict[str, Any]


@dataclass
class _Names:
    graph: StrictStr
    partition: StrictStr | None


@dataclass
class _Document:
    """What is read of a counterexample's JSON file."""

    claim: StrictStr
    estimator: _Named
    model: _Model
    design: dict[str, Any]
    names: _Names
    histories: StrictStr
    seed: Annotated[StrictInt, Field(ge=0, le=MOST_SEED)]
    search: dict[str, Any]
    verdict: dict[str, Any]
    environment: dict[str, Any]


_READ = TypeAdapter(_Document)


def _require_fitting(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise InvalidInputError for settings of a model that is larger than the parameters in the file.

    The model is built before its parameters are compared: a number that is a million times too large is a memory that
    is, too.
    """
    most = max(_FEW, sum(value.numel() for name, value in tensors.items() if name.startswith(_PARAMETERS)))
    for name, value in settings.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise InvalidInputError(
                    f"the counterexample's model has {name} {value!r:.80}, too large for the parameters in the file; "
                    f"it must be at most {most:,}"
                )


def _assemble(document: _Document, tensors: Mapping[str, Tensor], estimator: Estimator | None) -> Counterexample:
    stored = document.estimator
    if estimator is None:
        if stored.settings is None:
            raise InvalidInputError(
                f"the counterexample is of the estimator {stored.name!r}, which is not registered by name; load it "
                "from Python with load_counterexample(path, estimator=...)"
            )
        estimator = make_estimator(stored.name, **stored.settings)
    elif estimator.name != stored.name:
        raise InvalidInputError(
            f"the counterexample is of the estimator {stored.name!r}, {estimator.name!r} was given; give that one"
        )
    fields: dict[str, Any] = {key: tensors.get(key) for key in _GRAPH}
    graph = Graph(**fields, name=document.names.graph)
    instance = Instance(
        graph=graph,
        model=ModelPlan(document.model.name, document.model.settings),
        parameters={
            key.removeprefix(_PARAMETERS): value for key, value in tensors.items() if key.startswith(_PARAMETERS)
        },
        design=build_design(document.design, graph.num_nodes, tensors.get("partition"), str(document.names.partition)),
    )
    return Counterexample(
        claim=find_claim(document.claim).id,
        estimator=estimator,
        instance=instance,
        histories=known_histories(document.histories),
        seed=document.seed,
        verdict=Verdict.from_dict(untagged(document.verdict)),
        tensors={key: value for key, value in tensors.items() if key.startswith(_MEASURED)},
        search=document.search,
        environment=document.environment,
    )
