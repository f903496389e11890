"""Controls: estimators that are known to be sound or broken, checked in every run.

A verifier that cannot fail proves nothing. Each seeded defect changes one thing of a sound estimator; the check must
refute it whenever the defect's effect, measured apart from the check, is above what the check can detect. Sound
controls must pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from lmc_verify.batches import Batch
from lmc_verify.case import Case, Workspace, build_case, prepared_state
from lmc_verify.claims import Outcome, Verdict, find_claim
from lmc_verify.claims.residuals import relative_by_layer
from lmc_verify.errors import UnknownNameError
from lmc_verify.estimators import Estimate, Estimator, History, HistoryWrite
from lmc_verify.graph import Block, Graph
from lmc_verify.problem import Gradient, Problem, gradient_sum
from lmc_verify.settings import CaseSettings, DatasetSettings, DesignSettings, EstimatorSettings, ModelSettings
from lmc_verify.sparse import CSR

__all__ = ["CONTROLS", "Control", "ControlResult", "check_control", "find_control"]

Role = Literal["sound", "defect"]


@dataclass(frozen=True)
class Altered:
    """A sound estimator whose problem, state or result is altered: how most defects are seeded."""

    base: Estimator
    name: str
    problem: Callable[[Problem], Problem] | None = None
    state: Callable[[History, Batch], History] | None = None
    result: Callable[[Estimator, Problem, History, Batch, Gradient], Gradient] | None = None

    @property
    def normaliser(self) -> str:
        """The normaliser of the sound estimator."""
        return str(getattr(self.base, "normaliser", "inclusion"))

    def init(self, problem: Problem) -> History:
        """Return the sound estimator's state."""
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate with the sound estimator, altered."""
        seen = problem if self.problem is None else self.problem(problem)
        held = state if self.state is None else self.state(state, batch)
        estimate = self.base.estimate(seen, held, batch)
        gradient = estimate.gradient
        if self.result is not None:
            gradient = self.result(self.base, problem, state, batch, gradient)
        return dataclasses.replace(estimate, gradient=gradient)


@dataclass(frozen=True)
class Control:
    """A control: a case with a known answer.

    Attributes:
        name: such as ``"halo-leak-into-bias"``.
        description: what is broken, or what must hold.
        role: ``"sound"`` must be found EXACT, ``"defect"`` must be REFUTED.
        claim: id of the claim that is checked.
        sound: settings of the sound case.
        broken: settings of the broken case where they differ (a setting that is wrong), else None.
        alter: wraps the sound estimator (a computation that is wrong), else None.
    """

    name: str
    description: str
    role: Role
    claim: str
    sound: CaseSettings
    broken: CaseSettings | None = None
    alter: Callable[[Estimator], Estimator] | None = None

    @cached_property
    def expected(self) -> Outcome:
        """What the check must find."""
        return Outcome.EXACT if self.role == "sound" else Outcome.REFUTED


@dataclass(frozen=True)
class ControlResult:
    """What a control gave.

    Attributes:
        control: the control.
        verdict: of the claim on the (broken) case.
        effect: size of the defect in gradient norms, measured without the check; None for sound controls.
        passed: whether the verifier did its duty; None if the effect is too small to ask for it.
    """

    control: Control
    verdict: Verdict
    effect: float | None
    passed: bool | None

    def to_dict(self) -> Mapping[str, Any]:
        """Return what records keep beside the verdict."""
        return {
            "name": self.control.name,
            "description": self.control.description,
            "role": self.control.role,
            "effect": self.effect,
            "passed": self.passed,
        }


def check_control(control: Control, workspace: Workspace | None = None) -> ControlResult:
    """Run a control: check the claim, and measure the defect's effect by plain enumeration."""
    workspace = workspace or Workspace()
    sound = build_case(control.sound, workspace)
    case = sound if control.broken is None else build_case(control.broken, workspace)
    if control.alter is not None:
        case = dataclasses.replace(case, estimator=control.alter(case.estimator))
    verdict = find_claim(control.claim).check(case)
    described = {**verdict.case, "estimator": case.estimator.name}
    verdict = dataclasses.replace(verdict, case=described)
    if control.role == "sound":
        return ControlResult(control, verdict, None, verdict.outcome is Outcome.EXACT)
    effect = _effect(sound, case, per_batch=control.claim != "theorem-1/unbiased")
    detectable = verdict.minimum_detectable_effect
    if verdict.outcome is Outcome.REFUTED:
        passed: bool | None = True
    else:
        # A defect without a visible effect on this case cannot be asked for; NaN effects are visible.
        passed = None if detectable is not None and effect <= detectable else False
    return ControlResult(control, verdict, effect, passed)


def _effect(sound: Case, broken: Case, *, per_batch: bool) -> float:
    """Return how far the broken estimates are from the sound ones: the largest difference, or that of the means.

    The unit is that of the checks: the norm of the layer's exact gradient, in the layer where it shows most.
    """
    states = [prepared_state(case, case.histories) for case in (sound, broken)]

    def size(difference: Gradient) -> float:
        return max(relative_by_layer(sound.problem, difference, sound.exact.gradient).values())

    if per_batch:
        worst = 0.0
        for batch, _ in sound.design.enumerate():
            one, other = (
                case.estimator.estimate(case.problem, state, batch).gradient
                for case, state in zip((sound, broken), states, strict=True)
            )
            worst = max(worst, size(gradient_sum(one, other, -1.0)))
        return worst
    means = []
    for case, state in zip((sound, broken), states, strict=True):
        mean = case.problem.zero_gradient()
        for batch, probability in case.design.enumerate():
            gradient = case.estimator.estimate(case.problem, state, batch).gradient
            mean = gradient_sum(mean, gradient, probability)
        means.append(mean)
    return size(gradient_sum(means[0], means[1], -1.0))


def find_control(name: str) -> Control:
    """Return a control by name; an unknown name is an `UnknownNameError`."""
    if name not in CONTROLS:
        raise UnknownNameError("control", name, CONTROLS)
    return CONTROLS[name]


# ---------------------------------------------------------------------------------------------- the defects

# A small directed graph with self-loops, isolated nodes and weights, so that no symmetry hides a defect.
_CASE = CaseSettings(
    dataset=DatasetSettings.model_validate(
        {"name": "directed", "num_nodes": 48, "num_edges": 160, "num_classes": 3, "num_features": 5}
    ),
    model=ModelSettings(layers=3, width=6),
    estimator=EstimatorSettings(name="backward-sgd"),
    design=DesignSettings(partition="metis", parts=5, per_batch=2),
)


def _case(estimator: str, **settings: Any) -> CaseSettings:
    changes: dict[str, Any] = {key: settings.pop(key) for key in ("design", "histories") if key in settings}
    chosen = EstimatorSettings.model_validate({"name": estimator, **settings})
    return _CASE.model_copy(update={"estimator": chosen, **changes})


def _altered(name: str, **alterations: Any) -> Callable[[Estimator], Estimator]:
    return lambda base: Altered(base, name, **alterations)


def _halo_leak(base: Estimator, problem: Problem, state: History, batch: Batch, gradient: Gradient) -> Gradient:
    halo = problem.graph.neighbourhood(batch.nodes)
    if not halo.numel():
        return gradient
    leak = base.estimate(problem, state, Batch.of(halo, float(batch.inclusion[0]))).gradient
    return {name: value + leak[name] if name.endswith("bias") else value for name, value in gradient.items()}


def _sign(base: Estimator, problem: Problem, state: History, batch: Batch, gradient: Gradient) -> Gradient:
    return {name: -value if problem.layer_of(name) == "layer 1" else value for name, value in gradient.items()}


def _half(base: Estimator, problem: Problem, state: History, batch: Batch, gradient: Gradient) -> Gradient:
    return {name: value.half().to(value.dtype) for name, value in gradient.items()}


def _forget_last_row(base: Estimator, problem: Problem, state: History, batch: Batch, gradient: Gradient) -> Gradient:
    """Forget the batch's last row: an off-by-one in a slice."""
    if batch.size == 1:
        return problem.zero_gradient()
    return base.estimate(problem, state, Batch(batch.nodes[:-1], batch.inclusion[:-1])).gradient


def _on_graph(change: Callable[[Graph], Graph]) -> Callable[[Problem], Problem]:
    return lambda problem: problem.with_graph(change(problem.graph))


def _without_self_loops(graph: Graph) -> Graph:
    block = graph.operator("gcn")
    csr = block.csr
    kept = csr.row != csr.col
    pruned = CSR.from_sorted(csr.row[kept], csr.col[kept].long(), csr.value[kept], graph.num_nodes, graph.num_nodes)
    changed = dataclasses.replace(graph, _blocks={"gcn": Block(pruned, block.in_degree)})
    return changed


def _shifted_mask(graph: Graph) -> Graph:
    return dataclasses.replace(graph, train_mask=graph.train_mask.roll(1), _blocks={})


def _scaled_auxiliary(state: History, batch: Batch) -> History:
    scaled = state.clone()
    factor = 1 / float(batch.inclusion[0])
    scaled.apply(
        HistoryWrite("auxiliary", layer, torch.arange(table.shape[0], device=table.device), table * factor)
        for layer, table in state.auxiliary.items()
    )
    return scaled


_BACKWARD, _LMC = _case("backward-sgd"), _case("lmc")
_UNBIASED, _EQUAL = "theorem-1/unbiased", "e1/equals-backward-sgd"

_ALL = (
    Control("sound-backward-sgd", "Backward SGD as it should be", "sound", _UNBIASED, _BACKWARD),
    Control("sound-lmc", "LMC with exact histories and beta = 0", "sound", _EQUAL, _LMC),
    Control(
        "sound-sweeps",
        "LMC after 2L - 2 sweeps at fixed parameters",
        "sound",
        _UNBIASED,
        _case("lmc", histories="sweeps:4"),
    ),
    Control(
        "node-count-normaliser",
        "|V| / |V_B| instead of b / c, with clusters of unequal size",
        "defect",
        _UNBIASED,
        _BACKWARD,
        _case("backward-sgd", normaliser="node-count"),
    ),
    Control(
        "batch-mean-normaliser",
        "loss averaged over the batch's labelled nodes",
        "defect",
        _UNBIASED,
        _BACKWARD,
        _case("backward-sgd", normaliser="batch-mean"),
    ),
    Control(
        "epoch-taken-for-uniform",
        "the next batch of an epoch, weighted as if it were drawn uniformly",
        "defect",
        _UNBIASED,
        _BACKWARD,
        _case("backward-sgd", design=DesignSettings(name="epoch", parts=5, per_batch=1, seen=(0, 1))),
    ),
    Control(
        "stale-histories",
        "histories taken after a single sweep, where 2L - 2 are needed",
        "defect",
        _UNBIASED,
        _case("lmc", histories="sweeps:4"),
        _case("lmc", histories="sweeps:1"),
    ),
    Control(
        "backward-halo-dropped",
        "no message from the halo in the backward pass",
        "defect",
        _EQUAL,
        _LMC,
        _case("lmc-forward-only"),
    ),
    Control(
        "halo-cut", "the halo left out of both passes", "defect", _EQUAL, _LMC, _case("cluster-gcn", renormalise=False)
    ),
    Control(
        "histories-ignored",
        "beta = 1 at every halo node: fresh incomplete values only",
        "defect",
        _EQUAL,
        _LMC,
        _case("lmc", beta=1.0, score="constant"),
    ),
    Control(
        "halo-leak-into-bias",
        "halo rows enter the bias gradients",
        "defect",
        _EQUAL,
        _LMC,
        alter=_altered("lmc (halo leak)", result=_halo_leak),
    ),
    Control(
        "auxiliary-history-scaled",
        "histories of V kept in units of the batch loss (times b / c)",
        "defect",
        _EQUAL,
        _LMC,
        alter=_altered("lmc (scaled V)", state=_scaled_auxiliary),
    ),
    Control(
        "mask-off-by-one",
        "the training mask shifted by one node",
        "defect",
        _EQUAL,
        _LMC,
        alter=_altered("lmc (shifted mask)", problem=_on_graph(_shifted_mask)),
    ),
    Control(
        "last-row-forgotten",
        "the last batch row left out of the estimate",
        "defect",
        _UNBIASED,
        _BACKWARD,
        alter=_altered("backward-sgd (row forgotten)", result=_forget_last_row),
    ),
    Control(
        "transposed-operator",
        "messages sent against the direction of the edges",
        "defect",
        _UNBIASED,
        _BACKWARD,
        alter=_altered("backward-sgd (transposed)", problem=_on_graph(Graph.transposed)),
    ),
    Control(
        "self-loop-missing",
        "the operator without its self-loops",
        "defect",
        _UNBIASED,
        _BACKWARD,
        alter=_altered("backward-sgd (no self-loops)", problem=_on_graph(_without_self_loops)),
    ),
    Control(
        "sign-of-one-layer",
        "the first layer's gradient negated",
        "defect",
        _UNBIASED,
        _BACKWARD,
        alter=_altered("backward-sgd (sign)", result=_sign),
    ),
    Control(
        "float16-gradient",
        "gradients rounded to float16",
        "defect",
        _UNBIASED,
        _BACKWARD,
        alter=_altered("backward-sgd (float16)", result=_half),
    ),
)

CONTROLS: dict[str, Control] = {control.name: control for control in _ALL}
