"""A graph that was loaded, before it is a `Graph` or a `Data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data

__all__ = ["Tables"]


@dataclass
class Tables:
    """The tensors of a graph under the names that `torch_geometric.data.Data` gives them, which need not be imported.

    Shapes and types are those of `lmc_verify.load_data`, once a load is finished.
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor
    edge_weight: Tensor | None = None
    edge_attr: Tensor | None = None
    train_mask: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.x.size(0)

    def to_data(self) -> Data:
        """Return the same tensors as a `Data`."""
        from torch_geometric.data import Data

        return Data(**{name: value for name, value in vars(self).items() if value is not None})
