"""A model: simple graph convolution, propagation without activations between one encoder and one head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmc_verify import Block, Layer, LayeredModel, spmm
from lmc_verify.models import initialise

__all__ = ["SGC"]


class Propagation(Layer):
    """``A H`` with the symmetric normalisation; its Jacobian is ``A``, so it is aggregate-linear."""

    operator = "gcn"
    aggregate_linear = True

    def forward(self, source: Tensor, target: Tensor, x0_target: Tensor, block: Block) -> Tensor:
        """Return the rows [rows, width]."""
        return spmm(block, source)


class SGC(LayeredModel):
    """Simple graph convolution [Wu et al., ICML 2019] with an encoder in front."""

    options: ClassVar[Mapping[str, Any]] = {"slope": 0.0}

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        *,
        slope: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        **unused: object,  # activation_cut, norm, ...: this model has no activation between layers
    ) -> None:
        first = nn.utils.skip_init(nn.Linear, in_channels, hidden_channels, dtype=dtype)
        last = nn.utils.skip_init(nn.Linear, hidden_channels, out_channels, dtype=dtype)
        super().__init__(
            [Propagation() for _ in range(num_layers)],
            encoder=nn.Sequential(first, nn.LeakyReLU(slope)),
            head=last,
        )
        initialise(self, torch.Generator().manual_seed(seed))
