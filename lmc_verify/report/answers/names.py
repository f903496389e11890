"""How readers know estimators: the name of the method, and its settings that are not the defaults."""

from __future__ import annotations

from lmc_verify.cases import CaseDescription
from lmc_verify.display.text import capitalised
from lmc_verify.report.model import text

__all__ = ["beginning", "display_name", "unusual_settings"]

_NAMES = {
    "full-batch": "full-batch descent",
    "backward-sgd": "Backward SGD",
    "lmc": "LMC",
    "lmc-backward-only": "backward-only LMC",
    "lmc-forward-only": "forward-only LMC",
    "gas": "GAS",
    "fm": "FM",
    "fm-local": "local FM",
    "cluster-gcn": "Cluster-GCN",
    "neighbour-sampling": "neighbour sampling",
    "vr-gcn": "VR-GCN",
    "vr-gcn-importance": "VR-GCN with importance sampling",
    "labor": "LABOR",
    "fastgcn": "FastGCN",
    "fastgcn-published": "FastGCN's public code",
    "ladies": "LADIES",
    "ladies-published": "LADIES's public code",
    "as-gcn": "AS-GCN",
    "mvs-gnn": "MVS-GNN",
    "graphsaint-node": "GraphSAINT by nodes",
    "graphsaint-edge": "GraphSAINT by edges",
    "graphsaint-walk": "GraphSAINT by walks",
    "shadow": "shaDow",
    "top": "TOP",
    "top-krylov": "TOP-Krylov",
}
"""Names of methods as their papers write them; the name of any other estimator is its own."""
_COMMON = tuple(name for name in _NAMES.values() if name.split()[0].islower())


def display_name(estimator: str) -> str:
    """Return what readers call an estimator."""
    return _NAMES.get(estimator, estimator)


def beginning(words: str) -> str:
    """Return the words of a sentence with a capital first, unless they begin with a proper name or an id."""
    return capitalised(words) if words.startswith(_COMMON) else words


def unusual_settings(case: CaseDescription) -> str:
    """Return the settings of a case's estimator that are not its defaults, in words: ``beta 0.4``; may be empty."""
    weighting = {} if case.normaliser in (None, "inclusion") else {"normaliser": case.normaliser}
    settings = {**weighting, **case.estimator_settings}
    return ", ".join(f"{text.name(key)} {text.setting(value, key)}" for key, value in settings.items())
