"""Commits batches of 64 random scores to a store: `commits STORE UUIDS COUNT [--disk] [--kill]`, figures to standard output.

With --disk each commit is followed by a plain write and sync in the same directory, for what the disk alone takes. With
--kill the process ends by SIGKILL, with whatever is in the journal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from scoremean import Score
from scoremean.store.embedded.store import LmdbStore
from tests.benchmarks.data import drawn

BATCH = 64
PLAIN_BYTES = 24 << 10
PLAIN_PLACES = 1000


def _plain_write(directory: Path) -> Callable[[], None]:
    """Return a function that writes PLAIN_BYTES to a file that has its full size already, and syncs them."""
    file = os.open(directory / "plain", os.O_RDWR | os.O_CREAT)
    data, turn = os.urandom(PLAIN_BYTES), 0
    for place in range(PLAIN_PLACES):
        os.pwrite(file, data, place * PLAIN_BYTES)
    os.fsync(file)

    def write() -> None:
        nonlocal turn
        turn = (turn + 1) % PLAIN_PLACES
        os.pwrite(file, data, turn * PLAIN_BYTES)
        os.fdatasync(file)

    return write


def _written() -> dict[str, int]:
    """Return what this process has handed to the kernel so far, as /proc counts it."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    counts = dict(line.split(": ") for line in lines)
    return {name: int(counts[name]) for name in ("wchar", "syscw", "write_bytes")}


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("uuids", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    plain = _plain_write(options.store) if options.disk else lambda: None
    scores = (Score(uuid, score) for uuid, score in drawn(options.uuids, options.count * BATCH, options.seed))
    took, took_plain = [], []
    with LmdbStore(options.store) as store:
        gc.collect()
        gc.freeze()  # as a server does
        before = _written()
        while batch := list(islice(scores, BATCH)):
            took.append(_timed(lambda some=batch: store.commit(some)))
            took_plain.append(_timed(plain))
        figures = {name: count - before[name] for name, count in _written().items()}
        if options.kill:
            os.kill(os.getpid(), signal.SIGKILL)
    for name, times in (("commit", sorted(took)), ("plain", sorted(took_plain))):
        figures |= {f"{name}_longest_ms": times[-1] * 1e3, f"{name}_median_ms": times[len(times) // 2] * 1e3}
    print(json.dumps(figures))


if __name__ == "__main__":
    _main()
