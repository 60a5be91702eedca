"""More load than the service can take, over connections that behave."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from tests.reliability import wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.guests import Served, part, scores_counted

BATCH_SCORES = 1000
QUEUE_BATCHES = 8
PEAK_CLIENTS = 16


@dataclass
class Offered:
    """What became of batches that were posted: how many got 200, 503 with Retry-After, or anything else; and how fast."""

    seconds: float
    good: int = 0
    refused: int = 0
    other: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    good_by_deadline: int = 0

    def take(self, answer: wire.Answer, seconds: float, in_time: bool) -> None:
        """Count one answer."""
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        if answer.status == 200:
            self.good += 1
            self.good_by_deadline += in_time
        elif answer.status == 503 and b"\r\nRetry-After: " in answer.head:
            self.refused += 1
        else:
            self.other.append(f"{answer.status} {answer.body[:100]!r}")


class Batches:
    """Endless posts of batches of BATCH_SCORES scores, each with an id of its own, so that each is work for the store."""

    def __init__(self, seed: int):
        self._random = Random(seed)
        self._numbers = count()
        self._seed = seed

    def __next__(self) -> bytes:
        number, choose = next(self._numbers), self._random.random
        lines = [
            f'{{"UUID":"user-{int(choose() * 100_000)}","score":{int(choose() * 6)},"id":"{self._seed}-{number}-{n}"}}'
            for n in range(BATCH_SCORES)
        ]
        return wire.request("POST", "/scores", "\n".join(lines).encode(), "application/x-ndjson")


async def _closed_loop(url: str, batches: Sequence[bytes], seconds: float, clients: int) -> Offered:
    """Let each of some clients post as soon as it is answered."""
    result, left, deadline = Offered(seconds), deque(batches), time.perf_counter() + seconds

    async def client() -> None:
        connection = await wire.Connection.open(url)
        while left and (started := time.perf_counter()) < deadline:
            answer = await connection.ask(left.popleft())
            now = time.perf_counter()
            result.take(answer, now - started, now <= deadline)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return result


async def _open_loop(url: str, batches: Sequence[bytes], rate: float) -> Offered:
    """Post each batch when it is due, however many are unanswered, each on a connection that has none under way."""
    result, idle, tasks = Offered(len(batches) / rate), deque[wire.Connection](), []
    begun = time.perf_counter()
    deadline = begun + result.seconds

    async def post(raw: bytes, due: float) -> None:
        try:
            connection = idle.pop() if idle else await wire.Connection.open(url)
            answer = await connection.ask(raw)
        except OSError as error:
            result.other.append(repr(error))
            return
        now = time.perf_counter()
        result.take(answer, now - due, now <= deadline)
        idle.append(connection)

    for number, raw in enumerate(batches):
        due = begun + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(post(raw, due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return result


@dataclass
class Rounds:
    """What came of the rounds: batches a second, and everything that was posted to the server with the small queue."""

    peaks: list[float] = field(default_factory=list)
    goodputs: list[float] = field(default_factory=list)
    offered: list[Offered] = field(default_factory=list)
    scores_held: int = 0

    async def run(self, roomy: Served, small: Served, rounds: int, seconds: float) -> None:
        """Measure the peak of `roomy`, and offer twice as much to `small`, in turn."""
        self.offered.append(await _closed_loop(small.url, _made(0, 100), 2.0, QUEUE_BATCHES))  # warm
        guess = (await _closed_loop(roomy.url, _made(1, 1000), 2.0, PEAK_CLIENTS)).good_by_deadline / 2
        for seed in range(2, 2 * rounds + 2, 2):
            closed = await _closed_loop(roomy.url, _made(seed, int(2 * guess * seconds)), seconds, PEAK_CLIENTS)
            self.peaks.append(closed.good_by_deadline / closed.seconds)
            rate = 2 * statistics.median(self.peaks)
            opened = await _open_loop(small.url, _made(seed + 1, int(rate * seconds)), rate)
            self.goodputs.append(opened.good_by_deadline / opened.seconds)
            self.offered.append(opened)
        self.scores_held = await scores_counted(small.url)

    def finding(self) -> Finding:
        """Return the figure, and whether the goal was met."""
        good, refused = (sum(getattr(one, name) for one in self.offered) for name in ("good", "refused"))
        other = [text for one in self.offered for text in one.other]
        peak, goodput = statistics.median(self.peaks), statistics.median(self.goodputs)
        figure = f"{goodput / peak:.0%} of the peak of {peak * BATCH_SCORES:,.0f} scores a second;"
        figure += f" {good:,} posts got 200, {refused:,} 503 with Retry-After, {len(other)} anything else"
        figure += f" ({other[0]})" if other else ""
        figure += f"; the slowest answer took {max(one.slowest_seconds for one in self.offered):.2f} s;"
        figure += f" {self.scores_held:,} scores held of {good * BATCH_SCORES:,} answered"
        exact = self.scores_held == good * BATCH_SCORES
        return Finding(figure, goodput >= 0.9 * peak and refused > 0 and not other and exact)


def _made(seed: int, number: int) -> list[bytes]:
    """Return batches, made before the clock starts, so that the load costs next to nothing while it runs."""
    batches = Batches(seed)
    return [next(batches) for _ in range(number)]


@campaign("twice the load", "at least 90% of peak goodput, the rest 503 with Retry-After", "queue-unbounded")
def twice_the_load(trial: Trial) -> Finding:
    """Posts of 1,000 scores with ids: so a generator in Python is far from busy while the server is at the limit of its CPU,
    and nothing need be throttled. The peak is what 16 clients get from a server with the usual queue, who post again as soon as
    they are answered. Then posts come to another server, with `--queue-max-scores 8000`, at twice that rate: each at its
    time whether or not others were answered, on as many connections as that takes. Goodput is the scores that got 200 before
    the last post was due. Both in turn, and the medians of the rounds are compared. Every other answer must be 503 with
    Retry-After, there must be some, and the service must hold exactly the scores that got 200.
    """
    rounds, seconds = (2, 2.0) if trial.short else (5, 10.0)
    flags = [f"--queue-max-scores={QUEUE_BATCHES * BATCH_SCORES}", f"--batch-max-scores={BATCH_SCORES}"]
    result = Rounds()
    with Served(part(trial, "roomy")) as roomy, Served(part(trial, "small"), *flags) as small:
        wire.run(result.run(roomy, small, rounds, seconds))
    return result.finding()
