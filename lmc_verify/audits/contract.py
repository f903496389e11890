"""What a step must keep to before its gradients are judged. What breaks it is an error that names it, never a bias.

One batch under one seed gives the same bits twice; no parameter changes; the model and the data that are read are those
that the step is given; every parameter has a gradient. Buffers may change (batch norm's running statistics): every step
is judged from the same ones, and the audit says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.audits.subject import Gradient, Subject
from lmc_verify.errors import ContractError, LmcVerifyError
from lmc_verify.steps.data import tensors_of
from lmc_verify.steps.state import held

__all__ = ["Original", "check_contract"]

LOOKED_AT = 4
"""Batches on which the contract is checked."""


class Original:
    """The caller's model and data as they were, to see whether a step reads or writes them.

    Args:
        model: the caller's model.
        data: the caller's data.
    """

    def __init__(self, model: nn.Module, data: Any) -> None:
        self.model, self.data = model, data
        self._tensors = {f"model.{name}": value for name, value in model.state_dict(keep_vars=True).items()}
        self._tensors |= {f"data.{name}": value for name, value in tensors_of(data).items()}
        self._kept = {name: value.detach().clone() for name, value in self._tensors.items()}
        self._gradients = {name: value.grad for name, value in model.named_parameters()}
        self._modes = {module: module.training for module in model.modules()}

    def changed(self) -> list[str]:
        """Return what of it has changed."""
        out = [name for name, value in self._tensors.items() if not _same(value, self._kept[name])]
        out += [
            f"model.{name}.grad" for name, value in self.model.named_parameters() if self._has_new_gradient(name, value)
        ]
        return out

    def _has_new_gradient(self, name: str, value: Tensor) -> bool:
        return value.grad is not self._gradients[name]

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for name, value in self._tensors.items():
                if not _same(value, self._kept[name]):
                    value.detach().copy_(self._kept[name])
        for name, value in self.model.named_parameters():
            value.grad = self._gradients[name]
        for module, mode in self._modes.items():
            module.training = mode


def _same(value: Tensor, kept: Tensor) -> bool:
    return (
        torch.equal(value.detach().nan_to_num(), kept.nan_to_num())
        if value.is_floating_point()
        else torch.equal(value, kept)
    )


@dataclass(frozen=True)
class Found:
    """What the check found that is no violation.

    Attributes:
        random: whether the step draws for itself.
        notes: what a reader should know.
    """

    random: bool
    notes: tuple[str, ...]


def check_contract(subject: Subject, original: Original, batches: Sequence[Any]) -> Found:
    """Check a step on some batches.

    Args:
        subject: the step.
        original: the caller's model and data.
        batches: some batches of the law.

    Raises:
        ContractError: names what the step does, and the remedy.
    """
    notes: list[str] = []
    random, buffers = False, set[str]()
    left: list[Gradient] = []
    for batch in batches[:LOOKED_AT]:
        before = _held(subject)
        tensors = {name: value.clone() for name, value in tensors_of(batch).items()}
        one = _tried(subject, original, batch, 1)
        buffers |= set(subject.changed_buffers())
        _check_unchanged(subject, original, before, batch, tensors)
        again = _tried(subject, original, batch, 1)
        _check_same(subject, one, again)
        other = _tried(subject, original, batch, 2)
        random |= any(not torch.equal(one[name], other[name]) for name in one)
        left.append(one)
    if subject.without_gradient >= 3 * len(left):
        raise ContractError(
            f"step left no gradient for any of the first {len(left)} batches; call .backward() on a loss of the model "
            "that it is given, step's first argument, and no zero_grad() after it"
        )
    _check_every_parameter(subject, left)
    notes += _reads(subject, original, batches, left)
    if buffers:
        some = ", ".join(sorted(buffers)[:3]) + (", ..." if len(buffers) > 3 else "")
        notes.append(f"the step changes {len(buffers)} buffers ({some}); every step is judged from the same ones")
    return Found(random, tuple(notes))


def _tried(subject: Subject, original: Original, batch: Any, seed: int) -> Gradient:
    try:
        return subject.step(batch, seed)
    except LmcVerifyError:
        changed = [name for name in original.changed() if name.startswith("model.")]
        if changed:
            original.restore()
            raise _other_model(changed) from None
        raise
    except RuntimeError as error:
        if "dtype" in str(error) or "Double" in str(error):
            raise ContractError(
                f"step mixes precisions ({str(error).rstrip('.')}): model and batches are in {subject.runner.dtype}. "
                "Take what the step reads from its batch, or from its third argument in step(model, batch, data); pass "
                "what it keeps between batches as state=; or pass dtype=torch.float32"
            ) from error
        raise


def _other_model(changed: Sequence[str]) -> ContractError:
    return ContractError(
        f"step changes the caller's own model ({', '.join(changed[:3])}): it closes over a model and does not use the "
        "one that it is given; use step's first argument, for its optimiser, too"
    )


def _held(subject: Subject) -> dict[str, Tensor]:
    """Return what the model holds beside parameters, buffers and state."""
    known = {id(value) for value in subject.runner.state.tensors().values()}
    known |= {id(value) for value in subject.model.buffers()}
    return {
        slot.path: slot.value.detach().clone()
        for slot in held(subject.model, "model")
        if isinstance(slot.value, Tensor) and id(slot.value) not in known
    }


def _check_unchanged(
    subject: Subject, original: Original, before: dict[str, Tensor], batch: Any, tensors: dict[str, Tensor]
) -> None:
    parameters = subject.changed_parameters()
    if parameters:
        raise ContractError(
            f"step changes the parameters {', '.join(parameters[:3])}: an optimiser steps inside, or a weight is "
            "written; leave everything after .backward() out of it"
        )
    if changed := original.changed():
        original.restore()
        if any(name.startswith("model.") for name in changed):
            raise _other_model(changed)
        raise ContractError(
            f"step writes into {', '.join(changed[:3])}; write into a copy, so that every step sees the data"
        )
    now = _held(subject)
    kept = [path for path, value in now.items() if path not in before or not torch.equal(value, before[path])]
    if kept:
        raise ContractError(
            f"step keeps something in {', '.join(kept[:3])} that is not its state, so that what it does depends on the "
            "steps before; pass state=lambda model: ... with what it keeps, such as "
            f"state=lambda {kept[0].rpartition('.')[0] or kept[0]}"
        )
    after = tensors_of(batch)
    written = [name for name, value in tensors.items() if name not in after or not _same(after[name], value)]
    if written:
        raise ContractError(
            f"step writes into its batch ({', '.join(written[:3])}); write into a copy: a loader hands the same batch "
            "out again"
        )


def _check_same(subject: Subject, one: Gradient, again: Gradient) -> None:
    differing = [name for name, value in one.items() if not torch.equal(value, again[name])]
    if differing:
        known = "" if subject.runner.state.empty else " besides the state that was given"
        raise ContractError(
            f"one batch gives other gradients of {', '.join(differing[:3])} when the step is called again with the "
            f"same seed: it remembers earlier calls{known} (pass state=, see lmc_verify.audit), or it draws from a "
            "generator of its own (use the global ones of torch, numpy or random, which are seeded for every step)"
        )


def _check_every_parameter(subject: Subject, left: Sequence[Gradient]) -> None:
    exact = subject.exact
    whole = max((float(value.norm()) for value in exact.values()), default=0.0)
    missing = [
        name
        for name in subject.names
        if float(exact[name].norm()) > 1e-9 * whole and all(not bool(gradient[name].any()) for gradient in left)
    ]
    some = all(any(bool(value.any()) for value in gradient.values()) for gradient in left)
    if missing and some and len(missing) < len(subject.names):
        raise ContractError(
            f"step leaves no gradient of {', '.join(missing[:3])}, which the objective depends on; is something "
            "detached, or frozen inside the step? Freeze it on the model (requires_grad_(False)) if that is meant"
        )


def _reads(subject: Subject, original: Original, batches: Sequence[Any], left: Sequence[Gradient]) -> list[str]:
    """Find out whether the step reads the features that it is given."""
    batch = next((item for item, found in zip(batches, left, strict=False) if _some(found)), None)
    if batch is None:
        return []
    found = left[[item is batch for item in batches].index(True)]
    if isinstance(batch, Data) and _varied(batch.x):
        changed = batch.clone()
        changed.x = batch.x.roll(1, 0)
        if _equal(subject.step(changed, 1), found) and not _reads_its_third_argument(subject, batch, found):
            raise ContractError(
                "step gives the same gradient when the features of its batch are exchanged: it reads data of its own, "
                "not its batch; take x from the batch"
            )
        return []
    return _reads_data(subject, original, batch, found)


def _reads_its_third_argument(subject: Subject, batch: Any, found: Gradient) -> bool:
    """Whether the step takes features from the data that it is given, by the batch's node ids."""
    whole = subject.data
    if not isinstance(whole, Data) or not _varied(whole.x):
        return False
    moved = whole.clone()
    moved.x = whole.x.roll(1, 0)
    try:
        subject.data = moved
        return not _equal(subject.step(batch, 1), found)
    finally:
        subject.data = whole


def _reads_data(subject: Subject, original: Original, batch: Any, found: Gradient) -> list[str]:
    x = getattr(original.data, "x", None) if isinstance(original.data, Data) else None
    if not isinstance(x, Tensor) or not _varied(x):
        return []
    whole, kept = subject.data, x.detach().clone()
    moved = whole.clone()
    moved.x = whole.x.roll(1, 0)
    try:
        with torch.no_grad():
            x.copy_(kept.roll(1, 0))  # for a step that closes over the data
        subject.data = moved  # for one that takes them
        same = _equal(subject.step(batch, 1), found)
    finally:
        subject.data = whole
        with torch.no_grad():
            x.copy_(kept)
    if not same:
        return []
    return [
        "the step reads neither the batch's features nor those of the data that were given, but a copy of its own: the "
        "audit holds if they are the same; take them from the third argument in step(model, batch, data) to be sure"
    ]


def _varied(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] > 1 and not torch.equal(x.roll(1, 0), x)


def _some(gradient: Gradient) -> bool:
    return any(bool(value.any()) for value in gradient.values())


def _equal(left: Gradient, right: Gradient) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())
