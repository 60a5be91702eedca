"""Linearizability: the answers of many concurrent requests must fit one order of all of them that respects real time.

How the order is known. An answer to a post has only the mean, and means alone leave many orders open. So each UUID begins with
a batch of SEED_SCORES scores of a million, answered before anyone else knows the UUID; after it come only scores from 0 to 5.
Then the sum is hardly above SEED_SUM while the count grows, so `SEED_SUM / mean` is a little below the count, by less than a
half, and `mean * count` is the sum: every mean tells its tally, and a tally that does not give this very float is refused. The
count after a score is its place in the order of its UUID's scores. So there is never a choice between orders, and to check one
takes no search: sort by count and go through it once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import msgspec

from tests.reliability import broken, wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.wire import Answer, Connection
from tests.support import Server, assert_sound

REQUESTS, REQUESTS_SHORT = 1_000_000, 20_000
CONNECTIONS = 48
LIVE_UUIDS = 12
BATCH_SCORES = 8

SEED_SCORES, SEED_SCORE = 100, 1_000_000
SEED_SUM = SEED_SCORES * SEED_SCORE
# With at most COUNT_MAX scores of at most 5, and those under way when it is reached, SEED_SUM / mean is off by less than 0.5.
COUNT_MAX = 2_500


class Post(NamedTuple):
    """A score, and the tally that its answer tells."""

    count: int
    sum: int
    score: int
    start: float
    end: float


class Read(NamedTuple):
    """A read, and the tally that it found."""

    count: int
    sum: int
    start: float
    end: float


@dataclass
class History:
    """What was answered for one UUID. `counted` is how many scores it was sent, the seed among them."""

    uuid: str
    counted: int = SEED_SCORES
    posts: list[Post] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def post(self, mean: float, score: int, start: float, end: float) -> int:
        """Take in the answer to a score; return its place."""
        count = round(SEED_SUM / mean)
        total = round(mean * count)
        if total / count != mean:
            self.faults["means of no tally"] += 1
        self.posts.append(Post(count, total, score, start, end))
        return count

    def check(self) -> Counter[str]:
        """Return what does not fit one order that respects real time: nothing if all does."""
        faults = self.faults + _check_posts(self.posts)
        faults += _check_reads(self.posts, self.reads)
        faults["scores without a place"] += self.counted != SEED_SCORES + len(self.posts)
        faults += _check_times(self.posts, self.reads)
        return +faults


def _check_posts(posts: list[Post]) -> Counter[str]:
    """The scores of a UUID stand one behind the other, and each adds itself to the sum."""
    faults: Counter[str] = Counter()
    count, total = SEED_SCORES, SEED_SUM
    for post in sorted(posts):
        faults["scores out of order"] += post.count != count + 1
        faults["sums that do not add up"] += post.sum != total + post.score
        count, total = post.count, post.sum
    return faults


def _check_reads(posts: list[Post], reads: list[Read]) -> Counter[str]:
    """A read finds a tally that the UUID had at some time."""
    tallies = {(post.count, post.sum) for post in posts} | {(SEED_SCORES, SEED_SUM)}
    return Counter({"reads of no tally": sum((read.count, read.sum) not in tallies for read in reads)})


def _check_times(posts: list[Post], reads: list[Read]) -> Counter[str]:
    """No request ended before one began that stands before it in the order.

    A read stands behind the score whose tally it found; reads of one tally stand in the order in which they began, in which
    none can have ended before an earlier one began.
    """
    order = [(post.count, 0, post.start, post.end) for post in posts]
    order += [(read.count, 1, read.start, read.end) for read in reads]
    faults, latest_start = 0, 0.0
    for _, _, start, end in sorted(order):
        faults += end < latest_start
        latest_start = max(latest_start, start)
    return Counter({"against real time": faults})


class Recorder:
    """Connections that post and read, and the history of each UUID.

    Args:
        urls: the servers, which serve one store.
        skip: post batches with `on_error=skip`, for a store that has none which are all or nothing.

    Attributes:
        requests: how many are left to be sent.
        faults: what was found in the histories that are over, by its kind.
        counts: requests, scores and reads.
    """

    def __init__(self, urls: Sequence[str], requests: int, chance: random.Random, *, skip: bool = False):
        self._urls = urls
        self._batches = "/scores?on_error=skip" if skip else "/scores"
        self._chance = chance
        self._live: list[History] = []
        self._named = 0
        self._begun: list[History] = []
        self.left = requests
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Send all requests and check every history."""
        connections = [await Connection.open(url) for url, _ in zip(itertools.cycle(self._urls), range(CONNECTIONS))]
        for _ in range(LIVE_UUIDS):
            self._live.append(await self._seed(connections[0]))
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(self._client(connection))
        await self._read_all(connections[0])
        for history in self._begun:
            self.faults += history.check()
        for connection in connections:
            connection.close()

    async def _client(self, connection: Connection) -> None:
        while self.left > 0:
            self.left -= 1
            if self.left % 100_000 == 0 and self.left:
                print(f"  {self.left:,} requests are left", file=sys.stderr, flush=True)
            self.counts["requests"] += 1
            place = self._chance.randrange(LIVE_UUIDS)
            history, roll = self._live[place], self._chance.random()
            if history.counted > COUNT_MAX:
                self._live[place] = await self._seed(connection)
            elif roll < 0.6:
                await self._post(connection, history)
            elif roll < 0.7:
                await self._post_batch(connection)
            elif roll < 0.95:
                await self._read(connection, [history])
            else:
                await self._read(connection, self._chance.choices(self._live, k=BATCH_SCORES))

    async def _seed(self, connection: Connection) -> History:
        """Return a new UUID, once its first scores are counted."""
        self._named += 1
        history = History(f"uuid-{self._named}")
        _require(await connection.ask(wire.post([wire.members(history.uuid, SEED_SCORE)] * SEED_SCORES, self._batches)))
        self._begun.append(history)
        return history

    async def _post(self, connection: Connection, history: History) -> None:
        score = int(self._chance.random() * 6)
        history.counted += 1
        data = wire.request("POST", "/scores", b'{"UUID":"%s","score":%d}' % (history.uuid.encode(), score))
        start = perf_counter()
        answer = await connection.ask(data)
        history.post(_require(answer).json()["mean"], score, start, perf_counter())
        self.counts["scores"] += 1

    async def _post_batch(self, connection: Connection) -> None:
        """Post some scores of a few UUIDs, which are all live, in one request."""
        histories = self._chance.choices(self._chance.sample(self._live, 3), k=BATCH_SCORES)
        scores = [int(self._chance.random() * 6) for _ in histories]
        for history in histories:
            history.counted += 1
        items = [wire.members(history.uuid, score) for history, score in zip(histories, scores)]
        data = wire.post(items, self._batches)
        start = perf_counter()
        answer = await connection.ask(data)
        end = perf_counter()
        last: dict[str, int] = {}
        for history, score, mean in zip(histories, scores, _require(answer).json(), strict=True):
            count = history.post(mean["mean"], score, start, end)
            self.faults["batches that are torn"] += last.get(history.uuid, count - 1) != count - 1
            last[history.uuid] = count
        self.counts["scores"] += len(scores)

    async def _read(self, connection: Connection, histories: list[History]) -> None:
        if len(histories) == 1:
            data = wire.request("GET", f"/means/{histories[0].uuid}")
        else:
            data = wire.request("POST", "/means/query", msgspec.json.encode([history.uuid for history in histories]))
        start = perf_counter()
        answer = await connection.ask(data)
        end, found = perf_counter(), _require(answer).json()
        for history, mean in zip(histories, found if len(histories) > 1 else [found], strict=True):
            history.reads.append(Read(mean["count"], mean["sum"], start, end))
        self.counts["reads"] += len(histories)

    async def _read_all(self, connection: Connection) -> None:
        """Read every UUID once more, so that a score which is counted twice or lost at the end is seen."""
        for history in self._begun:
            await self._read(connection, [history])
            self.faults["ends off"] += history.reads[-1].count != history.counted


def _require(answer: Answer) -> Answer:
    if answer.status != 200:
        raise RuntimeError(f"an answer was {answer.status}: {answer.body[:200]!r}")
    return answer


def _worst(faults: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {kind}' for kind, count in faults.items())})" if faults else ""


@campaign("linearizability", "1,000,000 operations: 0 violations", "lost-update", "mean-before", "stale-read")
def linearizability(trial: Trial) -> Finding:
    """48 connections send a million requests, half of them to one process and half to one with `--workers 2`: single posts,
    batches of 8 scores over 3 UUIDs, reads, and queries of 8 UUIDs, on 12 UUIDs at a time, each for about 2,500 scores. All are
    recorded with the times when they were sent and answered.

    A UUID begins with 100 scores of a million and goes on with scores from 0 to 5, so each mean tells sum and count, and the
    count is the score's place in the order. Checked for every UUID: the places go up by one, each score adds itself to the sum,
    those of a batch stand together, reads find a tally of that order, and no request was answered before another one was sent
    that stands before it. At the end every score has its place.
    """
    chance, seed = wire.seeded()
    total = REQUESTS_SHORT if trial.short else REQUESTS
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for workers in ("1",) if trial.broken else ("1", "2"):  # a worker is a program of its own, which is not broken
        store = trial.work / workers
        flags = ("--score-max", str(SEED_SCORE), "--workers", workers)
        with Server(store, *flags, program=broken.command(trial.broken)) as server:
            requests = min(total // 2, REQUESTS_SHORT) if trial.broken else total // 2
            recorder = Recorder([server.url], requests, chance)
            wire.run(recorder.run())
            server.terminate()
            server.wait()
        faults += recorder.faults
        counts += recorder.counts
        faults["unsound stores"] += not _sound(store)
    return verdict(faults, counts, seed)


def verdict(faults: Counter[str], counts: Counter[str], seed: int) -> Finding:
    """Return what histories show: `faults` by their kinds, and what was counted."""
    if +faults:
        print(f"  seed {seed}: {dict(+faults)}", file=sys.stderr)
    figure = f"{(+faults).total():,} violations{_worst(+faults)} in {counts['requests']:,} requests"
    return Finding(f"{figure}, with {counts['scores']:,} scores and {counts['reads']:,} reads", not +faults)


def _sound(store: Iterable[str]) -> bool:
    try:
        assert_sound(store)
    except AssertionError:
        return False
    return True
