"""Cases on another device: what a workspace builds, moved there, and verdicts and gradients that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmc_verify.cases.settings import DatasetSettings, ModelSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.graphs import Graph
from lmc_verify.objective import Problem

CPU = torch.device("cpu")


@dataclass
class WorkspaceThere(Workspace):
    """A workspace whose graphs and problems are on another device; data sets and weights are those of `Workspace`."""

    device: torch.device = CPU
    _there: dict[int, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    def graph(self, settings: DatasetSettings, seed: int, dtype: torch.dtype = torch.float64) -> Graph:
        here = super().graph(settings, seed, dtype)
        if id(here) not in self._there:
            self._there[id(here)] = (here, here.to(self.device))
        there: Graph = self._there[id(here)][1]
        return there

    def problem(self, graph: Graph, settings: ModelSettings, seed: int) -> Problem:
        own = super().problem(graph.to("cpu"), settings, seed)
        if id(own) not in self._there:
            model = own.to(self.device).model
            self._there[id(own)] = (own, Problem(graph, model, own.loss))
        there: Problem = self._there[id(own)][1]
        return there


def assert_same_numbers(call: str, got: Any, want: Any, *, rounding: float = 1e-12) -> None:
    """Assert that two documents are the same but for the rounding of their numbers."""
    if isinstance(want, dict):
        assert list(got) == list(want), call
        for key in want:
            assert_same_numbers(f"{call}.{key}", got[key], want[key], rounding=rounding)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), call
        for place, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same_numbers(f"{call}[{place}]", one, other, rounding=rounding)
    elif isinstance(want, float):
        both_nan = math.isnan(want) and math.isnan(got)
        assert both_nan or math.isclose(got, want, rel_tol=rounding, abs_tol=rounding), f"{call}: {got}, not {want}"
    else:
        assert got == want, f"{call}: {got!r}, not {want!r}"


def assert_there(call: str, values: dict[Any, Tensor], device: torch.device) -> None:
    """Assert that tensors are on a device."""
    where = {key: value.device for key, value in values.items() if value.device != device}
    assert not where, f"{call}: {where}, not {device}"


def home(values: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """Return tensors on the CPU."""
    return {key: value.detach().cpu() for key, value in values.items()}
