"""A device that exists in Python only: `tensors` says what it refuses, `module` is its `torch.cuda`."""

from common.emulated import module
from common.emulated.tensors import Emulated, can_differentiate, emulated_device

__all__ = ["Emulated", "can_differentiate", "emulated_device", "module"]
