"""The overview of all UUIDs: how their means are distributed, and which are the best and the worst. Pure, without I/O."""

from __future__ import annotations

import time
from bisect import bisect_right, insort
from collections.abc import Iterable

from msgspec import Struct

from scoremean.model import Mean, Tally

BINS = 50
TOP_UUIDS = 10
# The choices of how many scores a UUID must have. Fixed, so that a reading can keep what it needs for every one of them.
MIN_COUNTS = (*(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 10**6)

# (mean, -count, UUID, sum), so that the natural order is the worst first; with the sign of the mean turned, the best first.
_Entry = tuple[float, int, str, int]


class View(Struct, frozen=True):
    """The overview of the UUIDs that have at least `min_count` scores.

    Attributes:
        time: the Unix time in seconds when the reading ended; of an incomplete one, when this was made.
        complete: False while the store is being read for the first time; only `read_uuids` are in it then.
        uuids: those with enough scores.
        distribution: how many of these have a mean in each of BINS equal parts from score_min to score_max. A mean on a bound
            belongs to the part above it, score_max to the last one, and one outside, from other settings, to the nearest.
        best, worst: up to TOP_UUIDS each, in order; of equal means the one of more scores comes first.
    """

    min_count: int
    score_min: int
    score_max: int
    time: float
    complete: bool
    read_uuids: int
    uuids: int
    distribution: list[int]
    best: list[Mean]
    worst: list[Mean]


class _Group:
    """What is known of the UUIDs between two steps of MIN_COUNTS."""

    def __init__(self) -> None:
        self.distribution = [0] * BINS
        self.best: list[_Entry] = []
        self.worst: list[_Entry] = []


class Reading:
    """One reading of a store, from the first UUID to the last.

    Args:
        score_min, score_max: what the distribution goes from and to.

    Attributes:
        read_uuids: UUIDs that are in it.
    """

    def __init__(self, score_min: int, score_max: int):
        self._score_min = score_min
        self._score_max = score_max
        self._groups = [_Group() for _ in MIN_COUNTS]
        self._ended: float | None = None
        self.read_uuids = 0

    def add(self, tallies: Iterable[tuple[str, Tally]]) -> None:
        """Take in UUIDs with their tallies, each of at least one score."""
        low, span = self._score_min, self._score_max - self._score_min
        for uuid, tally in tallies:
            total, count = tally.sum, tally.count
            group = self._groups[bisect_right(MIN_COUNTS, count) - 1]
            part = (total - low * count) * BINS // (span * count)  # of integers, so a mean on a bound is on its right side
            group.distribution[min(max(part, 0), BINS - 1)] += 1
            mean = total / count
            _keep(group.best, (-mean, -count, uuid, total))
            _keep(group.worst, (mean, -count, uuid, total))
            self.read_uuids += 1

    @property
    def complete(self) -> bool:
        """Whether `end` was called."""
        return self._ended is not None

    def end(self) -> None:
        """Make it complete."""
        self._ended = time.time()

    def view(self, min_count: int) -> View:
        """Return what it says of the UUIDs that have at least `min_count` scores, one of MIN_COUNTS."""
        groups = self._groups[MIN_COUNTS.index(min_count) :]
        distribution = [sum(column) for column in zip(*(group.distribution for group in groups))]
        return View(
            min_count,
            self._score_min,
            self._score_max,
            self._ended or time.time(),
            self.complete,
            self.read_uuids,
            sum(distribution),
            distribution,
            _top(group.best for group in groups),
            _top(group.worst for group in groups),
        )


def _keep(top: list[_Entry], entry: _Entry) -> None:
    """Put `entry` into its place, if it has one among the first TOP_UUIDS."""
    if len(top) < TOP_UUIDS:
        insort(top, entry)
    elif entry < top[-1]:
        top.pop()
        insort(top, entry)


def _top(tops: Iterable[list[_Entry]]) -> list[Mean]:
    entries = sorted(entry for top in tops for entry in top)[:TOP_UUIDS]
    return [Mean(uuid, total / -count, total, -count) for _, count, uuid, total in entries]
