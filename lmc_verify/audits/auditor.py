"""Is the gradient that a training step computes unbiased for the objective; if not, how large is the bias, and why?

The exact gradient is autograd's on the whole graph, so model, loss and convolutions may be any. The mean of the step's
gradients over the batches is compared with it: as a finite sum where the batches can be listed and the step draws
nothing for itself, else from draws.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch_geometric.data import Data

from lmc_verify.arguments import typed
from lmc_verify.audits.along import MakeOptimizer, follow, looks_of
from lmc_verify.audits.batches.law import MOST_STRATA, Sampling, Unit, law_of
from lmc_verify.audits.batches.nodes import Namer, NodesReader
from lmc_verify.audits.causes.explain import explain
from lmc_verify.audits.contract import LOOKED_AT, check_contract
from lmc_verify.audits.control import Control, control_of
from lmc_verify.audits.decision import Decision, decide_exact, decide_sampled
from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.interventions import INTERVENTIONS, Intervention
from lmc_verify.audits.measure import (
    Deviations,
    InapplicableError,
    Measured,
    can_mirror,
    differences,
    is_random,
    mean_gradient,
    rounding,
    treated,
)
from lmc_verify.audits.result import Audit, Cost, percent
from lmc_verify.audits.subject import Gradient, Subject, added, length, norm, scaled
from lmc_verify.audits.sweeps import RestingStates, sweep_until_still
from lmc_verify.cases.verdict import Outcome, Series
from lmc_verify.errors import InvalidInputError
from lmc_verify.objective import evaluating
from lmc_verify.statistics.ledger import Guarantee
from lmc_verify.steps import Objective, StateLike, Step, StepRunner, call_model, cast, describe, mean_loss
from lmc_verify.steps.original import Original

__all__ = ["audit"]

SINGLE = 1e-5
"""A bias of so many gradient norms at most may be the rounding of numbers in single precision."""

STALE = "stale-histories"
"""The cause that what a step keeps was not at rest when it was given."""

SETTLED = 0.01
"""Relative change of the bias in a sweep from which on it says nothing while the state still changes."""

CAUSE_UNITS = 32
"""Draws on which causes are compared, where batches are drawn."""


@typed
def audit(
    model: nn.Module,
    data: Any,
    batches: Any,
    step: Step,
    *,
    objective: Objective | None = None,
    state: StateLike = None,
    sampling: Sampling | None = None,
    nodes: Namer | None = None,
    seeds: Namer | None = None,
    dtype: torch.dtype = torch.float64,
    guarantee: Guarantee = "asymptotic",
    bound: float | None = None,
    draws: int = 200,
    alpha: float = 1e-4,
    delta: float = 0.1,
    sweeps: int | None = None,
    along: int | Sequence[int] | None = None,
    optimizer: MakeOptimizer | None = None,
    causes: bool = True,
    seed: int = 0,
) -> Audit:
    """Judge a training step: is the mean of its gradients over the batches the gradient of the objective?

    Everything happens on a private copy of the model; the model, the data, the state and the global random generators
    are left as they were. The objective is taken in evaluation mode; the step runs in the mode that the model is in, or
    sets.

    Args:
        model: any module.
        data: the whole graph: PyTorch Geometric's ``Data`` or ``HeteroData``, or whatever `objective` takes.
        batches: a batch design of this package; a list of (batch, probability); a loader or any iterable that can be
            gone through again, one pass of which is an epoch; or a function that returns one, of no argument or of the
            data. With a batch design the step gets the induced subgraph, with ``n_id`` and ``inclusion``.
        step: ``step(model, batch)`` or ``step(model, batch, data)``: what the loop does for one batch, up to
            ``.backward()``; it leaves ``.grad``, or returns gradients by parameter.
        objective: ``objective(model, data)``, a scalar; None for the mean loss over ``data.train_mask``.
        state: what the step keeps between batches, such as histories: tensors, an object that holds them or has
            ``state_dict``, a pair of functions (snapshot, restore), or a function of the model that returns these. It
            is brought to rest by sweeps at frozen parameters, and judged there.
        sampling: how a step's batch is drawn: ``"epoch"`` (each batch once), ``"uniform"`` (one of them at every step)
            or ``"independent"``; None for what is usual.
        nodes: a function of a batch that returns the ids of its rows, where it names them in a way of its own.
        seeds: a function of a batch that returns the ids of the nodes that it is about.
        dtype: precision of model, data, batches and of tensors that the step makes of numbers; `torch.float64`, or
            `torch.float32` for steps that need it.
        guarantee: the weakest that may decide: ``"asymptotic"``, ``"anytime-valid"`` (needs `bound`) or ``"exact"``.
        bound: largest norm, in exact gradients' norms, of the difference between a step's gradient and its control,
            which you have proven; it makes draws decide anytime-valid.
        draws: batches that are drawn, where not all are evaluated.
        alpha: error probability of an outcome from draws.
        delta: a bias up to this, in gradient norms, is SUPPORTED as none by draws.
        sweeps: sweeps for a step with a state; None until it rests, 0 to judge the state that is given.
        along: a number of optimiser steps, or a list of them: the copy is trained by the step from the state that is
            given, and bias and error of a step after so many steps are in the audit's series.
        optimizer: a function of the parameters that returns the optimiser for `along`; None for SGD, step size 0.01.
        causes: whether a bias is explained, too.
        seed: root seed of everything that is drawn.

    Returns:
        The audit: print it, or call its `assert_unbiased`.

    Raises:
        InvalidInputError: an argument, the data or the batches cannot be used.
        ContractError: the step breaks its contract (see `lmc_verify.audits.contract`): nothing is said about bias.
        NotFiniteError: a loss or gradient is NaN or infinite.

    Example:
        >>> import torch, torch.nn.functional as F, lmc_verify as lv
        >>> from torch_geometric.nn import GCN
        >>> from torch_geometric.loader import RandomNodeLoader
        >>> data = lv.load_data("karate")
        >>> def step(model, batch):
        ...     out = model(batch.x, batch.edge_index)
        ...     F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask]).backward()
        >>> model = GCN(data.num_features, 8, 2, int(data.y.max()) + 1)
        >>> lv.audit(model, data, RandomNodeLoader(data, num_parts=4), step).outcome.value
        'REFUTED'
    """
    _check_arguments(guarantee, bound, draws, alpha, delta, sweeps)
    looks = None if along is None else looks_of(along)
    original = Original(model, data)
    started = time.perf_counter()
    with StepRunner(model, step, state=state, dtype=dtype) as runner:
        try:
            whole = cast(data, dtype)
            law = law_of(batches, whole, sampling=sampling, seed=seed, change=lambda batch: cast(batch, dtype))
            subject = Subject(runner, whole, law, NodesReader(whole, nodes, seeds), objective or mean_loss, seed)
            _check_unit(subject)
            auditor = _Auditor(subject, original, guarantee, bound, draws, alpha, delta, sweeps, causes, started)
            return auditor.audit(getattr(step, "__name__", type(step).__name__), looks, optimizer)
        finally:
            original.restore()


def _check_arguments(
    guarantee: str, bound: float | None, draws: int, alpha: float, delta: float, sweeps: int | None
) -> None:
    if guarantee not in ("exact", "anytime-valid", "asymptotic"):
        raise InvalidInputError(f"guarantee is {guarantee!r}; it is 'exact', 'anytime-valid' or 'asymptotic'")
    if bound is not None and not 0 < bound < math.inf:
        raise InvalidInputError(f"bound is {bound}; it must be positive and finite, in norms of the exact gradient")
    if draws < 2:
        raise InvalidInputError(f"draws is {draws}; at least 2 are needed, and 200 are usual")
    if not 0 < alpha < 1:
        raise InvalidInputError(f"alpha is {alpha}; an error probability lies in (0, 1)")
    if not 0 < delta < math.inf:
        raise InvalidInputError(f"delta is {delta}; it must be positive, in norms of the exact gradient")
    if sweeps is not None and sweeps < 0:
        raise InvalidInputError(f"sweeps is {sweeps}; it must not be negative")


def _check_unit(subject: Subject) -> None:
    unit, numbers = subject.unit, torch.finfo(subject.runner.dtype)
    if unit == 0.0:
        raise InvalidInputError(
            "the exact gradient vanishes, so that there is no unit for a bias: the model is dead (no activation is "
            "positive), or at a stationary point; take other parameters"
        )
    least, most = numbers.tiny / numbers.eps, numbers.max * numbers.eps
    if not least <= unit <= most:
        raise InvalidInputError(
            f"the exact gradient's norm is {unit:.1e}; its rounding can be told between {least:.1e} and {most:.1e} in "
            f"{numbers.dtype}: multiply the step's loss and the objective by one number"
        )


class _Auditor:
    def __init__(
        self,
        subject: Subject,
        original: Original,
        guarantee: Guarantee,
        bound: float | None,
        draws: int,
        alpha: float,
        delta: float,
        sweeps: int | None,
        causes: bool,
        started: float,
    ) -> None:
        self.subject, self.original, self.guarantee, self.bound = subject, original, guarantee, bound
        self.draws, self.alpha, self.delta, self.sweeps, self.causes = draws, alpha, delta, sweeps, causes
        self._started = started
        self._drawn: list[Unit] | None = None
        self._chosen: Control | None = None
        self._rests = False  # whether the state has come to rest
        self._unsettled = ""  # why a bias says nothing: the state moves on, and the bias with it
        self._randomness: Intervention | None = None  # without which all batches together are unbiased
        self.notes: list[str] = []
        self.series: list[Series] = []

    def audit(self, name: str, looks: Sequence[int] | None, optimizer: MakeOptimizer | None) -> Audit:
        subject = self.subject
        found = check_contract(subject, self.original, subject.law.first(LOOKED_AT, subject.seed))
        if found.random:
            self._look_at_randomness()
        self.notes += found.notes
        if looks is not None:
            self.series += follow(subject, looks, optimizer, random=found.random)
        if not subject.runner.state.empty:
            self._bring_to_rest(found.random)
        decision = self._decided(found.random)
        if self._unsettled and decision.outcome is Outcome.REFUTED:
            decision = replace(
                decision,
                outcome=Outcome.INCONCLUSIVE,
                summary=f"a bias of {percent(decision.bias)} of the gradient's norm decides nothing: {self._unsettled}",
            )
        explanation = Explanation()
        if self.causes and decision.outcome is Outcome.REFUTED:
            explanation = self._or_randomness(self._explained(found.random), decision)
        subject.check_again()
        if decision.note:
            self.notes.append(decision.note)
        if decision.outcome is Outcome.INCONCLUSIVE or (self.causes and decision.outcome is Outcome.REFUTED):
            self._note_unknown_nodes(explanation)
        if decision.outcome is Outcome.REFUTED:
            self._note_what_is_left(decision, explanation)
        if subject.without_gradient:
            self.notes.append(
                f"{subject.without_gradient} calls of the step left no gradient; they count as a gradient of zero"
            )
        clock = subject.clock
        return Audit(
            outcome=decision.outcome,
            guarantee=decision.guarantee,
            summary=decision.summary,
            bias=decision.bias,
            low=decision.low,
            high=decision.high,
            parameters=decision.parameters,
            explanation=explanation,
            law=subject.law.words,
            loss=subject.loss,
            gradient_norm=subject.unit,
            delta=self.delta,
            alpha=0.0 if decision.guarantee == "exact" else self.alpha,
            draws=decision.draws,
            seed=subject.seed,
            cost=Cost(
                clock.steps,
                clock.step_seconds,
                clock.gradients,
                clock.gradient_seconds,
                subject.law.loading.seconds,
                time.perf_counter() - self._started,
            ),
            notes=tuple(self.notes),
            series=tuple(self.series),
            name=name,
        )

    def _decided(self, random: bool) -> Decision:
        subject = self.subject
        if subject.law.batches is not None and not random:
            measured = mean_gradient(subject)
            self._note_the_epoch(measured)
            return decide_exact(subject.exact, measured)
        units, control = self._units(random), self._control(random)
        sizes = {name: 2 * length(value) for name, value in subject.exact.items()}
        return decide_sampled(
            subject.exact,
            ((draw, len(unit.batches)) for unit, draw in zip(units, differences(subject, units, control), strict=True)),
            len(units),
            rounding(subject, sizes, len(units)),
            guarantee=self.guarantee,
            bound=self.bound,
            alpha=self.alpha,
            delta=self.delta,
            control=control.words,
        )

    def _look_at_randomness(self) -> None:
        """Say where a step's own randomness comes from, and use that dropout's masks can be mirrored."""
        subject = self.subject
        batch = subject.law.first(1, subject.seed)[0]
        runs = [item for item in INTERVENTIONS if item.changes_the_run]
        for chosen in itertools.chain(itertools.combinations(runs, 1), itertools.combinations(runs, 2)):
            if is_random(subject, batch, chosen):
                continue
            names = [item.id.split("/")[0] for item in chosen]
            subject.mirrored = names == ["dropout"] and can_mirror(subject, batch)
            self.notes.append(
                f"the step draws for itself ({' and '.join(names)}), so that its mean is known from draws only"
            )
            if subject.law.batches is not None:
                try:
                    without = decide_exact(subject.exact, mean_gradient(subject, chosen))
                except InapplicableError:
                    return
                self.notes.append(f"without that: {without.outcome} ({without.guarantee}), {without.summary}")
                if without.outcome is Outcome.EXACT and len(chosen) == 1 and subject.runner.state.empty:
                    self._randomness = chosen[0]
            return
        self.notes.append(
            "the step draws for itself (by none of dropout, training mode and its model's inputs, nor by two of them): "
            "its mean is known from draws only"
        )

    def _or_randomness(self, explanation: Explanation, decision: Decision) -> Explanation:
        """Name the step's own randomness where nothing else explains a bias, and all batches have none without it.

        Of a bias from draws that is hardly shown, draws on which causes are compared may show nothing.
        """
        item = self._randomness
        if item is None or explanation.complete:
            return explanation
        name = item.id.split("/")[0]
        cause = Cause(name, item.cause, item.remedy, 1.0, decision.bias, None, True)
        others = (replace(other, explains=False, returns=None) for other in explanation.causes if other.id != name)
        return Explanation((cause, *others), complete=True)

    def _control(self, random: bool) -> Control:
        law = self.subject.law
        if self._chosen is None:
            still = random and law.batches is not None and len(law.batches) > MOST_STRATA
            self._chosen = _without_randomness(self.subject) if still else control_of(self.subject)
        return self._chosen

    def _explained(self, random: bool) -> Explanation:
        subject, law = self.subject, self.subject.law
        drawn = self._units(random) if random or law.batches is None else []
        controls = _Controls(self._control(random)) if drawn else _Controls(Control("", lambda _: subject.exact))
        units = self._enough(drawn, controls)

        if law.batches is not None and law.probabilities is not None:
            pairs, reference = list(zip(law.batches, law.probabilities, strict=True)), None
        else:
            pairs = [
                (batch, weight / len(units))
                for unit in units
                for batch, weight in zip(unit.batches, unit.weights, strict=True)
            ]
            used = [controls.of(unit) for unit in units]
            reference = {name: torch.stack([item[name] for item in used]).mean(0) for name in subject.exact}

        given = self.sweeps is not None
        resting = RestingStates(subject, given=given)

        def measure(chosen: Sequence[Intervention]) -> Measured:
            still = not (random and is_random(subject, pairs[0][0], chosen))
            others = [item for item in chosen if item.id != STALE]
            rests = still and (len(others) < len(chosen) if given else self._rests or random)
            with resting.under(others) if rests else nullcontext():
                chosen = others if rests else chosen
                if law.batches is not None and still:
                    return mean_gradient(subject, chosen)
                return _from_draws(subject, units, chosen, controls)

        return explain(subject, measure, pairs, reference, self._interventions())

    def _interventions(self) -> tuple[Intervention, ...]:
        """Return the usual interventions, and exact histories where the state was judged as it was given."""
        subject = self.subject
        if subject.runner.state.empty or self.sweeps != 0:
            return INTERVENTIONS
        given = subject.kept
        sweep_until_still(subject, lambda _: None)
        still, subject.kept = subject.kept, given

        @contextmanager
        def at_rest(subject: Subject) -> Iterator[None]:
            subject.runner.state.restore(still)
            yield

        return (
            *INTERVENTIONS,
            Intervention(
                STALE,
                "stale histories: what the step keeps is not what it comes to at frozen parameters",
                "refresh the histories, or take smaller steps, so that they keep up with the parameters",
                context=at_rest,
            ),
        )

    def _enough(self, units: Sequence[Unit], controls: _Controls) -> Sequence[Unit]:
        """Return the first draws in which the bias stands out, so that causes can be told apart; else all."""
        count = CAUSE_UNITS
        while count < len(units) and _from_draws(self.subject, units[:count], [], controls).vanishes():
            count *= 2
        return units[:count]

    def _units(self, random: bool) -> list[Unit]:
        if self._drawn is None:
            self._drawn = list(self.subject.units(self.draws, own_randomness=random))
        return self._drawn

    def _bring_to_rest(self, random: bool) -> None:
        subject, curve = self.subject, list[float]()
        enumerated = subject.law.batches is not None and not random

        def look(number: int) -> None:
            if enumerated:
                curve.append(norm(mean_gradient(subject).bias) / subject.unit)

        sweeps = sweep_until_still(subject, look, self.sweeps)
        self._rests = sweeps.still and self.sweeps is None
        if curve:
            self.series.append(
                Series(
                    "bias",
                    tuple(map(float, range(len(curve)))),
                    tuple(curve),
                    "Bias at frozen parameters",
                    "sweeps",
                    "bias / gradient",
                    scale="semilogy",
                )
            )
            self.notes.append(
                "bias by sweeps at frozen parameters, from the state that was given: "
                + ", ".join(f"{value:.2g}" for value in curve)
            )
        if self.sweeps is not None:
            return
        if sweeps.still:
            self.notes.append(f"the state came to rest after {sweeps.made - 1} sweeps, and is judged there")
            return
        longer = "" if sweeps.expected is None else f"; sweeps={sweeps.expected} would bring it to rest at this pace"
        self.notes.append(f"the state still changes after {sweeps.made} sweeps, and is judged as it is then{longer}")
        if len(curve) > 1 and abs(curve[-1] - curve[-2]) > SETTLED * curve[-1]:
            self._unsettled = f"it is of a state that still changes after {sweeps.made} sweeps{longer}"

    def _note_unknown_nodes(self, explanation: Explanation) -> None:
        subject = self.subject
        if explanation.complete:
            return
        batch = subject.law.first(1, subject.seed)[0]
        if not isinstance(subject.data, Data):
            self.notes.append(
                f"which nodes a batch holds is read for torch_geometric.data.Data only, and the data are "
                f"{type(subject.data).__name__}: causes that need to know it, such as missing-neighbours and "
                "halo-rows-in-loss, were not tried"
            )
            return
        found = subject.nodes(batch)
        if found.ids is not None and torch.unique(found.ids).numel() < found.ids.numel():
            self.notes.append(
                f"a batch has several rows for one node ({describe(batch)}): causes for which a batch is put beside "
                "the graph row by row, such as missing-neighbours, changed-edges and changed-features, were not tried"
            )
        if found.ids is not None or found.seeds is not None:
            return
        self.notes.append(
            f"which nodes a batch holds is not known ({describe(batch)}), so that most causes cannot be told and draws "
            "have no control on the same nodes; give nodes= and seeds=, functions of a batch that return the ids of "
            "its rows, and of the nodes that it is about"
        )

    def _note_what_is_left(self, decision: Decision, explanation: Explanation) -> None:
        """Say what a bias without a known cause may be."""
        subject, exact = self.subject, decision.guarantee == "exact"
        left = explanation.rest or decision.bias  # it is 0 where causes were not told apart
        if explanation.complete:
            # Values that the step makes anew are other values, by their rounding.
            anew = all(cause.id.startswith("changed-") for cause in explanation.causes if cause.explains)
            left = decision.bias if anew else math.inf
        if exact and left <= SINGLE and subject.runner.dtype is torch.float64:
            self.notes.append(
                f"a bias of {percent(left)} of the gradient may be rounding: numbers that the data have in single "
                "precision (such as edge weights) are off by as much where the step or the objective makes them "
                "anew in double precision; put them into the data in double precision to see what is left"
            )
        elif not explanation.complete and subject.objective is mean_loss:
            self._note_the_objective()

    def _note_the_objective(self) -> None:
        """Say what a step was compared with, where its own loss may be another one."""
        shares = ""
        if self._gives_shares():
            shares = " The model's outputs all lie in [0, 1]: if they are probabilities, they were taken for logits."
        self.notes.append(
            "no objective was given: the step was compared with the mean cross entropy (of 0/1 matrices: binary cross "
            "entropy) of the model's outputs as logits over data.train_mask. If its loss is another one (class "
            f"weights, smoothed labels, a penalty), give objective=lambda model, data: ...{shares}"
        )

    def _gives_shares(self) -> bool:
        """Whether the model's outputs may be probabilities, as behind a softmax or a sigmoid."""
        subject = self.subject
        subject.reset()
        with evaluating(subject.model), torch.no_grad():
            out = call_model(subject.model, subject.data)
        return isinstance(out, torch.Tensor) and bool(((out >= 0) & (out <= 1)).all())

    def _note_the_epoch(self, measured: Measured) -> None:
        law = self.subject.law
        if law.how != "epoch" or law.batches is None or law.per_pass != len(law.batches) or law.per_pass < 2:
            return  # an epoch of a design is shorter than the list of its batches
        size, spread = len(law.batches), measured.spread / self.subject.unit
        left = size - size // 2
        middle = spread * math.sqrt((size / left - 1) / (size - 1))
        self.notes.append(
            "epoch shuffling: the mean over an epoch is judged, in which every batch comes once. Given the batches "
            f"that the epoch has seen, a step in its middle is biased by {percent(middle)} of the gradient (root mean "
            f"square), the last one by {percent(spread)}; drawn independently (sampling='uniform') none is"
        )


class _Controls:
    """Controls of draws, each computed once."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._kept: dict[int, Gradient] = {}

    def of(self, unit: Unit) -> Gradient:
        """Return the control of a draw."""
        if id(unit) not in self._kept:
            self._kept[id(unit)] = self._control(unit)
        return self._kept[id(unit)]


def _without_randomness(subject: Subject) -> Control:
    """Return the step itself without its own randomness as control, where an intervention takes that away."""
    assert subject.law.batches is not None
    batch = subject.law.batches[0]
    for item in INTERVENTIONS:
        if item.changes_the_run and not is_random(subject, batch, [item]):
            try:
                return _still_steps(subject, item)
            except InapplicableError:
                continue
    return control_of(subject)


def _still_steps(subject: Subject, item: Intervention) -> Control:
    bias = mean_gradient(subject, [item]).bias

    def of(unit: Unit) -> Gradient:
        total = scaled(bias, -1.0)
        for batch, weight in zip(unit.batches, unit.weights, strict=True):
            total = added(total, treated(subject, batch, 0, [item]), weight)
        return total

    return Control(f"the same steps without randomness ({item.id.split('/')[0]})", of)


def _from_draws(
    subject: Subject, units: Sequence[Unit], chosen: Sequence[Intervention], controls: _Controls
) -> Measured:
    deviations = Deviations(subject.unit)
    draws = differences(subject, units, controls.of, chosen)
    for unit, draw in zip(units, draws, strict=True):
        deviations.update(draw, len(unit.batches))
    sizes = {name: length(value) for name, value in subject.exact.items()}
    return deviations.measured(rounding(subject, sizes, len(units)))
