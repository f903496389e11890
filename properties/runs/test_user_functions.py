"""A function is found by the name that the user gives, as it is in its file now, and blamed by its own line."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.runs.functions import blamed, find_function

SOURCE = """
import neighbour_of_{name}

NUMBER = 3


def loop(parts=4, *, dropout=0.0):
    return neighbour_of_{name}.value(), parts, dropout


def broken():
    raise ValueError("no good")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Return the current folder, with a module named after the test and one that it imports."""
    monkeypatch.chdir(tmp_path)
    name = name_of(request)
    (tmp_path / f"{name}.py").write_text(SOURCE.format(name=name))
    (tmp_path / f"neighbour_of_{name}.py").write_text("def value():\n    return 7\n")
    return tmp_path


def name_of(request: pytest.FixtureRequest) -> str:
    return f"loops_of_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.mark.parametrize("form", ["{name}:loop", "{name}.py:loop", "{folder}/{name}.py:loop"])
def test_a_function_is_found_by_module_or_file(form: str, folder: Path, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    path = list(sys.path)
    found = find_function(form.format(name=name, folder=folder))
    with found.importable():
        assert found.call(parts=2) == (7, 2, 0.0)
    assert found.file == (folder / f"{name}.py").resolve()
    assert found.digest == hashlib.sha256(found.file.read_bytes()).hexdigest()
    assert sys.path == path


def test_a_file_brings_its_folder_and_the_current_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = name_of(request)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = find_function(f"../{name}.py:loop")
    with found.importable():
        assert sys.path[:2] == [str(folder), str(elsewhere)]
        assert found.call() == (7, 4, 0.0)


@pytest.mark.parametrize("form", ["{name}:loop", "{name}.py:loop"])
def test_a_changed_file_is_read_again(form: str, folder: Path, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    form = form.format(name=name)
    before = find_function(form)
    assert find_function(form).call is before.call
    file = folder / f"{name}.py"
    file.write_text(file.read_text().replace("parts=4", "parts=40"))
    os.utime(file, (1, 1))  # the interpreter's own cache goes by the time
    after = find_function(form)
    assert after.digest != before.digest
    with after.importable():
        assert after.call() == (7, 40, 0.0)


def test_files_of_one_name_are_several_modules(folder: Path, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    for number in (1, 2):
        (folder / str(number)).mkdir()
        (folder / str(number) / f"{name}.py").write_text(f"def loop():\n    return {number}\n")
    found = [find_function(f"{number}/{name}.py:loop") for number in (1, 2)]
    assert [item.call() for item in found] == [1, 2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loop", r"'loop' names no function; write module:function"),
        ("module:", r"names no function"),
        (":loop", r"names no function"),
        ("no_such_module_anywhere:loop", r"there is no module no_such_module_anywhere, neither installed nor in"),
        ("no_such_package.module:loop", r"no module no_such_package.module: ModuleNotFoundError"),
        ("no_such_file.py:loop", r"cannot read .*no_such_file.py: No such file"),
        ("{name}:lop", r"unknown function of loops_of_\w+ 'lop': did you mean 'loop'"),
        ("{name}.py:lop", r"did you mean 'loop'"),
        ("{name}:NUMBER", r"is a int, a function is needed"),
        ("sys:exit", r"the module sys has no source file"),
    ],
)
def test_what_is_not_there_is_named(name: str, words: str, folder: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(InvalidInputError, match=words):
        find_function(name.format(name=name_of(request)))


@pytest.mark.parametrize("form", ["{name}:loop", "{name}.py:loop"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "x = 1\ny = 1 / 0  # here\n",
            r"ZeroDivisionError: division by zero \(loops_of_\w+\.py, line 2: y = 1 / 0  # he",
        ),
        ("def loop(:\n", r"SyntaxError: .*line 1"),
        ("import sys\nsys.exit(0)  # at the end of a script\n", r"SystemExit: 0 \(loops_of_\w+\.py, line 2: sys\.exit"),
        ("import no_such_module_anywhere\n", r"ModuleNotFoundError: No module named 'no_such_module_anywhere' \(loops"),
    ],
)
def test_a_file_that_cannot_be_imported_is_blamed_by_its_line(
    form: str, source: str, words: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    name = name_of(request)
    (folder / f"{name}.py").write_text(source)
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(InvalidInputError, match=words):
        find_function(form.format(name=name))
    assert sys.path == path
    assert not {module for module in set(sys.modules) - modules if "loops_of" in module}


def test_arguments_are_compared_with_the_parameters(folder: Path, request: pytest.FixtureRequest) -> None:
    found = find_function(f"{name_of(request)}:loop")
    found.check_arguments({"parts": 2, "dropout": 0.5})
    with pytest.raises(InvalidInputError, match=r"loop\(parts=4, \*, dropout=0\.0\) cannot be called .*'part'"):
        found.check_arguments({"part": 2})


def test_the_line_of_the_user_is_blamed_and_not_that_of_a_library(folder: Path, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    (folder / f"{name}.py").write_text("import json\n\ndef loop():\n    return json.loads('{')  # mine\n")
    found = find_function(f"{name}:loop")
    with pytest.raises(ValueError, match="Expecting") as caught:
        found.call()
    assert blamed(caught.value, found.file).endswith(f"({name}.py, line 4: return json.loads('{{')  # mine)")
    words = blamed(caught.value, folder / "another.py")
    assert "line 4" not in words
    assert words.startswith("JSONDecodeError: Expecting")


def test_unknown_names_are_known_as_such(folder: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_function(f"{name_of(request)}:nothing_like_it")
    assert caught.value.known == ["broken", "loop"]
