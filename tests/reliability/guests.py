"""What the campaigns of abuse share: a server whose log is read, and clients that behave while others do not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from typing import Self

from scoremean.settings import SETTINGS
from tests.benchmarks.data import ROOT
from tests.reliability import wire
from tests.reliability.broken import BROKEN
from tests.reliability.campaign import Trial

LOG_LINES_MAX = 10
REGULARS = 4

# Broken builds that the campaigns of abuse must catch: what is wrong with each, and the Python that makes it so.
BROKEN_HERE = {
    "queue-unbounded": (
        "the queue has no bound, and nothing is ever refused",
        """
from scoremean import writer

made = writer.Writer.__init__
writer.Writer.__init__ = lambda self, store, queue_max_scores: made(self, store, 1 << 60)
""",
    ),
    "clock-back-expires": (
        "a clock that jumps back makes ids expire, as one that goes forward does",
        """
from scoremean.store.embedded.format import Generation
from scoremean.store.embedded import store as lmdb

def expire_also_back(self):
    old, now = self._meta.generation, int(self._clock())
    return Generation(1 - old.current, now) if abs(now - old.since_seconds) >= self._id_retention_seconds else old

lmdb.LmdbStore._generation = expire_also_back
""",
    ),
}

_SERVE = "\nimport sys\nfrom scoremean import cli\nsys.exit(cli.main())\n"
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


def broken_source(trial: Trial) -> str:
    """Return the Python that breaks the build of `trial`; nothing if it is scoremean as it is."""
    if trial.broken is None:
        return ""
    return BROKEN_HERE[trial.broken][1] if trial.broken in BROKEN_HERE else BROKEN[trial.broken].source + "\n"


class Served:
    """`scoremean serve` on a free port, with its standard error in a file: no pipe fills up, and its lines can be counted.

    Args:
        trial: where the store goes, and which broken build it is.
        flags: of `serve`.
        source: Python code that the process runs first.
    """

    def __init__(self, trial: Trial, *flags: str, source: str = ""):
        self.store = trial.work / "store"
        self._log = trial.work / "stderr"
        broken = broken_source(trial)
        arguments = ["serve", "--store", str(self.store), "--port", "0", *flags]
        self._command = [sys.executable, "-c", source + broken + _SERVE, *arguments]
        self._process: subprocess.Popen[str]
        self.port = 0

    def __enter__(self) -> Self:
        with open(self._log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # pylint: disable=consider-using-with  # __exit__ ends it
                self._command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            self.__exit__()
            raise RuntimeError(f"the server did not start: {self._log.read_text(encoding='utf-8')}")
        self.port = int(line.rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def descriptors(self) -> int:
        """Return how many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self._process.terminate()
        return self._process.wait(timeout=60)

    def log(self) -> str:
        """Return what it has written to standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_lines_a_second(self) -> int:
        """Return the most lines of the log within a second, of seconds that begin wherever that makes it the fewest.

        The limit holds for the seconds of some clock, and a line without a time belongs to the one before.
        """
        times, at = [], 0.0
        for line in self.log().splitlines():
            if _STAMP.match(line):
                at = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            times.append(at)
        phases = [Counter(int(at + phase / 50) for at in times) for phase in range(50)]
        return min(max(seconds.values(), default=0) for seconds in phases)


def timeout_flags(seconds: int) -> list[str]:
    """Return flags that set the timeouts which a slow client runs into."""
    names = [name for name in SETTINGS if name.endswith("_timeout_seconds") and not name.startswith("shutdown")]
    return [f"--{name.replace('_', '-')}={seconds}" for name in names]


def part(trial: Trial, name: str) -> Trial:
    """Return a trial like this one in a directory of its own, for a second server."""
    (trial.work / name).mkdir()
    return replace(trial, work=trial.work / name)


async def ask_once(url: str, raw: bytes) -> wire.Answer:
    """Return the answer to a request on a connection of its own."""
    connection = await wire.Connection.open(url)
    try:
        return await connection.ask(raw)
    finally:
        connection.close(abort=True)


async def scores_counted(url: str) -> int:
    """Return how many scores the service says that it holds."""
    return (await ask_once(url, wire.request("GET", "/stats"))).json()["scores"]


async def descriptors_again(server: Served, before: int) -> int:
    """Return how many descriptors the server has once they are as before, or after 5 seconds."""
    for _ in range(50):
        if (after := server.descriptors()) <= before:
            break
        await asyncio.sleep(0.1)
    return after


@dataclass
class Regulars:
    """What became of the posts of the clients that behave, while others do not."""

    answered: int = 0
    failed: int = 0
    slowest_seconds: float = 0.0
    first_failure: str = ""

    def fail(self, reason: object) -> None:
        """Count a post that was not answered with 200."""
        self.failed += 1
        self.first_failure = self.first_failure or str(reason)

    def text(self) -> str:
        """Return it for a figure."""
        failed = f", {self.failed} failed ({self.first_failure})" if self.failed else ", all of them"
        return f"{self.answered:,} posts of others answered{failed}, the slowest in {self.slowest_seconds * 1000:.0f} ms"

    async def run(self, url: str, connected: asyncio.Event) -> None:
        """Post one score after the other over one connection, 20 a second, until this is cancelled."""
        connection = await wire.Connection.open(url)
        try:
            await self._post(connection, connected)
        finally:
            connection.close(abort=True)

    async def _post(self, connection: wire.Connection, connected: asyncio.Event) -> None:
        raw = wire.post(wire.members("regular", 5))
        for number in count(1):
            started = time.perf_counter()
            try:
                # Not asyncio.wait_for, which up to Python 3.11 may swallow the cancellation that ends this.
                async with asyncio.timeout(10):
                    answer = await connection.ask(raw)
            except (OSError, TimeoutError) as error:
                self.fail(repr(error))
                connected.set()
                return
            self.slowest_seconds = max(self.slowest_seconds, time.perf_counter() - started)
            self.answered += answer.status == 200
            if answer.status != 200:
                self.fail(answer)
            if number == 1:
                connected.set()
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def regulars(url: str, clients: int = REGULARS) -> AsyncIterator[Regulars]:
    """Let some clients post meanwhile; yield what becomes of it."""
    result = Regulars()
    events = [asyncio.Event() for _ in range(clients)]
    tasks = [asyncio.create_task(result.run(url, event)) for event in events]
    await asyncio.gather(*(event.wait() for event in events))
    try:
        yield result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
