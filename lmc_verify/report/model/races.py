"""Races as a report shows them: contestants with their medians, pictures by kind of figure, and reported values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from lmc_verify.races import RaceEntry, RaceHeader, RaceRecord, RaceRun, race_record
from lmc_verify.report.model import text
from lmc_verify.report.model.curves import DotRow, Plot
from lmc_verify.report.model.paper_values import NOTE, SOURCE, Reported, reported_for
from lmc_verify.report.model.race_curves import (
    FIGURE_TITLES,
    ablation_plots,
    batch_size_plots,
    convergence_plots,
    gradient_plots,
    time_rows,
)
from lmc_verify.report.model.race_tables import (
    RaceTable,
    accuracy_table,
    batch_size_tables,
    error_tables,
    last_epoch_tables,
    percent,
    target_table,
)

__all__ = ["RaceGroup", "RaceSection", "ReportedTable", "race_groups", "race_sections"]


@dataclass(frozen=True)
class ReportedTable:
    """Values that the paper reports, a row for each data set and quantity, a column for each estimator."""

    estimators: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def note(self) -> str:
        """Where the values come from."""
        return f"{NOTE} {SOURCE}."

    @classmethod
    def of(cls, values: Sequence[Reported]) -> ReportedTable:
        """Arrange values; after a time, the times relative to LMC's, which can be compared across machines."""
        estimators = tuple(dict.fromkeys(item.estimator for item in values))
        groups: dict[str, dict[str, Reported]] = {}
        for item in values:
            named = f" ({item.unit})" if item.unit else ""
            groups.setdefault(f"{item.dataset}, {item.model}: {item.quantity}{named}", {})[item.estimator] = item
        rows: list[tuple[str, tuple[str, ...]]] = []
        for name, found in groups.items():
            rows.append((name, tuple(f"{found[key].value:g}" if key in found else text.ABSENT for key in estimators)))
            first = next(iter(found.values()))
            if first.unit == "s" and "lmc" in found:
                unit_value = found["lmc"].value
                ratios = [
                    f"{found[key].value / unit_value:.2g} ×" if key in found else text.ABSENT for key in estimators
                ]
                rows.append((f"{first.dataset}, {first.model}: time / lmc", tuple(ratios)))
        return cls(estimators, tuple(rows))


@dataclass(frozen=True)
class RunLine:
    """One training run in words."""

    label: str
    seed: int
    status: str
    reached: str
    best: str
    time: str
    crashed: bool


@dataclass(frozen=True, eq=False)
class RaceSection:
    """A race with its place in the report.

    Attributes:
        anchor: id to link to.
        header: what was planned.
        runs: what was recorded of every run, in the order in which they were recorded.
        record: the race with target and standings; None if no run was made.
        place: the beginning of its pictures' names, of no other race's.
    """

    anchor: str
    header: RaceHeader
    runs: tuple[RaceRun, ...]
    record: RaceRecord | None
    place: str

    @property
    def title(self) -> str:
        """Title of the race."""
        return self.header.settings.title or "Race"

    @property
    def dataset(self) -> str:
        """The data set with its options."""
        return self.header.settings.dataset.describe()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of figures in words."""
        return tuple(FIGURE_TITLES.get(figure, figure) for figure in self.header.figures)

    @property
    def crashed(self) -> tuple[RaceRun, ...]:
        """The runs that raised an error."""
        return tuple(item for item in self.runs if item.crashed)

    @property
    def diverged(self) -> tuple[RaceRun, ...]:
        """The runs whose loss was not a finite number."""
        return tuple(item for item in self.runs if item.outcome == "diverged")

    @property
    def missing(self) -> int:
        """Runs that were planned and not made."""
        return self.header.planned - len(self.runs)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The race in words, in reading order."""
        settings, trainer = self.header.settings, self.header.settings.trainer
        model = settings.model
        length = text.count(trainer.epochs, "epoch") if trainer.epochs else text.count(trainer.steps or 0, "step")
        drop = f", dropout {model.dropout:g}" if model.dropout else ""
        facts = [
            ("data set", self.dataset),
            ("model", f"{model.name} {model.layers} × {model.width}{drop}"),
            ("training", f"{length}, {trainer.optimiser}, learning rate {trainer.learning_rate:g}"),
            ("seeds", ", ".join(map(str, settings.seeds))),
            ("precision", settings.dtype),
        ]
        if self.record is not None:
            facts.append(("target", self.target_words))
        facts.append(("time of all runs", text.duration(self.seconds)))
        return facts

    @property
    def seconds(self) -> float:
        """Wall-clock time of all runs together."""
        return sum(item.seconds for item in self.runs)

    @property
    def lines(self) -> tuple[RunLine, ...]:
        """Every run in words."""
        return () if self.record is None else tuple(_line(self.record, entry) for entry in self.record.entries)

    @property
    def target_words(self) -> str:
        """The target with where it comes from."""
        if self.record is None or self.record.target.accuracy is None:
            return "none"
        target = self.record.target
        where = f"{percent(target.accuracy)} {target.split}"
        if not target.best:
            return f"{where}, {target.source}"
        runs = text.count(len(target.best), "full-batch run")
        margin = self.header.settings.target.margin
        return f"{where}: median of the best of {runs}" + (f", less {percent(margin)}" if margin else "")

    @property
    def state(self) -> str:
        """How the runs ended, in words."""
        counts = Counter(item.outcome for item in self.runs)
        parts = [f"{amount} {outcome}" for outcome, amount in counts.items()]
        if self.missing:
            parts.append(f"{self.missing} not made")
        return ", ".join(parts) or "no run was made"

    # --- what is drawn ---

    @cached_property
    def plots(self) -> tuple[tuple[str, tuple[Plot, ...]], ...]:
        """The curves, by kind of figure; none of a kind that was not asked for or not measured."""
        if self.record is None:
            return ()
        record = self.record
        contestants = record.settings.contestants
        found: list[tuple[str, tuple[Plot, ...]]] = []
        for figure in self.header.figures or ("convergence",):
            if figure == "convergence":
                found.append((figure, convergence_plots(record, contestants, self.dataset)))
            elif figure == "gradient-errors":
                found.append((figure, gradient_plots(record, contestants, self.dataset)))
            elif figure == "batch-sizes":
                found.append((figure, batch_size_plots(record, contestants, self.dataset)))
            elif figure == "ablation":
                found.append((figure, ablation_plots(record, self.dataset)))
        return tuple((figure, plots) for figure, plots in found if plots)

    @property
    def times(self) -> tuple[DotRow, ...]:
        """The dots of the time to the target; empty where it was not asked for, or there is no target."""
        asked = "time-to-accuracy" in self.header.figures
        if self.record is None or not asked or self.record.target.accuracy is None:
            return ()
        return time_rows(self.record)

    # --- tables ---

    @cached_property
    def tables(self) -> tuple[RaceTable, ...]:
        """The tables that belong to the kinds of figures."""
        return self._tables[0]

    @cached_property
    def further_tables(self) -> tuple[RaceTable, ...]:
        """The other tables."""
        return self._tables[1]

    @cached_property
    def _tables(self) -> tuple[tuple[RaceTable, ...], tuple[RaceTable, ...]]:
        record, figures = self.record, self.header.figures
        if record is None or not record.standings:
            return (), ()
        usual = [target_table(record)] if record.target.accuracy is not None else []
        usual += [accuracy_table(record), *last_epoch_tables(record)]
        own = list(error_tables(record))
        if "batch-sizes" in figures:
            own = [*batch_size_tables(record), *own]
        if own and not {"convergence", "time-to-accuracy", "ablation"} & set(figures):
            return tuple(own), tuple(usual)
        return (*usual, *own), ()


@dataclass(frozen=True)
class RaceGroup:
    """Races with one title, on several data sets."""

    title: str
    races: tuple[RaceSection, ...]

    @property
    def reported(self) -> ReportedTable | None:
        """What the paper reports of such races, or None."""
        figures = tuple(dict.fromkeys(figure for race in self.races for figure in race.header.figures))
        values = reported_for(figures)
        return ReportedTable.of(values) if values else None


def race_sections(races: Iterable[tuple[RaceHeader, tuple[RaceRun, ...]]]) -> tuple[RaceSection, ...]:
    """Give every race its place, and find its target and standings."""
    sections: list[RaceSection] = []
    places: Counter[str] = Counter()
    for number, (header, runs) in enumerate(races, start=1):
        settings = header.settings
        place = text.slug(f"{settings.title or 'race'} {settings.dataset.describe()}")
        places[place] += 1
        if places[place] > 1:
            place = f"{place}-race-{number}"
        record = race_record(header.settings, [item.entry for item in runs]) if runs else None
        sections.append(RaceSection(f"race-{number}", header, runs, record, place))
    return tuple(sections)


def race_groups(races: Sequence[RaceSection]) -> tuple[RaceGroup, ...]:
    """Return the races by title, in the order in which titles first occur."""
    groups: dict[str, list[RaceSection]] = {}
    for race in races:
        groups.setdefault(race.title, []).append(race)
    return tuple(RaceGroup(title, tuple(found)) for title, found in groups.items())


def _line(record: RaceRecord, entry: RaceEntry) -> RunLine:
    trace, reached = entry.trace, entry.reached
    best = None if trace is None else trace.best(record.target.split)
    last = None if trace is None else trace.last
    return RunLine(
        label=entry.label,
        seed=entry.seed,
        status=entry.status if not entry.reason or entry.status in ("finished",) else f"{entry.status}: {entry.reason}",
        reached=f"after {text.duration(reached.seconds)}" if reached is not None else entry.reason or text.ABSENT,
        best=percent(None if best is None else getattr(best, record.target.split)),
        time=text.ABSENT if last is None else text.duration(last.seconds),
        crashed=entry.status == "failed",
    )
