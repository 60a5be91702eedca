"""A server on a disk that fails, and clients that remember what they were told by it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from asyncio import gather, timeout
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import lmdb
from lmdb.verify import VerifyError, verify

from scoremean import Tally, open_store
from scoremean.errors import ScoremeanError
from tests.reliability import broken, wire

END_MAX_SECONDS = 20
ANSWER_MAX_SECONDS = 20

COUNTED = "counted"
CUT = "the connection was cut"
NO_ANSWER = "no answer"
REFUSED_CONNECTION = "no connection"
OUTCOME_UNKNOWN = "urn:scoremean:outcome-unknown"
STOPPING = "urn:scoremean:stopping"
STORE_FULL = "urn:scoremean:store-full"


class Serving:
    """`scoremean serve` on a free port, in a process group that ends on exit.

    Args:
        build: the name of a broken build, or None.
        journal: limits of the journal to run with.
        under: a command to run it under, such as strace with its options.

    Attributes:
        url: where it listens.
        start_seconds: how long it took to listen.
    """

    def __init__(self, store: Path, build: str | None, journal: Mapping[str, int] | None = None, under: Sequence[str] = ()):
        self._command = [*under, *broken.command(build, journal), "serve", "--store", str(store), "--port", "0"]
        self._log_file = store.parent / f"{store.name}.log"
        self._process: subprocess.Popen[str]
        self.url = ""
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        started = time.monotonic()
        with open(self._log_file, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # pylint: disable=consider-using-with  # __exit__ ends it
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        line = self._process.stdout.readline()
        self.start_seconds = time.monotonic() - started
        if not line.startswith("listening on "):
            self.kill()
            raise RuntimeError(f"the service did not start: {self.log}")
        self.url = line.split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log_file.read_text(encoding="utf-8")

    def kill(self) -> None:
        """End it, and what it runs under, by SIGKILL; does nothing once it has ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(END_MAX_SECONDS)
        self._process.stdout.close()

    def stop(self) -> None:
        """End it by SIGTERM, as it should be ended."""
        self._process.terminate()
        self.wait()

    def wait(self) -> int | None:
        """Return the exit code, or None if it has not ended in time."""
        try:
            return self._process.wait(END_MAX_SECONDS)
        except subprocess.TimeoutExpired:
            return None


class Client:
    """Gives its UUID the scores 1, 2, 3, 4, 5, 0, 1 ..., one after the other, so that a tally shows which of them it holds.

    Attributes:
        told: how many were acknowledged.
        last: how the last post ended: COUNTED, CUT, NO_ANSWER or the type of a problem.
        forgotten: acknowledged ids that a later server did not know.
    """

    def __init__(self, uuid: str, with_ids: bool):
        self.uuid = uuid
        self._with_ids = with_ids
        self.told = 0
        self.last = COUNTED
        self.forgotten = 0

    async def post_until_refused(self, url: str, posts: int = 1 << 40) -> None:
        """Post over one connection until a post is not counted, or `posts` times."""
        try:
            connection = await wire.Connection.open(url)
        except OSError:
            self.last = REFUSED_CONNECTION
            return
        try:
            if self._with_ids and self.told:
                await self._post_again(connection)
            while posts and await self.post(connection):
                posts -= 1
        finally:
            connection.close()

    async def post(self, connection: wire.Connection) -> bool:
        """Post the next score and return whether it was counted."""
        try:
            async with timeout(ANSWER_MAX_SECONDS):
                answer = await connection.ask(self._request(self.told + 1))
        except (wire.Cut, TimeoutError) as error:
            self.last = CUT if isinstance(error, wire.Cut) else NO_ANSWER
            return False
        if answer.status == 200:
            self.told += 1
            self.last = COUNTED
        else:
            self.last = answer.json()["type"]
        return answer.status == 200

    def settle(self, tally: Tally | None) -> int:
        """Return how many acknowledged scores are missing in `tally`, -1 for any that are too many; take over what it holds.

        The last post may have been counted if its answer left that open.
        """
        held = tally or Tally(0, 0)
        lost = self.told - held.count
        if lost < 0:
            lost = 0 if held.count == self.told + 1 and self.last in (CUT, NO_ANSWER, OUTCOME_UNKNOWN) else -1
        if held != first_scores(held.count):
            lost = max(lost, 1)
        self.told = held.count
        return lost

    async def _post_again(self, connection: wire.Connection) -> None:
        """Post the last score that was counted, which must be known by its id."""
        try:
            answer = await connection.ask(self._request(self.told))
        except wire.Cut:
            return
        self.forgotten += answer.status == 200 and not answer.replayed

    def _request(self, number: int) -> bytes:
        return wire.post(wire.members(self.uuid, number % 6, f"{self.uuid}/{number}" if self._with_ids else None))


def clients(number: int, name: str = "client") -> list[Client]:
    """Return so many clients, of which every second one posts with ids."""
    return [Client(f"{name}-{n}", n % 2 == 1) for n in range(number)]


def first_scores(count: int) -> Tally:
    """Return the tally of a client's first `count` scores."""
    return Tally(sum(n % 6 for n in range(1, count + 1)), count)


async def post_all(some: Iterable[Client], url: str, posts: int = 1 << 40) -> None:
    """Let the clients post at the same time, each until it is refused or has posted so often."""
    await gather(*(client.post_until_refused(url, posts) for client in some))


def missing(some: Sequence[Client], store: Path) -> int:
    """Return how many acknowledged scores are not in the store, and take over what it holds; an extra score counts as one."""
    with open_store(store, readonly=True) as opened:
        tallies = opened.get([client.uuid for client in some])
    return sum(abs(client.settle(tally)) for client, tally in zip(some, tallies))


def damages(store: Path) -> list[str]:
    """Return what is wrong with a store at rest: its pages, before LMDB may trip over them, and then what is in them."""
    try:
        if findings := verify(str(store)):
            return [str(finding) for finding in findings]
        with open_store(store, readonly=True) as opened:
            return opened.check()
    except (VerifyError, ScoremeanError, lmdb.Error, OSError) as error:
        return [repr(error)]
