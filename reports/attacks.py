"""From which size on is an error caught? Seeds errors of shrinking size and prints the smallest that is refuted.

One case (a directed graph of 48 nodes with weights, loops and isolated nodes; three GCN layers), one sound estimator
per claim, one kind of error a row. A size s is relative: s = 1e-9 is a billionth of what is altered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lmc_verify.cases import Workspace
from lmc_verify.claims import Outcome, find_claim
from lmc_verify.controls import CONTROLS
from lmc_verify.controls.altered import Altered, Inputs, alter
from lmc_verify.estimators import Estimator, History, HistoryWrite
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient

Attack = Callable[[Estimator, float], Altered]


def on_gradient(wanted: Callable[[str, Inputs], bool]) -> Attack:
    """Scale the gradients of the parameters that are wanted by 1 + s."""

    def attack(base: Estimator, size: float) -> Altered:
        def change(gradient: Gradient, inputs: Inputs) -> Gradient:
            return {name: value * (1 + size * wanted(name, inputs)) for name, value in gradient.items()}

        return alter(base, "scaled", gradient=change)

    return attack


def one_entry(base: Estimator, size: float) -> Altered:
    """Scale one entry of one weight of the first layer."""

    def change(gradient: Gradient, inputs: Inputs) -> Gradient:
        name = next(iter(gradient))
        moved = gradient[name].clone()
        moved.view(-1)[0] *= 1 + size
        return {**gradient, name: moved}

    return alter(base, "one entry", gradient=change)


def stale(base: Estimator, size: float) -> Altered:
    """Read histories of embeddings that are off by s of their largest value, with changing signs."""

    def change(state: History) -> History:
        tables = {}
        for layer, table in state.embeddings.items():
            signs = 1 - 2 * (torch.arange(table.numel(), device=table.device).view_as(table) % 2)
            tables[layer] = table + size * float(table.abs().max()) * signs
        return History(tables, state.auxiliary, None, state.vectors)

    return alter(base, "stale", state=change)


def writes(base: Estimator, size: float) -> Altered:
    """Write history rows that are too large by s."""

    def change(write: HistoryWrite, batch: Batch) -> HistoryWrite:
        return HistoryWrite(write.kind, write.layer, write.nodes, write.values * (1 + size))

    return alter(base, "writes", write=change)


@dataclass(frozen=True)
class Row:
    """One kind of error in the case of a sound control, and in the control's claim."""

    error: str
    control: str
    attack: Attack


def _first_layer(name: str, inputs: Inputs) -> bool:
    return inputs.problem.layer_of(name) == "layer 1"


ROWS = (
    Row("whole gradient", "sound-backward-sgd", on_gradient(lambda name, inputs: True)),
    Row("gradient of layer 1", "sound-backward-sgd", on_gradient(_first_layer)),
    Row("gradient of one bias", "sound-backward-sgd", on_gradient(lambda name, inputs: name == "layers.1.conv.bias")),
    Row("one entry of a weight", "sound-backward-sgd", one_entry),
    Row("one batch of ten", "sound-backward-sgd", on_gradient(lambda name, inputs: inputs.batch.clusters == (0, 1))),
    Row("histories that are read", "sound-lmc", stale),
    Row("whole gradient", "sound-lmc", on_gradient(lambda name, inputs: True)),
    Row("whole gradient", "sound-no-cut-edges", on_gradient(lambda name, inputs: True)),
    Row("rows that are written", "sound-trained-encoder", writes),
    Row("whole gradient", "sound-census", on_gradient(lambda name, inputs: True)),
    Row("gradient of layer 1", "sound-census", on_gradient(_first_layer)),
)

SMALLEST = 16
"""Sizes are 1e-1 ... 1e-16."""


def outcomes(row: Row, workspace: Workspace) -> dict[int, Outcome]:
    """Return the outcome for each exponent k of a size 1e-k."""
    control = CONTROLS[row.control]
    case, claim = control.sound_case(workspace), find_claim(control.claim)
    found = {}
    for exponent in range(1, SMALLEST + 1):
        altered = replace(case, estimator=row.attack(case.estimator, 10.0**-exponent))
        found[exponent] = claim.check(altered).outcome
    return found


def caught(found: dict[int, Outcome]) -> tuple[str, str]:
    """Return the size down to which every error is refuted, and that from which on it is taken for none."""
    refuted = 0
    while found.get(refuted + 1) is Outcome.REFUTED:
        refuted += 1
    passed = next((k for k, outcome in found.items() if outcome in (Outcome.EXACT, Outcome.SUPPORTED)), None)
    return (f"1e-{refuted}" if refuted else "never", "never" if passed is None else f"1e-{passed}")


def main() -> int:
    """Print the table; return 1 if a sound estimator is refuted."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    workspace, failed = Workspace(), False
    print("| claim | what is altered | refuted down to | passes from |")
    print("|---|---|---|---|")
    for row in ROWS:
        control = CONTROLS[row.control]
        sound = find_claim(control.claim).check(control.sound_case(workspace))
        failed |= sound.outcome is Outcome.REFUTED
        print(f"| `{control.claim}` | {row.error} | {' | '.join(caught(outcomes(row, workspace)))} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
