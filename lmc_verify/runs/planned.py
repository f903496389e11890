"""One check that a suite plans, and its identity for resuming."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

from lmc_verify.cases import CaseSettings, command_line, plugins_of, reproduction_command
from lmc_verify.claims import CLAIMS, Outcome, find_claim
from lmc_verify.controls import Control
from lmc_verify.plugins import plugin_versions
from lmc_verify.provenance import code_fingerprint

__all__ = ["Planned", "trial_key"]


@dataclass(frozen=True)
class Planned:
    """A trial that is to be run.

    Attributes:
        kind: ``"claim"`` or ``"control"``.
        claim: id of the claim.
        settings: the case.
        expected: what the suite expects.
        optional: whether an absent data set only skips the trial.
        control: the control, for that kind.
    """

    kind: Literal["claim", "control"]
    claim: str
    settings: CaseSettings
    expected: Outcome | None
    optional: bool = False
    control: Control | None = None

    @classmethod
    def of_control(cls, control: Control) -> Planned:
        """Plan a control, with the outcome that it must have."""
        return cls("control", control.claim, control.broken or control.sound, control.expected, control=control)

    @property
    def key(self) -> str:
        """Identity for resuming: claim, case, control, and code version."""
        return trial_key(self.claim, self.settings, self.control.name if self.control else "")

    @property
    def statistical(self) -> bool:
        """Whether its verdict spends error probability."""
        return find_claim(self.claim).tier != "exact"

    @property
    def label(self) -> str:
        """One line for progress displays."""
        if self.control is not None:
            return f"control {self.control.name}"
        return f"{self.claim} {self.settings.estimator.describe()} on {self.settings.dataset.describe()}"

    @property
    def command(self) -> str:
        """The command that reproduces the trial."""
        if self.control is not None:
            return command_line("controls", {}, {}, self.control.name)
        return reproduction_command(self.claim, self.settings)


def trial_key(claim: str, settings: CaseSettings, control: str = "") -> str:
    """Return the identity of a trial: a hash over claim, case, control, and the versions of the code and of torch.

    The versions of plug-ins that the trial uses are part of it.
    """
    plugins = plugin_versions((CLAIMS, claim)) | plugins_of(settings)
    versions = [code_fingerprint(), torch.__version__, *(f"{name} {version}" for name, version in plugins.items())]
    text = "\n".join([claim, settings.canonical(), control, *versions])
    return hashlib.sha256(text.encode()).hexdigest()
