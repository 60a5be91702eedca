"""What a service counts while it runs: 64-bit integers, in memory that all its processes share.

Each process adds to a row of its own, and each cell of a row has one thread that writes it, so nothing is locked. Whoever reads
adds up the rows. So every process can tell what all of them have done, at any time and without asking the others, and no
counter ever goes back, also when a worker has died and another one takes over its row.

Durations are kept in nanoseconds: sums of integers are exact.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

NANOSECONDS = 1_000_000_000
ROUTES_MAX = 31
STATUSES = (200, 304, 400, 401, 403, 404, 405, 408, 413, 415, 417, 421, 422, 500, 503, 507)
STATUS_PLACES = {status: place for place, status in enumerate(STATUSES)}
_CELL_BYTES = 8


class Histogram(NamedTuple):
    """The cells of a histogram: one for each bound, up to which it counts, one for all above, and the sum of all values."""

    start: int
    bounds: tuple[int, ...]

    @property
    def sum_cell(self) -> int:
        """The cell of the sum."""
        return self.start + len(self.bounds) + 1

    @property
    def end(self) -> int:
        """The first cell behind it."""
        return self.sum_cell + 1

    def observe(self, cells: memoryview, value: int) -> None:
        """Count `value` in a row."""
        cells[self.start + bisect_left(self.bounds, value)] += 1
        cells[self.sum_cell] += value


def _durations(*milliseconds: float) -> tuple[int, ...]:
    return tuple(int(one * NANOSECONDS / 1000) for one in milliseconds)


# Of the store, written by its writer thread.
SCORES, REPLAYS, VOIDS, JOURNAL_ENTRIES, DISK_FREE_BYTES = range(5)
# Of each process, written by its event loop.
PROCESS_ID, QUEUE_SCORES, CONNECTIONS = range(5, 8)
COMMIT_DURATION = Histogram(8, _durations(0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, 4096))
COMMIT_SCORES = Histogram(COMMIT_DURATION.end, tuple(1 << power for power in range(0, 18)))
FOLD_DURATION = Histogram(COMMIT_SCORES.end, _durations(0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128))
REQUESTS = FOLD_DURATION.end
CELLS = REQUESTS + (ROUTES_MAX + 1) * len(STATUSES)


def request_cell(route: int, status: int) -> int:
    """Return the cell that counts requests to the route with this number, from 1 on, answered so; 0 is for no route."""
    return REQUESTS + route * len(STATUSES) + STATUS_PLACES[status]


class Counts:
    """The rows of all processes, of which this one writes one.

    Args:
        processes: how many rows there are.
        row: the number of this process's own row.
        descriptor: of memory that other processes have too, from `shared_memory`; None for memory of its own.

    Attributes:
        cells: the own row.
        processes, descriptor: as given.
    """

    def __init__(self, processes: int = 1, row: int = 0, descriptor: int | None = None):
        self.processes = processes
        self.descriptor = descriptor
        size_bytes = processes * CELLS * _CELL_BYTES
        whole = memoryview(bytearray(size_bytes) if descriptor is None else mmap.mmap(descriptor, size_bytes)).cast("q")
        self._rows = [whole[number * CELLS : (number + 1) * CELLS] for number in range(processes)]
        self.cells = self._rows[row]
        self.cells[PROCESS_ID] = os.getpid()

    def total(self, cell: int) -> int:
        """Return what all processes have together."""
        return sum(row[cell] for row in self._rows)

    def totals(self, start: int, end: int) -> list[int]:
        """Return what all processes have together in the cells from `start` to before `end`."""
        return [sum(column) for column in zip(*(row[start:end] for row in self._rows))]

    def process_ids(self) -> Sequence[int]:
        """Return the ids of the processes that write the rows, this one's among them."""
        return [row[PROCESS_ID] for row in self._rows if row[PROCESS_ID]]


def shared_memory(processes: int) -> int:
    """Return the descriptor of new memory for the rows of so many processes, to be passed on to them."""
    descriptor = os.memfd_create("scoremean-counts")
    os.ftruncate(descriptor, processes * CELLS * _CELL_BYTES)
    return descriptor
