"""Passes through a user's loader, each a function of its seed."""

from __future__ import annotations

import inspect
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch_geometric.data.data import BaseData

from lmc_verify.audits.batches.fingerprints import fingerprint
from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.seeds import generator
from lmc_verify.steps import forked_generators

__all__ = ["LONGEST_PASS", "Loading", "Passes"]

LONGEST_PASS = 10_000
"""Batches of one pass through a loader from which it is taken for endless."""


class Loading:
    """Time that making batches has taken.

    Attributes:
        seconds: in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time inside."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin

    def through(self, make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Yield what an iterable gives; the time that it takes is added, that of its consumer is not."""
        with self.timed():
            items = iter(make())
        while True:
            with self.timed():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


class Passes:
    """Passes through a loader.

    The global random generators are seeded for a pass, and so are generators that the loader itself holds (as
    ``generator``, or in its sampler or data set); all are put back. Passes must have the same number of batches.

    Args:
        batches: a loader or any iterable that can be gone through again, or a function that returns one, of no argument
            or of the data.
        data: the whole graph.

    Attributes:
        fixed: whether they are a list, which is the same in every pass.
        loading: time that they have taken.

    Raises:
        InvalidInputError: nothing that gives batches.
        ContractError: an iterator, which can be gone through only once.
    """

    def __init__(self, batches: Any, data: Any) -> None:
        maker = _maker(batches, data)
        self._make: Callable[[], Iterable[Any]] = maker or (lambda: batches)
        self._own = _own_generators(batches) if maker is None else []
        self.fixed = type(batches) in (list, tuple)
        self.loading = Loading()
        self._length: int | None = None

    def at(self, seed: int, positions: Sequence[int]) -> list[Any]:
        """Return the batches at some positions of the pass of a seed."""
        last = max(positions) + 1
        with self._pass(seed) as batches:
            found = list(itertools.islice(batches, last + (last == self._length)))
        if len(found) != last:
            raise self._other_length(len(found))
        return [found[position] for position in positions]

    def whole(self, seed: int) -> list[Any]:
        """Return the batches of the pass of a seed.

        Raises:
            InvalidInputError: there is none, or no end of them.
            ContractError: there are more or fewer than before.
        """
        with self._pass(seed) as batches:
            out = list(itertools.islice(batches, LONGEST_PASS + 1))
        self._check_length(len(out))
        return out

    def marks(self, seed: int) -> list[str]:
        """Return the fingerprints of the batches of a pass, each taken when it was handed out."""
        with self._pass(seed) as batches:
            out = [fingerprint(batch) for batch in itertools.islice(batches, LONGEST_PASS + 1)]
        self._check_length(len(out))
        return out

    def first(self, seed: int) -> tuple[list[Any], list[str]]:
        """Return batches and fingerprints of the pass of a seed.

        Raises:
            ContractError: a batch was changed after it had been handed out.
        """
        with self._pass(seed) as batches:
            pairs = [(batch, fingerprint(batch)) for batch in itertools.islice(batches, LONGEST_PASS + 1)]
        self._check_length(len(pairs))
        changed = [index for index, (batch, mark) in enumerate(pairs) if fingerprint(batch) != mark]
        if changed:
            raise ContractError(
                f"the loader changes batch {changed[0]} of {len(pairs)} after it has handed it out (is it one object "
                "that is written again?); batches are kept and compared: yield a new one each time, such as a copy"
            )
        return [batch for batch, _ in pairs], [mark for _, mark in pairs]

    @contextmanager
    def _pass(self, seed: int) -> Iterator[Iterator[Any]]:
        states = [_state(item) for item in self._own]
        try:
            for number, item in enumerate(self._own):
                _seed(item, int(generator(seed, "loader's own", number).integers(2**32)))
            with forked_generators(seed, "loader"):
                yield self.loading.through(self._make)
        finally:
            for item, state in zip(self._own, states, strict=True):
                _restore(item, state)

    def _check_length(self, found: int) -> None:
        if found > LONGEST_PASS:
            raise InvalidInputError(
                f"a pass through batches gives more than {LONGEST_PASS:,} batches: is it endless? Give a loader whose "
                "pass is an epoch, or itertools.islice of it in a function"
            )
        if not found and self._length is None:
            raise InvalidInputError("batches is empty: a pass through the loader gives no batch; give at least one")
        if self._length not in (None, found):
            raise self._other_length(found)
        self._length = found

    def _other_length(self, found: int) -> ContractError:
        if not found:
            return ContractError(
                f"batches can be gone through only once: the first pass gave {self._length} batches, the next one none;"
                " give the loader itself, a list, or a function that returns a new iterator"
            )
        more = "at least " if found > (self._length or 0) else ""
        return ContractError(
            f"a pass through batches gives {more}{found} batches, the first one gave {self._length}: what counts for "
            "an epoch is then not defined; give a loader whose passes have the same length, such as with "
            "itertools.islice, or a list of (batch, probability)"
        )


def _maker(batches: Any, data: Any) -> Callable[[], Iterable[Any]] | None:
    """Return a function that gives a new pass; None where the batches themselves are iterated."""
    if isinstance(batches, type) and hasattr(batches, "inclusion_probabilities"):
        raise InvalidInputError(f"batches is the class {batches.__name__}; give a design, {batches.__name__}(...)")
    if callable(batches) and not hasattr(batches, "__iter__"):
        needed = [
            item
            for item in inspect.signature(batches).parameters.values()
            if item.default is item.empty and item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
        ]
        if len(needed) > 1:
            raise InvalidInputError(
                f"batches{inspect.signature(batches)} is called without an argument, or with the data; it takes "
                f"{len(needed)}"
            )
        return lambda: _iterable((lambda: batches(data)) if needed else batches)
    if isinstance(batches, BaseData | Mapping | str | bytes) or not isinstance(batches, Iterable):
        raise InvalidInputError(
            f"batches is a {type(batches).__name__}; give a batch design, a list of batches or of (batch, probability),"
            " a loader, or a function that returns an iterable of batches"
        )
    if isinstance(batches, Iterator):
        raise ContractError(
            f"batches is a {type(batches).__name__}, which can be gone through only once; give the loader itself, a "
            "list, or a function that returns a new iterator"
        )
    return None


def _iterable(make: Callable[[], Any]) -> Iterable[Any]:
    found = make()
    if isinstance(found, BaseData | Mapping | str | bytes) or not isinstance(found, Iterable):
        raise InvalidInputError(
            f"the function batches returned a {type(found).__name__}; it must return an iterable of batches"
        )
    return found


_Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def _own_generators(loader: Any) -> list[_Generator]:
    """Return the generators that a loader, its samplers and its data set hold."""
    sampler = getattr(loader, "batch_sampler", None)
    owners = [loader, getattr(loader, "sampler", None), sampler, getattr(sampler, "sampler", None)]
    owners.append(getattr(loader, "dataset", None))
    found: dict[int, _Generator] = {}
    for owner in owners:
        for item in getattr(owner, "__dict__", {}).values():
            if isinstance(item, _Generator):
                found[id(item)] = item
    return list(found.values())


def _state(item: _Generator) -> Any:
    if isinstance(item, torch.Generator | np.random.RandomState):
        return item.get_state()
    return item.getstate() if isinstance(item, random.Random) else item.bit_generator.state


def _restore(item: _Generator, state: Any) -> None:
    if isinstance(item, torch.Generator | np.random.RandomState):
        item.set_state(state)
    elif isinstance(item, random.Random):
        item.setstate(state)
    else:
        item.bit_generator.state = state


def _seed(item: _Generator, seed: int) -> None:
    if isinstance(item, torch.Generator):
        item.manual_seed(seed)
    elif isinstance(item, random.Random | np.random.RandomState):
        item.seed(seed)
    else:
        item.bit_generator.state = type(item.bit_generator)(seed).state
