"""Zachary's karate club, as PyTorch Geometric has it: 34 members, their ties, and the four communities among them.

Source: Zachary, An information flow model for conflict and fission in small groups (1977); communities by modularity,
Brandes et al., On modularity clustering (2008).
"""

from __future__ import annotations

from lmc_verify.datasets.tables import Tables

__all__ = ["karate"]

_TIES: dict[int, tuple[int, ...]] = {
    0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31),
    1: (2, 3, 7, 13, 17, 19, 21, 30),
    2: (3, 7, 8, 9, 13, 27, 28, 32),
    3: (7, 12, 13),
    4: (6, 10),
    5: (6, 10, 16),
    6: (16,),
    8: (30, 32, 33),
    9: (33,),
    13: (33,),
    14: (32, 33),
    15: (32, 33),
    18: (32, 33),
    19: (33,),
    20: (32, 33),
    22: (32, 33),
    23: (25, 27, 29, 32, 33),
    24: (25, 27, 31),
    25: (31,),
    26: (29, 33),
    27: (33,),
    28: (31, 33),
    29: (32, 33),
    30: (32, 33),
    31: (32, 33),
    32: (33,),
}
"""Of each member, those with a larger number that he has ties with."""

_COMMUNITY = "1111333101311100310101002200200200"
"""The community of each member."""


def karate() -> Tables:
    """Return the graph: one-hot features, and a training node for each community, its first member."""
    import torch

    ties = [(one, other) for one, others in _TIES.items() for other in others]
    edges = sorted([*ties, *((other, one) for one, other in ties)])
    train = torch.zeros(len(_COMMUNITY), dtype=torch.bool)
    train[[_COMMUNITY.index(community) for community in sorted(set(_COMMUNITY))]] = True
    return Tables(
        x=torch.eye(len(_COMMUNITY)),
        edge_index=torch.tensor(edges).T.contiguous(),
        y=torch.tensor([int(community) for community in _COMMUNITY]),
        train_mask=train,
    )
