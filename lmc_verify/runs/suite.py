"""Suites: TOML files that say which claims are checked on which cases, and what is expected of them.

A suite is a lazy product: every `[[check]]` table lists claims, data sets, models, designs, histories and estimators,
and every combination becomes a planned check with an expected outcome.

.. code-block:: toml

    name = "theorem-check"
    title = "Theorem 1 and the exactness of LMC"
    seed = 0
    controls = true

    [[check]]
    claim = "theorem-1/unbiased"
    dataset = ["digits", "karate"]
    estimator = ["backward-sgd", { name = "lmc", beta = 0.4 }]
    design = { parts = 10, per_batch = 2 }
    expect = { backward-sgd = "EXACT", lmc = "REFUTED" }

A `[[counterexample]]` table asks for the smallest graph on which a claim is refuted, for each of its estimators; where
there should be none, ``expect = "none"``.

.. code-block:: toml

    [[counterexample]]
    claim = "theorem-1/unbiased"
    estimator = ["gas", "fm"]
    max_nodes = 4

An `[[audit]]` table asks whether the gradient of a user's training step is unbiased: its function returns what
`lmc_verify.audit` takes. ``causes`` are those that the explanation of a bias should consist of.

.. code-block:: toml

    [[audit]]
    function = "loops:gas"
    arguments = { parts = 10 }
    expect = "REFUTED"
    causes = ["missing-neighbours"]

A `[[race]]` table plans training runs of several estimators on the same data, see `lmc_verify.races`; `presets` are the
names of its variants, such as a quick one, the default one first.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lmc_verify.cases import (
    CaseSettings,
    DatasetSettings,
    DesignSettings,
    EstimatorSettings,
    ModelSettings,
    SamplingSettings,
    Seed,
    TrainingSettings,
    Workspace,
    build_estimator,
)
from lmc_verify.cases.suite_files import find_suite, suite_names
from lmc_verify.claims import Outcome, find_claim, require_read
from lmc_verify.controls import CONTROLS, AnyControl, find_control, seeded_subset
from lmc_verify.encoding import MOST_NESTED, nested
from lmc_verify.errors import InvalidInputError, UnknownNameError, validated
from lmc_verify.races import PlannedRace, RaceSettings, RaceTable, expand_race, planned_race
from lmc_verify.runs.audits import AuditSettings, PlannedAudit
from lmc_verify.runs.planned import Planned, told_apart
from lmc_verify.runs.searches import Expected, PlannedSearch
from lmc_verify.seeds import generator
from lmc_verify.statistics.ledger import ErrorLedger

__all__ = ["Suite", "load_suite", "suite_names"]

_Table = TypeVar("_Table")

_Item = TypeVar("_Item", Planned, PlannedAudit, PlannedSearch, PlannedRace)

_PLANNED = {"check": "check", "audit": "audit", "counterexample": "search", "race": "race"}

MOST_TRIALS = 100_000
"""The most checks, audits and searches of a suite that does not say how many it means."""

_MOST_BYTES = 2_000_000
"""The largest suite file that is read; the package's own have a few thousand bytes."""

OutcomeName = Literal["EXACT", "SUPPORTED", "REFUTED", "INCONCLUSIVE", "VACUOUS", "NOT_APPLICABLE"]


class Check(BaseModel):
    """One `[[check]]` table. Every field may be one value or a list of values."""

    model_config = ConfigDict(extra="forbid")

    claim: str | list[str]
    dataset: str | dict[str, Any] | list[str | dict[str, Any]] = "digits"
    estimator: str | dict[str, Any] | list[str | dict[str, Any]] = "backward-sgd"
    model: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    design: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    histories: str | list[str] = "exact"
    sampling: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    training: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    seed: int | list[int] | None = None
    expect: OutcomeName | dict[str, OutcomeName]
    optional: bool = False
    """Whether the data set may be absent; its trials are then reported as not run, with the reason."""
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds that each of its trials may take; what takes longer is ended, and an error."""


class AuditTable(BaseModel):
    """One `[[audit]]` table. Function and arguments may be one value or a list of values."""

    model_config = ConfigDict(extra="forbid")

    function: str | list[str]
    arguments: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    draws: int | None = None
    guarantee: str | None = None
    delta: float | None = None
    seed: int | None = None
    expect: OutcomeName | None
    """None, which only Python can say: nothing is expected."""
    causes: list[str] | None = None
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds that each of its audits may take, as for a check."""


class CounterexampleTable(BaseModel):
    """One `[[counterexample]]` table. Estimator, model, design and histories may be one value or a list of values."""

    model_config = ConfigDict(extra="forbid")

    claim: str | list[str]
    estimator: str | dict[str, Any] | list[str | dict[str, Any]]
    model: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    """Settings that every case of the search has; those that are not given are drawn. So too of the design."""
    design: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)
    histories: str | list[str] = "exact"
    max_nodes: int = 6
    examples: int = 200
    expect: Expected = "found"
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds that each of its searches may take, as for a check."""


class Suite(BaseModel):
    """A suite file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    description: str = ""
    seed: Seed = 0
    alpha_total: float = Field(1e-6, gt=0, lt=0.5)
    """Probability that any statistical verdict of a run is wrong; split evenly over its statistical checks."""
    controls: bool | Annotated[int, Field(ge=1)] | list[str] = True
    """True: all; a number: reference numbers, the sound ones and as many defects, chosen by the seed; or names."""
    check: list[Check] = Field(default_factory=list)
    audit: list[AuditTable] = Field(default_factory=list)
    counterexample: list[CounterexampleTable] = Field(default_factory=list)
    race: list[RaceTable] = Field(default_factory=list)
    presets: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]] = Field(default_factory=list)
    """Names of the variants of its races; the first is the default."""
    most_trials: int = Field(MOST_TRIALS, ge=1)
    """The most checks, audits and searches that it may plan: lists multiply, and more are most likely a mistake."""

    @classmethod
    def of_race(cls, settings: RaceSettings, workspace: Workspace | None = None) -> Suite:
        """Return the suite of one race and nothing else, which ``lmc-verify race`` runs.

        Args:
            settings: of the race.
            workspace: where data sets and models come from; a subclass may have its own.

        Raises:
            InvalidInputError: an unknown name or setting, or contestants that are trained alike.
        """
        # What does not fit is said without the name of a table that nobody has written.
        planned_race(settings, workspace=workspace)
        title = settings.title or f"Race on {settings.dataset.describe()}"
        return cls(name="race", title=title, seed=settings.data_seed, controls=False, race=[RaceTable.of(settings)])

    @classmethod
    def of_audit(cls, planned: PlannedAudit) -> Suite:
        """Return the suite of one audit and nothing else, whose alpha_total is the audit's alpha.

        Raises:
            InvalidInputError: there is no such function, or settings that do not fit.
        """
        settings = planned.settings
        table = AuditTable(
            **settings.model_dump(exclude={"alpha"}),
            expect=planned.expected_name,
            causes=None if planned.causes is None else list(planned.causes),
            timeout=planned.timeout,
        )
        usual = cls.model_fields["alpha_total"].default
        suite = cls(
            name="audit",
            title=f"Audit of {settings.function}",
            alpha_total=settings.alpha or usual,
            controls=False,
            audit=[table],
        )
        suite.audits()
        return suite

    def with_guarantee(self, guarantee: str) -> Suite:
        """Return the suite with the weakest guarantee that a verdict may have, instead of what its tables say.

        Raises:
            InvalidInputError: no such guarantee; raised when the suite is planned.
        """
        tables = []
        for check in self.check:
            given = check.sampling if isinstance(check.sampling, list) else [check.sampling]
            sampling = [{**settings, "guarantee": guarantee} for settings in given]
            tables.append(check.model_copy(update={"sampling": sampling}))
        audits = [
            table if table.guarantee == "exact" else table.model_copy(update={"guarantee": guarantee})
            for table in self.audit
        ]
        return self.model_copy(update={"check": tables, "audit": audits})

    def modules(self) -> tuple[str, ...]:
        """Return the modules that every worker needs for the suite's parts and that take long to import."""
        return ("lmc_verify.runs.execution", *(["lmc_verify.audits.auditor"] if self.audit else []))

    def plan(self, *, replicate: int = 0, workspace: Workspace | None = None) -> list[Planned]:
        """Return every planned check of the suite, claims first, in the order of the file; no two have one label.

        Statistical checks get their share of `alpha_total`.

        Args:
            replicate: number of the repetition: another one repeats the statistical checks with fresh draws.
            workspace: where data sets and models come from; names that a subclass of it has of its own are not looked
                up.

        Raises:
            InvalidInputError: an unknown name or setting, an expectation that no estimator has, or a check twice.
        """
        checks = self._checks(workspace)
        share = self._share(checks)
        shared = told_apart([_with_share(check, share, replicate) for check in checks])
        planned = {trial.key: trial for trial in shared}
        for control in self._controls():
            trial = Planned.of_control(control)
            planned[trial.key] = trial
        return list(planned.values())

    def audits(self, *, replicate: int = 0, workspace: Workspace | None = None) -> list[PlannedAudit]:
        """Return every audit of the suite, in the order of the file, each with its share of `alpha_total`.

        The functions are imported, and their parameters compared with the arguments.

        Args:
            replicate: number of the repetition: another one draws afresh.
            workspace: as of `plan`: the checks have a share of `alpha_total`, too.

        Raises:
            InvalidInputError: a function that is not there, arguments or settings that do not fit, or an audit twice.
        """
        if not self.audit:
            return []
        share = self._share(self._checks(workspace))
        seed = self.seed

        def expand(table: AuditTable) -> Iterator[PlannedAudit]:
            for planned in _expand_audits(table, seed, share, replicate):
                planned.validate()
                yield planned

        return told_apart(self._expanded("audit", self.audit, expand))

    def counts(self) -> dict[str, int]:
        """Return how many checks, audits and searches the tables plan, by kind; counted without planning them."""
        return {
            "check": sum(map(_combinations, self.check)),
            "audit": sum(map(_combinations, self.audit)),
            "counterexample": sum(map(_combinations, self.counterexample)),
        }

    def lines(self, most: int) -> list[str]:
        """Return one line for each of the first checks, audits and searches, in the order of the file.

        No two lines are equal. What comes after the first is not planned.

        Args:
            most: how many there are at most.

        Raises:
            InvalidInputError: an unknown name or setting, or one of them twice.
        """
        source, lines = Workspace(), list[str]()
        checks = self._first("check", self.check, lambda table: _expand(table, self.seed, source), most)
        lines += [f"check {item.label}" for item in told_apart(checks)]
        audits = self._first(
            "audit",
            self.audit,
            lambda table: _expand_audits(table, self.seed, self.alpha_total, 0),
            most - len(lines),
        )
        lines += [item.label for item in told_apart(audits)]
        searches = self._first(
            "counterexample", self.counterexample, lambda table: _expand_searches(table, self.seed), most - len(lines)
        )
        return lines + [item.label for item in searches]

    def _require_few(self) -> None:
        planned = sum(self.counts().values())
        if planned > self.most_trials:
            raise InvalidInputError(
                f"suite {self.name!r} plans {planned:,} checks, audits and searches, at most {self.most_trials:,} are "
                "run: its lists multiply. Look at them with --dry-run; shorten them, or set most_trials in the suite"
            )

    def _checks(self, workspace: Workspace | None) -> list[Planned]:
        source = workspace or Workspace()
        return self._expanded("check", self.check, lambda check: _expand(check, self.seed, source))

    def _share(self, checks: Iterable[Planned]) -> float:
        """Return the share of `alpha_total` of each statistical check and audit; all of it where there is none."""
        names = [f"{number}. {item.label}" for number, item in enumerate(checks) if item.statistical]
        for number, table in enumerate(self.audit, start=1):
            if table.guarantee != "exact":  # else it spends nothing
                amount = len(_list(table.function)) * len(_list(table.arguments))
                names += [f"audit {number}.{index}" for index in range(amount)]
        return ErrorLedger(names, self.alpha_total).share(names[0]) if names else self.alpha_total

    def searches(self) -> list[PlannedSearch]:
        """Return every search for a counterexample, in the order of the file.

        Raises:
            InvalidInputError: an unknown name or setting, a claim that enumeration does not decide, or a search twice.
        """
        return self._expanded("counterexample", self.counterexample, lambda table: _expand_searches(table, self.seed))

    def races(self, preset: str | None = None, *, workspace: Workspace | None = None) -> list[PlannedRace]:
        """Return every race under a preset, in the order of the file.

        Args:
            preset: one of `presets`; by default the first, if the suite has any.
            workspace: as of `plan`.

        Raises:
            InvalidInputError: an unknown preset, name or setting, or a race twice.
        """
        chosen = self.preset(preset)
        for number, table in enumerate(self.race, start=1):
            for name in table.presets:
                if name not in self.presets:
                    known = ", ".join(self.presets) or "none: list them in presets"
                    raise InvalidInputError(
                        f"suite {self.name!r}, [[race]] number {number}: preset {name!r} is not one of the suite's "
                        f"presets ({known})"
                    )
        return self._expanded("race", self.race, lambda table: expand_race(table, chosen, self.seed, workspace))

    def preset(self, name: str | None = None) -> str | None:
        """Return the preset that is meant: `name`, or the default; None if the suite has none.

        Raises:
            InvalidInputError: the suite has no such preset.
        """
        if name is None:
            return self.presets[0] if self.presets else None
        if not self.presets:
            raise InvalidInputError(f"suite {self.name!r} has no presets; run it without --preset {name}")
        if name not in self.presets:
            raise UnknownNameError("preset", name, self.presets)
        return name

    def _expanded(
        self, kind: str, tables: Iterable[_Table], expand: Callable[[_Table], Iterator[_Item]]
    ) -> list[_Item]:
        """Expand every table, each item once; errors name the table."""
        if kind != "race":
            self._require_few()
        return self._first(kind, tables, expand)

    def _first(
        self,
        kind: str,
        tables: Iterable[_Table],
        expand: Callable[[_Table], Iterator[_Item]],
        most: int | None = None,
    ) -> list[_Item]:
        """Expand tables until there are so many items, each once; errors name the table."""
        planned: dict[str, _Item] = {}
        for number, table in enumerate(tables, start=1):
            left = None if most is None else most - len(planned)
            try:
                for item in islice(expand(table), left):
                    if item.key in planned:
                        what = f"{_PLANNED[kind]} {item.label.removeprefix(_PLANNED[kind]).lstrip()}"
                        raise InvalidInputError(f"the {what} is planned twice; remove one of them")
                    planned[item.key] = item
            except InvalidInputError as error:
                raise InvalidInputError(f"suite {self.name!r}, [[{kind}]] number {number}: {error}") from error
        return list(planned.values())

    def _controls(self) -> list[AnyControl]:
        if isinstance(self.controls, list):
            return [find_control(name) for name in self.controls]
        if isinstance(self.controls, bool):
            return list(CONTROLS.values()) if self.controls else []
        return seeded_subset(self.seed, self.controls)


def load_suite(path: str | Path) -> Suite:
    """Read a suite file, or a suite that comes with the package by its name.

    Raises:
        InvalidInputError: the file is missing, not TOML, or has fields that do not fit; the message names them.
    """
    file = find_suite(path)
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise InvalidInputError(f"{file} has more than {_MOST_BYTES:,} bytes; split the suite")
            values: dict[str, Any] | None = tomllib.loads(text.decode("utf-8"))
    except InvalidInputError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the suite file {file}: {error}") from error
    except ValueError as error:  # also a number with thousands of digits
        raise InvalidInputError(f"{file} is not valid TOML: {error}; fix the file at that place") from error
    except RecursionError:  # from which depth on depends on the version of Python
        values = None
    if values is None or nested(values) > MOST_NESTED:
        raise InvalidInputError(
            f"{file} has lists or tables in each other, more than {MOST_NESTED} deep; a suite has 4"
        )
    return validated(Suite, values, f"{file} is not a suite")


def _combinations(table: Check | AuditTable | CounterexampleTable) -> int:
    """Return how many items the lists of a table multiply to."""
    single = {"causes"}
    lists = (value for name, value in table if name not in single and isinstance(value, list))
    return math.prod(map(len, lists))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _named(value: str | dict[str, Any]) -> dict[str, Any]:
    return {"name": value} if isinstance(value, str) else value


def _expand(check: Check, suite_seed: int, workspace: Workspace) -> Iterator[Planned]:
    estimators = [validated(EstimatorSettings, _named(item), at="estimator") for item in _list(check.estimator)]
    if isinstance(check.expect, dict):
        names = {item.name for item in estimators}
        unknown = sorted(set(check.expect) - names)
        missing = sorted(names - set(check.expect))
        if unknown or missing:
            raise InvalidInputError(
                f"expect names estimators {sorted(check.expect)}, the check has {sorted(names)}: give exactly one "
                "expected outcome for each"
            )
    for item in estimators:
        build_estimator(item)  # fails early on unknown names and settings
    together = [find_claim(claim) for claim in _list(check.claim)]
    axes = (
        [claim.id for claim in together],
        [validated(DatasetSettings, _named(item), at="dataset") for item in _list(check.dataset)],
        [validated(ModelSettings, item, at="model") for item in _list(check.model)],
        [validated(DesignSettings, item, at="design") for item in _list(check.design)],
        _list(check.histories),
        [validated(SamplingSettings, item, at="sampling") for item in _list(check.sampling)],
        [validated(TrainingSettings, item, at="training") for item in _list(check.training)],
        [suite_seed] if check.seed is None else _list(check.seed),
        estimators,
    )
    for chosen in axes[1]:
        workspace.check_dataset(chosen)
    for model in axes[2]:
        workspace.check_model(model)
    if any("alpha" in item or "replicate" in item for item in _list(check.sampling)):
        raise InvalidInputError(
            "sampling.alpha and sampling.replicate belong to the run, not to a check: set the suite's alpha_total, and "
            "run it with --replicate"
        )
    for claim, dataset, model, design, histories, sampling, training, seed, estimator in product(*axes):
        values = {
            "dataset": dataset,
            "model": model,
            "estimator": estimator,
            "design": design,
            "histories": histories,
            "sampling": sampling,
            "training": training,
            "seed": seed,
        }
        settings = validated(CaseSettings, values)
        require_read(together, settings)
        expected = check.expect if isinstance(check.expect, str) else check.expect[estimator.name]
        yield Planned("claim", claim, settings, Outcome(expected), check.optional, timeout=check.timeout)


def _expand_searches(table: CounterexampleTable, suite_seed: int) -> Iterator[PlannedSearch]:
    axes = (
        [find_claim(claim).id for claim in _list(table.claim)],
        [validated(ModelSettings, item, at="model") for item in _list(table.model)],
        [validated(DesignSettings, item, at="design") for item in _list(table.design)],
        _list(table.histories),
        [validated(EstimatorSettings, _named(item), at="estimator") for item in _list(table.estimator)],
    )
    for claim, model, design, histories, estimator in product(*axes):
        values = {"estimator": estimator, "model": model, "design": design, "histories": histories, "seed": suite_seed}
        settings = validated(CaseSettings, values)
        search = PlannedSearch(claim, settings, table.expect, table.max_nodes, table.examples, table.timeout)
        search.validate()
        yield search


def _expand_audits(table: AuditTable, suite_seed: int, alpha: float, replicate: int) -> Iterator[PlannedAudit]:
    if table.causes is not None and table.expect != "REFUTED":
        wanted = "nothing" if table.expect is None else table.expect
        raise InvalidInputError(f"causes explain a bias, and {wanted} is expected; expect REFUTED, or leave them out")
    seed = suite_seed if table.seed is None else table.seed
    if replicate:
        seed = int(generator(seed, "audit", "replicate", replicate).integers(2**31))
    for function, arguments in product(_list(table.function), _list(table.arguments)):
        values = {
            "function": function,
            "arguments": arguments,
            "draws": table.draws,
            "alpha": None if table.guarantee == "exact" else alpha,
            "guarantee": table.guarantee,
            "delta": table.delta,
            "seed": seed,
        }
        causes = None if table.causes is None else tuple(table.causes)
        expected = None if table.expect is None else Outcome(table.expect)
        yield PlannedAudit(validated(AuditSettings, values), expected, causes, table.timeout)


def _with_share(trial: Planned, share: float, replicate: int) -> Planned:
    """Give a statistical check its share of the total error probability, and the number of the repetition."""
    if not trial.statistical:
        return trial
    sampling = trial.settings.sampling.model_copy(update={"alpha": share, "replicate": replicate})
    return replace(trial, settings=trial.settings.model_copy(update={"sampling": sampling}))
