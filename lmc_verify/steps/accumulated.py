"""What backward() accumulates in ``.grad``, apart from what a step makes of it afterwards, such as by clipping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

__all__ = ["accumulated"]


@contextmanager
def accumulated(parameters: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield by parameter what ``.grad`` was behind the last backward pass that reached it, copied.

    Parameters that no backward pass reaches are absent. Gradients of ``torch.autograd.grad`` are not seen.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        if value.grad is not None:
            found[name] = value.grad.detach().clone()

    handles = [
        value.register_post_accumulate_grad_hook(lambda value, name=name: keep(name, value))
        for name, value in parameters.items()
        if value.requires_grad
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
