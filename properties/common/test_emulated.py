"""The emulated device refuses what a GPU refuses, and does the rest with the CPU's numbers: a test of the tests.

Rules are PyTorch's for CUDA. Where a real GPU is there the same table is tried on it, so that the emulation cannot
become stricter, or more lenient, than what it stands for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lmc_verify as lv
from common.emulated import Emulated, module

Try = Callable[[Tensor, Tensor], object]

MIXED: dict[str, Try] = {
    "add": lambda here, there: there + here,
    "add into the CPU's": lambda here, there: here.add_(there),
    "a CPU scalar takes a sum": lambda here, there: here[0].clone().add_(there[0]),
    "a scalar of the device in the CPU's sum": lambda here, there: here + there[0],
    "product": lambda here, there: here.outer(there),
    "matrix product": lambda here, there: here[None] @ there[:, None],
    "concatenation": lambda here, there: torch.cat([here, there]),
    "stack of scalars": lambda here, there: torch.stack([here[0], there[0]]),
    "rows by index_select": lambda here, there: there.index_select(0, here.long()),
    "gather": lambda here, there: there.gather(0, here.long()),
    "the CPU's rows by the device's indices": lambda here, there: here[there.long()],
    "the CPU's rows by the device's mask": lambda here, there: here[there > 0],
    "values written by index": lambda here, there: there.index_put_((here.long(),), here),
    "index_add": lambda here, there: there.clone().index_add_(0, there.long(), here),
    "index_copy": lambda here, there: there.clone().index_copy_(0, there.long(), here),
    "where": lambda here, there: torch.where(there > 0, there, here),
    "equal": lambda here, there: torch.equal(here, there),
    "a result elsewhere": lambda here, there: torch.add(there, there, out=here.clone()),
    "numpy": lambda here, there: there.numpy(),
    "an array": lambda here, there: np.asarray(there),
    "another device's generator": lambda here, there: torch.rand(3, generator=torch.Generator(), device=there.device),
}
ALLOWED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a CPU scalar": lambda here, there: there + here[0],
    "CPU indices": lambda here, there: there[here.long()],
    "a list of indices": lambda here, there: there[[2, 0]],
    "a CPU mask": lambda here, there: there[here > 0],
    "rows written by CPU indices": lambda here, there: there.clone().index_put_((here.long(),), there),
    "a scalar written by index": lambda here, there: there.clone().index_put_((there.long(),), torch.tensor(3.0)),
    "a slice": lambda here, there: there.clone()[1:].copy_(here[1:]),
    "a copy to the CPU": lambda here, there: here.clone().copy_(there),
    "where with a scalar": lambda here, there: torch.where(there > 0, there, torch.tensor(1.0)),
    "a number": lambda here, there: float(there.sum()),
    "a list": lambda here, there: there.tolist(),
    "new_tensor": lambda here, there: there.new_tensor([1, 2]),
    "new_zeros": lambda here, there: there.new_zeros(2),
    "sort": lambda here, there: there.sort(descending=True).values,
    "words": lambda here, there: f"{there.sum():.1f}",
    "sparse product": lambda here, there: csr(there.device) @ there[:, None],
}


def csr(device: torch.device) -> Tensor:
    pointers, columns = torch.tensor([0, 1, 3, 3], device=device), torch.tensor([2, 0, 1], device=device)
    return torch.sparse_csr_tensor(pointers, columns, torch.ones(3, device=device), (3, 3), check_invariants=False)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "emulated":
        found: torch.device = request.getfixturevalue("emulated_device")
        return found
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return torch.device("cuda", 0)


def both(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(3.0), torch.arange(3.0).to(device)


@pytest.mark.parametrize("name", list(MIXED))
def test_mixed_devices_are_refused(name: str, device: torch.device) -> None:
    here, there = both(device)
    with pytest.raises((RuntimeError, TypeError), match=r"device"):
        MIXED[name](here, there)


@pytest.mark.parametrize("name", list(ALLOWED))
def test_what_a_device_allows_gives_the_numbers_of_the_cpu(name: str, device: torch.device) -> None:
    got, want = ALLOWED[name](*both(device)), ALLOWED[name](*both(torch.device("cpu")))
    if not isinstance(want, Tensor):
        assert got == want
        return
    assert got.device == (torch.device("cpu") if "to the CPU" in name else device)
    assert torch.equal(got.cpu(), want)


def test_one_tensor_that_is_left_behind_is_found(emulated_device: torch.device) -> None:
    """Each parameter, and each tensor of the graph that a pass reads, left on the CPU: the device refuses."""
    graph = lv.load_graph("karate").double()
    problem = lv.Problem(graph, lv.GCN(graph.num_features, 3, graph.num_outputs, 2, dtype=torch.float64))
    away = problem.to(emulated_device)
    lv.exact_gradient(away)
    for name, value in list(away.model.named_parameters()):
        owner, _, key = name.rpartition(".")
        module_of = away.model.get_submodule(owner)
        module_of._parameters[key] = nn.Parameter(value.detach().cpu())
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            away.model(away.graph)
        module_of._parameters[key] = value  # type: ignore[assignment]
    for name in ("x", "edge_index"):
        object.__setattr__(moved := copy.copy(away.graph), name, getattr(graph, name))
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            moved.replaced().operator("gcn").csr.matmul(away.graph.x) if name == "edge_index" else away.model(moved)
    table = torch.zeros(34, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        table.index_copy_(0, torch.tensor([1], device=emulated_device), torch.ones(1, 3, dtype=torch.float64))


def test_gradients_copies_and_conversions_stay_on_the_device(emulated_device: torch.device) -> None:
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, 3, 2), nn.Tanh())
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(0.5)
    there = copy.deepcopy(model).to(emulated_device)
    x = torch.arange(6.0).view(2, 3)
    model(x).sum().backward()
    there(x.to(emulated_device)).sum().backward()
    for one, other in zip(model.parameters(), there.parameters(), strict=True):
        assert isinstance(other, nn.Parameter)
        assert other.grad is not None
        assert other.grad.device == emulated_device
        assert torch.equal(one.grad, other.grad.cpu())  # type: ignore[arg-type]  # backward has filled it
    clone = copy.deepcopy(there)
    with torch.no_grad():
        clone[0].weight.zero_()
    assert bool(there[0].weight.all())
    there.double()
    assert there[0].weight.dtype == torch.float64
    assert there[0].weight.inner.dtype == torch.float64
    there[0].weight.data = torch.full((2, 3), 7.0, device=emulated_device, dtype=torch.float64)
    assert bool((there[0].weight.inner == 7).all())
    assert there.cpu()[0].weight.device.type == "cpu"


def test_the_device_has_random_streams_of_its_own(emulated_device: torch.device) -> None:
    """Its generators give the CPU's streams, and its global one is not the CPU's."""
    mine, other = torch.Generator(emulated_device).manual_seed(5), torch.Generator().manual_seed(5)
    assert mine.device == emulated_device
    assert isinstance(other, torch.Generator)
    assert isinstance(mine, torch.Generator)
    there = torch.rand(4, generator=mine, device=emulated_device)
    assert torch.equal(there.cpu(), torch.rand(4, generator=other))
    cpu, before = torch.get_rng_state(), module.get_rng_state()
    torch.nn.functional.dropout(torch.ones(9, device=emulated_device))
    assert torch.equal(torch.get_rng_state(), cpu)
    assert not torch.equal(module.get_rng_state(), before)
    module.set_rng_state(before)


def test_copies_on_a_stream_are_done_when_they_are_waited_for(emulated_device: torch.device) -> None:
    host = torch.empty(3, pin_memory=True).copy_(torch.arange(3.0))
    stream = module.Stream(emulated_device)
    with module.stream(stream):
        first = host.to(emulated_device, non_blocking=True)
        assert bool(host.to(emulated_device).isfinite().all()), "a copy that blocks is done at once"
        plain = torch.arange(3.0).to(emulated_device, non_blocking=True)
        assert bool(plain.isfinite().all()), "only page-locked memory is copied behind one's back"
    assert bool(first.isnan().all())
    module.current_stream(emulated_device).wait_stream(stream)
    assert torch.equal(first.cpu(), host)
    with module.stream(stream):
        second = host.to(emulated_device, non_blocking=True)
    module.synchronize(emulated_device)
    assert torch.equal(second.cpu(), host)
    with module.stream(stream):
        host.to(emulated_device, non_blocking=True)
    del host
    with pytest.raises(RuntimeError, match="given back before its copy was done"):
        stream.synchronize()
    with pytest.raises(RuntimeError, match="dense CPU tensors can be pinned"):
        torch.empty(3, device=emulated_device, pin_memory=True)


def test_torch_is_as_it_was_outside_of_the_fixture() -> None:
    assert torch.Generator is torch._C.Generator
    assert torch.empty is torch._C._VariableFunctions.empty
    assert not isinstance(torch.tensor([1.0]), Emulated)
