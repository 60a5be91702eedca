"""A soak: all kinds of requests at once for a long time, while memory, descriptors, threads and the store are watched."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.reliability import broken, wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.wire import Connection, Cut
from tests.support import Server, assert_sound

SECONDS, SECONDS_SHORT = 600, 20
WARM_UP = 0.5
CONNECTIONS = 32
UUIDS = 2_000
BATCH_SCORES = 50

MIB = 1 << 20
# What memory may seem to grow by: the allocator's slack, not a leak of it. A leak of 16 bytes a request is more in a long run.
MEMORY_SLACK = 0.03
MEMORY_SLACK_BYTES = 4 * MIB
# An id is a key of 16 bytes and a value of about 25 with LMDB's 10 for each, in pages that random keys fill to half at worst,
# and for a while it is in the journal too. It was 116 in four minutes.
ID_BYTES = 150
SIZE_SLACK_BYTES = 2 * MIB

# The short form is over before the journal as it is has filled once; this one is full every few seconds.
SHORT_JOURNAL = {"FOLD_AT_ENTRIES": 8_192, "BATCH_MAX_ENTRIES": 1_024, "FOLD_SLICE_ENTRIES": 256, "SORT_SLICE_ENTRIES": 512}

Action = Callable[[Connection], Awaitable[None]]


class Sample(NamedTuple):
    """What the server holds at one moment."""

    memory_bytes: float
    descriptors: float
    threads: float
    size_bytes: float
    ids: float


class Mix:
    """Connections that come and go, and do everything that a client can.

    Attributes:
        counts: what was done, by its kind.
    """

    def __init__(self, url: str, chance: random.Random):
        self._url = url
        self._chance = chance
        self._names = 0
        self._over = False
        self.counts: Counter[str] = Counter()
        self._actions: dict[str, tuple[float, Action]] = {
            "posts": (40, self._post),
            "posts with ids": (12, self._post_with_id),
            "voids": (4, self._void),
            "voids by value": (2, self._void_score),
            "merges": (0.5, self._merge),
            "batches": (4, self._batch),
            "reads": (25, self._read),
            "listings": (1, self._list),
            "refused": (6, self._refused),
            "not HTTP": (0.5, self._not_http),
            "half sent": (0.5, self._half_sent),
        }

    async def run(self, seconds: float, watch: Callable[[], Awaitable[bool]]) -> None:
        """Go on for so long, and call `watch` each second; stop early when it returns True."""
        deadline = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._client())
            while time.monotonic() < deadline:
                await asyncio.sleep(1)
                if await watch():
                    break
            self._over = True

    async def _client(self) -> None:
        kinds, weights = list(self._actions), [weight for weight, _ in self._actions.values()]
        while not self._over:
            connection = await Connection.open(self._url)
            self.counts["connections"] += 1
            try:
                for kind in self._chance.choices(kinds, weights, k=self._chance.randrange(1, 400)):
                    if self._over or connection.lost:
                        break
                    await self._actions[kind][1](connection)
                    self.counts[kind] += 1
            except Cut:
                self.counts["cut"] += 1
            connection.close(abort=self._chance.random() < 0.5)

    async def _post(self, connection: Connection) -> None:
        await self._ask(connection, 200, wire.post(self._score()))

    async def _post_with_id(self, connection: Connection) -> None:
        self._names += 1
        await self._ask(connection, 200, wire.post(self._score() | {"id": f"id-{self._names}"}))

    async def _void(self, connection: Connection) -> None:
        """Void a score that was posted a while ago, or was voided, or is still under way or unknown."""
        name = f"id-{max(1, self._names - self._chance.randrange(1000))}"
        # 422 is for a score that was voided by its value before.
        await self._ask_any(connection, (200, 404, 422), wire.request("DELETE", f"/scores/{name}"))

    async def _void_score(self, connection: Connection) -> None:
        """Void a score that may be there or not."""
        self._names += 1
        await self._ask_any(connection, (200, 404, 422), wire.post(self._score() | {"id": f"id-{self._names}"}, "/voids"))

    async def _merge(self, connection: Connection) -> None:
        """Merge a UUID into another one, or into itself."""
        await self._ask_any(connection, (200, 404, 422), wire.post({"into": self._uuid()}, f"/means/{self._uuid()}/merge"))

    async def _batch(self, connection: Connection) -> None:
        await self._ask(connection, 200, wire.post([self._score() for _ in range(BATCH_SCORES)]))

    async def _read(self, connection: Connection) -> None:
        await self._ask_any(connection, (200, 404), wire.request("GET", f"/means/{self._uuid()}"))

    async def _list(self, connection: Connection) -> None:
        await self._ask(connection, 200, wire.request("GET", f"/means?limit=100&after={self._uuid()}"))

    async def _refused(self, connection: Connection) -> None:
        bad = [
            (422, wire.post(self._score() | {"score": 6})),
            (400, wire.request("POST", "/scores", b"{")),
            (404, wire.request("GET", "/nowhere")),
            (405, wire.request("PUT", "/scores")),
            (415, wire.request("POST", "/scores", b"5", "text/plain")),
        ]
        await self._ask(connection, *self._chance.choice(bad))

    async def _not_http(self, connection: Connection) -> None:
        await self._ask(connection, 400, b"\x16\x03\x01 hello\r\n\r\n")

    async def _half_sent(self, connection: Connection) -> None:
        """Begin a request and hang up."""
        data = wire.post(self._score())
        connection.send(data[: self._chance.randrange(1, len(data))])
        connection.close(abort=self._chance.random() < 0.5)
        raise Cut

    async def _ask(self, connection: Connection, status: int, data: bytes) -> None:
        await self._ask_any(connection, (status,), data)

    async def _ask_any(self, connection: Connection, statuses: Sequence[int], data: bytes) -> None:
        answer = await connection.ask(data)
        if answer.status not in statuses:
            raise RuntimeError(f"{data[:200]!r} was answered {answer.status}, not {statuses}: {answer.body[:200]!r}")

    def _score(self) -> dict[str, str | int]:
        return wire.members(self._uuid(), self._chance.randrange(6))

    def _uuid(self) -> str:
        return f"uuid-{self._chance.randrange(UUIDS)}"


class Watch:
    """Samples of a server, one a second, and what they say of growth."""

    def __init__(self, server: Server):
        self._server = server
        self.samples: list[Sample] = []
        self._connection: Connection

    async def open(self) -> None:
        """Connect, once and for all samples."""
        self._connection = await Connection.open(self._server.url)

    async def sample(self) -> Sample:
        """Take a sample."""
        stats = (await self._connection.ask(wire.request("GET", "/stats"))).json()
        proc = Path("/proc") / str(self._server.pid)
        status = dict(line.split(":", 1) for line in (proc / "status").read_text(encoding="ascii").splitlines())
        descriptors = len(list((proc / "fd").iterdir()))
        memory = int(status["RssAnon"].split()[0]) << 10
        one = Sample(memory, descriptors, int(status["Threads"]), stats["store_size_bytes"], stats["ids"])
        self.samples.append(one)
        return one

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Growth(NamedTuple):
    """What grew from just after the warm-up to the end; of the store, beyond what its ids explain."""

    before: Sample
    after: Sample

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Growth:
        """Compare the first and the last third of `samples`: the medians, but of memory the most.

        The journal fills and is folded, and memory goes up and down with it; a leak lifts the tops.
        """
        third = max(1, len(samples) // 3)
        return cls(*map(cls._typical, (samples[:third], samples[-third:])))

    @staticmethod
    def _typical(samples: Sequence[Sample]) -> Sample:
        most = max(sample.memory_bytes for sample in samples)
        return Sample(*(statistics.median(values) for values in zip(*samples, strict=True)))._replace(memory_bytes=most)

    @property
    def size_bytes(self) -> float:
        """How much more the store has grown than its ids explain."""
        return self.after.size_bytes - self.before.size_bytes - ID_BYTES * (self.after.ids - self.before.ids)

    @property
    def grown(self) -> list[str]:
        """What grew, in words."""
        slack = max(MEMORY_SLACK * self.before.memory_bytes, MEMORY_SLACK_BYTES)
        found = {
            "memory": self.after.memory_bytes - self.before.memory_bytes > slack,
            # Connections that come and go are a few more at one time than at another.
            "descriptors": self.after.descriptors - self.before.descriptors > 8,
            "threads": self.after.threads > self.before.threads,
            "store": self.size_bytes > SIZE_SLACK_BYTES,
        }
        return [name for name, is_so in found.items() if is_so]

    def figure(self) -> str:
        """Return the growth in figures."""
        memory = self.after.memory_bytes - self.before.memory_bytes
        ids = self.after.ids - self.before.ids
        size = self.after.size_bytes - self.before.size_bytes
        return (
            f"memory {memory / MIB:+.1f} of {self.before.memory_bytes / MIB:.0f} MiB"
            f" ({memory / self.before.memory_bytes:+.1%}), descriptors {self.after.descriptors - self.before.descriptors:+.0f},"
            f" threads {self.after.threads - self.before.threads:+.0f}, store {size / MIB:+.1f} MiB for {ids:,.0f} more ids"
        )


@campaign("soak", "10 minutes: no growth after warm-up", "leak")
def soak(trial: Trial) -> Finding:
    """32 connections, each of which ends after up to 400 requests, half of them by a reset, send posts with and without ids,
    batches of 50, reads, listings, voids, merges, requests that are refused, bytes that are not HTTP and requests that stop
    half way, for 2,000 UUIDs and as fast as they are answered. Every answer must have the status that it should have.

    Once a second the server's private memory (RssAnon), descriptors, threads and store are looked at. The first half is the
    warm-up, in which the journal fills for the first times. Of the second half, the last third must not be above the first: the
    most memory by at most 3% or 4 MiB, the store by 2 MiB and what its new ids take, 150 bytes each.
    """
    chance, seed = wire.seeded()
    seconds = SECONDS_SHORT if trial.short else SECONDS
    program = broken.command(trial.broken, SHORT_JOURNAL if trial.short else None)
    with Server(trial.work / "store", program=program) as server:
        watch, mix = Watch(server), Mix(server.url, chance)
        wire.run(_run(watch, mix, seconds, bool(trial.broken)))
        server.terminate()
        code, messages = server.wait()
    assert_sound(trial.work / "store")
    growth = Growth.of(watch.samples[int(len(watch.samples) * WARM_UP) :])
    well = code == 0 and "Traceback" not in messages
    if growth.grown or not well:
        print(f"  seed {seed}: exit code {code}, {growth.grown} grew\n{messages[-2000:]}", file=sys.stderr)
    requests = mix.counts.total() - mix.counts["connections"]
    figure = f"{growth.figure()}; {requests:,} requests over {mix.counts['connections']:,} connections"
    return Finding(figure, well and not growth.grown)


async def _run(watch: Watch, mix: Mix, seconds: float, stop_early: bool) -> None:
    await watch.open()
    start = await watch.sample()

    async def each_second() -> bool:
        now = await watch.sample()
        # A leak that is plain to see needs no more time.
        return stop_early and now.descriptors > start.descriptors + 10 * CONNECTIONS and len(watch.samples) > 10

    await mix.run(seconds, each_second)
    watch.close()
