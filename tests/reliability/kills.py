"""Ends of the process and of connections: SIGKILL and SIGTERM under load, and a network that loses what it carries."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from scoremean import Add, Score, Tally, open_store
from scoremean.client import Client
from scoremean.store.embedded.store import LmdbStore
from tests.reliability import broken, wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.ledger import FLAGS, SCORE_MAX, Drive, Ledger, Pair, explain, torn
from tests.reliability.wire import Connection
from tests.support import Server, assert_sound
from tests.test_client import LOSSY_RATE, LossyProxy, post_in_batches, post_one_by_one

KILLS, KILLS_SHORT, KILLS_BROKEN = 240, 6, 40
TERMS, TERMS_SHORT = 50, 3
LOSSY, LOSSY_SHORT = 100_000, 2_000
CONNECTIONS = 32
RUN_MAX_SECONDS = 0.4
KINDS_OF_KILLS = 6  # two of them at a start, two with workers, half of each on either store

# With these limits the load fills the journal every few dozen commits, so that there is nearly always a fold under way.
BUSY_JOURNAL = {
    "FOLD_AT_ENTRIES": 512,
    "BATCH_MAX_ENTRIES": 64,
    "FOLD_SLICE_ENTRIES": 4,
    "SORT_SLICE_ENTRIES": 16,
    "DROP_SLICE_RECORDS": 4,
}
# UUIDs, and how often each has an entry in the journal: so many take a while to be replayed, and 60,000 more make it fold.
REPLAYED, REPLAYED_SHORT = (8_000, 40), (2_000, 5)


class Killed:
    """A store that is served, killed and looked at again and again.

    Attributes:
        found: how many scores, requests and stores were lost, double, torn and damaged; nothing if all is well.
        counts: kills, and how many of them came in a fold or at the start.
    """

    def __init__(self, store: Path, program: list[str], chance: random.Random):
        self._store = store
        self._program = program
        self._chance = chance
        self._start_seconds = 0.5
        self.ledger = Ledger(chance)
        self.found: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def fill(self, uuids: int, times: int) -> None:
        """Give the journal entries, so that a start has something to replay."""
        with LmdbStore(self._store, score_max=SCORE_MAX) as store:
            for _ in range(times):
                store.commit([Add(f"filled-{n}", Tally(1, 1)) for n in range(uuids)])
        self.ledger.known |= {f"filled-{n}": (times, times) for n in range(uuids)}

    def kill(self, *, at_start: bool, workers: int) -> None:
        """Kill it once more, and once before while it starts, and look at what is left each time."""
        try:
            if at_start:
                self._kill_at_start()
            drive = Drive(self.ledger, CONNECTIONS)
            with self._server("--workers", str(workers)) as server:
                wire.run(self._look(server.url))
                wire.run(drive.run(server.url, self._chance.uniform(0, RUN_MAX_SECONDS), server.kill))
            self.found["answered wrongly"] += drive.wrong
            self._look_at_rest()
        except AssertionError as error:  # it does not start, or it is not sound
            print(f"{self._store}: {error}", file=sys.stderr)
            self.found["damaged"] += 1

    def finish(self) -> None:
        """Look at what the last kill left, through a server that then stops."""
        try:
            with self._server() as server:
                wire.run(self._look(server.url))
                server.terminate()
                server.wait()
            assert_sound(self._store)
        except AssertionError as error:
            print(f"{self._store}: {error}", file=sys.stderr)
            self.found["damaged"] += 1

    def _server(self, *flags: str) -> Server:
        return Server(self._store, *FLAGS, *flags, program=self._program)

    def _kill_at_start(self) -> None:
        command = [*self._program, "serve", "--store", str(self._store), "--port", "0", *FLAGS]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            time.sleep(self._start_seconds * self._chance.uniform(0.4, 1))
            process.kill()
            self.counts["at a start"] += not process.stdout.read()
        self.counts["kills"] += 1
        self._look_at_rest()

    def _look_at_rest(self) -> None:
        assert_sound(self._store)
        with LmdbStore(self._store, readonly=True) as store:
            # pylint: disable-next=protected-access  # whether a fold is under way is nobody else's business
            self.counts["in a fold"] += store._journal._older.last > 0

    async def _look(self, url: str) -> None:
        """Compare what is served with what is known, send again what has ids, and compare again."""
        ledger, sent = self.ledger, list(self.ledger.open)
        connection = await Connection.open(url)
        uuids = list(ledger.known.keys() | {uuid for request in sent for uuid in request.changes})
        stored = await wire.tallies(connection, uuids)
        off, counted = explain(ledger, stored, sent)
        self._note("lost", "too many", off)
        self.found["torn"] += torn(counted, off, stored)
        ledger.known.update({uuid: stored[uuid] for uuid in off})
        ledger.ids += sum(request.new_ids for request in counted if not request.ids)
        await self._again(connection)
        stored = await wire.tallies(connection, uuids)
        off, _ = explain(ledger, stored, [request for request in sent if not request.ids])
        self._note("lost", "double", off)
        ledger.known.update(stored)
        ledger.open.clear()
        await self._compare_totals(connection)
        connection.close()

    async def _again(self, connection: Connection) -> None:
        """Send again what has ids: what has no answer yet counts once, and the rest gets its first answer."""
        for request in [request for request in self.ledger.open if request.ids]:
            answer = await connection.ask(request.data)
            if answer.status != 200:
                self.found["answered wrongly"] += 1
            else:
                self.ledger.acknowledge(request, answer)
        for request, first in self.ledger.kept(20):
            answer = await connection.ask(request.data)
            self.found["another answer"] += answer.body != first or not answer.replayed

    async def _compare_totals(self, connection: Connection) -> None:
        totals = (await connection.ask(wire.request("GET", "/stats"))).json()
        self.found["total off"] += totals["scores"] != sum(count for _, count in self.ledger.known.values())
        self.found["ids off"] += totals["ids"] != self.ledger.ids

    def _note(self, fewer: str, more: str, off: Mapping[str, int]) -> None:
        for count in off.values():
            self.found[fewer if count < 0 else more] += abs(count)


def _verdict(found: Counter[str], *always: str) -> str:
    """Return what was found, in words: these kinds always, and others if there are any."""
    return ", ".join(f"{found[kind]} {kind}" for kind in dict.fromkeys([*always, *(kind for kind in found if found[kind])]))


@campaign(
    "kill -9",
    "at least 200 kills, some during fold and replay: 0 acknowledged scores lost, 0 double",
    "answer-before-commit",
    "id-in-second-transaction",
    "fold-drops-journal-first",
)
def kill(trial: Trial) -> Finding:
    """Two stores live from kill to kill: one with the journal as it is, filled so that a start has 320,000 entries to replay;
    and one with a journal so small that a fold is nearly always under way. Each time 32 connections post single scores,
    batches, voids and merges, half of them with ids, until SIGKILL comes at a random moment within 0.4 s. Each third time it
    also comes at a random moment of the start before; another third is with `--workers 2`, of which the process that owns the
    store is killed.

    After each kill the pages are walked and every invariant checked. After each restart every UUID must have all that was
    acknowledged, and of each request without an answer all or nothing; scores are random out of a million, so a sum tells which
    ones it holds. Then all of those with ids are sent again, and some that were answered: each id counts once, gets its first
    answer again, and the totals agree.
    """
    chance, seed = wire.seeded()
    busy = Killed(trial.work / "busy", broken.command(trial.broken, BUSY_JOURNAL), chance)
    plain = Killed(trial.work / "plain", broken.command(trial.broken), chance)
    if trial.broken is None:
        plain.fill(*(REPLAYED_SHORT if trial.short else REPLAYED))
    kills = KILLS_BROKEN if trial.broken else KILLS_SHORT if trial.short else KILLS
    for number in range(kills):
        # A broken build is killed in folds until it is caught, since that is where each of these breaks.
        one = busy if trial.broken or number % 2 == 0 else plain
        special = None if trial.broken else number % KINDS_OF_KILLS
        one.kill(at_start=special in (2, 5), workers=2 if special in (1, 4) else 1)
        one.counts["kills"] += 1
        if number % 20 == 19:
            print(f"  {number + 1} of {kills} kills", file=sys.stderr, flush=True)
        if (busy.found + plain.found) and trial.broken:
            break
    for one in (busy,) if trial.broken else (busy, plain):
        one.finish()
    found, counts = busy.found + plain.found, busy.counts + plain.counts
    if found:
        print(f"  seed {seed}: {dict(found)}", file=sys.stderr)
    figure = f"{_verdict(found, 'lost', 'double')} of {busy.ledger.scores + plain.ledger.scores:,} acknowledged scores"
    moments = f"{counts['kills']} kills, {counts['in a fold']} in a fold, {counts['at a start']} at a start"
    return Finding(f"{figure}; {moments}", not found)


@campaign("SIGTERM during load", "50 times: 0 accepted scores lost, 0 answers cut", "drain-skipped")
def terminate(trial: Trial) -> Finding:
    """32 connections post single scores, batches, voids and merges until SIGTERM comes at a random moment within 0.4 s, and go
    on until they are told 503 or the connection is closed; every second time with `--workers 2`. The exit code must be 0, and
    the store at rest must hold exactly what was answered with 200: no score that was not answered, and none missing. No answer
    may end half way.
    """
    chance, seed = wire.seeded()
    ledger, found = Ledger(chance), Counter()
    times = TERMS_SHORT if trial.short or trial.broken else TERMS
    for number in range(times):
        drive = Drive(ledger, CONNECTIONS)
        flags = (*FLAGS, "--workers", "1" if trial.broken else str(1 + number % 2))
        with Server(trial.work / "store", *flags, program=broken.command(trial.broken)) as server:
            wire.run(drive.run(server.url, chance.uniform(0, RUN_MAX_SECONDS), server.terminate))
            code, messages = server.wait()
        found["exit code not 0"] += code != 0
        found["tracebacks"] += "Traceback" in messages
        found["cut"] += drive.cut
        found["answered wrongly"] += drive.wrong
        assert_sound(trial.work / "store")
        found += _compare_at_rest(trial.work / "store", ledger)
    if +found:
        print(f"  seed {seed}: {dict(found)}", file=sys.stderr)
    figure = f"{_verdict(found, 'lost', 'cut')} of {ledger.scores:,} accepted scores in {times} stops"
    return Finding(figure, not +found)


def _compare_at_rest(path: Path, ledger: Ledger) -> Counter[str]:
    """Compare a store with what was answered, and go on from what it holds."""
    stored: dict[str, Pair] = dict.fromkeys(ledger.known, (0, 0))
    with open_store(path, readonly=True) as store:
        stored |= {uuid: (tally.sum, tally.count) for uuid, tally in store.tallies()}
    off, _ = explain(ledger, stored, [])
    ledger.known.update(stored)
    ledger.open.clear()
    found: Counter[str] = Counter()
    for count in off.values():
        found["lost" if count < 0 else "cut"] += abs(count)  # counted without an answer
    return found


@campaign("lossy network", "100,000 scores with retries: 0 lost, 0 double", "ids-not-looked-up")
def lossy(trial: Trial) -> Finding:
    """scoremean's own client posts through a proxy that hangs up on 5% of connections, and at 5% of the chunks either way cuts
    the connection with none, a part or all of the chunk forwarded, and delays as many. Half of the scores go one by one, half
    in batches of 10; the client sends again, with the same ids, until there is an answer. The tallies must be exactly those of
    the scores.
    """
    chance, seed = wire.seeded()
    count = LOSSY_SHORT if trial.short or trial.broken else LOSSY
    scores = [Score(f"uuid-{chance.randrange(7)}", chance.randrange(6)) for _ in range(count)]
    with Server(trial.work / "store", program=broken.command(trial.broken)) as server:
        losses = wire.run(_post_through_losses(server.url, scores))
        found = _compare_tallies(trial.work / "store", scores)
    if +found:
        print(f"  seed {seed}: {dict(found)}", file=sys.stderr)
    cut = f"{losses['requests cut']:,} requests and {losses['answers cut']:,} answers cut"
    cut = f"{losses['connections dropped']:,} connections dropped, {cut}"
    return Finding(f"{_verdict(found, 'lost', 'double')} of {count:,} scores; {cut}", not +found)


async def _post_through_losses(url: str, scores: list[Score]) -> Counter[str]:
    async with LossyProxy(url, rate=LOSSY_RATE) as proxy, Client(proxy.url, backoff_seconds=0, batch_scores=10) as client:
        await post_one_by_one(client, scores[::2])
        await post_in_batches(client, scores[1::2])
        await asyncio.sleep(0)
    return proxy.counts


def _compare_tallies(path: Path, scores: list[Score]) -> Counter[str]:
    found: Counter[str] = Counter()
    truth: dict[str, Tally] = {}
    for score in scores:
        truth[score.uuid] = truth.get(score.uuid, Tally(0, 0)) + Tally(score.score, 1)
    with open_store(path, readonly=True) as store:
        for uuid, tally in store.tallies():
            off = tally.count - truth[uuid].count or int(tally.sum != truth[uuid].sum)
            found["lost" if off < 0 else "double"] += abs(off)
        found["uuids missing"] += len(truth) - store.stats().uuids
    return found
