"""Sampled aggregates: is the mean of the sampled operator the operator, in every layer?

The messages that a layer keeps are entries of its operator with new weights. Whatever the embeddings are, the sampled
aggregate is unbiased if and only if every entry's weight has the right mean, given the rows that are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.coverage import UNSEEN, Coverage, look_at_all
from lmc_verify.claims.question import Answer, Question, largest, measured
from lmc_verify.claims.residuals import ordinary_unit
from lmc_verify.claims.theory import UNKNOWN, Expectation
from lmc_verify.errors import ContractError, InvalidInputError, NotFiniteError
from lmc_verify.estimators import properties_of
from lmc_verify.estimators.samplers.sampled import layers_without_weighted_sums
from lmc_verify.graphs import Batch, Block, LayerSample, named_nodes
from lmc_verify.objective import euclidean_norm
from lmc_verify.seeds import generator
from lmc_verify.statistics.betting import RANGE_SLACK, BiasTest
from lmc_verify.statistics.radius import BiasRadius, draws_to_bound
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma, require_number

__all__ = ["SAMPLES_MESSAGES", "UNBIASED_AGGREGATION", "UNBIASED_AGGREGATION_SAMPLED", "WEIGHTED_SUMS", "samples_of"]

LOOK_EVERY, LOOK_GROWTH = 25, 1.05
"""The radius is looked at after 25 more draws or 5 % more, whichever is later; the test looks at every draw."""

ROUNDING = 1e-11
"""What rounding may do to one draw, in units of its range: a sum of fewer than 10^4 terms, taken a hundredfold."""

MASS_ROUNDING = 1e-9
"""Largest distance from 1 of the sum of all probabilities."""

TERMS = 10
"""Rounded operations of one atom's weight and probability, counted with the atoms that are added up."""

Array = npt.NDArray[np.float64]


def _samples_messages(case: Case) -> tuple[bool | None, str]:
    sampler = properties_of(case.estimator).sampler
    samples = sampler is not None and sampler.samples_messages
    return samples, "" if samples else f"{case.estimator.name} samples no messages"


def _weighted_sums(case: Case) -> tuple[bool | None, str]:
    layers = layers_without_weighted_sums(case.problem)
    return not layers, f"layer {', '.join(map(str, layers))} is no weighted sum of messages" if layers else ""


SAMPLES_MESSAGES = Assumption(
    "samples-messages", "the estimator keeps some of each layer's messages, at random", _samples_messages
)
WEIGHTED_SUMS = Assumption(
    "weighted-sums",
    "every layer is a weighted sum of messages, without an activation after it, so that weights reach its rows "
    "linearly",
    _weighted_sums,
)


def samples_of(case: Case, batch: Batch) -> tuple[LayerSample, ...]:
    """Return the samples of a batch by layer, layer 1 first.

    Raises:
        ContractError: they do not fit together, or not into the operators; layers would compute something else.
    """
    sample, layers = batch.sample, case.problem.num_layers
    who = f"the sample that {case.estimator.name!r} drew for the batch {named_nodes(batch.nodes)}"
    if sample is None or len(sample.layers) != layers:
        found = "is missing" if sample is None else f"has {len(sample.layers)} layers"
        raise ContractError(
            f"{who} {found}; the model has {layers}, and each needs its messages (see lmc_verify.Sample)"
        )
    needed, needs = batch.nodes, "the batch's nodes"
    for index in range(layers, 0, -1):
        own, csr = sample.layers[index - 1], _operator(case, index).csr
        flaw = ""
        if not torch.equal(own.rows.cpu(), needed.cpu()):
            flaw = f"its rows are not {needs}"
        elif own.entry.numel() and not 0 <= int(own.entry.min()) <= int(own.entry.max()) < csr.row.numel():
            flaw = f"an entry is not one of the operator's {csr.row.numel()}"
        elif not torch.equal(csr.row[own.entry].long(), own.rows[own.position]):
            flaw = "a message is placed in another row than its entry's"
        elif not torch.equal(csr.col[own.entry].long(), own.columns[own.source]):
            flaw = "a message comes from another column than its entry's"
        elif not bool(torch.isfinite(own.scale).all()):
            flaw = "a weight is not finite"
        if flaw:
            raise ContractError(f"{who} does not fit in layer {index}: {flaw}")
        needed, needs = own.columns, f"the columns of layer {index}"
    return sample.layers


def _operator(case: Case, layer: int) -> Block:
    return case.graph.operator(case.problem.model.layer(layer).operator)


def _decided_above(batch: Batch, layers: tuple[LayerSample, ...], index: int) -> bytes:
    """Return what is decided before layer `index` is sampled: the batch, its weights and the layers above."""
    assert batch.sample is not None
    weights = batch.inclusion if batch.sample.weights is None else batch.sample.weights
    # Single precision, so that equal weights are equal however they were rounded.
    parts = [batch.nodes, weights.float()]
    for above in layers[index:]:
        parts += [above.rows, above.columns, above.entry, above.scale.float()]
    return b"|".join(part.cpu().numpy().tobytes() for part in parts)


class _Condition(NamedTuple):
    """Entries of the rows that are needed, their mean weights and mean absolute weights, each row's probability."""

    entries: Tensor
    mean: Tensor
    size: Tensor
    needed: Tensor


class _ConditionalMeans:
    """The mean weight of every entry of a layer's operator, given all that the layers above have decided.

    The layer's factor meets what is above it in a product, so means are kept apart for every decision above: a bias
    given one may cancel against that given another, and still bias the product. A sampler that draws one subgraph for
    all layers decides everything at once: there the mean is that given the single row.
    """

    def __init__(self, case: Case, layer: int) -> None:
        self._name, self._layer = f"layer {layer}", layer
        self._csr = _operator(case, layer).csr
        self._rows = self._csr.row.cpu()
        self._value = self._csr.value.cpu().double()
        self._counts = self._value != 0  # a message of weight zero is none
        self._conditions: dict[bytes, _Condition] = {}

    def add(self, batch: Batch, layers: tuple[LayerSample, ...], probability: float, *, apart: bool) -> None:
        """Add one batch with its samples; `apart` unless one subgraph serves all layers."""
        own, every = layers[self._layer - 1], torch.arange(self._rows.numel())
        key = _decided_above(batch, layers, self._layer) if apart else b""
        if key not in self._conditions:
            entries = every[torch.isin(self._rows, own.rows.cpu())] if apart else every
            mean, size = torch.zeros(2, entries.numel(), dtype=torch.float64)
            self._conditions[key] = _Condition(
                entries, mean, size, torch.zeros(self._csr.num_rows, dtype=torch.float64)
            )
        found = self._conditions[key]
        found.needed[own.rows.cpu()] += probability
        place, scale = torch.searchsorted(found.entries, own.entry.cpu()), probability * own.scale.cpu()
        found.mean.index_add_(0, place, scale)
        found.size.index_add_(0, place, scale.abs())

    @property
    def off_operator(self) -> Evidence:
        """The mean sampled operator minus the exact one, in units of the exact one.

        `residual` counts every message alike; here each counts by its weight in the operator, as it does in the
        aggregate of embeddings of equal size.
        """
        reference = difference = 0.0
        for found in self._conditions.values():
            weight, value = found.needed[self._rows[found.entries]], self._value[found.entries]
            reference += euclidean_norm([value * weight])
            difference += euclidean_norm([value * (found.mean - weight)])
        unit = "norm of the operator at the rows that are needed"
        return Evidence(self._name, difference / (reference or 1.0), unit=unit, group="bias of the operator")

    def residual(self, atoms: int) -> Evidence:
        """Return the norms of mean minus exact weights, summed over what was decided above, in units of the exact ones.

        Weights are compared, and not messages: a message may be as large as any embedding.
        """
        reference = difference = rounding = 0.0
        for found in self._conditions.values():
            counts = self._counts[found.entries]
            weight = found.needed[self._rows[found.entries[counts]]]
            reference += euclidean_norm([weight])
            difference += euclidean_norm([found.mean[counts] - weight])
            rounding += euclidean_norm([found.size[counts] + weight])  # what was added up, before it cancels
        reference = reference or 1.0
        if not math.isfinite(rounding / reference):
            raise NotFiniteError(
                f"the weights of the messages in {self._name} overflow when they are added up, so nothing is decided; "
                "a weight is the inverse of a probability, see the scale of lmc_verify.LayerSample"
            )
        return Evidence(
            self._name,
            difference / reference,
            gamma(atoms + TERMS) * rounding / reference,
            unit="norm of the weights at the rows that are needed",
            group="bias of the aggregate",
        )


def _one_subgraph(case: Case, layers: tuple[LayerSample, ...]) -> bool:
    """Whether one node set serves all layers, as a sampler that does not sample them independently states."""
    sampler = properties_of(case.estimator).sampler
    assert sampler is not None  # SAMPLES_MESSAGES holds
    nodes = layers[-1].rows
    return not sampler.independent_layers and all(
        torch.equal(own.rows, nodes) and torch.equal(own.columns, nodes) for own in layers
    )


def check(case: Case) -> Verdict:
    """Enumerate batches with their samples and compare every entry's mean weight with the operator's, row by row."""
    claim = UNBIASED_AGGREGATION
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    means = {index: _ConditionalMeans(case, index) for index in range(1, case.problem.num_layers + 1)}
    probabilities: list[float] = []
    for batch, probability in case.design.enumerate():
        layers = samples_of(case, batch)
        probabilities.append(require_number(probability, "the probability of a batch with its sample"))
        apart = not _one_subgraph(case, layers)
        for mean in means.values():
            mean.add(batch, layers, probability, apart=apart)
    atoms, mass = len(probabilities), math.fsum(probabilities)
    if abs(mass - 1) > MASS_ROUNDING:
        raise InvalidInputError(
            f"the probabilities of all {atoms:,} batches with samples sum to {mass:.12g}, not to 1; the design's "
            "enumerate() leaves some out, or lists some twice"
        )
    residuals = [mean.residual(atoms) for mean in means.values()]
    operators = [mean.off_operator for mean in means.values()]
    found = {decide(item.value, item.tolerance or 0.0) for item in residuals}
    worst = max(residuals, key=lambda item: item.value / (item.tolerance or 1.0))
    if "refuted" in found:
        outcome = Outcome.REFUTED
        size = next(item.value for item in operators if item.quantity == worst.quantity)
        summary = f"biased: in {worst.quantity} the mean sampled operator is off by {size:.2g} of the operator"
        if size < worst.value / 2:
            summary += f", its weights by {worst.value:.2g}: small entries are off most"
    elif "inconclusive" in found:
        outcome = Outcome.INCONCLUSIVE
        summary = f"the residual {worst.value:.1e} of {worst.quantity} lies between rounding and the detectable effect"
    else:
        outcome = Outcome.EXACT
        summary = (
            f"the mean over all {atoms:,} batches with samples is the operator in {len(residuals)} layers: largest "
            f"residual {worst.value:.1e}, rounding allows {worst.tolerance:.1e}"
        )
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        evidence=[*residuals, *operators],
        assumptions=claim.checked_assumptions(case),
        residual=worst.value,
        tolerance=worst.tolerance,
        minimum_detectable_effect=REFUTATION_FACTOR * max(item.tolerance or 0.0 for item in residuals),
    )


def _expected(case: Case, claim: Claim, holds: Outcome) -> Expectation:
    inapplicable = expect_not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    sampler = found.sampler
    assert sampler is not None  # SAMPLES_MESSAGES holds
    estimated = sampler.estimated_weights(case.problem)
    if estimated:
        return Expectation(Outcome.REFUTED if holds is Outcome.EXACT else None, estimated)
    departure = sampler.departure(case.problem, case.design)
    if departure is not None:
        refuted = departure.certain and holds is Outcome.EXACT
        return Expectation(Outcome.REFUTED if refuted else None, departure.reason)
    missed = sampler.missed(case.problem, case.design)
    if missed:
        return Expectation(None, missed)
    return Expectation(
        holds, "every message is weighted by the inverse of its probability, given that its row is needed"
    )


def expect(case: Case) -> Expectation:
    """Return what theory says, by enumeration."""
    return _expected(case, UNBIASED_AGGREGATION, Outcome.EXACT)


class _Aggregates:
    """The error of one draw's aggregates, of one number per node, with a proven range by layer."""

    def __init__(self, case: Case) -> None:
        self._case = case
        # Numbers at extreme scales are brought to about 1, so that their squares are representable.
        size = max(euclidean_norm([h]) for h in case.exact.embeddings[:-1])
        scale = ordinary_unit(size)
        rng = generator(case.seed, "aggregation", "projection")
        self._values: dict[int, Tensor] = {}
        self._exact: dict[int, Tensor] = {}
        self.bounds: dict[str, float] = {}
        self.norms: dict[str, float] = {}
        sampler = properties_of(case.estimator).sampler
        assert sampler is not None  # SAMPLES_MESSAGES holds
        scales = sampler.largest_scales(case.problem, case.design)
        for index in range(1, case.problem.num_layers + 1):
            h = case.exact.embeddings[index - 1] / scale
            direction = torch.from_numpy(rng.standard_normal(h.shape[1])).to(h)
            operator = _operator(case, index)
            messages = operator.csr.value * (h @ direction)[operator.csr.col.long()]
            exact = torch.zeros(case.graph.num_nodes, dtype=h.dtype, device=h.device)
            exact.index_add_(0, operator.csr.row, messages)
            off = messages.abs() * (scales[index - 1].to(h) - 1).clamp(min=1)  # scale lies in [0, largest]
            row_bound = torch.zeros_like(exact).index_add_(0, operator.csr.row, off)
            self._values[index], self._exact[index] = messages, exact
            self.bounds[f"layer {index}"] = euclidean_norm([row_bound])
            self.norms[f"layer {index}"] = euclidean_norm([exact])

    def error(self, batch: Batch) -> dict[str, Array]:
        """Return, by layer, sampled minus exact aggregate at the rows that are needed, 0 elsewhere."""
        out = {}
        for index, own in enumerate(samples_of(self._case, batch), 1):
            total = torch.zeros_like(self._exact[index])
            total.index_add_(0, own.rows[own.position], self._values[index][own.entry] * own.scale.to(total))
            total[own.rows] -= self._exact[index][own.rows]
            out[f"layer {index}"] = total.cpu().double().numpy()
        return out

    def beyond(self, batch: Batch, error: Mapping[str, Array], tolerance: Mapping[str, float]) -> str:
        """Return how one draw's error leaves the range of the weights, in words; empty if it does not."""
        for part, value in error.items():
            size = require_number(euclidean_norm([torch.from_numpy(value)]), f"the error of the aggregates in {part}")
            if size > self.bounds[part] * (1 + RANGE_SLACK) + tolerance[part]:
                return (
                    f"for the batch {named_nodes(batch.nodes)} the aggregates of {part} are off by {size:.2g}, the "
                    f"largest weights allow {self.bounds[part]:.2g}: its code does not follow its distribution"
                )
        return ""


def check_sampled(case: Case) -> Verdict:
    """Draw batches with samples until a bias of the aggregates is shown, or shown to be at most delta.

    Each node's embedding is projected on one fixed random direction. The error of a row has a proven range: no weight
    exceeds the largest possible one; nothing is decided for a sampler whose methods are not the package's own.
    Refutation and support spend half of the error level each.
    """
    claim = UNBIASED_AGGREGATION_SAMPLED
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    if not properties_of(case.estimator).known:
        return verdict_of(
            case,
            claim.id,
            Outcome.INCONCLUSIVE,
            "no proven range: the sampler has methods of its own, and its weights are bounded only by what it states",
            assumptions=claim.checked_assumptions(case),
        )
    parts = _Aggregates(case)
    unit = require_number(math.hypot(*parts.norms.values()), "the norm of the aggregates")
    if unit == 0:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "every aggregate vanishes: there is no unit of bias")
    alpha, target = case.sampling.alpha / 2, case.sampling.delta * unit
    tolerance = {part: ROUNDING * bound for part, bound in parts.bounds.items()}
    coverage = Coverage(alpha, look_at_all(case.design.support_size, alpha))
    beyond = ""
    if coverage.everything:
        every = (parts.beyond(batch, parts.error(batch), tolerance) for batch, _ in case.design.enumerate())
        beyond = next(filter(None, every), "")
    test = BiasTest(parts.bounds, tolerance=tolerance)
    radius = BiasRadius(parts.bounds, alpha, tolerance=tolerance)
    rng = generator(case.seed, "aggregation", case.sampling.replicate)
    outcome, look, squares = Outcome.INCONCLUSIVE, LOOK_EVERY, 0.0
    track: list[tuple[float, float]] = []
    for number in range(1, case.sampling.draws + 1):
        batch = case.design.draw(rng)
        draw = parts.error(batch)
        beyond = beyond or parts.beyond(batch, draw, tolerance)
        if beyond:
            return verdict_of(
                case,
                claim.id,
                Outcome.INCONCLUSIVE,
                f"no proven range: {beyond}",
                assumptions=claim.checked_assumptions(case),
                draws=test.draws,
            )
        squares += sum(float(value @ value) for value in draw.values())
        test.update(draw)
        radius.update(draw)
        if test.rejects(alpha):
            outcome = Outcome.REFUTED
        elif number in (look, case.sampling.draws, coverage.draws):
            look = max(number + LOOK_EVERY, math.ceil(LOOK_GROWTH * number))
            track.append((float(number), radius.upper() / unit))
            if radius.upper() <= target and number >= coverage.draws:
                outcome = Outcome.SUPPORTED
        if outcome is not Outcome.INCONCLUSIVE:
            break
    upper = radius.upper() / unit
    summary = f"the bias of the aggregates is at most {upper:.2g} of their norm after {test.draws:,} draws"
    if outcome is Outcome.REFUTED:
        blocks = ", ".join(test.rejected_blocks(alpha)) or "all layers together"
        summary = f"biased: e-value 10^{test.log_value / math.log(10):.1f} after {test.draws:,} draws, in {blocks}"
    elif outcome is Outcome.INCONCLUSIVE:
        summary += f"; {_advice(parts.bounds, squares / test.draws, target, alpha, coverage.draws)}"
    else:
        summary += f"; {coverage.words(test.draws)}"
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        evidence=[
            Evidence(
                "bias, upper bound", upper, case.sampling.delta, unit="norm of all aggregates", group="from draws"
            ),
            *(
                Evidence(f"range of {part}", bound / unit, unit="norm of all aggregates", group="range")
                for part, bound in parts.bounds.items()
            ),
        ],
        series=(
            Series(
                "upper bound",
                tuple(number for number, _ in track),
                tuple(value for _, value in track),
                "Bias of the aggregates, at most",
                "draws",
                "bias / norm of the aggregates",
                scale="loglog",
            ),
        )
        if len(track) > 1
        else (),
        assumptions=(*claim.checked_assumptions(case), coverage.check(test.draws)),
        alpha_spent=case.sampling.alpha,
        log_e_value=test.log_value,
        draws=test.draws,
    )


def _advice(bounds: Mapping[str, float], second: float, target: float, alpha: float, least: int) -> str:
    whole = math.hypot(*bounds.values())
    try:
        enough = max(draws_to_bound(target, whole, min(second, whole**2), alpha), least)
    except (ValueError, OverflowError):
        return "no number of draws would decide at this delta"
    return f"about {enough:,} draws would show a bias of at most sampling.delta, if there is none; set sampling.draws"


def expect_sampled(case: Case) -> Expectation:
    """Return what theory says, from draws: whether they suffice depends on the range of the weights."""
    found = _expected(case, UNBIASED_AGGREGATION_SAMPLED, Outcome.SUPPORTED)
    if found.outcome is Outcome.SUPPORTED:
        return Expectation(
            None, f"{found.reason}; whether the draws suffice to show it depends on the range of weights"
        )
    return found


_SOURCE = (
    "GraphSAGE (Hamilton et al., NeurIPS 2017), VR-GCN (Chen et al., ICML 2018), FastGCN (Chen et al., ICLR 2018), "
    "LADIES (Zou et al., NeurIPS 2019), GraphSAINT (Zeng et al., ICLR 2020), LABOR (Balin and Catalyurek, NeurIPS 2023)"
)
_STATEMENT = (
    "Given the rows that a layer needs, and all that was decided above it, the mean of every row's sampled aggregate "
    "is its exact aggregate, in every layer and for every value of the embeddings. (Of samplers that draw one subgraph "
    "for all layers: given the row.)"
)
_STATEMENT_SAMPLED = (
    "Given that a layer needs a row, the mean of the row's sampled aggregate is its exact aggregate, in every layer "
    "and for every value of the embeddings."
)
_THEORY = (
    "A message is kept with some probability and weighted by its inverse; what counts is the weight's mean, given what "
    "the layers above have already decided. Unbiased aggregates do not make an unbiased gradient: activations and the "
    "loss are not linear."
)

UNBIASED_AGGREGATION = Claim(
    id="sampling/unbiased-aggregation",
    title="Sampled aggregates are unbiased",
    statement=_STATEMENT,
    source=_SOURCE,
    tier="exact",
    theory=_THEORY,
    question=Question(
        "Is the mean of {estimator}'s sampled aggregates the exact aggregate",
        refuted=Answer("off by {size}", largest("bias of the operator")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, SAMPLES_MESSAGES, WEIGHTED_SUMS),
    check=check,
    expect=expect,
    reads=(),
    asks=False,
)

UNBIASED_AGGREGATION_SAMPLED = Claim(
    id="sampling/unbiased-aggregation-sampled",
    title="Sampled aggregates are unbiased, from draws",
    statement=_STATEMENT_SAMPLED
    + " Supported: the bias is at most delta of the aggregates' norm; refuted: it is not zero. Where not every sample "
    f"was looked at, this holds of those whose weights keep to their proven range; that {UNSEEN:.1%} or more do not is "
    "excluded before anything is supported.",
    source=_SOURCE,
    tier="test",
    theory=_THEORY,
    question=Question(
        "Is the mean of {estimator}'s sampled aggregates the exact aggregate where samples are drawn",
        supported=Answer("off by at most {size} of their norm", measured("bias, upper bound"), largest=True),
    ),
    required=(NO_DROPOUT, SAMPLES_MESSAGES, WEIGHTED_SUMS),
    check=check_sampled,
    expect=expect_sampled,
    reads=("sampling.delta", "sampling.draws"),
    asks=False,
)
