"""Arguments are held against annotations: what fits is passed on as it is, else it is named with what is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

from lmc_verify.arguments import require_fields, require_options, typed
from lmc_verify.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    from elsewhere import Unknown  # type: ignore[import-not-found]  # which is not there when the program runs


@typed
def taken(
    whole: int = 0,
    number: float = 0.0,
    flag: bool = False,
    text: str = "",
    path: str | Path | None = None,
    several: Sequence[int] = (),
    by_name: Mapping[str, int] | None = None,
    call: Callable[[int], int] | None = None,
    choice: Literal["one", "two"] = "one",
    tensor: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    anything: Any = None,
    unknown: Unknown | None = None,
) -> dict[str, Any]:
    """Return the arguments."""
    return locals()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("whole", value) for value in (3, np.int64(3), torch.tensor(3), True)),
        *(("number", value) for value in (3, 0.5, np.float32(0.5), torch.tensor(0.5), float("inf"), 10**400)),
        *(("flag", value) for value in (True, np.bool_(True))),
        *(("path", value) for value in ("a", Path("a"), None)),
        *(("several", value) for value in ([1], (1,), range(3), np.arange(3), (n for n in (1, 2)))),
        ("by_name", {"a": 1}),
        ("call", len),
        ("choice", "two"),
        ("tensor", torch.ones(2)),
        ("dtype", torch.float32),
        *(("anything", value) for value in (object(), None, float("nan"))),
        ("unknown", object()),
    ],
)
def test_what_fits_is_passed_on_as_it_is(name: str, value: Any) -> None:
    assert taken(**{name: value})[name] is value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("whole", 3.0, "whole is 3.0, it must be a whole number; look at the order of the arguments"),
        ("whole", None, "whole is None, it must be a whole number"),
        ("number", float("nan"), "number is nan, it must be a number"),
        ("number", True, "number is True, it must be a number"),
        ("number", "1", "number is '1', it must be a number"),
        ("number", torch.ones(2), "number is a Tensor, it must be a number"),
        ("number", 1j, "number is 1j, it must be a number"),
        ("flag", 1, "flag is 1, it must be true or false"),
        ("text", None, "text is None, it must be a text"),
        ("path", 3, "path is 3, it must be a text or a Path or None"),
        ("several", "abc", "several is 'abc', it must be a Sequence"),
        ("several", 3, "several is 3, it must be a Sequence"),
        ("by_name", [1], "by_name is a list, it must be a Mapping or None"),
        ("call", 3, "call is 3, it must be a function or None"),
        ("choice", 3, "choice is 3, it must be 'one', 'two'"),
        ("tensor", [1.0], "tensor is a list, it must be a Tensor or None"),
        ("dtype", "float32", "dtype is"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        taken(**{name: value})
    assert str(caught.value).startswith(words)
    place = list(inspect.signature(taken).parameters).index(name)
    if not place:
        with pytest.raises(InvalidInputError):
            taken(value)


def test_a_text_that_is_none_of_a_list_has_the_nearest_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown choice 'ones': did you mean 'one'"):
        taken(choice="ones")  # type: ignore[arg-type]


def test_what_a_function_checks_itself_is_left_to_it() -> None:
    @typed(besides=("first",))
    def mine(first: int, second: int) -> Any:
        return first, second

    assert mine("a", 2) == ("a", 2)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="second is 'b'"):
        mine("a", "b")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing"):  # Python's own words: nothing was given
        mine(1)  # type: ignore[call-arg]


def test_a_typed_function_is_itself_for_whoever_looks() -> None:
    assert taken.__name__ == "taken"
    assert taken.__doc__ == "Return the arguments."
    assert list(inspect.signature(taken).parameters)[:3] == ["whole", "number", "flag"]


def test_methods_and_constructors_are_checked() -> None:
    class Mine:
        @typed
        def __init__(self, size: int) -> None:
            self.size = size

        @classmethod
        @typed
        def of(cls, size: int) -> Mine:
            return cls(size)

    assert Mine.of(3).size == Mine(size=3).size == 3
    for call in (Mine, Mine.of):
        with pytest.raises(InvalidInputError, match="size is 'a'"):
            call("a")  # type: ignore[arg-type]


def test_options_that_are_handed_on_are_checked() -> None:
    require_options(taken, {"whole": 3, "no such option": 4})
    with pytest.raises(InvalidInputError, match="whole is 'a'"):
        require_options(taken, {"whole": "a"})


@dataclass(frozen=True)
class Foreign:
    """A class of somebody else, whose fields are its own business."""

    size: int = 0
    other: list[int] = field(default_factory=list)


def test_fields_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fields(Foreign("a"))  # type: ignore[arg-type]

    @dataclass(frozen=True)
    class Own(Foreign):
        number: float = 0.0

    Own.__module__ = "lmc_verify.arguments.checks"
    with pytest.raises(InvalidInputError, match="number is 'b'"):
        require_fields(Own("a", [], "b"))  # type: ignore[arg-type]
    require_fields(Own("a", [], 1.0))  # type: ignore[arg-type]
