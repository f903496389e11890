"""What other programs read has one spelling of the numbers that JSON lacks, wherever they come from."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.cli.options import print_json
from lmc_verify.encoding import decode, encode, plain, published, toml_value
from lmc_verify.errors import InvalidInputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


@given(VALUES)
def test_every_value_can_be_published_and_its_record_is_published_alike(value: Any) -> None:
    text = json.dumps(published(value), allow_nan=False)
    assert json.dumps(published(plain(value))) == text
    assert json.dumps(published(decode(encode(value)))) == text
    assert json.dumps(published(published(value))) == text


@given(VALUES.filter(lambda value: "inf" not in repr(value) and "nan" not in repr(value)))
def test_what_json_has_is_published_as_it_is(value: Any) -> None:
    assert published(value) == value


def test_the_spelling_is_that_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "a": (math.nan, -math.inf),
        "b": {"$float": "inf"},
        "c": np.float32("inf"),
        "d": torch.tensor(2.5),
        5: None,
    }
    want = {"a": ["NaN", "-Infinity"], "b": "Infinity", "c": "Infinity", "d": 2.5, "5": None}
    assert published(values) == want
    print_json(values)
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == want
    assert plain(values)["a"] == [{"$float": "nan"}, {"$float": "-inf"}]  # records are as they were


def test_toml_has_no_none() -> None:
    with pytest.raises(InvalidInputError, match="None cannot be written as TOML"):
        toml_value([1, None])
