"""A layer of a plain model: convolutions that read computed values, and values that are carried along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lmc_verify.graphs import Block
from lmc_verify.models.adapter import PyGConv
from lmc_verify.models.layered import Layer, place_of
from lmc_verify.models.plain.steps import Part, join

__all__ = ["PlainLayer"]


class PlainLayer(Layer):
    """``H^l = [conv_1(s_1), conv_2(s_2), ... | carried]``, with ``s_k`` and what is carried node-wise in ``H^{l-1}``.

    A carried value at a row is computed from the row's own of the layer below (`target`), never from its sources: its
    Jacobian is that of a node-wise map, and the layer is aggregate-linear if its convolutions are.

    Args:
        convs: the convolutions, all on one operator.
        sources: name of what each aggregates.
        carried: names of what is carried along.
        before: the node-wise part, from rows of the layer below to these values.
    """

    def __init__(self, convs: Sequence[PyGConv], sources: Sequence[str], carried: Sequence[str], before: Part) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.sources, self.carried = tuple(sources), tuple(carried)
        self.before = before
        self.operator = convs[0].operator
        self.aggregate_linear = all(conv.aggregate_linear for conv in convs)

    @property
    def conv(self) -> nn.Module:
        """The first convolution, which messages name the layer by."""
        return self.convs[0]

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, fresh + carried]; see `Layer.forward`."""
        read = self.before.values(source)
        own = read if target is source else self._own(read, source, target)
        fresh = [conv(read[name], own[name], block) for conv, name in zip(self.convs, self.sources, strict=True)]
        return join([*fresh, *(own[name] for name in self.carried)])

    def _own(self, read: dict[str, Any], source: Tensor, target: Tensor) -> dict[str, Any]:
        """Return the values of the rows themselves.

        A row must be read alike as source and as target: its mask, where units are dropped, is its place's.
        """
        start = place_of(target, source)
        if start is None:
            return self.before.values(target)
        stop = start + target.shape[0]
        return {name: read[name][start:stop] for name in {*self.sources, *self.carried}}
