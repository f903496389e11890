"""Tensors that say that they are on the device ``emu:0``, are computed on the CPU, and refuse what CUDA refuses.

torch has one dispatch key for devices that it does not know, and lets Python answer for it. Each operation on such
tensors arrives at `_compute`: it looks whether the operation mixes devices in a way that CUDA does not allow, runs the
CPU's kernel on the tensors that stand behind, and wraps the results. So the numbers are the CPU's, bit for bit, and
code that forgets to move a tensor fails as it would on a GPU.

What is refused follows PyTorch's rules: tensors of two devices in one operation, except copies, CPU scalars (of no
dimension) in element-wise operations, and CPU indices; results written into the other device's tensors; a generator of
the other device; `numpy()` of what is not on the CPU.

Not refused, though CUDA would: a generator of the device in an operation on the CPU; nothing of it arrives here.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, library

from common.emulated import module

NAME = "emu"

_COPIES = frozenset({"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_"})
_INDEXED = frozenset(
    {
        "aten::index.Tensor",
        "aten::index_put",
        "aten::index_put_",
        "aten::_index_put_impl_",
        "aten::_unsafe_index.Tensor",
    }
)


class Emulated(Tensor):
    """A tensor on the emulated device; `inner` is the CPU tensor that stands behind it."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Emulated:
        place = {} if inner.layout is not torch.strided else {"strides": inner.stride()}
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
            **place,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    # What torch does in C++ with a tensor's memory, which a tensor of this kind has elsewhere.

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("only leaves can be copied deeply; detach the tensor")
        made: Tensor = Emulated(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        else:
            made.requires_grad_(self.requires_grad)
        memo[id(self)] = made
        return made

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Emulated):
            raise RuntimeError(f"data on {value.device} for a tensor on {self.device}")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def storage_offset(self) -> int:  # type: ignore[override]
        return self.inner.storage_offset()

    def __getitem__(self, index: Any) -> Any:
        return Tensor.__getitem__(self, _index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _index(index), value)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device} | options)

    def record_stream(self, stream: Any) -> None:
        self.streams = [*getattr(self, "streams", ()), stream]

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.inner.detach().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return self.inner.item().__format__(spec) if self.dim() == 0 else object.__format__(self, spec)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {self.device}"


class _OfAnyDevice(type):
    """Makes what stands in for `torch.Generator` know all generators as its own."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class EmulatedGenerator(torch._C.Generator):
    """A generator of the emulated device."""

    known: ClassVar[weakref.WeakValueDictionary[int, EmulatedGenerator]] = weakref.WeakValueDictionary()
    """By the generator behind it: an operation gets that one, wrapped anew."""

    def __init__(self) -> None:
        self.known[self._cdata] = self  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


class _Generators(metaclass=_OfAnyDevice):
    """`torch.Generator` while the device is in use: torch makes no generators of devices that it does not know."""

    def __new__(cls, device: Any = "cpu") -> Any:
        there = torch.device(device).type == NAME
        return EmulatedGenerator() if there else torch._C.Generator(device)


@dataclass(frozen=True)
class _Operation:
    """What is asked of an operation at every call.

    Attributes:
        written: places and names of the arguments that it writes into.
        pointwise: whether it is element-wise, which takes CPU scalars.
        indexed: whether its second argument are indices, which may be on the CPU.
        copies: whether it copies from one device to another.
        draws: whether it draws random numbers.
    """

    name: str
    written: tuple[tuple[int, str], ...]
    pointwise: bool
    indexed: bool
    copies: bool
    draws: bool

    @classmethod
    @functools.cache
    def of(cls, func: Any) -> _Operation:
        name, arguments = func.name(), func._schema.arguments
        return cls(
            name,
            tuple((k, item.name) for k, item in enumerate(arguments) if item.alias_info and item.alias_info.is_write),
            torch.Tag.pointwise in func.tags,
            name in _INDEXED,
            name in _COPIES,
            torch.Tag.nondeterministic_seeded in func.tags,
        )

    def check_devices(self, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        """Raise RuntimeError where CUDA would, for a mixture of devices."""
        here = [value for value in tensors if type(value) is not Emulated]
        if self.copies:
            return
        if self.indexed and isinstance(args[0], Emulated):
            here = [value for value in _found(args[2:]) if type(value) is not Emulated and value.dim()]
        elif self.pointwise:
            written = [args[place] if place < len(args) else kwargs.get(key) for place, key in self.written]
            here = [value for value in here if value.dim() or any(value is item for item in written)]
        if here:
            where = ", ".join(f"{tuple(value.shape)} on {value.device}" for value in tensors)
            raise RuntimeError(f"Expected all tensors to be on the same device, {self.name} got {where}")


def _found(value: Any) -> list[Tensor]:
    """Return the tensors among arguments, and in lists of them."""
    out: list[Tensor] = []
    for item in value:
        if isinstance(item, Tensor):
            out.append(item)
        elif isinstance(item, list | tuple):
            out += _found(item)
    return out


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if type(value) is list:
        return [_mapped(change, item) for item in value]
    if type(value) is tuple:
        return tuple([_mapped(change, item) for item in value])
    return change(value)


def _inner(value: Any) -> Any:
    return value.inner if type(value) is Emulated else value


@contextmanager
def _global_generator() -> Iterator[None]:
    """Draw from the device's global generator in place of the CPU's."""
    cpu = torch.get_rng_state()
    torch.set_rng_state(module.DEFAULT_GENERATOR.get_state())
    try:
        yield
        module.DEFAULT_GENERATOR.set_state(torch.get_rng_state())
    finally:
        torch.set_rng_state(cpu)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the tensors that stand behind, and wrap its results."""
    operation, kwargs = _Operation.of(func), dict(kwargs)
    tensors = _found(args) + _found(kwargs.values())
    known = {id(value.inner): value for value in tensors if type(value) is Emulated}
    if known and len(known) < len(tensors) and any(type(value) is not Emulated for value in tensors):
        operation.check_devices(args, kwargs, tensors)
    given, target = kwargs.get("generator"), kwargs.get("device")
    if given is not None and given._cdata not in EmulatedGenerator.known:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{given.device.type}'")
    if kwargs.get("pin_memory") and target is not None and torch.device(target).type == NAME:
        raise RuntimeError(f"Only dense CPU tensors can be pinned, this one is on {NAME}")
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    with _global_generator() if operation.draws and given is None else nullcontext():
        result = func(*_mapped(_inner, tuple(args)), **{key: _mapped(_inner, value) for key, value in kwargs.items()})
    if target is not None and torch.device(target).type == "cpu":
        return result
    if operation.copies and target is None and type(args[0]) is not Emulated:
        return args[0]  # a copy into a CPU tensor
    result = _mapped(lambda value: _outside(value, known), result)
    if operation.copies:
        module.copied(operation.name, args, kwargs, result)
    return result


def _outside(value: Any, known: dict[int, Emulated]) -> Any:
    """Return a result on the device; what an operation writes into is its result, too."""
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else Emulated(value)


def _arange(*args: Any, **kwargs: Any) -> Tensor:
    """A composite operation that would resize an empty result."""
    options = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "layout")}
    return Emulated(torch.arange(*args, **options))


@functools.cache
def _register() -> tuple[library.Library, ...]:
    """Make the device known to torch, once and until the process ends; return what must not be forgotten."""
    from torch.utils._device import _device_constructors
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _device_constructors()  # which torch remembers: it must not find what stands in for `torch.empty`
    _setup_privateuseone_for_python_backend(NAME, module)
    module.DEFAULT_GENERATOR = EmulatedGenerator()
    every = library.Library("_", "IMPL")
    every.fallback(lambda func, *args, **kwargs: _compute(func, args, kwargs), "PrivateUse1")
    own = library.Library("aten", "IMPL")
    for name in ("arange", "arange.start", "arange.start_step"):
        own.impl(name, _arange, "PrivateUse1")
    return every, own


def _index(index: Any) -> Any:
    """Return an index with tensors in place of lists, which torch makes in the way of `torch.tensor`."""
    if isinstance(index, tuple):
        return tuple(_index(item) for item in index)
    return torch.as_tensor(index) if isinstance(index, list) else index


def _tensor(make: Callable[..., Tensor], data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """`torch.tensor`, which makes tensors of a device without a dispatch that Python could answer."""
    if device is None or torch.device(device).type != NAME:
        return make(data, device=device, **options)
    requires_grad = options.pop("requires_grad", False)
    return make(data, **options).to(device).requires_grad_(requires_grad)


def _empty(make: Callable[..., Tensor], *size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
    """`torch.empty`, which locks pages by way of a device's library."""
    made = make(*size, **options)
    if pin_memory:
        if made.device.type != "cpu":
            raise RuntimeError(f"Only dense CPU tensors can be pinned, this one is on {made.device}")
        module.pinned[made] = True
    return made


def can_differentiate(device: torch.device) -> bool:
    """Whether autograd serves the device: it looks for devices once in a process, before its first pass."""
    value = torch.ones(1, device=device, requires_grad=True)
    try:
        value.sum().backward()
    except RuntimeError:
        return False
    return True


@contextmanager
def emulated_device() -> Iterator[torch.device]:
    """Yield the device; inside, `torch.Generator`, `torch.tensor` and page-locked memory serve it, too."""
    _register()
    with (
        mock.patch.object(torch, "Generator", _Generators),
        mock.patch.object(torch, "tensor", functools.partial(_tensor, torch.tensor)),
        mock.patch.object(torch, "empty", functools.partial(_empty, torch.empty)),
    ):
        yield torch.device(NAME, 0)
