"""Assertions about a training step, for tests of your own: each raises an AssertionError that says where and how much.

They need no pytest. In a test that takes the fixture `lmc_audit`, pass it as `using`: the audit then spends a share of
the session's error probability, and is listed in the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.audits import Audit, audit
from lmc_verify.audits.batches.law import law_of
from lmc_verify.audits.batches.nodes import NodesReader
from lmc_verify.audits.decision import decide_exact
from lmc_verify.audits.measure import mean_gradient
from lmc_verify.audits.result import percent
from lmc_verify.audits.subject import Subject, norm
from lmc_verify.cases.verdict import Outcome
from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.steps import Objective, StateLike, Step, StepRunner, cast, mean_loss

__all__ = ["assert_bias_decays", "assert_matches_exact", "assert_unbiased"]

Gradients = Mapping[str, Tensor | None]
Auditor = Callable[..., Audit]


def assert_unbiased(
    model: nn.Module,
    data: Any,
    batches: Any,
    step: Step,
    *,
    rtol: float = 0.01,
    using: Auditor = audit,
    **options: Any,
) -> Audit:
    """Raise unless the bias of a training step is shown to be at most a share of the exact gradient's norm.

    Args:
        model: any module.
        data: the whole graph.
        batches: a design, a list of (batch, probability), or a loader.
        step: ``step(model, batch)``, up to ``.backward()``.
        rtol: the share, in [0, 1); a bias that is nothing but rounding always passes.
        using: what makes the audit: `lmc_verify.audit`, or the fixture ``lmc_audit``.
        options: of `lmc_verify.audit`.

    Returns:
        The audit.

    Raises:
        AssertionError: a bias, or one that is not excluded; names the worst parameter, the size, the causes, the seed.
        InvalidInputError, ContractError, NotFiniteError: as `lmc_verify.audit`; they say nothing about bias.

    Example:
        >>> import torch.nn.functional as F, lmc_verify as lv
        >>> from torch_geometric.nn import GCN
        >>> from lmc_verify.testing import assert_unbiased
        >>> data = lv.load_data("karate")
        >>> def step(model, batch):
        ...     out = model(batch.x, batch.edge_index)
        ...     F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask]).backward()
        >>> assert_unbiased(GCN(data.num_features, 8, 2, int(data.y.max()) + 1), data, [data], step).unbiased
        True
    """
    __tracebackhide__ = True
    _check_rtol(rtol)
    found = using(model, data, batches, step, **_supporting(rtol, options))
    found.assert_unbiased(rtol)
    return found


def assert_matches_exact(
    model: nn.Module,
    data: Any,
    step_or_gradients: Step | Gradients,
    *,
    rtol: float | None = None,
    objective: Objective | None = None,
    seed: int = 0,
    using: Auditor = audit,
    **options: Any,
) -> None:
    """Raise unless a gradient on the whole graph is the objective's exact gradient.

    Args:
        model: any module.
        data: the whole graph.
        step_or_gradients: a full-batch step, ``step(model, data)``, that leaves ``.grad``; or gradients by parameter,
            taken at the model's parameters as they are now. They are judged in their own precision, a step in float64.
        rtol: largest distance as a share of the exact gradient's norm; None for rounding alone.
        objective: ``objective(model, data)``, a scalar; None for the mean loss over ``data.train_mask``.
        seed: of what a step draws.
        using: what makes the audit of a step.
        options: of `lmc_verify.audit`, for a step.

    Raises:
        AssertionError: they differ by more; names the worst parameter, the size and, for a step, the causes.
        ContractError: a parameter has no gradient, or one of another shape; or the step breaks its contract.
        NotFiniteError: a gradient is NaN or infinite.

    Example:
        >>> import lmc_verify as lv
        >>> from torch_geometric.nn import GCN
        >>> from lmc_verify.testing import assert_matches_exact
        >>> data = lv.load_data("karate")
        >>> model = GCN(data.num_features, 8, 2, int(data.y.max()) + 1)
        >>> out = model(data.x, data.edge_index)
        >>> torch.nn.functional.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        >>> assert_matches_exact(model, data, {name: value.grad for name, value in model.named_parameters()})
    """
    __tracebackhide__ = True
    if rtol is not None:
        _check_rtol(rtol)
    if isinstance(step_or_gradients, Mapping):
        _match(model, data, step_or_gradients, rtol, objective or mean_loss, seed)
        return
    share = rtol or 0.0
    settings = {"guarantee": "exact", "draws": 2, **_supporting(share, options)}
    found = using(model, data, [(data, 1.0)], step_or_gradients, objective=objective, seed=seed, **settings)
    if found.guarantee != "exact":
        raise AssertionError(
            f"a step that draws for itself has no one gradient to compare: {found.notes[0]}. Call model.eval() before, "
            f"or judge its mean with assert_unbiased (seed {seed})"
        )
    found.assert_unbiased(share)


def assert_bias_decays(
    model: nn.Module,
    data: Any,
    batches: Any,
    step: Step,
    *,
    state: StateLike,
    sweeps: int | None = None,
    rtol: float = 1e-6,
    using: Auditor = audit,
    **options: Any,
) -> Audit:
    """Raise unless the bias of a step with a state vanishes while parameters stand still: is it exact when frozen?

    Histories that are refreshed at frozen parameters become exact, and with them every gradient that is made of them
    (LMC, Theorem 2: what remains is due to the step size). A bias that stays is no staleness.

    Args:
        model: any module.
        data: the whole graph.
        batches: a design, a list of (batch, probability), or a loader.
        step: ``step(model, batch)``, up to ``.backward()``.
        state: what the step keeps between batches, see `lmc_verify.audit`.
        sweeps: passes over the batches after which the bias is judged; None: when the state no longer changes.
        rtol: largest bias then, as a share of the exact gradient's norm, in [0, 1). A step that draws for itself, or
            batches that cannot be listed, need a larger one.
        using: what makes the audit: `lmc_verify.audit`, or the fixture ``lmc_audit``.
        options: of `lmc_verify.audit`.

    Returns:
        The audit; its first series is the bias by sweeps, where batches are listed.

    Raises:
        AssertionError: the bias is not shown to fall below `rtol`; has the bias by sweeps, and what `assert_unbiased`
            says.
        InvalidInputError: no state, or what `lmc_verify.audit` refuses.
    """
    __tracebackhide__ = True
    _check_rtol(rtol)
    if state is None:
        raise InvalidInputError(
            "state is None: a step that keeps nothing has no bias that could decay; pass what it keeps, or use "
            "assert_unbiased"
        )
    found = using(model, data, batches, step, state=state, sweeps=sweeps, **_supporting(rtol, options))
    try:
        found.assert_unbiased(rtol)
    except AssertionError as error:
        curve = [value for series in found.series if series.x_label == "sweeps" for value in series.y]
        course = f"; by sweeps: {', '.join(f'{value:.2g}' for value in curve)}" if curve else ""
        raise AssertionError(f"the bias does not decay at frozen parameters{course}\n{error}") from None
    return found


def _check_rtol(rtol: float) -> None:
    if not 0 <= rtol < 1:
        raise InvalidInputError(f"rtol is {rtol}; it is a share of the exact gradient's norm, in [0, 1)")


def _supporting(rtol: float, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the audit's options, with the size that counts as none the one that is asserted."""
    return {**({"delta": rtol} if rtol > 0 else {}), **options}


def _match(
    model: nn.Module, data: Any, gradients: Gradients, rtol: float | None, objective: Objective, seed: int
) -> None:
    """Compare gradients by parameter with the exact one, in the lowest of their precisions."""
    given = _complete(model, gradients)
    dtype = _precision(given, rtol)
    with StepRunner(model, lambda _model, _batch: given, dtype=dtype) as runner:
        whole = cast(data, dtype)
        law = law_of([(whole, 1.0)], whole, sampling=None, seed=seed)
        subject = Subject(runner, whole, law, NodesReader(whole), objective, seed)
        if norm(subject.exact) == 0.0:
            raise InvalidInputError(
                "the exact gradient vanishes, there is no unit to compare in; take other parameters"
            )
        found = decide_exact(subject.exact, mean_gradient(subject))
    if found.outcome is Outcome.EXACT or (rtol is not None and found.high <= rtol):
        return
    worst = max(found.parameters, key=lambda item: item.size)
    limit = "rounding allows" if rtol is None else "rtol allows"
    most = found.high - found.bias if rtol is None else rtol
    raise AssertionError(
        f"the gradients are off by {percent(found.bias)} of the exact gradient's norm, {limit} {percent(most)}\n"
        f"worst parameter {worst.name}: off by {percent(worst.own)} of its own gradient, {percent(worst.size)} of the "
        f"whole gradient, in {dtype}"
    )


def _complete(model: nn.Module, gradients: Gradients) -> Gradients:
    """Return the gradients of all trainable parameters, of which some must be there."""
    parameters = dict(model.named_parameters())
    wanted = [name for name, value in parameters.items() if value.requires_grad]
    missing = [name for name in wanted if name not in gradients]
    extra = [name for name, value in gradients.items() if name not in wanted and value is not None]
    if missing or extra:
        raise ContractError(
            f"gradients are missing of: {', '.join(missing) or 'none'}; given of no trainable parameter: "
            f"{', '.join(extra) or 'none'}; give one for each of {', '.join(wanted)}"
        )
    if all(gradients[name] is None for name in wanted):
        raise ContractError("every gradient is None: call .backward() before, and no zero_grad() after it")
    return {name: gradients[name] for name in wanted}


def _precision(gradients: Gradients, rtol: float | None) -> torch.dtype:
    dtypes = {value.dtype for value in gradients.values() if value is not None}
    lowest = min(dtypes, key=lambda dtype: dtype.itemsize)
    if lowest.itemsize >= 4:
        return lowest
    if rtol is None:
        raise InvalidInputError(
            f"gradients are in {lowest}, in which rounding hides any bias; give rtol, or gradients in float32"
        )
    return torch.float32
