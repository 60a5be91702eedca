"""The journal: folded in slices, read as one with `means` by everyone, and killed at every step of it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from unittest.mock import patch

import lmdb
import pytest

from scoremean import Add, Forget, Merge, Replay, Score, Tally, Void, VoidScore, open_store
from scoremean.errors import StoreFull
from scoremean.store.embedded import journal
from scoremean.store.embedded.journal import IN_MEANS, Journal
from scoremean.store.embedded.store import LmdbStore
from tests.support import SMALL_JOURNAL, Oracle, assert_sound, plain

READER = """
import json, sys
from scoremean import open_store
with open_store(sys.argv[1], readonly=True) as store:
    for line in sys.stdin:
        listed = dict(store.scan(None, 1000).tallies)
        assert listed == dict(store.tallies()) and not store.check()
        assert list(listed.values()) == store.get(list(listed))
        print(json.dumps([store.stats().scores, {u: (t.sum, t.count) for u, t in listed.items()}]), flush=True)
"""

# Commits one score after the other, and dies right after, or right before, the n-th call of a method of Journal.
DYING = """
import os, signal, sys
from unittest.mock import patch
from scoremean import Score
from scoremean.store.embedded.journal import Journal
from scoremean.store.embedded.store import LmdbStore

path, name, when, number = sys.argv[1:]
method, calls = getattr(Journal, name), 0

def dying(*args, **options):
    global calls
    calls += 1
    if when == "before" and calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    result = method(*args, **options)
    if when == "after" and calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

patch.multiple("scoremean.store.embedded.journal", **LIMITS).start()
patch.object(Journal, name, dying).start()
with LmdbStore(path) as store:
    n = store.stats().scores
    while True:
        store.commit([Score(f"u{n * 7 % 5}", n % 6, f"id-{n}")])
        n += 1
        print(n, flush=True)
""".replace("LIMITS", repr(SMALL_JOURNAL))


@pytest.fixture(name="small", autouse=True)
def fixture_small() -> Iterator[None]:
    """A journal that a few commits fill."""
    with patch.multiple(journal, **SMALL_JOURNAL):
        yield


def test_a_reading_process_sees_every_commit_whole(tmp_path):
    """Asked after random commits, some of them several turns of the tables apart, it tells what the oracle tells."""
    chance, oracle = random.Random(7), Oracle()
    with LmdbStore(tmp_path) as store:
        command = [sys.executable, "-c", READER, tmp_path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            for _ in range(150):
                for _ in range(chance.choice((0, 1, 1, 2, 40))):
                    names = (f"id-{chance.randrange(400)}", None, None)
                    batch = [
                        Score(chance.choice("abcdefgh"), chance.randrange(6), chance.choice(names))
                        for _ in range(chance.randrange(6))
                    ]
                    batch += [Void(f"id-{chance.randrange(400)}")] * chance.choice((0, 0, 1))
                    batch += [Forget(chance.choice("abcdefgh"))] * chance.choice((0, 0, 0, 1))
                    void = Score(chance.choice("abcdefgh"), chance.randrange(6), f"id-{chance.randrange(400)}")
                    batch += [VoidScore(void)] * chance.choice((0, 0, 1, 2))
                    batch += [Merge(*chance.sample("abcdefgh", 2))] * chance.choice((0, 0, 0, 1))
                    assert [plain(one) for one in store.commit(batch)] == [oracle.apply(change) for change in batch]
                print(file=reader.stdin, flush=True)
                scores, tallies = json.loads(reader.stdout.readline())
                truth = {uuid: [oracle.tally(uuid).sum, oracle.tally(uuid).count] for uuid in oracle.uuids()}
                assert (scores, tallies) == (sum(count for _, count in truth.values()), truth)
            reader.stdin.close()
            assert reader.wait() == 0
    assert_sound(tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["read", "turn", "fold", "append", "settle"])
def test_a_kill_at_any_step_loses_nothing(tmp_path, name, when):
    """Again and again on one store: the scores acknowledged are there, and at most the one under way besides."""
    for number in (1,) if name == "read" else (1, 2, 5, 11, 17, 26):
        done = subprocess.run(
            [sys.executable, "-c", DYING, tmp_path, name, when, str(number)], capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        acknowledged = int(done.stdout.split()[-1]) if done.stdout else 0
        with open_store(tmp_path, readonly=True) as store:
            scores = store.stats().scores
            assert scores >= acknowledged
            assert not done.stdout or scores <= acknowledged + 1
            truth = Oracle()
            for n in range(scores):
                truth.apply(Score(f"u{n * 7 % 5}", n % 6))
            assert dict(store.tallies()) == {uuid: truth.tally(uuid) for uuid in truth.uuids()}
        assert_sound(tmp_path)
    with open_store(tmp_path) as store:
        assert store.stats().ids == scores
        again = store.commit([Score(f"u{n * 7 % 5}", n % 6, f"id-{n}") for n in range(scores)])
        assert all(isinstance(outcome, Replay) for outcome in again)


def test_the_journal_stays_small(tmp_path):
    """However many commits: its records are folded and dropped, and memory holds no more than two tables of them."""
    with LmdbStore(tmp_path) as store:
        store.commit([Add(f"u{n}", Tally(0, 1)) for n in range(100)])
        for n in range(2000):
            store.commit([Score(f"u{n % 100}", 1)])
            assert len(store._journal.all()) <= 2 * SMALL_JOURNAL["FOLD_AT_ENTRIES"]  # pylint: disable=protected-access
        assert dict(store.tallies()) == {f"u{n}": Tally(20, 21) for n in range(100)}
        with store._snapshot() as txn:  # pylint: disable=protected-access  # how many records is nobody else's business
            tables = store._tables.journals  # pylint: disable=protected-access
            assert sum(txn.stat(table)["entries"] for table in tables) <= 4 * SMALL_JOURNAL["FOLD_AT_ENTRIES"]


def test_a_batch_without_room_goes_in_place(tmp_path):
    """It overrides what the journal says of its UUIDs, before and after a restart, and in a fold."""
    uuids = [f"u{n}" for n in range(SMALL_JOURNAL["BATCH_MAX_ENTRIES"] + 1)]
    with LmdbStore(tmp_path) as store:
        store.commit([Score(uuid, 1) for uuid in uuids])
        for expected in range(2, 40, 2):
            store.commit([Score(uuids[0], 1)])
            assert set(store.commit([Score(uuid, 1) for uuid in uuids])[1:]) == {Tally(1 + expected // 2, 1 + expected // 2)}
            assert store.get(uuids[:1]) == [Tally(expected + 1, expected + 1)]
    with LmdbStore(tmp_path) as store:
        assert store.get(uuids[:1]) == [Tally(39, 39)]
        assert not store.check()


def test_a_full_store_is_not_made_fuller_by_a_fold(tmp_path, monkeypatch):
    """A batch that fits without the slice of a fold is counted."""
    fold = Journal.fold

    def greedy(self, txn):
        if fold(self, txn):
            raise lmdb.MapFullError("as if the slice had taken the last page")

    with LmdbStore(tmp_path, size_max_bytes=1 << 18) as store:
        store.commit([Score("a", 1), Score("b", 1)])
        monkeypatch.setattr(Journal, "fold", greedy)
        for n in range(2, 100):
            assert store.commit([Score("a", 1), Score("b", 0)]) == [Tally(n, n), Tally(1, n)]
        monkeypatch.undo()
        with pytest.raises(StoreFull):
            store.commit([Score(f"{n:0200}", 1) for n in range(5000)])
        assert store.commit([Score("a", 1)]) == [Tally(100, 100)]
    assert_sound(tmp_path)


def test_a_forgotten_uuid_does_not_come_back_with_a_fold(tmp_path):
    """Forgotten in the very commit whose slice folds it."""
    with LmdbStore(tmp_path) as store:
        for _ in range(30):
            for _ in range(6):
                store.commit([Score("a", 1), Score("b", 1)])
            store.commit([Forget("a")])
            assert store.get(["a"]) == [None]
            assert not store.check()
        assert IN_MEANS.count == 0
