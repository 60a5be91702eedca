"""A run: how much is measured, on which data and in which order, and what a figure is."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from scoremean.store.embedded.journal import FOLD_AT_ENTRIES
from tests.benchmarks import data, subjects
from tests.benchmarks.load import Load
from tests.benchmarks.subjects import Server


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 5
    seconds: int = 5
    few: int = 10_000
    uuids: int = 100_000
    million: int = 1_000_000
    many: int = 10_000_000
    commits: int = 20_000
    journal_commits: int = FOLD_AT_ENTRIES * 98 // 100 // 64
    requests: int = 200_000


FULL = Scale()
QUICK = Scale(2, 1, few=1_000, uuids=5_000, million=20_000, many=50_000, commits=300, journal_commits=300, requests=20_000)


@dataclass(frozen=True)
class Figure:
    """One measured thing: its value in each round; `value` is their median.

    Attributes:
        at_least, at_most: the goal; a figure without one is there for comparison.
    """

    what: str
    values: list[float]
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def value(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None without a goal."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


@dataclass
class Result:
    """What a row measured: the figures of the table, the ones to draw, and sentences on what happened."""

    figures: list[Figure] = field(default_factory=list)
    bars: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: Figure, *, bar: bool = False) -> None:
        """Take a figure in, and draw it with `bar`."""
        self.figures.append(figure)
        if bar:
            self.bars.append(figure)


@dataclass
class Run:
    """One run of the command: how much, and where."""

    scale: Scale
    work: Path
    quick: bool
    count: int = 0

    def place(self) -> Path:
        """Return a new directory on the disk under test, which other users can reach."""
        self.count += 1
        path = self.work / str(self.count)
        path.mkdir(mode=0o755)
        return path

    def clear(self) -> None:
        """Remove all that a row left on the disk."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def once(self, suffix: str) -> Path:
        """Return a file with one score for each UUID: what every subject holds when measuring begins."""
        return self._file(f"once{suffix}", lambda: data.once(self.scale.uuids))

    def drawn(self, suffix: str, uuids: int, count: int, seed: int) -> Path:
        """Return a file of scores of UUIDs drawn at random."""
        return self._file(f"drawn-{uuids}-{count}-{seed}{suffix}", lambda: data.drawn(uuids, count, seed))

    def _file(self, name: str, scores: Callable[[], Iterator[tuple[str, int]]]) -> Path:
        path = self.work / name
        return path if path.exists() else data.write(path, scores())

    def store(self) -> Path:
        """Return a new store with one score for each UUID, imported."""
        store = self.place() / "store"
        subjects.import_scores(store, self.once(".ndjson"), "--no-ids")
        return store

    def posts(self, seed: int, uuids: int | None = None, connections: int = 64) -> Load:
        """Return single posts, others for each seed."""
        file = self.drawn(".ndjson", uuids or self.scale.uuids, self.scale.requests, seed)
        return Load(file, self.scale.seconds, connections)

    def reads(self, seed: int) -> Load:
        """Return single reads, others for each seed."""
        return Load(self.drawn(".paths", self.scale.uuids, self.scale.requests, seed), self.scale.seconds, method="GET")

    def scoremean(self, store: Path | None = None) -> AbstractContextManager[Server]:
        """Serve a store, or a new one with one score for each UUID."""
        store = store or self.store()
        return subjects.scoremean(store.parent, store)

    def alternate(self, measures: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
        """Measure each in turn, in every round once, and in every second round in the reverse order; return the values."""
        values: dict[str, list[float]] = {name: [] for name in measures}
        for turn in range(self.scale.rounds):
            for name in list(measures) if turn % 2 == 0 else reversed(measures):
                values[name].append(measures[name](turn))
                print(f"  round {turn + 1}, {name}: {values[name][-1]:,.6g}", file=sys.stderr, flush=True)
        return values


def ratio(what: str, ours: list[float], theirs: list[float], **goal: float) -> Figure:
    """Return the ratio of two subjects, round by round."""
    return Figure(what, [one / other for one, other in zip(ours, theirs, strict=True)], "times", **goal)
