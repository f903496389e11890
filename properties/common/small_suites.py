"""Tables of a suite with a part of every kind, each done in moments."""

from __future__ import annotations

from typing import Any

from common import loops

CHECK: dict[str, Any] = {
    "claim": "theorem-1/unbiased",
    "dataset": "karate",
    "estimator": ["backward-sgd", "lmc", "gas"],
    "model": {"layers": 2, "width": 4},
    "design": {"parts": 3, "per_batch": 1},
    "expect": {"backward-sgd": "EXACT", "lmc": "EXACT", "gas": "REFUTED"},
}
SAMPLED = CHECK | {
    "claim": "theorem-1/unbiased-sampled",
    "expect": {"backward-sgd": "SUPPORTED", "lmc": "SUPPORTED", "gas": "REFUTED"},
}
AUDIT = {"function": f"{loops.__file__}:whole", "expect": "EXACT"}
SEARCH = {
    "claim": "theorem-1/unbiased",
    "estimator": "gas",
    "max_nodes": 2,
    "model": {"layers": 2, "width": 1},
    "design": {"parts": 2, "per_batch": 1},
}
RACE = {
    "title": "Race",
    "dataset": "karate",
    "estimator": ["full-batch", "lmc"],
    "design": {"parts": 3, "per_batch": 1},
    "trainer": {"epochs": 2},
    "seeds": 2,
}
