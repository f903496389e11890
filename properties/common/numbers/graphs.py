"""Operators, neighbourhoods and batch designs, entry by entry and batch by batch."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from common import oracles

FIVE = [0, 1, 2, 3, 4, 0, 3]
"""Five clusters of seven nodes."""

LIST = [[0, 1, 2], [0, 3], [4, 5]]
"""Batches of a list, each as likely."""

FUSED = [1, 2, 2]
"""How many of the five clusters are in each group, two at a time."""

FAR_APART: dict[str, Any] = {"nodes": 400, "edges": [[0, 1], [1, 2], [5, 0], [7, 8]], "batch": [0, 5]}
"""So few edges that the nodes near a batch are searched for, and not marked one by one."""


def _dense(kind: str, edges: np.ndarray, n: int, weights: list[float] | None) -> np.ndarray:
    counts = oracles.edge_counts(edges, n)
    if kind == "gcn":
        return oracles.gcn_operator(edges, n, None if weights is None else np.array(weights))
    if kind == "mean":
        return oracles.mean_operator(edges, n)
    if kind == "loops":
        return counts - np.diag(np.diag(counts)) + np.eye(n)
    out = np.zeros((n, n))
    for place, (source, destination) in enumerate(edges.T):
        out[destination, source] += 1.0 if weights is None else weights[place]
    return out


def _entries(kind: str, counts: np.ndarray) -> list[int]:
    """Return the number of in-edges of every row; parallel edges and self-loops count."""
    own = np.diag(counts)
    if kind == "gcn":  # self-loops where there are none
        counts = counts + np.diag((own == 0).astype(int))
    elif kind == "loops":
        counts = counts - np.diag(own) + np.eye(len(counts), dtype=int)
    return [int(value) for value in counts.sum(axis=1)]


def rows_of_design(batches: list[tuple[list[int], float, float]], n: int) -> list[list[float]]:
    """Return, sorted, one row a batch: its probability, and every node's inclusion probability, 0 outside."""
    rows = []
    for nodes, inclusion, probability in batches:
        rows.append([probability, *[inclusion if node in nodes else 0.0 for node in range(n)]])
    return sorted(rows)


def _designs() -> dict[str, Any]:
    n = len(FIVE)
    members = [[node for node in range(n) if FIVE[node] == cluster] for cluster in range(5)]

    def union(chosen: Any) -> list[int]:
        return sorted(node for cluster in chosen for node in members[cluster])

    def some(clusters: Any, size: int, probability: float, inclusion: float) -> list[tuple[list[int], float, float]]:
        chosen = list(combinations(clusters, size))
        return [(union(item), inclusion, probability / len(chosen)) for item in chosen]

    return {
        "clusters": rows_of_design(some(range(5), 2, 1.0, 2 / 5), n),
        "nodes": rows_of_design([(list(item), 3 / 7, 1 / 35) for item in combinations(range(n), 3)], n),
        # An epoch of five clusters, two at a time, has two batches of two and one of one.
        "epoch": rows_of_design([*some(range(5), 2, 2 / 3, 1 / 3), *some(range(5), 1, 1 / 3, 1 / 3)], n),
        "epoch-after": rows_of_design(some([0, 2, 4], 2, 1.0, 1 / 3), n),
        "epoch-last": rows_of_design(some([4], 1, 1.0, 1 / 3), n),
    }


def named(values: dict[str, Any]) -> dict[str, Any]:
    """Return values in which a name leads to further names as one flat dictionary."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= {f"{name}/{part}": item for part, item in named(value).items()}
        else:
            out[name] = value
    return out


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {f"design/{name}": rows for name, rows in _designs().items()}
    n = len(FIVE)
    # Node 0 is in two of the three batches of the list, node 6 in none.
    shares = [sum(node in nodes for nodes in LIST) / len(LIST) for node in range(n)]
    out["design/list"] = sorted([1 / 3, *(shares[v] if v in nodes else 0.0 for v in range(n))] for nodes in LIST)
    out["design/fused"] = FUSED
    edges, batch = FAR_APART["edges"], FAR_APART["batch"]
    near = {v for edge in edges for v in edge if set(edge) & set(batch)}
    out["far-apart/halo"] = sorted(near - set(batch))
    out["design/inclusion"] = [2 / 5, 3 / 7, 1 / 3, 1 / 3, 1 / 3]
    for key, graph in inputs["graphs"].items():
        edges, n, weights = np.array(graph["edges"]).T, len(graph["x"]), graph["weights"]
        counts = oracles.edge_counts(edges, n)
        for kind in ("gcn", "mean", "sum", "loops"):
            operator = _dense(kind, edges, n, weights)
            x = np.array(graph["x"])
            out[f"{key}/{kind}"] = {
                "dense": operator.tolist(),
                "transposed": operator.tolist(),
                "in-degree": [_entries(kind, counts)[node] for node in range(n)],
                "product": (operator @ x).tolist(),
                "transposed-product": (operator.T @ x).tolist(),
            }
        gcn = _dense("gcn", edges, n, weights)
        for place, batch in enumerate(graph["batches"]):
            halo = [int(node) for node in oracles.halo(counts, batch)]
            inside = np.isin(np.arange(n), batch)
            kept = [k for k, (source, destination) in enumerate(edges.T) if inside[source] and inside[destination]]
            own = None if weights is None else [weights[k] for k in kept]
            ratio = oracles.local_degree_ratio(counts, batch)
            cut = [_dense(kind, edges[:, kept], n, own)[np.ix_(batch, batch)].tolist() for kind in ("gcn", "mean")]
            out[f"{key}/batch-{place}"] = {
                "halo": halo,
                "degree-ratio": [float(ratio[node]) for node in halo],
                "messages": [int(counts[inside].sum()), int(counts[:, inside].sum()), len(kept)],
                "rows": gcn[np.ix_(batch, [*batch, *halo])].tolist(),
                "columns": gcn.T[np.ix_(batch, [*batch, *halo])].tolist(),
                "induced-gcn": cut[0],
                "induced-mean": cut[1],
            }
    return named(out)
