"""What LMC's authors ship: the estimator's settings in each of their configurations, written once, by name.

Source: `json/MODEL/DATA/variant.json` of github.com/MIRALab-USTC/GNN-LMC. Two rules hold in all of them, because they
are in the code: a halo row with all of its neighbours in the local set takes the fresh value whole, and the self-loop
that the code adds to every node counts in both degrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lmc_verify.errors import UnknownNameError

__all__ = ["SETTING", "SHIPPED", "has_shipped_settings", "written_out"]

SETTING = "shipped"
"""The setting of an estimator that names one of `SHIPPED`."""


def _configuration(beta: float, score: str) -> Mapping[str, Any]:
    rules = {"whole_when_complete": True, "count_self_loop": True}
    return MappingProxyType({"beta": beta, "score": score, **rules})


SHIPPED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gcn/arxiv": _configuration(1.0, "const"),
        "gcn/flickr": _configuration(0.8, "const"),
        "gcn/reddit": _configuration(1.0, "concave"),
        "gcn/ppi": _configuration(0.8, "convex"),
        "gcnii/arxiv": _configuration(0.9, "linear"),
        "gcnii/flickr": _configuration(0.8, "const"),
        "gcnii/reddit": _configuration(0.2, "const"),
        "gcnii/ppi": _configuration(0.8, "concave"),
    }
)
"""LMC's settings by the authors' model and data set. Scores have the names of the authors' code: see `SCORES`."""


def has_shipped_settings(names: Mapping[str, Any]) -> bool:
    """Whether an estimator with these settings can be given those of a shipped configuration."""
    return SETTING not in names and all(name in names for name in _configuration(0.0, ""))


def written_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of a shipped configuration in place of its name; a setting beside the name counts.

    Raises:
        UnknownNameError: no configuration has this name.
    """
    if SETTING not in settings:
        return dict(settings)
    name = settings[SETTING]
    if not isinstance(name, str) or name not in SHIPPED:
        raise UnknownNameError("shipped configuration", str(name), SHIPPED)
    return {**SHIPPED[name], **{key: value for key, value in settings.items() if key != SETTING}}
