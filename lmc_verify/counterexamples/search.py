"""The search: Hypothesis draws instances until one is refuted, and `simplify` makes that one small and readable.

Hypothesis's own shrinking is left out: it works on the choices that a strategy made, seeds of values among them, and
took two thirds of all checks where `simplify` reaches the same counterexample from the instance as it was drawn.

Finding none proves nothing: it says how many cases were tried. Only claims that are decided by enumeration are
searched, because a statistical refutation of one small case would carry an error probability.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, assume, settings
from hypothesis import find as hypothesis_find
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir, storage_directory
from hypothesis.errors import Flaky, NoSuchExample
from torch import Tensor, nn

from lmc_verify.cases import Case, CaseSettings, known_histories
from lmc_verify.claims import CLAIMS, Outcome, find_claim
from lmc_verify.counterexamples.example import Counterexample, measured_tensors
from lmc_verify.counterexamples.instance import Instance, ModelPlan, build_design, describe_design
from lmc_verify.counterexamples.simplify import simplify
from lmc_verify.errors import InvalidInputError, validated
from lmc_verify.estimators import Estimator
from lmc_verify.models import check_jump
from lmc_verify.testing import graphs, partitions, seeds

__all__ = ["Search", "SearchSpace", "check_search", "find_counterexample"]

_MODEL_KEYS = {"layers": "num_layers", "width": "hidden_channels"}
"""Where a setting of the command line has another name as an argument of the models."""
_MAX_SUPPORT = 20
_MAX_PARTS = 4
_FLAT = 1e-6
"""A weight's gradient below this is taken for vanished, an activation's input below this for its kink."""


@dataclass(frozen=True)
class SearchSpace:
    """Where counterexamples are looked for.

    By default: GCN and SAGE with the pre-activation cut, 1 to 3 layers, for which LMC with beta = 0 can be exact, on
    undirected graphs; any setting can be pinned to another value.

    Attributes:
        max_nodes: largest number of nodes.
        directed: whether edges may lack their reverse.
        model: pinned settings of the model, by the names of `lmc_verify.cases.settings.ModelSettings`.
        design: pinned settings of the batch design, by the names of `DesignSettings` (except ``partition``: clusters
            are drawn).

    Raises:
        InvalidInputError: max_nodes outside 1 ... 12, a setting that cannot be pinned, or an unknown model.
    """

    max_nodes: int = 6
    directed: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    design: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.max_nodes <= 12:
            raise InvalidInputError(
                f"max_nodes is {self.max_nodes}, it must lie in 1 ... 12; larger counterexamples are found by checking "
                "the claim on a data set"
            )
        bad = sorted(set(self.design) - {"name", "parts", "per_batch", "seen"})
        if bad:
            raise InvalidInputError(
                f"design.{bad[0]} cannot be set in a search, clusters are drawn; design.name, design.parts, "
                "design.per_batch and design.seen can"
            )
        if self.model.get("frozen"):
            raise InvalidInputError(
                "model.frozen cannot be set in a search, every parameter is trained; leave it out, or check the claim "
                "on a data set"
            )
        if self.model.get("options"):
            raise InvalidInputError(
                "model.options cannot be set in a search; leave it out, or check the claim on a data set"
            )
        check_jump(str(self.model.get("name", "gcn")), self.model.get("jump"))
        pinned = {"model": dict(self.model), "design": dict(self.design)}
        validated(CaseSettings, pinned, "the pinned settings do not fit")

    @classmethod
    def from_settings(cls, chosen: CaseSettings, **limits: Any) -> SearchSpace:
        """Return the space in which exactly the settings that were given explicitly are pinned.

        Raises:
            InvalidInputError: a setting that a search does not have.
        """
        for part in ("dataset", "sampling", "training"):
            if part in chosen.model_fields_set:
                raise InvalidInputError(
                    f"{part} cannot be set in a search: graphs are drawn, and the claim is decided by enumeration; "
                    "settings of estimator, model and design can"
                )
        pinned = [{key: getattr(item, key) for key in item.model_fields_set} for item in (chosen.model, chosen.design)]
        return cls(model=pinned[0], design=pinned[1], **limits)

    def admits(self, instance: Instance) -> bool:
        """Whether an instance has every pinned setting."""
        graph, model = instance.graph, instance.model
        if graph.num_nodes > self.max_nodes or (not self.directed and not _symmetric(instance)):
            return False
        held = {**model.settings, "name": model.name}
        plain = describe_design(instance.design)
        partition = getattr(instance.design, "partition", None)
        plain["parts"] = None if partition is None else partition.num_parts
        plain["seen"] = tuple(plain.get("seen", ()))
        return all(held.get(_MODEL_KEYS.get(key, key)) == value for key, value in self.model.items()) and all(
            plain[key] == (tuple(value) if key == "seen" else value) for key, value in self.design.items()
        )


@dataclass(frozen=True)
class Search:
    """What a search gave.

    Attributes:
        counterexample: the smallest one that was found, or None.
        cases: cases that were checked until the first refutation, or in all.
        reductions: further checks that simplifying took.
    """

    counterexample: Counterexample | None
    cases: int
    reductions: int = 0

    @property
    def summary(self) -> str:
        """One sentence for a reader."""
        if self.counterexample is None:
            return f"no counterexample among {_count(self.cases, 'case')}; finding none proves nothing"
        graph = self.counterexample.instance.graph
        return (
            f"counterexample with {_count(graph.num_nodes, 'node')} and {_count(graph.num_edges, 'directed edge')}, "
            f"found after {_count(self.cases, 'case')} and reduced in {_count(self.reductions, 'check')}"
        )


def check_search(claim_id: str, histories: str, space: SearchSpace, examples: int, seed: int) -> None:
    """Refuse a search that cannot be made; the arguments are those of `find_counterexample`.

    Raises:
        UnknownNameError: an unknown claim.
        InvalidInputError: a claim of another tier, or an argument that does not fit.
    """
    claim = find_claim(claim_id)
    if claim.tier != "exact":
        known = ", ".join(item.id for item in CLAIMS.usable().values() if item.tier == "exact")
        raise InvalidInputError(
            f"claim {claim_id!r} is of tier {claim.tier!r}: only claims decided by enumeration have minimal "
            f"counterexamples; these are {known}"
        )
    if examples < 1:
        raise InvalidInputError(f"examples is {examples}, it must be at least 1")
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}, it must be at least 0")
    if known_histories(histories).startswith("sweeps:") and space.design.get("name") == "nodes":
        raise InvalidInputError("sweeps need a design over clusters, design.name is 'nodes'; choose clusters")


def find_counterexample(
    claim_id: str,
    estimator: Estimator,
    *,
    histories: str = "exact",
    space: SearchSpace | None = None,
    examples: int = 200,
    seed: int = 0,
) -> Search:
    """Look for the smallest instance on which a claim is refuted for an estimator.

    A case counts when the claim's own check gives REFUTED, no weight matrix's exact gradient vanishes, and no
    activation sits on its kink, where rounding alone would decide. The same seed, code and Hypothesis version give the
    same result (Hypothesis also draws numbers that it finds in the sources of loaded modules outside site-packages).

    Args:
        claim_id: a claim of the exact tier.
        estimator: any `Estimator`; its settings must not depend on the number of nodes.
        histories: what histories hold: ``"exact"``, ``"zero"`` or ``"sweeps:K"``.
        space: where to look.
        examples: cases to draw at most.
        seed: seed of the search.

    Raises:
        UnknownNameError: an unknown claim.
        InvalidInputError: a claim of another tier, or an argument that does not fit.
    """
    claim, space = find_claim(claim_id), space or SearchSpace()
    check_search(claim_id, histories, space, examples, seed)
    needs_clusters = histories.startswith("sweeps:")
    cases = checks = 0
    found = False

    def refuted(instance: Instance) -> bool:
        nonlocal cases, checks, found
        checks += 1
        cases += not found
        case = instance.case(estimator, histories, seed)
        hit = not _degenerate(case) and claim.check(case).outcome is Outcome.REFUTED
        found |= hit
        return hit

    try:
        with _without_hypothesis_files():
            drawn = hypothesis_find(
                _instances(space, needs_clusters),
                refuted,
                settings=settings(
                    max_examples=examples,
                    phases=(Phase.generate,),
                    database=None,
                    deadline=None,
                    derandomize=False,
                    verbosity=Verbosity.quiet,
                    suppress_health_check=list(HealthCheck),
                ),
                random=random.Random(seed),
            )
    except NoSuchExample:
        return Search(None, cases)
    except Flaky as error:
        raise _impure(estimator) from error

    def acceptable(instance: Instance) -> bool:
        try:
            return space.admits(instance) and refuted(instance)
        except InvalidInputError:  # the change made something that does not fit together
            return False

    small = simplify(drawn, acceptable)
    case = small.case(estimator, histories, seed)
    verdict = claim.check(case)
    if verdict.outcome is not Outcome.REFUTED:
        raise _impure(estimator)
    example = Counterexample(
        claim=claim.id,
        estimator=estimator,
        instance=small,
        histories=histories,
        seed=seed,
        verdict=verdict,
        tensors=measured_tensors(case, verdict),
        search={
            "seed": seed,
            "examples": examples,
            "max_nodes": space.max_nodes,
            "directed": space.directed,
            "cases": cases,
            "reductions": checks - cases,
        },
    )
    return Search(example, cases, checks - cases)


@contextmanager
def _without_hypothesis_files() -> Iterator[None]:
    """Let Hypothesis keep what it caches in a folder that goes away, not in the working directory."""
    before = storage_directory(intent_to_write=False).home_directory
    with tempfile.TemporaryDirectory(prefix="lmc-verify-") as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(before)


# ---------------------------------------------------------------------------------------------- what is drawn


@st.composite
def _instances(draw: st.DrawFn, space: SearchSpace, needs_clusters: bool) -> Instance:
    graph = draw(
        graphs(
            min_nodes=1,
            max_nodes=space.max_nodes,
            max_edges=2 * space.max_nodes,
            directed=None if space.directed else False,
            multi_label=False,
        )
    )
    graph = graph.replaced(name="counterexample", val_mask=None, test_mask=None)
    pinned = dict(space.model)
    name = pinned.pop("name", None) or draw(st.sampled_from(["gcn", "sage"]))
    plan: dict[str, Any] = {
        "in_channels": graph.num_features,
        "hidden_channels": pinned["width"] if "width" in pinned else draw(st.integers(1, 3)),
        "out_channels": max(2, graph.num_outputs),
        "num_layers": pinned["layers"] if "layers" in pinned else draw(st.integers(1, 3)),
        "activation_cut": pinned.get("activation_cut", "pre"),
        "norm": pinned.get("norm"),
    }
    for key in ("activation", "jump"):
        if pinned.get(key) is not None:
            plan[key] = pinned[key]
    for flag in ("encoder", "head", "residual"):
        plan[flag] = pinned[flag] if flag in pinned else draw(st.booleans())
    model = ModelPlan(name, plan)
    built = model.build(seed=draw(seeds()))
    parameters = {key: value.clone() for key, value in built.state_dict().items()}
    instance = Instance(graph, model, parameters, draw(_designs(graph.num_nodes, graph, space.design, needs_clusters)))
    assume(space.admits(instance))
    return instance


@st.composite
def _designs(draw: st.DrawFn, n: int, graph: Any, pinned: Mapping[str, Any], needs_clusters: bool) -> Any:
    kinds = ["clusters", "epoch", "fused"] if needs_clusters else ["clusters", "nodes", "epoch", "fused"]
    kind = pinned.get("name") or draw(st.sampled_from(kinds))
    if kind == "nodes":
        size = pinned.get("per_batch") or draw(st.integers(1, n))
        assume(size <= n and math.comb(n, size) <= _MAX_SUPPORT)
        return build_design({"name": kind, "per_batch": size}, n, None)
    partition = draw(partitions(graph, max_parts=max(_MAX_PARTS, pinned.get("parts", 0))))
    parts = partition.num_parts
    per_batch = pinned.get("per_batch") or draw(st.integers(1, parts))
    seen = tuple(pinned.get("seen", ()))
    assume(per_batch <= parts and math.comb(parts, per_batch) <= _MAX_SUPPORT)
    assume(not seen or (max(seen) < parts and len(seen) < parts and len(seen) % per_batch == 0))
    values = {"name": kind, "per_batch": per_batch, "seen": seen, "seed": 0}
    return build_design(values, n, partition.assignment)


def _impure(estimator: Estimator) -> InvalidInputError:
    return InvalidInputError(
        f"estimator {estimator.name!r} gives another verdict when the same case is checked again; its estimates must "
        "be pure: keep everything that they remember in the state"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _symmetric(instance: Instance) -> bool:
    """Whether every edge has its reverse, with the same weight."""
    graph = instance.graph
    weights = [1.0] * graph.num_edges if graph.edge_weight is None else graph.edge_weight.tolist()
    source, destination = graph.edge_index.tolist()
    there = Counter(zip(source, destination, weights, strict=True))
    back = Counter(zip(destination, source, weights, strict=True))
    return there == back


def _degenerate(case: Case) -> bool:
    """Whether some weight matrix's gradient vanishes, or some activation sits on its kink."""
    # Weight matrices, not every parameter: the gradient of an attention vector vanishes on most small graphs.
    norms = [float(value.norm()) for value in case.exact.gradient.values() if value.dim() == 2]
    if not norms or not min(norms) > _FLAT:
        return True
    nearest = math.inf

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal nearest
        if inputs[0].numel():
            nearest = min(nearest, float(inputs[0].abs().min()))

    hooks = [
        module.register_forward_pre_hook(look) for module in case.problem.model.modules() if isinstance(module, nn.ReLU)
    ]
    try:
        with torch.no_grad():
            case.problem.model(case.graph)
    finally:
        for hook in hooks:
            hook.remove()
    return not nearest > _FLAT
