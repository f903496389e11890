"""What an estimator is: stated by its attributes, trusted by its methods, and asked nowhere else."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

import lmc_verify.estimators as package
from lmc_verify.controls import alter
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import (
    ESTIMATORS,
    FM,
    GAS,
    LABOR,
    LMC,
    TOP,
    BackwardSGD,
    Blend,
    Compensated,
    Cut,
    Drop,
    Estimate,
    Estimator,
    FullBatch,
    Held,
    History,
    ImportanceVRGCN,
    Momentum,
    NeighbourSampling,
    Policies,
    Sampled,
    Sampling,
    Shadow,
    make_estimator,
    properties_of,
    with_beta,
)
from lmc_verify.estimators.properties import (
    contract_flaw,
    declared_claims,
    label_of,
    replaced_on_instance,
    settings_of,
)
from lmc_verify.estimators.registry import registered_settings
from lmc_verify.estimators.samplers.saint import GraphSAINT
from lmc_verify.graphs import Batch
from lmc_verify.objective import Problem

# --- the package's own ---------------------------------------------------------------------------------

FAMILY = {
    "backward-sgd": Policies(Held(), Held()),
    "lmc": Policies(Blend(), Blend()),
    "gas": Policies(Blend(), Drop()),
    "fm": Policies(Momentum(0.3), Drop(), write_halo=True),
    "fm-local": Policies(Blend(0.3, "constant"), Drop(), write_halo=True),
    "cluster-gcn": Policies(Cut(renormalise=True), Drop()),
    "lmc-forward-only": Policies(Blend(), Drop()),
    "lmc-backward-only": Policies(Blend(), Blend()),
}
SAMPLERS = {
    "neighbour-sampling",
    "vr-gcn",
    "labor",
    "fastgcn",
    "ladies",
    "as-gcn",
    "fastgcn-published",
    "ladies-published",
    "vr-gcn-importance",
    "graphsaint-node",
    "graphsaint-edge",
    "graphsaint-walk",
}
ADAPTIVE = {"as-gcn", "vr-gcn-importance", "mvs-gnn"}
BETA = {"lmc": 0.0, "lmc-forward-only": 0.0, "lmc-backward-only": 0.0, "fm": 0.3, "fm-local": 0.3}


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_every_estimator_of_the_package_is_known(name: str) -> None:
    estimator = make_estimator(name)
    found = properties_of(estimator)
    assert found.known
    assert found.exact == found.ignores_batch == (name == "full-batch")
    assert found.policies == FAMILY.get(name)
    assert found.holds_exact == (name == "backward-sgd")
    assert (found.sampler is estimator) == (name in SAMPLERS)
    assert found.samples == (name in SAMPLERS or name == "mvs-gnn")
    assert (found.minimal_variance is estimator) == (name == "mvs-gnn")
    assert found.draws_nodes == found.starts_exact == (name == "mvs-gnn")
    assert found.passes == (FAMILY["gas"] if name == "mvs-gnn" else found.policies)
    assert (found.compared is estimator) == (name in SAMPLERS | {"mvs-gnn"})
    assert found.adaptive == (name in ADAPTIVE)
    assert (found.labor is estimator) == (name == "labor")
    assert (found.own_objective is estimator) == (name == "shadow")
    assert (found.message_invariance is estimator) == name.startswith("top")
    assert found.weighting == "inclusion"
    assert found.beta == BETA.get(name)


def test_every_kind_of_estimator_is_in_the_table() -> None:
    others = {"full-batch", "shadow", "top", "top-krylov", "mvs-gnn"}
    assert {*FAMILY, *SAMPLERS, *others} == set(ESTIMATORS)


def test_what_is_stated_is_that_of_the_instance() -> None:
    found = properties_of(LMC(beta=(0.0, 0.5), weighting="batch-mean"))
    assert (found.known, found.beta, found.weighting) == (True, (0.0, 0.5), "batch-mean")
    assert found.policies == Policies(Blend((0.0, 0.5)), Blend((0.0, 0.5)))


# --- methods that are not the package's ----------------------------------------------------------------


def names_that_matter(kind: type) -> list[str]:
    """Methods and properties of a registered class, from a list of its own rather than from what is tested."""
    listed = (
        *(
            "init",
            "estimate",
            "sampling",
            "laws",
            "_law",
            "_laws",
            "probabilities",
            "atoms",
            "_sizes",
            "_next",
            "_table",
        ),
        *("largest_scales", "estimated_weights", "departure", "missed", "baseline", "objective", "invariance"),
        *("basis", "combined", "rows", "_norms", "_held", "_is_due", "_check"),
    )
    return [name for name in listed if hasattr(kind, name)]


REPLACED = [(name, method) for name in ESTIMATORS for method in names_that_matter(ESTIMATORS[name])]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "method"), REPLACED)
def test_a_subclass_that_replaces_a_method_is_unknown(name: str, method: str) -> None:
    kind: Any = ESTIMATORS[name]
    original = inspect.getattr_static(kind, method)
    other = property(original.fget) if isinstance(original, property) else lambda self, *a: original(self, *a)
    subclass = type("Replaced", (kind,), {method: other})
    mixed = type("Mixed", (type("Mixin", (), {method: other}), kind), {})
    for made in (subclass(), mixed()):
        found, own = properties_of(made), properties_of(kind())
        assert not found.known
        # Claims are still checked against what it states.
        assert (found.policies, found.samples, found.beta) == (own.policies, own.samples, own.beta)
        assert found.weighting == (None if name in ("full-batch", "mvs-gnn") else "inclusion")
        assert (found.sampler is made) == (own.sampler is not None)


@pytest.mark.parametrize(("name", "method"), [pair for pair in REPLACED if pair[1] != "_sizes"])  # a data descriptor
def test_an_instance_that_replaces_a_method_is_unknown(name: str, method: str) -> None:
    kind: Any = ESTIMATORS[name]
    made = kind()
    object.__setattr__(made, method, getattr(kind(), method))
    assert not properties_of(made).known
    assert properties_of(kind()).known
    assert replaced_on_instance(made) == (method,)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_a_subclass_with_another_name_other_settings_and_more_methods_is_known(name: str) -> None:
    kind: Any = ESTIMATORS[name]

    @dataclass(frozen=True)
    class Own(kind):  # type: ignore[misc]
        name = "own"
        weighting: str = "inclusion"
        extra: int = 3

        def more(self) -> int:
            return self.extra

    assert properties_of(Own()).known
    assert properties_of(Own(extra=4)).weighting == "inclusion"


@pytest.mark.parametrize(
    ("kind", "attribute", "value"),
    [
        (NeighbourSampling, "corrected", True),
        (NeighbourSampling, "reweights", True),
        (NeighbourSampling, "independent_layers", False),
        (ImportanceVRGCN, "adaptive", False),
    ],
)
def test_a_sampler_that_states_something_else_of_its_distribution_is_unknown(
    kind: Any, attribute: str, value: bool
) -> None:
    made = type("Other", (kind,), {attribute: value})()
    assert not properties_of(made).known
    assert getattr(properties_of(made).sampler, attribute) is value


def test_attributes_looked_up_in_another_way_are_not_trusted() -> None:
    class Elsewhere(LMC):
        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__("init" if name == "estimate" else name)

    assert not properties_of(Elsewhere()).known


@dataclass(frozen=True)
class EagerLMC(Compensated):
    """Fresh values forward, histories backward: a user's member of the family."""

    name = "eager-lmc"

    @property
    def policies(self) -> Policies:
        return Policies(Blend(1.0, "constant"), Blend())


def test_a_member_states_policies_of_its_own_and_stays_known() -> None:
    found = properties_of(EagerLMC())
    assert found.known
    assert found.policies == Policies(Blend(1.0, "constant"), Blend())

    class Later(LMC):
        @property
        def policies(self) -> Policies:
            return Policies(Blend(), Drop())

    assert properties_of(Later()).known
    assert properties_of(Later()).policies == Policies(Blend(), Drop())


def test_policies_with_methods_of_their_own_are_not_trusted() -> None:
    class Doubled(Blend):
        def coefficients(self, graph: Any, local: Any) -> torch.Tensor:
            return 2 * super().coefficients(graph, local)

    class Silent(Policies):
        @property
        def writes_embeddings(self) -> bool:
            return False

    for stated in (Policies(Doubled(), Drop()), Policies(Blend(), Doubled()), Silent(Blend(), Drop())):
        made: Any = type("Member", (EagerLMC,), {"policies": property(lambda self, stated=stated: stated)})()
        found = properties_of(made)
        assert (found.known, found.policies) == (False, stated)


def test_a_sampler_of_ones_own_is_unknown() -> None:
    class Mine(Sampled):
        name = "mine"

        def sampling(self, problem: Any, state: Any, design: Any) -> Any:
            return NeighbourSampling().sampling(problem, state, design)

    found = properties_of(Mine())
    assert (found.known, found.samples, found.adaptive) == (False, True, False)
    assert found.sampler is not None


def test_labor_with_another_distribution_than_its_laws_is_no_labor() -> None:
    class Elsewhere(LABOR):
        def sampling(self, problem: Any, state: Any, design: Any) -> Any:
            return NeighbourSampling().sampling(problem, state, design)

    class Laws(LABOR):
        def laws(self, problem: Problem) -> Any:
            return super().laws(problem)

    assert properties_of(Elsewhere()).labor is None
    made = Laws()
    assert properties_of(made).labor is made


# --- foreign estimators --------------------------------------------------------------------------------


class Foreign:
    """No more than the contract asks for."""

    name = "foreign"

    def init(self, problem: Problem) -> History:
        return History()

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return FullBatch().estimate(problem, state, batch)


def test_of_a_foreign_estimator_nothing_is_assumed() -> None:
    found = properties_of(Foreign())
    assert {found.known, found.exact, found.samples, found.adaptive} == {False}
    unknown = (found.policies, found.ignores_batch, found.holds_exact, found.weighting, found.beta)
    assert unknown == (None,) * 5
    assert (found.sampler, found.labor, found.own_objective, found.message_invariance) == (None,) * 4


def test_what_a_foreign_estimator_states_is_taken_as_stated() -> None:
    class Stating(Foreign):
        weighting = "batch-mean"
        ignores_batch = True
        beta = 0.5
        adaptive = True  # of nothing: it does not sample
        policies = Policies(Held(), Held())

    found = properties_of(Stating())
    assert not found.known
    assert (found.weighting, found.ignores_batch, found.beta, found.adaptive) == ("batch-mean", True, 0.5, False)
    assert (found.policies, found.holds_exact) == (Policies(Held(), Held()), True)

    class Words(Foreign):
        policies = "held"

    assert properties_of(Words()).policies is None


def test_what_follows_from_statements_holds_only_of_known_estimators() -> None:
    known, unknown = properties_of(LMC()), properties_of(Foreign())
    assert [known.unless_unknown(holds) for holds in (True, False)] == [True, False]
    assert [unknown.unless_unknown(holds) for holds in (True, False)] == [None, False]


def test_an_altered_estimator_is_not_known() -> None:
    for base in (LMC(), BackwardSGD(), FullBatch(), TOP(), Shadow(), Foreign()):
        found, sound = properties_of(alter(base, "nothing")), properties_of(base)
        assert not found.known
        assert (found.policies, found.weighting) == (sound.policies, sound.weighting)


# --- copies and descriptions ---------------------------------------------------------------------------


def overridden(estimator: Any) -> Any:
    object.__setattr__(estimator, "estimate", GAS().estimate)
    return estimator


def test_a_copy_that_would_lose_a_method_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'lmc' has estimate set on the instance"):
        with_beta(overridden(LMC(beta=0.4)), 0.5)
    same = overridden(GAS())
    assert with_beta(same, 0.5) is same  # nothing to scale, and so no copy
    assert with_beta(FM(), 0.5) == FM(beta=0.15)


def test_only_what_settings_rebuild_is_kept_by_settings() -> None:
    assert registered_settings(LMC(beta=0.4)) == settings_of(LMC(beta=0.4)) == vars(LMC(beta=0.4))
    assert registered_settings(overridden(LMC())) is None
    assert registered_settings(type("Sub", (LMC,), {})()) is None
    assert registered_settings(Foreign()) is None
    assert settings_of(Foreign()) is None


def test_a_value_kept_on_the_instance_is_no_method() -> None:
    class Caches(LMC):
        @cached_property
        def number(self) -> int:
            return 1

    made = Caches()
    assert made.number == 1
    assert replaced_on_instance(made) == ()
    assert properties_of(made).known


def test_flaws_of_the_contract_are_named() -> None:
    assert contract_flaw(LMC()) == contract_flaw(Foreign()) == ""
    assert "lacks" in contract_flaw(object())
    for name in (3, ""):
        assert f"its name is {name!r}" in contract_flaw(type("Odd", (Foreign,), {"name": name})())
    assert label_of(LMC()) == "lmc"
    assert label_of(object()) == "object"


def test_declared_claims_are_a_mapping() -> None:
    declared = {"e7/reductions": "EXACT"}
    declaring = type("Declaring", (Foreign,), {"claims": declared})
    assert declared_claims(declaring) == declared_claims(declaring()) == declared
    assert declared_claims(Foreign()) == {}
    with pytest.raises(InvalidInputError, match="'foreign' declares claims as a list"):
        declared_claims(type("Listing", (Foreign,), {"claims": ["e7/reductions"]})())


# --- asked in one place --------------------------------------------------------------------------------

PACKAGE = Path(package.__file__).parent.parent
ASKING = {"isinstance", "issubclass", "getattr", "hasattr", "type"}
ATTRIBUTES = {
    *("policies", "weighting", "beta", "adaptive", "sampling", "ignores_batch", "corrected", "reweights", "claims"),
    *("samples_messages", "independent_layers"),
}
CLASSES = {kind.__name__ for kind in (Compensated, Sampled, Sampling, Estimator, GraphSAINT)} | {
    kind.__name__ for kind in ESTIMATORS.values() if isinstance(kind, type)
}


def questions(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that ask an estimator for its class or its attributes."""
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ASKING):
            continue
        subject, *rest = call.args
        read = {node.id for node in ast.walk(subject) if isinstance(node, ast.Name)}
        read |= {node.attr for node in ast.walk(subject) if isinstance(node, ast.Attribute)}
        named = {node.id for other in rest for node in ast.walk(other) if isinstance(node, ast.Name)}
        named |= {node.attr for other in rest for node in ast.walk(other) if isinstance(node, ast.Attribute)}
        texts = {node.value for other in rest for node in ast.walk(other) if isinstance(node, ast.Constant)}
        if "estimator" in read or named & CLASSES or texts & ATTRIBUTES:
            yield call


@pytest.mark.parametrize(
    "text",
    [
        "isinstance(case.estimator, Compensated)",
        "isinstance(estimator.policies.forward, Held)",
        "isinstance(x, lv.LMC)",
        "isinstance(x, FullBatch | Sampled)",
        "issubclass(kind, (Sampled, int))",
        "getattr(self.estimator, name, None)",
        "getattr(item, 'beta', None)",
        "hasattr(item, 'policies')",
        "type(estimator) is LMC",
    ],
)
def test_a_question_is_recognised(text: str) -> None:
    assert len(list(questions(ast.parse(text)))) == 1


@pytest.mark.parametrize(
    "text", ["isinstance(policy, Blend)", "properties_of(estimator)", "getattr(design, 'seen', ())"]
)
def test_other_questions_are_left_alone(text: str) -> None:
    assert not list(questions(ast.parse(text)))


def test_no_module_outside_of_the_estimators_asks_for_an_estimators_class() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if "estimators" not in file.relative_to(PACKAGE).parts]
    assert len(files) > 100
    found = [
        f"{file.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}"
        for file in files
        for call in questions(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found, "ask lmc_verify.estimators.properties_of instead: " + "; ".join(found)


def test_replacing_settings_keeps_what_is_known() -> None:
    assert properties_of(replace(LMC(), beta=0.4)).known
