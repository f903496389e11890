"""A user's code draws from global generators that are seeded for it, and whoever calls it finds them as they were."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from common.random_states import random_state

from lmc_verify.errors import InvalidInputError
from lmc_verify.steps import forked_generators


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def drawn(seed: int, *axes: str | int) -> tuple[float, float, float]:
    with forked_generators(seed, *axes):
        return draws()


def test_the_same_seed_gives_the_same_draws_of_every_library_and_another_one_others() -> None:
    assert drawn(3, "step") == drawn(3, "step")
    for other in (drawn(4, "step"), drawn(3, "loader"), drawn(3, "step", 1)):
        assert all(a != b for a, b in zip(drawn(3, "step"), other, strict=True))


def test_the_three_libraries_have_streams_of_their_own() -> None:
    with forked_generators(0):
        seeds = {int(torch.initial_seed()), int(np.random.get_state()[1][0])}  # type: ignore[index]  # noqa: NPY002
    assert len(seeds) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_generators_are_as_before(fails: bool) -> None:
    before = random_state()
    try:
        with forked_generators(0):
            draws()
            if fails:
                raise KeyError("of the user's code")
    except KeyError:
        pass
    assert random_state() == before


def test_blocks_can_be_nested() -> None:
    with forked_generators(1):
        first = draws()
        with forked_generators(2):
            draws()
        second = draws()
    with forked_generators(1):
        assert (draws(), draws()) == (first, second)


def test_cuda_that_is_not_in_use_is_not_seeded_for_its_first_user(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    called: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", called.append)
    drawn(0)
    assert not called


def test_devices_in_use_are_seeded_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CUDA devices, with stand-ins for their generators, are put back also where the user's code fails."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    states = {0: torch.tensor([10]), 1: torch.tensor([11])}

    def number(device: Any) -> int:
        return int(torch.device("cuda", device).index if isinstance(device, int) else torch.device(device).index)

    def seed_all(seed: int) -> None:
        states.update({place: torch.tensor([seed + place]) for place in states})

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[number(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({number(device): state}))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_all)
    seeds = []
    for root in (3, 3, 4):
        with suppress(KeyError), forked_generators(root):
            seeds.append([int(state) for state in states.values()])
            raise KeyError("of the user's code")
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0] != [10, 11]
    assert [int(state) for state in states.values()] == [10, 11]


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(InvalidInputError, match="give a whole number of at least 0"), forked_generators(seed):  # type: ignore[arg-type]
        pass
