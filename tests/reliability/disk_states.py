"""The campaign "crash states": what a store commits is recorded, and every file that a power cut could leave is opened."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NamedTuple

from lmdb.verify import verify

from scoremean import Batch, Forget, Merge, Score, Tally, Void, VoidScore
from scoremean.store.base import Change, Outcome
from scoremean.store.embedded import journal
from scoremean.store.embedded.files import DATA_FILE, LOCK_FILE
from scoremean.store.embedded.store import LmdbStore
from tests.reliability.broken import BROKEN
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.disk_recording import Call, State, crash_states, record
from tests.support import SMALL_JOURNAL, Oracle, plain

REPOSITORY = Path(__file__).parents[2]
STATES_GOAL = 10_000
SEED = 1
PROCESSES = 2

# Half of the batches run under these: journal records longer than a page, and slices that are more than one UUID.
MEDIUM_JOURNAL = {
    "FOLD_AT_ENTRIES": 64,
    "BATCH_MAX_ENTRIES": 32,
    "FOLD_SLICE_ENTRIES": 4,
    "SORT_SLICE_ENTRIES": 8,
    "DROP_SLICE_RECORDS": 2,
}

# Long ones among them, so that few of them make a tree with branches.
UUIDS = [f"u{n}" + "-" * (n % 3 * 100) for n in range(24)]
# Ids expire during the run, a table at a time; only ids of the last batches are used again.
BATCH_SECONDS = 60
RETENTION_BATCHES = 30
RECENT_BATCHES = 10

WHOLE, LOST, DAMAGED = "whole", "lost", "damaged"
STATE_MAX_SECONDS = 20
CHUNK_STATES = 32
THOROUGH_EVERY = 8

_COMMIT = """
import sys
from tests.reliability.disk_states import commit_all
commit_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


class Verdict(NamedTuple):
    """What became of one state: WHOLE, LOST or DAMAGED, and why."""

    outcome: str
    why: str = ""


class Expected(NamedTuple):
    """What a store must hold after a number of batches.

    Attributes:
        tallies: every UUID with its tally.
        replays: scores with ids that were counted lately, and what posting them again must give.
    """

    tallies: dict[str, Tally]
    replays: dict[Score, Outcome]


class Batches:
    """Random batches of every kind of change, the same ones for the same seed."""

    def __init__(self, seed: int):
        self._chance = Random(seed)
        self._number = 0
        self._ids: list[tuple[int, Score]] = []

    @property
    def recent(self) -> list[Score]:
        """The scores with an id that were counted in the last batches."""
        return [score for number, score in self._ids if number > self._number - RECENT_BATCHES]

    def next(self) -> list[Change]:
        """Return the next batch."""
        self._number += 1
        batch = [self._change(f"{self._number}-{place}") for place in range(self._chance.choice((0, 1, 1, 2, 3, 6)))]
        if self._chance.random() < 0.2:
            batch += [Score(uuid, self._chance.randrange(6)) for uuid in self._chance.sample(UUIDS, 20)]
        return batch

    def _change(self, name: str) -> Change:
        pick, recent = self._chance.random(), self.recent
        if pick < 0.4:
            return self._score()
        if pick < 0.5:
            return Score(f"new-{name}-".ljust(self._chance.choice((20, 200)), "."), 3)
        if pick < 0.7 or not recent:
            return self._score(f"id-{name}")
        if pick < 0.8:
            return Batch([self._score(f"id-{name}-{n}" if n % 2 else None) for n in range(4)], skip=pick < 0.75)
        return self._again_or_out(pick, self._chance.choice(recent), f"void-{name}")

    def _again_or_out(self, pick: float, recent: Score, name: str) -> Change:
        """Return what takes a recent score or a UUID out, or the score again."""
        if pick < 0.9:
            return Void(recent.id) if pick < 0.85 else VoidScore(Score(recent.uuid, recent.score, name))
        if pick < 0.95:
            return Merge(*self._chance.sample(UUIDS, 2)) if pick < 0.925 else Forget(self._chance.choice(UUIDS))
        return recent

    def _score(self, name: str | None = None) -> Score:
        score = Score(self._chance.choice(UUIDS), self._chance.randrange(6), name)
        if name is not None:
            self._ids.append((self._number, score))
        return score


def expectations(seed: int, count: int) -> list[Expected]:
    """Return what must be there after 0, 1, ... `count` batches."""
    batches, oracle = Batches(seed), Oracle()
    expected = [Expected({}, {})]
    for _ in range(count):
        for change in batches.next():
            oracle.apply(change)
        # Posting a counted id again changes nothing, for the oracle too.
        replays = {score: oracle.apply(score) for score in batches.recent}
        expected.append(Expected({uuid: oracle.tally(uuid) for uuid in oracle.uuids()}, replays))
    return expected


def commit_all(path: str, marker_file: str, count: int) -> None:
    """Commit the batches to a new store, and write to the marker file how many are acknowledged. What is recorded."""
    marker = os.open(marker_file, os.O_WRONLY | os.O_CREAT)
    batches, done = Batches(SEED), 0
    vars(journal).update(SMALL_JOURNAL)
    with _open(Path(path), lambda: done * BATCH_SECONDS) as store:
        while done < count:
            if done == count // 2:
                vars(journal).update(MEDIUM_JOURNAL)
            store.commit(batches.next())
            done += 1
            os.write(marker, str(done).encode())


def _open(path: Path, clock) -> LmdbStore:
    return LmdbStore(path, id_retention_seconds=RETENTION_BATCHES * BATCH_SECONDS, clock=clock)


class _Judge:
    """Opens states as a start after the power cut would, each in a directory of its own."""

    def __init__(self, directory: Path, expected: Sequence[Expected]):
        self._path = directory / "store"
        self._expected = expected

    def judge(self, state: State, thorough: bool) -> Verdict:
        """Say what became of `state`.

        Args:
            thorough: also go on with the store for a while, and have its pages verified.
        """
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir()
        (self._path / DATA_FILE).write_bytes(state.image)
        (self._path / LOCK_FILE).write_text("1 before-the-power-cut\n")
        try:
            with _open(self._path, lambda: state.acknowledged * BATCH_SECONDS) as store:
                verdict = self._compare(store, state.acknowledged)
                if thorough and verdict.outcome == WHOLE:
                    verdict = _go_on(store)
            if thorough and verdict.outcome == WHOLE and (findings := verify(str(self._path))):
                return Verdict(DAMAGED, f"verify: {findings[0]}")
        except Exception as error:  # pylint: disable=broad-exception-caught  # whatever a damaged file leads to
            return Verdict(DAMAGED, repr(error))
        return verdict

    def _compare(self, store: LmdbStore, acknowledged: int) -> Verdict:
        """Compare the store with the batches acknowledged, and with these and the one under way."""
        if damages := store.check():
            return Verdict(DAMAGED, damages[0])
        tallies = dict(store.tallies())
        alike = [one for one in self._expected[acknowledged : acknowledged + 2] if one.tallies == tallies]
        if not alike:
            return Verdict(LOST, f"{acknowledged} batches were acknowledged, and the tallies are others")
        scores = list(alike[0].replays)
        outcomes = dict(zip(scores, map(plain, store.commit(scores))))
        if not any(all(one.replays.get(score, outcome) == outcome for score, outcome in outcomes.items()) for one in alike):
            return Verdict(LOST, f"{acknowledged} batches were acknowledged, and their ids are not known")
        return Verdict(WHOLE)


def _go_on(store: LmdbStore) -> Verdict:
    """Commit more, so that pages are used again and the journal turns; everything must add up."""
    truth = dict(store.tallies())
    for n in range(3 * SMALL_JOURNAL["FOLD_AT_ENTRIES"]):
        batch = [Score(UUIDS[n % 5], n % 6), Score(f"after-{n}", 1)]
        store.commit(batch)
        for score in batch:
            truth[score.uuid] = truth.get(score.uuid, Tally(0, 0)) + Tally(score.score, 1)
    if damages := store.check():
        return Verdict(DAMAGED, f"after more commits: {damages[0]}")
    return Verdict(WHOLE) if dict(store.tallies()) == truth else Verdict(LOST, "after more commits the tallies are others")


def _judge_share(calls: Sequence[Call], expected: Sequence[Expected], tries: int, share: int) -> Counter[Verdict]:
    """Judge each PROCESSES-th state, beginning with number `share`."""
    vars(journal).update(SMALL_JOURNAL)
    logging.disable()  # each open says that it checks the store
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verdicts: Counter[Verdict] = Counter()
    with tempfile.TemporaryDirectory(dir=_memory()) as directory:
        judge = _Judge(Path(directory), expected)
        states = islice(crash_states(calls, Random(SEED), tries), share, None, PROCESSES)
        while chunk := list(islice(states, CHUNK_STATES)):
            verdicts.update(_survived(judge, chunk))
    return verdicts


def _survived(judge: _Judge, states: list[State]) -> Iterator[Verdict]:
    """Yield the verdict on each state, from processes of their own: a damaged file may kill the one that opens it."""
    while states:
        verdicts, signal_number = _judge_in_child(judge, states)
        yield from verdicts
        states = states[len(verdicts) :]
        if states:
            yield Verdict(DAMAGED, f"the process that opened it ended with {signal.Signals(signal_number).name}")
            states = states[1:]


def _judge_in_child(judge: _Judge, states: Sequence[State]) -> tuple[list[Verdict], int]:
    """Return the verdicts that a child came to, and the signal that ended it."""
    readable, writable = os.pipe()
    if not (child := os.fork()):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # LMDB's last words, when it aborts
            faulthandler.disable()  # pytest's, which has another descriptor
            for number, state in enumerate(states):
                signal.setitimer(signal.ITIMER_REAL, STATE_MAX_SECONDS)  # what it sends ends the process
                verdict = judge.judge(state, number % THOROUGH_EVERY == 0)
                os.write(writable, json.dumps(verdict).encode() + b"\n")
        finally:
            os._exit(0)  # pylint: disable=protected-access  # the way a forked process ends
    os.close(writable)
    with open(readable, "rb") as lines:
        verdicts = [Verdict(*json.loads(line)) for line in lines]
    return verdicts, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1


def _memory() -> str | None:
    """Return a directory in memory: what is tested are the calls, not a disk. None where there is none, for any other."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _record(count: int, broken: str | None) -> list[Call]:
    source = f"{BROKEN[broken].source}\n{_COMMIT}" if broken else _COMMIT
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        directory = Path(name).resolve()
        store, marker = directory / "store", directory / "marker"
        command = [sys.executable, "-c", source, str(store), str(marker), str(count)]
        return record(command, store / DATA_FILE, marker, REPOSITORY)


@campaign(
    "crash states",
    f"at least {STATES_GOAL:,} states, 0 lost, 0 damaged",
    "sync-off",
    "metasync-off",
    "fold-drops-journal-first",
)
def states_of_crashes(trial: Trial) -> Finding:
    """A program commits random batches of every kind of change to a new store whose journal is folded all the time. strace
    records each write and sync with its bytes, and where between them a batch was acknowledged. Then a power cut is played
    during and after each call: what was not synced is missing, there, or there in random pages or sectors of 512 bytes, and the
    last write is torn. Each file that this leaves is opened and checked. It must hold every acknowledged batch, and the one
    under way whole or not at all; an acknowledged id must be known. One in eight is then written on, and its pages verified."""
    count, tries = (60, 2) if trial.short else (450, 3)
    calls = _record(count, trial.broken)
    expected = expectations(SEED, count)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("fork")) as pool:
        shares = [pool.submit(_judge_share, calls, expected, tries, share) for share in range(PROCESSES)]
        verdicts = sum((share.result() for share in shares), Counter())
    by_outcome = Counter[str]()
    for verdict, number in verdicts.items():
        by_outcome[verdict.outcome] += number
    for verdict, number in verdicts.most_common(10):
        if verdict.outcome != WHOLE:
            print(f"{number} states {verdict.outcome}: {verdict.why}", file=sys.stderr)
    states = verdicts.total()
    figure = f"{states:,} states, {by_outcome[LOST]:,} lost, {by_outcome[DAMAGED]:,} damaged"
    return Finding(figure, by_outcome[WHOLE] == states and (trial.short or states >= STATES_GOAL))
