"""Shells complete commands, options, names and ``--set``; what they offer is what the commands take.

Bash, zsh and fish are asked where they are on the machine; PowerShell gets what typer writes, from the same words.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from common.command_line import Command
from common.crossed import slow_but
from common.fresh_process import LIBRARIES, imported

from lmc_verify.cases import case_settings
from lmc_verify.cases.verdict import Outcome
from lmc_verify.claims import CLAIMS
from lmc_verify.cli.completion import kept, names
from lmc_verify.cli.completion.words import KEY, rejoin
from lmc_verify.cli.settings.keys import all_keys, for_completion
from lmc_verify.controls import CONTROLS
from lmc_verify.datasets.registry import dataset_names
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.models import MODELS

ROOT = Path(__file__).parents[2]
Complete = Callable[..., list[str]]


@pytest.fixture
def complete(lmc: Command) -> Complete:
    """What bash is told of a command line, whose last word is being typed."""

    def call(*words: str) -> list[str]:
        line = {
            "_LMC_VERIFY_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(["lmc-verify", *words]),  # as typer's script joins them
            "COMP_CWORD": str(len(words)),
        }
        with mock.patch.dict(os.environ, line):
            code, out, err = lmc()
        assert (code, err) == (0, "")
        return out.split()

    return call


CHECK = ("check", "theorem-1/unbiased")

NAMES = [
    (("check",), CLAIMS),
    (("explain",), CLAIMS),
    (("counterexample",), CLAIMS),
    ((*CHECK, "--estimator"), ESTIMATORS),
    (("race", "--estimator", "lmc", "--estimator"), ESTIMATORS),
    (("check-estimator",), ESTIMATORS),
    ((*CHECK, "--dataset"), dataset_names()),
    (("exact", "--dataset"), dataset_names()),
    (("controls",), CONTROLS),
    (("controls", "sound-lmc"), CONTROLS),
    ((*CHECK, "--expect"), [item.value for item in Outcome]),
    ((*CHECK, "--guarantee"), ["asymptotic", "anytime-valid"]),
    ((*CHECK, "--histories"), ["exact", "zero", "sweeps:"]),
    (("run",), ["smoke", "theorem-check", "figures"]),
    (("settings", "--command"), ["check", "counterexample", "check-estimator", "train", "race", "exact"]),
    (("list",), ["estimators", "claims", "models", "datasets", "controls", "suites"]),
]


@pytest.mark.parametrize(("words", "expected"), NAMES, ids=[" ".join(words) for words, _ in NAMES])
def test_names_are_offered_where_they_are_taken(
    complete: Complete, words: tuple[str, ...], expected: list[str]
) -> None:
    offered = complete(*words, "")
    assert set(expected) <= set(offered)
    assert len(offered) == len(set(offered))
    if words[0] != "run":  # a checkout has more suites than a wheel
        assert set(offered) == set(expected)


def test_what_is_offered_begins_with_what_is_typed(complete: Complete) -> None:
    assert complete("check", "theorem-2/") == [name for name in CLAIMS if name.startswith("theorem-2/")]
    assert complete(*CHECK, "--expect", "ref") == ["refuted"]
    assert complete(*CHECK, "--expect", "REF") == ["REFUTED"]
    assert complete("check", "nosuch") == []  # files, then
    assert "--estimator" in complete(*CHECK, "--est")
    assert "theorem-1/unbiased" not in complete("che")


@pytest.mark.slow
def test_keys_are_those_of_the_command(complete: Complete) -> None:
    for command in ("check", "train", "check-estimator"):
        before = CHECK if command == "check" else (command,)
        own = {item.setting.key for item in all_keys() if command in item.commands}
        offered = complete(*before, "--set", "")
        assert {word.removesuffix("=") for word in offered} == own
    assert "trainer.epochs=" in complete("train", "--set", "")
    assert "trainer.epochs=" not in complete(*CHECK, "--set", "")


def test_one_key_comes_with_its_values(complete: Complete) -> None:
    assert complete(*CHECK, "--set", "estimator.count") == [
        "estimator.count_self_loop=",
        "estimator.count_self_loop=true",
        "estimator.count_self_loop=false",
    ]
    assert complete("train", "--set", "model.norm") == ["model.norm=", "model.norm=layer"]
    assert complete("train", "--set", "trainer.ep") == ["trainer.epochs=", "trainer.epochs=100"]


def test_values_follow_the_equals_sign(complete: Complete) -> None:
    """Bash has three words for KEY=VALUE, and replaces the last one."""
    assert complete(*CHECK, "--set", "estimator.score", "=") == list(kept.kept_keys()["estimator.score"].values)
    assert complete(*CHECK, "--set", "estimator.score", "=", "li") == ["linear"]
    assert complete(*CHECK, "--set", "model.name", "=", "g") == [name for name in MODELS if name.startswith("g")]
    assert complete(*CHECK, "--set", "estimator.score=li") == ["estimator.score=linear"]  # other COMP_WORDBREAKS
    assert complete(*CHECK, "--estimator", "=", "ga") == [name for name in ESTIMATORS if name.startswith("ga")]
    assert complete(*CHECK, "--set", "nosuch", "=", "x") == []
    # An earlier pair is no argument of its own.
    assert complete("check", "--set", "model.layers", "=", "2", "theorem-1/unb") == [
        name for name in CLAIMS if name.startswith("theorem-1/unb")
    ]


def test_words_are_put_together_as_they_were_typed() -> None:
    def after(line: str, place: int) -> tuple[str, str, str | None]:
        variables = {"COMP_WORDS": line, "COMP_CWORD": str(place)}
        rejoin(variables)
        return variables["COMP_WORDS"], variables["COMP_CWORD"], variables.get(KEY)

    assert after("p check --set a = 1 --set b = 2 x", 10) == ("p check --set a=1 --set b=2 x", "6", None)
    assert after("p check --set a =", 4) == ("p check --set ''", "3", "a")
    assert after("p check --set a = 1", 5) == ("p check --set 1", "3", "a")
    assert after("p check --set = a", 4) == ("p check --set a", "3", None)
    assert after("p check", 2) == ("p check ''", "2", None)
    assert after("p '", 1) == ("p '", "1", None)  # an open quotation mark is left to typer
    untouched: dict[str, str] = {}
    rejoin(untouched)
    assert untouched == {}


def test_the_keys_are_those_of_the_settings() -> None:
    assert json.loads(kept.FILE.read_text(encoding="utf-8")) == for_completion(), "run python tools/listing_texts.py"


def test_a_plug_in_s_own_settings_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(own_setting: int = 3, beta: float = 0.77) -> None: ...

    monkeypatch.setitem(ESTIMATORS._own, "foreign-one", build)
    assert "estimator.own_setting" in for_completion()
    monkeypatch.setattr(ESTIMATORS, "is_own", lambda name: name != "foreign-one")
    found = for_completion()
    assert "estimator.own_setting" not in found
    assert "0.77" not in found["estimator.beta"]["values"]


def test_values_are_ones_that_are_taken() -> None:
    for key, item in kept.kept_keys().items():
        if "check" in item.commands and not key.startswith("dataset."):
            for value in item.values:
                case_settings({"estimator.name": "lmc"}, [f"{key}={value}"])


COLD = [
    ("check", "theorem"),
    (*CHECK, "--estimator", "g"),
    (*CHECK, "--set", "estimator.b"),
    (*CHECK, "--dataset", "c"),
    (*CHECK, "--set", "model.name", "=", "g"),
    ("controls", "s"),
]


@pytest.mark.parametrize("words", slow_but(COLD[1:3], COLD), ids=" ".join)
def test_completion_imports_no_library(words: tuple[str, ...]) -> None:
    code, modules, printed = imported(
        _LMC_VERIFY_COMPLETE="complete_bash",
        COMP_WORDS="\n".join(["lmc-verify", *words]),
        COMP_CWORD=str(len(words)),
    )
    assert code == 0
    assert printed.strip()
    assert not LIBRARIES & modules
    assert "numpy" not in modules or "--dataset" in words


def test_meanings_are_given_to_shells_that_show_them() -> None:
    assert dict(names.claims("theorem-1/unbiased"))["theorem-1/unbiased"] == CLAIMS["theorem-1/unbiased"].title
    assert dict(names.settings_prefixes("mod")) == {"model.": ""}
    assert dict(names.settings_prefixes("model.lay")) == {"model.layers": kept.kept_keys()["model.layers"].meaning}


@pytest.fixture
def bash(tmp_path: Path) -> Complete:
    """Bash with the program on its path and its completion read; returns what it would show."""
    found = shutil.which("bash")
    if found is None or os.name != "posix":
        pytest.skip("no bash on the path")
    program = tmp_path / "lmc-verify"
    program.write_text(f"#!{sys.executable}\nfrom lmc_verify.cli import main\nmain()\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("_LMC", "COMP_", "_TYPER"))},
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    script = subprocess.run(
        [program],
        env={**environment, "_LMC_VERIFY_COMPLETE": "source_bash"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    def call(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in ("lmc-verify", *words))
        line = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _lmc_verify_completion lmc-verify"
        shown = "printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(
            [found, "--norc", "-c", f"{script}\n{line}\n{shown}"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return call


@pytest.mark.slow
def test_bash_shows_what_it_is_told(bash: Complete) -> None:
    assert bash("check", "theorem-2/dec") == ["theorem-2/decay-and-floor"]
    assert bash(*CHECK, "--set", "estimator.score", "=", "qua") == ["quadratic"]
    assert bash(*CHECK, "--set", "trainer") == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the program on its path, ``bin``, in which completion for zsh and fish has been installed."""
    folder = tmp_path_factory.mktemp("home")
    program = folder / "bin" / "lmc-verify"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom lmc_verify.cli import main\nmain()\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    for shell in ("zsh", "fish", "zsh"):  # twice is once
        done = subprocess.run(
            [program, "--install-completion", shell], env=at_home(folder), capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"{shell} completion installed in {folder}")
    return folder


def at_home(home: Path) -> dict[str, str]:
    own = ("_LMC", "COMP_", "_TYPER", "XDG_", "ZDOTDIR", "FPATH", "fish")
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(own)},
        "HOME": str(home),
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "TERM": "xterm",
        "COLUMNS": "200",
    }


def shell_or_skip(name: str) -> str:
    found = shutil.which(name)
    if found is None or os.name != "posix":
        pytest.skip(f"no {name} on the path")
    return found


@pytest.mark.slow
def test_a_shell_that_nobody_knows_is_refused(home: Path) -> None:
    program = home / "bin" / "lmc-verify"
    done = subprocess.run(
        [program, "--install-completion=zhs"], env=at_home(home), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'zhs' is not one of 'bash', 'zsh', 'fish'" in done.stderr


@pytest.mark.slow
def test_fish_shows_names_with_what_they_mean(home: Path) -> None:
    fish = shell_or_skip("fish")

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            [fish, "-c", f"complete -C '{line}'"],
            cwd=home,
            env=at_home(home),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    expected = [f"{name}\t{CLAIMS[name].title}" for name in CLAIMS if name.startswith("theorem-1/")]
    assert sorted(complete("lmc-verify check theorem-1/")) == sorted(expected)
    assert complete("lmc-verify check theorem-1/unbiased --set model.name=gi") == ["model.name=gin"]
    assert complete("lmc-verify check theorem-1/unbiased --estimator=gas --histories sw") == [
        "sweeps:\tsweeps over all batches"
    ]
    assert complete("lmc-verify run bi") == ["bin/"]  # a suite may be a file


def test_zsh_completes_the_first_time_and_later(home: Path) -> None:
    lines = {
        "check theorem-2/dec": "check theorem-2/decay-and-floor ",
        "check theorem-1/unb": "check theorem-1/unbiased",  # there is unbiased-sampled, too
        "check theorem-1/unbiased --set estimator.sco": "check theorem-1/unbiased --set estimator.score=",
        "check theorem-1/unbiased --set estimator.score=li": "check theorem-1/unbiased --set estimator.score=linear ",
        "check theorem-1/unbiased --expect ref": "check theorem-1/unbiased --expect refuted ",
        "run bi": "run bin/",
    }
    completed = completed_by_zsh(shell_or_skip("zsh"), home, [f"lmc-verify {line}" for line in lines])
    assert completed == [f"lmc-verify {line}" for line in lines.values()]


ASKING = rb"""
unsetopt menu_complete auto_menu zle_bracketed_paste
ask() { zle complete-word; print -r -- "<$BUFFER>"; BUFFER= }
zle -N ask
bindkey '^X' ask
print RE''ADY
"""
"""Has Control-X complete the word and print the line."""


def completed_by_zsh(zsh: str, home: Path, lines: list[str]) -> list[str]:
    """Return the lines as they are in an interactive shell once the tabulator key was pressed at their end."""
    import pty
    import select

    child, terminal = pty.fork()
    if child == 0:
        os.chdir(home)
        os.execve(zsh, [zsh, "-i"], at_home(home))

    def read(pattern: bytes) -> re.Match[bytes]:
        got, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                got += os.read(terminal, 65536)
            if found := re.search(pattern, got):
                return found
        raise AssertionError(f"zsh has not said {pattern!r}: {got!r}")

    try:
        os.write(terminal, ASKING)
        read(rb"READY\r\n")
        completed = []
        for line in lines:
            os.write(terminal, line.encode() + b"\x18")
            completed.append(read(rb"<(lmc-verify[^>]*)>\r?\n")[1].decode())
        return completed
    finally:
        os.close(terminal)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
