"""What a step must keep to before its gradients are judged. What breaks it is an error that names it, never a bias.

One batch under one seed gives the same bits twice; the model and the data that are read are those that the step is
given; every parameter has a gradient. Buffers (batch norm's running statistics) and parameters (an optimiser that steps
inside) may change: every step is judged from the same ones, and the audit says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.audits.batches.fingerprints import require_values
from lmc_verify.audits.interventions import reading
from lmc_verify.audits.subject import Gradient, Subject, length
from lmc_verify.errors import ContractError, InvalidInputError, LmcVerifyError
from lmc_verify.steps.data import tensors_of
from lmc_verify.steps.full_precision import watched_autocast
from lmc_verify.steps.original import Original, put_back, same
from lmc_verify.steps.snapshot import Snapshot

__all__ = ["check_contract"]

LOOKED_AT = 4
"""Batches on which the contract is checked."""

SWEEPS = 12
"""Sweeps until which a step with a state has to leave gradients: some for every layer of its histories."""

MORE = 64
"""Further batches, about, for which a step is run to see whether it draws for itself, or remembers."""

_OF_NORMS = {"running_mean", "running_var", "num_batches_tracked"}
"""Buffers that batch norm keeps."""


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
        InvalidInputError: the model is in half precision, or a batch is on another device or of another graph.
        ContractError: names what the step does, and the remedy.
    """
    _check_precision(original.model)
    batches, notes = list(batches[:LOOKED_AT]), list[str]()
    look = _Look(subject, original)
    for batch in batches:
        look.closely(batch)
    for batch in look.others(batches):
        look.again(batch)
    look.check_memory(batches, notes)
    look.check_gradients()
    notes += [*look.without_effect(), *_reads(subject, original, look)]
    if look.buffers:
        kept = [name for name in look.buffers if name.rpartition(".")[2] not in _OF_NORMS]
        notes.append(
            f"the step changes {len(look.buffers)} buffers ({_some_of(look.buffers)}); every step is judged from the "
            f"same ones{_unless_kept(kept)}"
        )
    trained = look.stepped & set(subject.names)
    if trained:
        notes.append(
            f"an optimiser steps inside of the step ({_some_of(trained)}); every step is judged from the same "
            "parameters"
        )
    frozen = look.stepped - trained
    if frozen:
        notes.append(
            f"the step writes into {len(frozen)} frozen parameters ({_some_of(frozen)}); every step is judged from the "
            f"same ones{_unless_kept(frozen)}"
        )
    if look.moved:
        notes.append(
            "the step makes a backward pass after it has moved the parameters: the gradient that it leaves is one at "
            "other parameters than those at which it is judged"
        )
    if look.lowered and subject.runner.dtype is torch.float64:
        some = ", ".join(sorted(map(str, look.lowered)))
        notes.append(
            f"the step runs under autocast ({some}), which leaves double precision as it is, so that its rounding is "
            "not judged here; pass dtype=torch.float32 to judge it"
        )
    subject.reset()
    return Found(look.random, tuple(notes))


def _some_of(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _unless_kept(names: Iterable[str]) -> str:
    """Return what to do about tensors that a step may keep from one batch to the next, if there are any."""
    places = sorted({f"model.{name.partition('.')[0]}" for name in names})
    if not places:
        return ""
    what = places[0] if len(places) == 1 else f"[{', '.join(places)}]"
    return f". If later steps read them, as histories, pass them: state=lambda model: {what}"


def _check_precision(model: nn.Module) -> None:
    half = [name for name, value in model.named_parameters() if value.dtype in (torch.float16, torch.bfloat16)]
    if half:
        kind = dict(model.named_parameters())[half[0]].dtype
        raise InvalidInputError(
            f"the model is in half precision ({half[0]} is {kind}), in which rounding hides any bias; at least "
            "torch.float32 is needed: give model.float()"
        )


class _Look:
    """What was seen of a step.

    Attributes:
        seen: batches with the gradients that they gave.
        random: whether a gradient depends on the seed.
        buffers: names of buffers that the step changes.
        stepped: names of parameters that it changes.
        lowered: precisions of the autocast that it runs under.
        moved: whether it makes a backward pass after it has moved the parameters.
        kept: paths of what it leaves in the model beside these, and beside its state.
    """

    def __init__(self, subject: Subject, original: Original) -> None:
        self._subject, self._original = subject, original
        self.seen: list[tuple[Any, Gradient]] = []
        self.random, self.kept = False, list[str]()
        self.buffers, self.stepped = set[str](), set[str]()
        self.lowered, self.moved = set[torch.dtype](), False
        self._private = {name: value.clone() for name, value in tensors_of(subject.data).items()}

    def closely(self, batch: Any) -> None:
        """Run the step for a batch, again, and with another seed, and check all that it may have changed."""
        subject = self._subject
        for name, value in tensors_of(batch).items():
            require_values(value, f"batch.{name}")
        subject.nodes(batch)  # ids outside of the graph are found here
        before = _held(subject)
        tensors = {name: value.clone() for name, value in tensors_of(batch).items()}
        with watched_autocast() as lowered:
            one = self._tried(batch, 1)
        self.lowered |= lowered
        self.buffers |= set(subject.changed_buffers())
        self.stepped |= set(subject.runner.changed)
        self._check_unchanged(batch, tensors)
        now = _held(subject)
        self.kept += [
            path
            for path, value in now.items()
            if path not in self.kept and (path not in before or not same(value, before[path]))
        ]
        differing = [name for name, value in self._tried(batch, 1).items() if not torch.equal(value, one[name])]
        if differing:
            self._raise_memory(f"one batch gives other gradients of {', '.join(differing[:3])}")
        other = self._tried(batch, 2)
        self.random |= any(not torch.equal(one[name], other[name]) for name in one)
        if not self.seen:
            with reading(subject, "given"):
                self._tried(batch, 1)
            self.moved = subject.runner.moved
        self.seen.append((batch, one))

    def again(self, batch: Any) -> None:
        """Run the step for one batch under two seeds."""
        one, other = self._tried(batch, 1), self._tried(batch, 2)
        self.random |= any(not torch.equal(one[name], other[name]) for name in one)
        self.seen.append((batch, one))

    def others(self, batches: Sequence[Any]) -> Iterator[Any]:
        """Yield further batches, spread over those of the law; all where the step keeps something."""
        law = self._subject.law
        if law.batches is None:
            yield from law.first(len(batches) + LOOKED_AT, self._subject.seed)[len(batches) :]
            return
        rest = law.batches[len(batches) :]
        step = 1 if self.kept else max(math.ceil(len(rest) / MORE), 1)
        yield from rest[::step]

    def check_memory(self, batches: Sequence[Any], notes: list[str]) -> None:
        """Run the first batches again: they must give the same bits, whatever came between."""
        for batch, (_, found) in zip(batches, self.seen, strict=False):
            again = self._tried(batch, 1)
            differing = [name for name, value in found.items() if not torch.equal(value, again[name])]
            if differing:
                self._raise_memory(f"a batch gives other gradients of {', '.join(differing[:3])} after other batches,")
        if self.kept:
            notes.append(
                f"the step leaves something in {', '.join(self.kept[:3])} that is not its state; gradients do not "
                "depend on it, as far as was tried"
            )

    def check_gradients(self) -> None:
        """Check that the step leaves gradients, and of every parameter: if need be, on further batches."""
        subject = self._subject
        exact, count = subject.exact, len(self.seen)
        whole = max(map(length, exact.values()), default=0.0)
        wanted = {name for name, value in exact.items() if length(value) > 1e-9 * whole}

        def missing() -> list[str]:
            given = {name for _, found in self.seen for name, value in found.items() if bool(value.any())}
            return [name for name in subject.names if name in wanted - given]

        for batch in self._further(count):
            if not missing():
                break
            self.seen.append((batch, self._tried(batch, 1)))
        lacking, some = missing(), any(_some(found) for _, found in self.seen)
        if lacking and not subject.runner.state.empty:
            lacking = self._lacking_with_state(lacking)
        if not some and subject.without_gradient:
            raise ContractError(
                f"step left no gradient for any of {len(self.seen)} batches; "
                + subject.no_gradient.partition(": ")[2].replace("it is given,", "it is given, step's first argument,")
            )
        if lacking and some:
            raise ContractError(
                f"step leaves no gradient of {', '.join(lacking[:3])}, which the objective depends on; is something "
                f"detached, or frozen inside the step{self._or_left_out()}? Freeze it on the model "
                "(requires_grad_(False)) if that is meant"
            )

    def _or_left_out(self) -> str:
        """Return a word on inputs of edges: parameters that read them have no gradient without."""
        given = [name for name in ("edge_attr", "edge_weight") if tensors_of(self._subject.data).get(name) is not None]
        return f", or is the model called without {given[0]}, which the objective gives it" if given else ""

    def _lacking_with_state(self, names: list[str]) -> list[str]:
        """Return which parameters have no gradient after sweeps, either: histories of zero may be why they had none."""
        subject = self._subject
        given = subject.kept
        try:
            for number in range(SWEEPS):
                subject.sweep(subject.law.sweep(number), seed=number + 1)
                for batch, _ in self.seen:
                    found = self._tried(batch, 1)
                    names = [name for name in names if not bool(found[name].any())]
                    if not names:
                        return names
            return names
        finally:
            subject.kept = given

    def without_effect(self) -> list[str]:
        """Say how many batches gave a gradient of zero, where others did not."""
        none = sum(not _some(found) for _, found in self.seen)
        if not none or self._subject.without_gradient:
            return []
        return [
            f"{none} of {len(self.seen)} batches that were tried give a gradient of zero (is there no labelled node in "
            "them?); they count as steps"
        ]

    def _further(self, count: int) -> Iterator[Any]:
        law = self._subject.law
        if law.batches is None:
            yield from law.first(MORE, self._subject.seed + 1)
        elif len(law.batches) > count:
            seen = {id(batch) for batch, _ in self.seen}
            yield from (batch for batch in law.batches if id(batch) not in seen)

    def _tried(self, batch: Any, seed: int) -> Gradient:
        subject, original = self._subject, self._original
        try:
            return subject.once(batch, seed)
        except LmcVerifyError:
            changed = [name for name in original.changed() if name.startswith("model.")]
            if changed:
                original.restore()
                raise _other_model(changed) from None
            raise
        except IndexError as error:
            self._raise_outside(batch, error)
            raise
        except RuntimeError as error:
            self._raise_other_device(batch, error)
            if "dtype" in str(error) or "Double" in str(error):
                raise ContractError(
                    f"step mixes precisions ({str(error).rstrip('.')}): model and batches are in "
                    f"{subject.runner.dtype}. Use the model that is step's first argument; take what the step reads "
                    "from its batch, or from its third argument in step(model, batch, data); pass what it keeps "
                    "between batches as state=; or pass dtype=torch.float32"
                ) from error
            raise

    def _raise_outside(self, batch: Any, error: IndexError) -> None:
        cached = [name for name, module in self._subject.model.named_modules() if getattr(module, "cached", False)]
        if cached:
            raise ContractError(
                f"step fails ({str(error).splitlines()[0]}), and {cached[0]} keeps the edges of its first call, which "
                "are not those of other batches; make it with cached=False"
            ) from error
        count = getattr(self._subject.data, "num_nodes", None)
        for name, value in tensors_of(batch).items():
            integers = not value.is_floating_point() and value.dtype is not torch.bool and value.numel()
            if integers and value.dim() == 1 and count is not None and int(value.max()) >= int(count):
                raise InvalidInputError(
                    f"step fails ({str(error).splitlines()[0]}), and {name} of its batch goes to {int(value.max())}: "
                    f"nodes are 0 ... {int(count) - 1}; is the loader for another graph?"
                ) from error

    def _raise_other_device(self, batch: Any, error: RuntimeError) -> None:
        own = next(self._subject.model.parameters()).device
        other = [f"{name} on {value.device}" for name, value in tensors_of(batch).items() if value.device != own]
        if other and "device" in str(error):
            raise InvalidInputError(
                f"the batch is on another device than the model ({other[0]}, the model on {own}): "
                f"{str(error).splitlines()[0]}; move it inside the step, such as batch = batch.to(device)"
            ) from error

    def _raise_memory(self, what: str) -> None:
        if self.kept:
            owner = self.kept[0].rpartition(".")[0] or self.kept[0]
            raise ContractError(
                f"step keeps something in {', '.join(self.kept[:3])} that is not its state, so that what it does "
                f"depends on the steps before: {what} when the step is called again with the same seed; pass "
                f"state=lambda model: ... with what it keeps, such as state=lambda model: {owner}"
            )
        known = "" if self._subject.runner.state.empty else " besides the state that was given"
        raise ContractError(
            f"{what} when the step is called again with the same seed: it remembers earlier calls{known} (pass state=, "
            "see lmc_verify.audit), or it draws from a generator of its own (use the global ones of torch, numpy or "
            "random, which are seeded for every step)"
        )

    def _check_unchanged(self, batch: Any, tensors: dict[str, Tensor]) -> None:
        subject, original = self._subject, self._original
        after = tensors_of(batch)
        written = [name for name, value in tensors.items() if name not in after or not same(after[name], value)]
        for name in written:
            put_back(after.get(name), tensors[name])
        changed = original.changed()
        own = tensors_of(subject.data)
        changed += [
            f"data.{name}"
            for name, value in self._private.items()
            if f"data.{name}" not in changed and (name not in own or not same(own[name], value))
        ]
        original.restore()
        for name, value in self._private.items():
            put_back(own.get(name), value)
        if any(name.startswith("model.") for name in changed):
            raise _other_model(changed)
        if written:
            raise ContractError(
                f"step writes into its batch ({', '.join(written[:3])}); write into a copy: a loader hands the same "
                "batch out again"
            )
        if changed:
            raise ContractError(
                f"step writes into {', '.join(changed[:3])}; write into a copy, so that every step sees the data"
            )


def _other_model(changed: Sequence[str]) -> ContractError:
    return ContractError(
        f"step changes the caller's own model ({', '.join(changed[:3])}): it closes over a model and does not use the "
        "one that it is given; use step's first argument, for its optimiser, too"
    )


def _held(subject: Subject) -> dict[str, Tensor]:
    """Return what the model holds beside parameters, buffers and state; not what autograd derives from them."""
    known = {id(value) for value in subject.runner.state.tensors().values()}
    known |= {id(value) for value in subject.model.buffers()}
    return {
        path: value.detach().clone()
        for path, value in Snapshot(subject.model, "model").tensors.items()
        if id(value) not in known
    }


def _reads(subject: Subject, original: Original, look: _Look) -> list[str]:
    """Find out whether the step reads the features that it is given, where the objective depends on features."""
    batches = [(item, found) for item, found in look.seen if _some(found)]
    x = subject.data.get("x", None) if isinstance(subject.data, Data) else None
    if not batches or x is None or not _matters(x):
        return []
    moved: Data = subject.data.clone()
    moved.x = _other_features(x)
    if _equal(subject.gradient_of(moved), subject.exact):
        return []  # the model does not read them
    own = any(_with_other_features(batch) is not None for batch, _ in batches)
    if any(_reads_batch(subject, batch) for batch, _ in batches):
        return []
    if any(_reads_data(subject, None if own else original.data, moved, batch, found) for batch, found in batches):
        return []
    if own:
        raise ContractError(
            "step gives the same gradient when the features of its batch are exchanged: it reads data of its own, not "
            "its batch; take x from the batch, or from the third argument in step(model, batch, data)"
        )
    return [
        "the step reads neither the batch's features nor those of the data that were given, but a copy of its own: the "
        "audit holds if they are the same; take them from the third argument in step(model, batch, data) to be sure"
    ]


def _reads_batch(subject: Subject, batch: Any) -> bool:
    """Whether the step gives another gradient for a batch with other features, or keeps something else.

    What it keeps may be all that changes, where rows come from neighbours alone and their histories are zero.
    """
    changed = _with_other_features(batch)
    if changed is None:
        return False
    gradients, kept = list[Gradient](), list[dict[str, Tensor]]()
    for item in (batch, changed):
        gradients.append(subject.once(item, 1))
        kept.append({name: value.detach().clone() for name, value in subject.runner.state.tensors().items()})
    one, other = kept
    told = one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return not told or not _equal(*gradients)


def _reads_data(subject: Subject, closed_over: Any, moved: Data, batch: Any, found: Gradient) -> bool:
    """Whether the step reads the features of the data that it is given, or of the caller's data, for a while."""
    whole, x = subject.data, closed_over.x if isinstance(closed_over, Data) else None
    kept = x.detach().clone() if isinstance(x, Tensor) else None
    try:
        if isinstance(x, Tensor):
            with torch.no_grad():
                x.copy_(moved.x)  # for a step that closes over the data
        subject.data = moved  # for one that takes them
        return not _equal(subject.once(batch, 1), found)
    finally:
        subject.data = whole
        if isinstance(x, Tensor) and kept is not None:
            with torch.no_grad():
                x.copy_(kept)


def _with_other_features(batch: Any) -> Any:
    """Return a batch with other features, None where it has none: those of its data, or its real matrices."""
    if isinstance(batch, Data):
        if not _matters(batch.x):
            return None
        changed: Any = batch.clone()
        changed.x = _other_features(changed.x)
        return changed
    if isinstance(batch, Tensor):
        matrix = batch.is_floating_point() and batch.dim() > 1
        return _other_features(batch) if matrix and _matters(batch) else None
    if isinstance(batch, dict):
        changed = {key: _with_other_features(item) for key, item in batch.items()}
        kept = {key: batch[key] if item is None else item for key, item in changed.items()}
        return kept if any(item is not None for item in changed.values()) else None
    if not isinstance(batch, tuple | list):
        return None
    found = [_with_other_features(item) for item in batch]
    if all(item is None for item in found):
        return None
    mixed = [item if other is None else other for item, other in zip(batch, found, strict=True)]
    return type(batch)(*mixed) if hasattr(batch, "_fields") else type(batch)(mixed)


def _matters(x: Any) -> bool:
    return (
        isinstance(x, Tensor) and x.layout is torch.strided and x.dim() > 0 and not torch.equal(_other_features(x), x)
    )


def _other_features(x: Tensor) -> Tensor:
    """Return other features of the same kind: rows are exchanged, and real numbers scaled, each by a factor of its own.

    Rows alone may be exchanged without effect, as in a complete graph.
    """
    rolled = x.roll(1, 0)
    if not x.is_floating_point():
        return rolled
    return rolled * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)


def _some(gradient: Gradient) -> bool:
    return any(bool(value.any()) for value in gradient.values())


def _equal(left: Gradient, right: Gradient) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())
