"""A wall clock that jumps: under the store, whose ids expire by it, and under a whole server."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path
from random import Random
from typing import NamedTuple

from scoremean import Replay, Score, Tally
from scoremean.store.embedded.store import LmdbStore
from tests.benchmarks.data import ROOT
from tests.reliability import wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.guests import Served, broken_source, part, scores_counted
from tests.support import assert_sound

RETENTION_SECONDS = 100


@dataclass
class Known:
    """An id that was counted: its score, the first answer, the commit that it was in and what the clock showed then."""

    score: Score
    first: Tally
    commit: int
    clock: int


class Jumps:
    """Scores with ids and their retries, into a store whose clock jumps; and the plain truth beside it.

    What is promised of an id, however the clock jumps: it is kept until the clock has shown a time that is the retention
    after the one at which it was counted.
    """

    def __init__(self, path: Path, seed: int):
        self._path = path
        self._random = Random(seed)
        self._now = 1_700_000_000
        self._clocks: list[int] = []
        self._known: deque[Known] = deque(maxlen=300)
        self._tallies: dict[str, Tally] = {}
        self._ids = count()
        self.retries = self.promised = self.expired = self.jumps = 0
        self.wrong: list[str] = []

    def run(self, commits: int) -> None:
        """Make so many commits; now and then the store is opened anew."""
        left = commits
        while left > 0:
            with LmdbStore(self._path, id_retention_seconds=RETENTION_SECONDS, clock=lambda: self._now) as store:
                for _ in range(some := min(left, self._random.randrange(1, 400))):
                    self._move()
                    self._commit(store)
                left -= some
                if store.get(list(self._tallies)) != list(self._tallies.values()):
                    self.wrong.append("a tally is not what was answered")
        assert_sound(self._path)

    def _move(self) -> None:
        """Let the clock go on, or jump: a little, by more than the retention, to the epoch, or to a far future."""
        random = self._random
        if random.random() < 0.9:
            self._now += random.randrange(3)
            return
        self.jumps += 1
        far = (0, 1, 4_000_000_000, 1_700_000_000)
        span = random.choice((10, RETENTION_SECONDS, 3 * RETENTION_SECONDS, 10**7))
        self._now = random.choice(far) if random.random() < 0.02 else max(0, self._now + random.randint(-span, span))

    def _commit(self, store: LmdbStore) -> None:
        random = self._random
        self._clocks.append(self._now)
        chosen: list[Known | Score] = []
        for _ in range(random.randrange(1, 8)):
            if self._known and random.random() < 0.5:
                chosen.append(random.choice(self._known))
            else:
                chosen.append(Score(f"user-{random.randrange(50)}", random.randrange(6), f"id-{next(self._ids)}"))
        outcomes = store.commit([one.score if isinstance(one, Known) else one for one in chosen])
        for one, outcome in zip(chosen, outcomes, strict=True):
            self._judge(one, outcome)

    def _judge(self, one: Known | Score, outcome: object) -> None:
        if isinstance(one, Score):
            self._known.append(Known(one, self._count(one, outcome), len(self._clocks) - 1, self._now))
            return
        self.retries += 1
        promised = max(self._clocks[one.commit :]) < one.clock + RETENTION_SECONDS
        self.promised += promised
        if isinstance(outcome, Replay):
            if outcome != Replay(one.first.sum, one.first.count):
                self.wrong.append(f"{one.score} was replayed with {outcome}, not {one.first}")
            return
        if promised:
            self.wrong.append(f"{one.score} was counted twice within the retention")
        self.expired += 1
        one.first, one.commit, one.clock = self._count(one.score, outcome), len(self._clocks) - 1, self._now

    def _count(self, score: Score, outcome: object) -> Tally:
        tally = self._tallies[score.uuid] = self._tallies.get(score.uuid, Tally(0, 0)) + Tally(score.score, 1)
        if type(outcome) is not Tally or outcome != tally:  # pylint: disable=unidiomatic-typecheck  # a Replay is a Tally too
            self.wrong.append(f"{score} was answered {outcome}, not {tally}")
        return tally


def jump(path: str, commits: str) -> None:
    """Run Jumps and print what came of it as JSON, for a process of its own."""
    jumps = Jumps(Path(path), 5)
    jumps.run(int(commits))
    names = ("jumps", "retries", "promised", "expired", "wrong")
    print(json.dumps({name: getattr(jumps, name) for name in names}))


# Offsets of the wall clock in hours, one after the other for a fifth of a second each. The first ones span less than the
# 168 hours that ids are kept, so not one may count twice; the others go from 1970 to the next century.
NEAR_HOURS = (0, 80, -80, 1, -1, 40, -79, 79)
FAR_HOURS = (0, 24 * 400, -24 * 400, 24 * 365 * 80, -24 * 365 * 50, 1, -1)

_JUMPING = """
import time
_time, _monotonic, _offsets = time.time, time.monotonic, {hours}
time.time = lambda: max(0.0, _time() + 3600 * _offsets[int(_monotonic() * 5) % len(_offsets)])
"""


class Posted(NamedTuple):
    """What became of scores with ids, each of which was posted twice, and the years of the Date header.

    `twice` of them counted both times. `well` if the service holds what it answered, stops with 0, and logs no bug.
    """

    posts: int
    twice: int
    years: set[int]
    well: bool


class Poster:
    """Posts scores with ids over one connection.

    Attributes:
        replayed: how many posts were answered as the first time (True), and how many counted (False).
        years: those in the Date header of the answers.
    """

    def __init__(self, connection: wire.Connection):
        self._connection = connection
        self.replayed: Counter[bool] = Counter()
        self.years: set[int] = set()

    async def post(self, raw: bytes) -> None:
        """Post one."""
        async with asyncio.timeout(10):
            answer = await self._connection.ask(raw)
        if answer.status != 200:
            raise RuntimeError(f"a post was answered {answer}")
        self.replayed[answer.replayed] += 1
        self.years.add(parsedate_to_datetime(re.search(rb"\r\nDate: ([^\r]+)", answer.head)[1].decode()).year)


async def _post_twice(url: str, seconds: float) -> tuple[Poster, int, int]:
    """Post scores with ids for so long, each again 100 posts later; return the Poster, how many scores were, and are held."""
    connection = await wire.Connection.open(url)
    poster = Poster(connection)
    waiting: deque[bytes] = deque()
    deadline = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < deadline:
        number += 1
        raw = wire.post(wire.members(f"user-{number % 9}", number % 6, f"id-{number}"))
        await poster.post(raw)
        waiting.append(raw)
        if len(waiting) > 100:
            await poster.post(waiting.popleft())
    for raw in waiting:
        await poster.post(raw)
    connection.close(abort=True)
    return poster, number, await scores_counted(url)


def _jump_server(trial: Trial, hours: Sequence[int], seconds: float) -> Posted:
    """Serve with a wall clock that jumps and post to it."""
    with Served(part(trial, f"server-{len(hours)}"), source=_JUMPING.format(hours=hours)) as server:
        poster, scores, held = wire.run(_post_twice(server.url, seconds))
        counted = poster.replayed[False]
        well = server.stop() == 0 and held == counted and "a bug" not in server.log()
    assert_sound(server.store)
    return Posted(poster.replayed.total(), counted - scores, poster.years, well)


@campaign("clock jumps", "no id counts twice while it is promised to be kept, and nothing else notices", "clock-back-expires")
def clock_jumps(trial: Trial) -> Finding:
    """A store gets 20,000 commits (1,000) of scores with ids and of retries of the last 300, while its clock jumps one time in
    ten: within the retention, past it, by months, to 1970 and to 2096; it is opened anew now and then. Whatever the jumps, a
    retry must be replayed with the first answer until the clock has shown the retention past the time of the first one, every
    answer must be exact, and the store sound. Then a server has a wall clock (`time.time`) that jumps five times a second: with
    jumps that stay within the retention no retry may count; with jumps over a century it must go on answering with a valid
    Date, and hold exactly what it says was counted.
    """
    commits, seconds = (1000, 3.0) if trial.short else (20_000, 20.0)
    source = broken_source(trial) + "import sys\nfrom tests.reliability.clock import jump\njump(*sys.argv[1:])\n"
    command = [sys.executable, "-c", source, str(trial.work / "jumps"), str(commits)]
    found = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    near, far = (_jump_server(trial, hours, seconds) for hours in (NEAR_HOURS, FAR_HOURS))
    figure = f"{found['jumps']:,} jumps, {found['retries']:,} retries, of which {found['promised']:,} had to be replayed:"
    figure += f" {len(found['wrong'])} wrong{' (' + found['wrong'][0] + ')' if found['wrong'] else ''};"
    figure += f" {near.posts:,} posts to a server within the retention, {near.twice} of them counted twice,"
    figure += f" and {far.posts:,} from {min(far.years)} to {max(far.years)}: {'all exact' if far.well else 'not exact'}"
    return Finding(figure, not found["wrong"] and near.well and far.well and not near.twice)
