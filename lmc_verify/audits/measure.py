"""The mean of a step's gradients over the law of its batches, under interventions, and its distance from the exact one.

Where all batches are known and the step draws nothing for itself, the mean is a finite sum and its distance from the
exact gradient is known to rounding. Elsewhere draws are compared with a control on the same nodes, whose mean is the
exact gradient (see `lmc_verify.audits.control`), and the distance has a standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.audits.batches.law import Unit
from lmc_verify.audits.interventions import Intervention, changed_batch
from lmc_verify.audits.modes.forward import MirroredDropout
from lmc_verify.audits.subject import Gradient, Subject, added, length, norm, scaled
from lmc_verify.seeds import torch_generator
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, gamma
from lmc_verify.steps import cast
from lmc_verify.steps.row_gradients import message_passing

__all__ = [
    "Deviations",
    "InapplicableError",
    "Measured",
    "can_mirror",
    "differences",
    "is_random",
    "mean_gradient",
    "prepared",
    "rounding",
    "treated",
]

PROBE = 1e-7
"""Relative size of the random changes of parameters and features from which the conditioning is measured."""

WITHIN = 3.0
"""Standard errors within which a bias from draws counts as none when causes are compared."""


class InapplicableError(Exception):
    """A step fails under interventions, or gives no finite gradient, and does not without: they do not apply to it."""


@dataclass(frozen=True)
class Measured:
    """A mean of gradients, and its distance from the exact one.

    Attributes:
        bias: mean minus exact gradient, by parameter.
        noise: by parameter, the norm that rounding may give (exact), or the standard error of the norm (sampled).
        exact: whether all batches were evaluated, and nothing was left to chance.
        draws: batches that were evaluated.
        spread: root mean square of the distance of a batch's gradient from the mean, where all were evaluated.
    """

    bias: Gradient
    noise: dict[str, float]
    exact: bool
    draws: int
    spread: float = 0.0

    def size(self) -> float:
        """Return the norm of the bias, less what noise gives on average."""
        return norm(self.bias) if self.exact else _beyond(norm(self.bias), self.total_noise())

    def total_noise(self) -> float:
        """Return the noise of all parameters together."""
        return math.hypot(*self.noise.values())

    def vanishes(self, less: Gradient | None = None) -> bool:
        """Whether the bias, less a predicted one, is nothing but rounding, or within its interval."""
        rest = self.bias if less is None else added(self.bias, less, -1.0)
        limit = REFUTATION_FACTOR if self.exact else WITHIN
        return all(length(value) <= limit * self.noise[name] for name, value in rest.items())


def _beyond(whole: float, part: float) -> float:
    """Return the other leg of a right triangle with a hypotenuse and a leg; 0 where there is none."""
    return whole * math.sqrt(max(1.0 - (part / whole) ** 2, 0.0)) if whole > part else 0.0


def prepared(subject: Subject, batch: Any, chosen: Sequence[Intervention]) -> tuple[Any, list[Any]]:
    """Return a batch as interventions change it, and the contexts that the step runs in."""
    with subject.law.loading.timed():
        changed = changed_batch(subject, batch, chosen)
    contexts = [item.context(subject) for item in chosen if item.context is not None]
    contexts += [item.within(subject, changed) for item in chosen if item.within is not None]
    return changed, contexts + [item.among(subject, chosen) for item in chosen if item.among is not None]


def treated(
    subject: Subject, batch: Any, seed: int, chosen: Sequence[Intervention], contexts: Sequence[Any] = ()
) -> Gradient:
    """Return the step's gradient for a batch under interventions, without their weights.

    Raises:
        InapplicableError: the step fails with a batch that an intervention has changed.
    """
    try:
        changed, own = prepared(subject, batch, chosen)
        return subject.step(changed, seed, [*contexts, *own])
    except Exception as error:
        if chosen:
            subject.step(batch, seed, contexts)  # what fails without them, too, is the step's own
            raise InapplicableError from error
        raise


def is_random(subject: Subject, batch: Any, chosen: Sequence[Intervention] = ()) -> bool:
    """Whether the step gives another gradient for one batch under another seed; so it does where it fails."""
    try:
        one, other = (treated(subject, batch, seed, chosen) for seed in (1, 2))
    except InapplicableError:
        return True
    return any(not torch.equal(one[name], other[name]) for name in one)


def can_mirror(subject: Subject, batch: Any) -> bool:
    """Whether the step runs with dropout's masks mirrored."""
    try:
        subject.step(batch, 1, [MirroredDropout(True)])
    except Exception:
        return False
    return True


def counts_of(subject: Subject, batch: Any, chosen: Sequence[Intervention]) -> list[float | None]:
    """Return the number that each weighting intervention takes of a batch, after the others have changed it.

    Raises:
        InapplicableError: the step fails with the changed batch.
    """
    key = (id(batch), *(item.id for item in chosen))
    if key not in subject.counts:
        relabelling = [item for item in chosen if item.id in ("halo-rows-in-loss", "changed-labels")]
        changed = changed_batch(subject, batch, relabelling)
        try:
            counts = [item.count(subject, batch if item.of_draw else changed) for item in chosen if item.count]
        except Exception as error:
            raise InapplicableError from error
        subject.counts[key] = (batch, counts)  # the batch is kept, so that its id is not given to another
    return subject.counts[key][1]


class Weights:
    """Factors of the batches' gradients under interventions: the product of their counts over its mean.

    Args:
        subject: the step.
        chosen: interventions.
        batches: batches with their weights in the mean.
    """

    def __init__(self, subject: Subject, chosen: Sequence[Intervention], batches: Sequence[tuple[Any, float]]) -> None:
        self._subject, self._chosen = subject, [item for item in chosen if item.count or item.batch]
        self._mean = 0.0
        if any(item.count for item in chosen):
            total = math.fsum(weight for _, weight in batches)
            self._mean = math.fsum(self._count(batch) * weight for batch, weight in batches) / total

    def of(self, batch: Any) -> float:
        """Return the factor of a batch."""
        return self._count(batch) / self._mean if self._mean else 1.0

    def _count(self, batch: Any) -> float:
        return math.prod(count or 0 for count in counts_of(self._subject, batch, self._chosen))


def mean_gradient(subject: Subject, chosen: Sequence[Intervention] = ()) -> Measured:
    """Return the mean over all batches of an enumerated law.

    Raises:
        ValueError: the law is not enumerated.
    """
    law = subject.law
    if law.batches is None or law.probabilities is None:
        raise ValueError("the batches of this law are drawn, there is no finite sum")
    pairs = list(zip(law.batches, law.probabilities, strict=True))
    weights = Weights(subject, chosen, pairs)
    total = {name: torch.zeros_like(value) for name, value in subject.exact.items()}
    sizes, root = dict.fromkeys(total, 0.0), 0.0
    for batch, probability in pairs:
        weight = weights.of(batch)
        for name, value in treated(subject, batch, 0, chosen).items():
            total[name] += probability * weight * value
            size = weight * length(value)
            sizes[name] += probability * size
            root = math.hypot(root, math.sqrt(probability) * size)
    noise = rounding(subject, sizes, len(pairs))
    return Measured(added(total, subject.exact, -1.0), noise, True, len(pairs), _beyond(root, norm(total)))


def differences(
    subject: Subject,
    units: Sequence[Unit],
    control: Callable[[Unit], Gradient],
    chosen: Sequence[Intervention] = (),
) -> Iterator[Gradient]:
    """Yield, for every draw, the mean of its steps' gradients less its control: its expectation is the bias."""
    pairs = [pair for unit in units for pair in zip(unit.batches, unit.weights, strict=True)]
    weights = Weights(subject, chosen, pairs)
    for unit in units:
        total: Gradient = {}
        for batch, weight, seed in zip(unit.batches, unit.weights, unit.seeds, strict=True):
            part = _averaged(subject, batch, seed, chosen)
            part = scaled(part, weight * weights.of(batch))
            total = added(total, part) if total else part
        yield added(total, control(unit), -1.0)


def _averaged(subject: Subject, batch: Any, seed: int, chosen: Sequence[Intervention]) -> Gradient:
    """Return the gradient for a seed; where dropout alone is random, the mean over masks and mirror images."""
    if not subject.mirrored or any(item.context is not None for item in chosen):
        return treated(subject, batch, seed, chosen)
    one, other = (treated(subject, batch, seed, chosen, [MirroredDropout(mirrored)]) for mirrored in (False, True))
    return scaled(added(one, other), 0.5)


class Deviations:
    """Mean and standard error of draws, by parameter.

    Args:
        unit: about the size of a draw: squares are taken of multiples of it.
    """

    def __init__(self, unit: float) -> None:
        self._unit = unit or 1.0
        self._count = 0
        self._mean: Gradient = {}
        self._squares: dict[str, float] = {}
        self._batches = 0

    def update(self, draw: Gradient, batches: int) -> None:
        """Take one draw (Welford's recursion)."""
        self._count += 1
        self._batches += batches
        if not self._mean:
            self._mean = {name: value.clone() for name, value in draw.items()}
            self._squares = dict.fromkeys(draw, 0.0)
            return
        for name, value in draw.items():
            step = value - self._mean[name]
            self._mean[name] += step / self._count
            self._squares[name] += float((step / self._unit * ((value - self._mean[name]) / self._unit)).sum())

    def measured(self, rounded: dict[str, float]) -> Measured:
        """Return mean and standard errors; rounding is part of the noise."""
        spread = max(self._count - 1, 1) * self._count
        noise = {
            name: math.hypot(self._unit * math.sqrt(max(square, 0.0) / spread), rounded[name])
            for name, square in self._squares.items()
        }
        return Measured(self._mean, noise, False, self._batches)


def rounding(subject: Subject, sizes: dict[str, float], batches: int) -> dict[str, float]:
    """Return by parameter what rounding may do to a mean of gradients, as Euclidean norm.

    A gradient is computed as if parameters and features were changed by the relative error of its longest sums
    (backward stability); what such a change does is measured on the exact gradient. To this comes the error of the
    weighted sum over batches.

    Args:
        subject: the step.
        sizes: by parameter, the weighted sum of the norms of all batches' gradients.
        batches: their number.
    """
    unit = gamma(terms(subject) + batches) * torch.finfo(subject.runner.dtype).eps / torch.finfo(torch.float64).eps
    moved = _conditioning(subject)
    whole = subject.unit
    return {name: unit * (sizes[name] + length(value) + moved[name] + whole) for name, value in subject.exact.items()}


def terms(subject: Subject) -> int:
    """Return an upper bound on the rounded additions behind one component of a gradient: its longest sums, chained."""
    data, model = subject.data, subject.model
    widest = max((max(value.shape) for value in model.parameters() if value.dim()), default=1)
    nodes = int(data.num_nodes or 1) if hasattr(data, "num_nodes") else 1
    degree = 1
    if isinstance(data, Data) and isinstance(data.edge_index, Tensor) and data.edge_index.numel():
        degree = max(int(torch.bincount(row).max()) for row in data.edge_index.cpu())
    layers = max(len(message_passing(model)), 1)
    return nodes + layers * 2 * (widest + degree + 12)


def _conditioning(subject: Subject) -> dict[str, float]:
    """Return by parameter the change of the exact gradient for a relative change of one of parameters and features."""
    if subject.conditioning is None:
        found = dict.fromkeys(subject.exact, 0.0)
        for probe in range(2):
            moved = _moved_gradient(subject, probe)
            for name, value in subject.exact.items():
                found[name] = max(found[name], length(moved[name] - value) / PROBE)
        subject.conditioning = found
    return subject.conditioning


def _moved_gradient(subject: Subject, probe: int) -> Gradient:
    source = torch_generator(subject.seed, "conditioning", probe)

    def moved(value: Tensor) -> Tensor:
        """Return the tensor with each component that it stores multiplied by 1 + PROBE or 1 - PROBE."""
        if value.layout is not torch.strided:
            out = value.detach().clone()
            out = out.coalesce() if out.layout is torch.sparse_coo else out
            out.values().copy_(moved(out.values()))
            return out
        ups = torch.randint(2, value.shape, generator=source, dtype=torch.int8).to(value)
        return ups.mul_(2 * PROBE).add_(1 - PROBE).mul_(value)

    kept = {name: value.data for name, value in subject.model.named_parameters()}
    data = cast(subject.data, subject.runner.dtype)
    if isinstance(data, Data) and isinstance(data.x, Tensor) and data.x.is_floating_point():
        data.x = moved(data.x)
    try:
        for value in subject.model.parameters():
            value.data = moved(value.data)
        return subject.gradient_of(data)
    finally:
        for name, value in subject.model.named_parameters():
            value.data = kept[name]
