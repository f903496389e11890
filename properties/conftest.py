"""Hypothesis profiles, and a guard: no test may change global random state.

`HYPOTHESIS_PROFILE=thorough pytest properties` draws 400 examples a test from fresh seeds; the default profile
draws the same forty on every run, so that a red build is reproducible from the log alone.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from common.helpers import FAST
from common.random_states import random_state
from hypothesis import HealthCheck, settings

from lmc_verify.claims import bias_curves

# Tests change what runs in this process; those of workers say so.
os.environ.setdefault("LMC_VERIFY_IN_PROCESS", "1")

torch.set_num_threads(1)  # the graphs are tiny: more threads only cost time

# A busy machine draws examples slowly: that says nothing about the strategies.
common = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", common, derandomize=True, max_examples=FAST)
settings.register_profile("thorough", common, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    gc.freeze()  # libraries and tests are never garbage: looking through them again only costs time
    gc.set_threshold(50_000, 20, 20)  # tensors and graphs are freed without it: looking took a twentieth of all time


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone() -> Iterator[None]:
    # Inside @given Hypothesis itself saves and restores numpy's and Python's state: there this guards torch's only, and
    # test_estimator_contract.py checks the other two outside of @given.
    before = random_state()
    yield
    changed = [name for name, state in random_state().items() if state != before[name]]
    assert not changed, f"the test changed the global random state of {changed}; pass a generator or a seed instead"


@pytest.fixture
def short_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three values on the grids of the claims about floors, in place of five."""
    monkeypatch.setattr(bias_curves, "HALVINGS", 2)


@pytest.fixture
def emulated_device() -> Iterator[torch.device]:
    """A device that exists in Python only, which refuses what a GPU refuses; see `common.emulated`."""
    from common import emulated  # registers the device with torch: in processes that use it

    with emulated.emulated_device() as device:
        if not emulated.can_differentiate(device):
            pytest.skip("autograd ran before the device was registered: run test_devices.py in a process of its own")
        before = emulated.module.get_rng_state()
        yield device
        assert torch.equal(emulated.module.get_rng_state(), before), "the device's global generator was drawn from"
