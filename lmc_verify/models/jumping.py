"""Jumping knowledge: the head reads the embeddings of every layer.

The layered contract has a head that reads ``H^L`` only. Jumping knowledge fits it exactly when every layer carries the
embeddings below along: layer l gives ``[H^1, ..., H^l]`` side by side, its own rows behind the target's. ``V^l`` then
has the loss's direct term in it, because the carried columns pass it down unchanged. A carried column's Jacobian is the
identity on the row itself: a layer stays aggregate-linear if it was. The price is that histories are l times as wide.

With beta = 0 histories of carried columns hold what those of the lower layers hold, row by row. With beta > 0 a carried
column is blended again in every layer that it passes.

Source: Xu et al., Representation Learning on Graphs with Jumping Knowledge Networks, ICML 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lmc_verify.errors import UnknownNameError
from lmc_verify.graphs import Block
from lmc_verify.models.convs import linear
from lmc_verify.models.layered import Layer, place_of

__all__ = ["JUMPS", "JumpingHead", "JumpingLayer", "with_jumps"]

JUMPS = ("concat", "max")
"""How embeddings of several layers become one row: side by side, or the largest of each component."""


class JumpingLayer(Layer):
    """A layer that carries its input row along: ``[H^1, ..., H^{l-1}] -> [H^1, ..., H^{l-1}, H^l]``.

    Args:
        inner: the layer, which reads the last `width` columns.
        width: width of ``H^{l-1}``.
        carries: whether its input row is kept; the first layer's input is not an embedding, and is not.
    """

    def __init__(self, inner: Layer, *, width: int, carries: bool) -> None:
        super().__init__()
        self.inner, self.width, self.carries = inner, width, carries
        self.operator = inner.operator
        self.aggregate_linear = inner.aggregate_linear
        self.reads_x0 = inner.reads_x0

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, carried + out]; see `Layer.forward`."""
        read = source[:, -self.width :].contiguous()
        start = place_of(target, source)
        # A piece of what is read, where it is one: a row must be read alike as source and as target.
        own = target[:, -self.width :] if start is None else read[start : start + target.shape[0]]
        own = read if target is source else own
        rows: Tensor = self.inner(read, own, x0_target, block)
        return torch.cat([target, rows], dim=1) if self.carries else rows

    def read(self, rows: Tensor) -> Tensor:
        """Return the activated rows of the layer below; see `Layer.read`."""
        return self.inner.read(rows[:, -self.width :].contiguous())

    def drop(self, read: Tensor, first_row: int) -> Tensor:
        """Drop units; see `Layer.drop`."""
        return self.inner.drop(read, first_row)

    def on_read(
        self, read: Tensor, own: Tensor, target: Tensor | None, x0_target: Tensor, block: Block, first_row: int = 0
    ) -> Tensor:
        """Return the rows [rows, carried + out], or [rows, out] without a target; see `Layer.on_read`."""
        last = None if target is None else target[:, -self.width :]
        rows = self.inner.on_read(read, own, last, x0_target, block, first_row)
        return torch.cat([target, rows], dim=1) if self.carries and target is not None else rows


class JumpingHead(nn.Module):
    """Reads ``[H^1, ..., H^L]``: the node-wise part of each layer, then all side by side, or their maximum.

    Args:
        reads: the node-wise part that follows each layer.
        widths: width of each layer's embedding.
        jump: a name in `JUMPS`.

    Raises:
        UnknownNameError: an unknown jump.
    """

    def __init__(self, reads: Sequence[nn.Module], widths: Sequence[int], jump: str) -> None:
        super().__init__()
        if jump not in JUMPS:
            raise UnknownNameError("jump", jump, JUMPS)
        self.reads, self.widths, self.jump = nn.ModuleList(reads), tuple(widths), jump

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows [rows, sum of widths] or [rows, width]."""
        parts = [read(part) for read, part in zip(self.reads, rows.split(self.widths, dim=1), strict=True)]
        return torch.cat(parts, dim=1) if self.jump == "concat" else torch.stack(parts).amax(dim=0)


def with_jumps(
    layers: Sequence[Layer],
    widths: Sequence[int],
    last_read: nn.Module,
    out_channels: int,
    *,
    jump: str,
    dtype: torch.dtype | None,
) -> tuple[list[Layer], nn.Sequential]:
    """Return layers that carry every embedding along, and the linear head that reads all of them.

    The head reads ``H^l`` as layer l + 1 does, with the same modules, and ``H^L`` through `last_read`.

    Args:
        layers: layers with the attributes ``before`` and ``after``; embeddings are as wide as the last one.
        widths: of ``H^0 ... H^L``.
        last_read: the node-wise part that follows the last layer.
        out_channels: classes or tasks.
        jump: a name in `JUMPS`.
        dtype: of the head.
    """
    reads = [cast(nn.Module, layer.before) or nn.Identity() for layer in layers[1:]]
    head = JumpingHead([*reads, last_read], widths[1:], jump)
    outputs = linear(widths[-1] * (len(layers) if jump == "concat" else 1), out_channels, dtype)
    carried: list[Layer] = [
        JumpingLayer(layer, width=width, carries=index > 0)
        for index, (layer, width) in enumerate(zip(layers, widths[:-1], strict=True))
    ]
    return carried, nn.Sequential(head, outputs)
