"""Searches for counterexamples as parts of a run: what is planned, how it is run, and what is recorded of it.

A search that finds one leaves three files in the folder ``counterexamples`` of the run: ``NAME.json`` and
``NAME.safetensors``, which replay, and the drawing ``NAME.svg``. The record keeps what a report shows, and the hash of
every file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lmc_verify.cases import CaseDescription, CaseSettings, build_estimator, command_line
from lmc_verify.errors import InvalidInputError, LmcVerifyError, OutputError, folder_error
from lmc_verify.provenance import code_fingerprint
from lmc_verify.workers.worker import describe_error

if TYPE_CHECKING:  # the search imports Hypothesis and matplotlib, which runs without one need not wait for
    from lmc_verify.counterexamples import Counterexample, SearchSpace

__all__ = [
    "FOLDER",
    "Expected",
    "FoundExample",
    "PlannedSearch",
    "SearchRecord",
    "crashed_search",
    "keep_files",
    "run_search",
    "search_elsewhere",
]

FOLDER = "counterexamples"
"""Name of the folder of counterexamples in a run's output folder."""

Expected = Literal["found", "none"]
_OUTCOMES = ("found", "none", "error")


@dataclass(frozen=True)
class PlannedSearch:
    """A search that is to be run.

    Attributes:
        claim: id of a claim that enumeration decides.
        settings: the estimator, the histories and the seed; settings of model and design that were given explicitly
            are pinned, the others are drawn.
        expected: whether a counterexample is expected.
        max_nodes: largest number of nodes.
        examples: cases to draw at most.
        timeout: seconds that it may take, in a process of its own; None for what the run allows.
    """

    claim: str
    settings: CaseSettings
    expected: Expected = "found"
    max_nodes: int = 6
    examples: int = 200
    timeout: float | None = None

    kind: ClassVar[Literal["search"]] = "search"

    @property
    def space(self) -> SearchSpace:
        """Where to look.

        Raises:
            InvalidInputError: a setting that a search does not have.
        """
        from lmc_verify.counterexamples import SearchSpace

        return SearchSpace.from_settings(self.settings, max_nodes=self.max_nodes)

    def validate(self) -> None:
        """Refuse what cannot be searched, before anything runs.

        Raises:
            InvalidInputError: a claim that enumeration does not decide, or a setting that does not fit.
        """
        from lmc_verify.counterexamples import check_search

        build_estimator(self.settings.estimator)
        check_search(self.claim, self.settings.histories, self.space, self.examples, self.settings.seed)

    @property
    def pinned(self) -> dict[str, Any]:
        """The settings that were given explicitly, by dotted name, without the seed."""
        out = {f"estimator.{key}": value for key, value in self.settings.estimator.settings.items()}
        for part, values in (("model", self.settings.model), ("design", self.settings.design)):
            dumped = values.model_dump(mode="json")
            out |= {f"{part}.{key}": dumped[key] for key in sorted(values.model_fields_set)}
        return out

    @property
    def _choices(self) -> dict[str, Any]:
        usual = PlannedSearch(self.claim, CaseSettings())._limits
        return self.pinned | {key: value for key, value in self._limits.items() if value != usual[key]}

    @property
    def _limits(self) -> dict[str, Any]:
        return {"histories": self.settings.histories, "max_nodes": self.max_nodes, "examples": self.examples}

    @property
    def case(self) -> dict[str, Any]:
        """The search as flat values for records and reports."""
        settings = self.settings
        return {
            "estimator": settings.estimator.name,
            **{key.removeprefix("estimator."): value for key, value in self.pinned.items()},
            "histories": settings.histories,
            "max_nodes": self.max_nodes,
            "examples": self.examples,
            "seed": settings.seed,
        }

    @property
    def key(self) -> str:
        """Identity for resuming: claim, case, and the versions of the code, of torch and of Hypothesis."""
        versions = [code_fingerprint(), torch.__version__, importlib.metadata.version("hypothesis")]
        settings = self.settings.model_copy(update={"estimator": self.settings.estimator.identity})
        case = json.dumps(replace(self, settings=settings).case, sort_keys=True)
        text = "\n".join(["counterexample", self.claim, case, *versions])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the files: claim and estimator, and a hash of the settings where some are not the usual ones."""
        words = f"{self.claim}-{self.settings.estimator.name}"
        name = "".join(c if c.isalnum() else "-" for c in words).strip("-")
        if not self._choices:
            return name
        return f"{name}-{hashlib.sha256(json.dumps(self._choices, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """One line for progress displays."""
        given = ", ".join(f"{key}={value}" for key, value in self._choices.items())
        return f"counterexample to {self.claim} for {self.settings.estimator.name}" + (f" ({given})" if given else "")

    @property
    def command(self) -> str:
        """The command that searches again. A setting pinned to None, which only Python can do, is not in it."""
        settings = self.settings
        values = {
            "estimator": settings.estimator.model_dump(),
            "model": settings.model.model_dump(exclude_unset=True),
            "design": settings.design.model_dump(exclude_unset=True),
            "seed": settings.seed,
        }
        usual = {"model": {}, "design": {}} | PlannedSearch(self.claim, CaseSettings())._limits
        return command_line("counterexample", values | self._limits, usual, self.claim)


@dataclass(frozen=True)
class FoundExample:
    """What is recorded of a counterexample that was found.

    Attributes:
        name: name of its files, without suffix.
        nodes: number of nodes.
        edges: number of directed edges.
        layers: number of layers.
        caption: a sentence with the numbers.
        case: the case as the verdict describes it.
        drawing: the graph as SVG, without the caption.
        files: SHA-256 hex digest of every file, by name.
    """

    name: str
    nodes: int
    edges: int
    layers: int
    caption: str
    case: CaseDescription
    drawing: str
    files: Mapping[str, str]

    @property
    def document(self) -> str:
        """The file that replays, relative to the run's output folder."""
        return f"{FOLDER}/{self.name}.json"

    def intact(self, folder: Path) -> bool:
        """Whether every file is in a folder, as it was written."""
        try:
            return all(_digest(folder / name) == digest for name, digest in self.files.items())
        except OSError:
            return False


@dataclass(frozen=True)
class SearchRecord:
    """What a search gave.

    Attributes:
        key: identity for resuming.
        claim: id of the claim.
        case: the search as flat values; ``case["estimator"]`` is the estimator.
        expected: ``"found"`` or ``"none"``.
        summary: one sentence; of a crash, what happened.
        cases: cases that were checked until the first refutation, or in all; 0 after a crash.
        command: the command that searches again.
        seconds: wall-clock time it took.
        found: the counterexample, or None.
        crashed: whether the search crashed, and says nothing.
    """

    key: str
    claim: str
    case: Mapping[str, Any]
    expected: Expected
    summary: str
    cases: int
    command: str
    seconds: float
    found: FoundExample | None = None
    crashed: bool = False

    def __post_init__(self) -> None:
        if self.expected not in ("found", "none"):
            raise InvalidInputError(f"a search expects {self.expected!r}; use 'found' or 'none'")

    @property
    def outcome(self) -> str:
        """``"found"``, ``"none"`` or ``"error"``."""
        return "error" if self.crashed else "none" if self.found is None else "found"

    @property
    def as_expected(self) -> bool:
        """Whether the outcome is the expected one; a search that could try no case at all is never."""
        return self.outcome == self.expected and self.cases > 0

    @property
    def estimator(self) -> str:
        """Name of the estimator."""
        return str(self.case.get("estimator", ""))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        out = asdict(self) | {"outcome": self.outcome}
        if self.found is not None:
            out["found"]["case"] = self.found.case.to_dict()
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchRecord:
        """Rebuild a record from `to_dict`."""
        fields = {key: value for key, value in values.items() if key != "outcome"}
        found = fields["found"]
        if found is not None:
            fields["found"] = FoundExample(**found | {"case": CaseDescription.from_dict(found["case"])})
        return cls(**fields)


def run_search(planned: PlannedSearch, folder: Path) -> SearchRecord:
    """Search, and save and draw what is found. A crash becomes an error; bad input is raised, for the caller to fix.

    Raises:
        InvalidInputError: the settings do not fit.
        OutputError: the folder cannot be written.
    """
    from lmc_verify.counterexamples import find_counterexample

    start = time.perf_counter()
    found = None
    try:
        search = find_counterexample(
            planned.claim,
            build_estimator(planned.settings.estimator),
            histories=planned.settings.histories,
            space=planned.space,
            examples=planned.examples,
            seed=planned.settings.seed,
        )
        if search.counterexample is not None:
            found = _keep(search.counterexample, folder, planned.name)
    except LmcVerifyError:
        raise
    except Exception as error:  # whatever went wrong says nothing about the claim, and must not end the run
        return crashed_search(planned, describe_error(error), time.perf_counter() - start)
    return _record(planned, search.summary, time.perf_counter() - start, cases=search.cases, found=found)


def search_elsewhere(planned: PlannedSearch) -> tuple[SearchRecord, dict[str, bytes]]:
    """Search in a process which may be on another machine; return the record, and its files by name.

    Raises:
        InvalidInputError: the settings do not fit.
        OutputError: there is no folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="lmc-verify-") as folder:
        record = run_search(planned, Path(folder))
        names = () if record.found is None else record.found.files
        return record, {name: (Path(folder) / name).read_bytes() for name in names}


def keep_files(made: tuple[SearchRecord, Mapping[str, bytes]], folder: Path) -> SearchRecord:
    """Write the files of a search that was made elsewhere into a folder; return its record.

    Raises:
        OutputError: the folder cannot be written.
    """
    record, files = made
    try:
        if files:
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        what = f"cannot write the counterexample to {record.claim} to {folder}"
        raise folder_error(folder, error, what, instead="choose a folder that you can write to") from error
    return record


def crashed_search(planned: PlannedSearch, words: str, seconds: float) -> SearchRecord:
    """Return the record of a search that came to another end, with what happened in words."""
    return _record(planned, words, seconds, crashed=True)


def _record(
    planned: PlannedSearch,
    summary: str,
    seconds: float,
    *,
    cases: int = 0,
    found: FoundExample | None = None,
    crashed: bool = False,
) -> SearchRecord:
    return SearchRecord(
        key=planned.key,
        claim=planned.claim,
        case=planned.case,
        expected=planned.expected,
        summary=summary,
        cases=cases,
        command=planned.command,
        seconds=seconds,
        found=found,
        crashed=crashed,
    )


def _keep(example: Counterexample, folder: Path, name: str) -> FoundExample:
    from lmc_verify.counterexamples import save_drawing
    from lmc_verify.counterexamples.drawing import caption, drawing_svg

    files = [*example.save(folder, name), save_drawing(example, folder / f"{name}.svg")]
    graph = example.instance.graph
    try:
        digests = {file.name: _digest(file) for file in files}
    except OSError as error:
        raise OutputError(f"cannot read back the counterexample in {folder}: {error.strerror or error}") from error
    return FoundExample(
        name=name,
        nodes=graph.num_nodes,
        edges=graph.num_edges,
        layers=int(example.instance.model.settings["num_layers"]),
        caption=caption(example),
        case=example.verdict.case,
        drawing=drawing_svg(example, captioned=False),
        files=digests,
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
