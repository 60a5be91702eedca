"""What clients of front ends see: scores that are answered or not, shard by shard, and what they find afterwards."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from threading import Thread
from typing import NamedTuple, Self

from scoremean.workers import loop_factory
from tests.cluster import Cluster, wait_until
from tests.reliability import wire
from tests.reliability.ledger import Ledger, Request, explain
from tests.reliability.wire import Answer, Connection, Cut

CONNECTIONS = 32
PULSES = 40  # UUIDs of which each belongs to one shard; it has some of them
BACKOFF_SECONDS = 0.2
HUNG_SECONDS = 60
UNKNOWN = b"urn:scoremean:outcome-unknown"


class Shard(NamedTuple):
    """One of a cluster's shards: a slot of it, and UUIDs whose tallies are there."""

    slot: int
    uuids: list[str]


class Pause(NamedTuple):
    """The longest time without an answer."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.start


def find_shards(cluster: Cluster, url: str, ledger: Ledger) -> list[Shard]:
    """Return the shards of a cluster; where a UUID is, is looked up, once it has a score."""
    wire.run(_post_pulses(url, ledger))
    shards = []
    for primary in cluster.primaries():
        keys = list(primary.redis.scan_iter(match="*pulse-*"))
        shards.append(Shard(primary.view().slots[0].start, sorted({key[key.index("pulse-") :] for key in keys})))
    return shards


async def _post_pulses(url: str, ledger: Ledger) -> None:
    connection = await Connection.open(url)
    for number in range(PULSES):
        request = ledger.score(f"pulse-{number}")
        ledger.acknowledge(request, _require(await connection.ask(request.data)))
    connection.close()


class Load:
    """Clients of some front ends, in a thread of their own from entry to exit.

    CONNECTIONS of them send a ledger's requests, to all shards. And each front end has one client a shard that sends it scores
    without ids, one after the other, so that a pause of that shard is seen, and of no other.

    Attributes:
        found: what they were answered and should not have been.
    """

    def __init__(self, urls: Sequence[str], ledger: Ledger, shards: Sequence[Shard]):
        self._urls = urls
        self._ledger = ledger
        self._shards = shards
        self._answered: dict[int, list[float]] = defaultdict(list)
        self._over = False
        self._thread = Thread(target=self._run_all, name="load")
        self._start = time.monotonic()
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def wait_for_answers(self, count: int) -> None:
        """Return when every shard has answered so many more scores."""
        before = {shard.slot: len(self._answered[shard.slot]) for shard in self._shards}
        wait_until(
            lambda: all(len(self._answered[slot]) >= answered + count for slot, answered in before.items()),
            f"every shard answers {count} more scores",
        )

    def pause(self, slot: int) -> Pause:
        """Return the longest pause of a shard."""
        times = [self._start, *sorted(self._answered[slot]), time.monotonic()]
        return max((Pause(*pair) for pair in itertools.pairwise(times)), key=lambda pause: pause.seconds)

    def answered_in(self, slot: int, pause: Pause) -> int:
        """Return how many scores a shard answered meanwhile."""
        return sum(pause.start < answered < pause.end for answered in self._answered[slot])

    def _run_all(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._send_all())

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                url = self._urls[number % len(self._urls)]
                group.create_task(self._client(url, self._ledger.next, lambda: None))
            for url in self._urls:
                for shard in self._shards:
                    group.create_task(self._client(url, *self._pulse(shard)))

    def _pulse(self, shard: Shard) -> tuple[Callable[[], Request], Callable[[], None]]:
        """Return what makes the next request of a client of one shard, and what it does when it was counted."""
        uuids = itertools.cycle(shard.uuids)
        answered = self._answered[shard.slot]
        return lambda: self._ledger.score(next(uuids)), lambda: answered.append(time.monotonic())

    async def _client(self, url: str, following: Callable[[], Request], counted: Callable[[], None]) -> None:
        connection = await Connection.open(url)
        while not self._over:
            request = following()
            try:
                async with asyncio.timeout(HUNG_SECONDS):
                    answer = await connection.ask(request.data)
            except (Cut, TimeoutError) as error:
                self.found["cut" if isinstance(error, Cut) else "hung"] += 1
                break
            if _is_counted(answer):
                self._ledger.acknowledge(request, answer)
                counted()
                continue
            if UNKNOWN not in answer.body:
                del self._ledger.open[request]
                self.found["answered wrongly"] += answer.status != 503
            await asyncio.sleep(BACKOFF_SECONDS)
        connection.close()


def _is_counted(answer: Answer) -> bool:
    """Whether all of a request is counted; in a batch there may be scores that are not."""
    return answer.status == 200 and b'"type"' not in answer.body


def _require(answer: Answer) -> Answer:
    if not _is_counted(answer):
        raise RuntimeError(f"an answer was {answer.status}: {answer.body[:200]!r}")
    return answer


def look(urls: Sequence[str], ledger: Ledger) -> Counter[str]:
    """Send again what has ids and no answer, and compare what each front end tells with what is known; return what is off."""
    return wire.run(_look(urls, ledger))


async def _look(urls: Sequence[str], ledger: Ledger) -> Counter[str]:
    found: Counter[str] = Counter()
    connections = [await Connection.open(url) for url in urls]
    take = itertools.cycle(connections)
    for request in [request for request in ledger.open if request.ids]:
        ledger.acknowledge(request, await _ask_until_counted(next(take), request.data))
    for request, first in ledger.kept(20):
        answer = await _ask_until_counted(next(take), request.data)
        found["another answer"] += answer.body != first or not answer.replayed
    uuids = list(ledger.known.keys() | {uuid for request in ledger.open for uuid in request.changes})
    seen = [await wire.tallies(connection, uuids) for connection in connections]
    found["told otherwise by another front end"] += sum(seen[0] != other for other in seen[1:])
    off, _ = explain(ledger, seen[0], ledger.open)
    for count in off.values():
        found["lost" if count < 0 else "double"] += abs(count)
    ledger.known.update(seen[0])
    ledger.open.clear()
    for connection in connections:
        connection.close()
    return found


async def _ask_until_counted(connection: Connection, data: bytes) -> Answer:
    """Return the answer of a shard that may still be on its way back."""
    end = time.monotonic() + HUNG_SECONDS
    while not _is_counted(answer := await connection.ask(data)):
        if answer.status not in (200, 503) or time.monotonic() > end:
            raise RuntimeError(f"a retry was answered {answer.status}: {answer.body[:1000]!r}")
        await asyncio.sleep(BACKOFF_SECONDS)
    return answer
