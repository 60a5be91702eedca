"""What is left of a forgotten UUID: nothing in a compact copy, after as many commits as are promised."""
# pylint: disable=protected-access  # what lies in the tables is looked at beside the store

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scoremean import Add, Forget, Replay, Score, Tally, Void, open_store
from scoremean.errors import UnknownId
from scoremean.store.embedded import erasure, journal
from scoremean.store.embedded import format as codec
from scoremean.store.embedded import store as lmdb_module
from scoremean.store.embedded.store import LmdbStore
from tests.support import LONG, SMALL_JOURNAL, assert_sound

COMMITS_MAX = 1000


def copied(store: LmdbStore) -> bytes:
    """Return the bytes of a compact copy, as a backup is one."""
    with tempfile.TemporaryFile() as file:
        store.copy_to(file.fileno())
        return os.pread(file.fileno(), 1 << 30, 0)


def erasing(store: LmdbStore) -> bool:
    """Return whether anything is left to erase."""
    return store._erasure.due


def journal_of_a_reader(store: LmdbStore) -> journal.Journal:
    """Return a journal as another process has it, which has read nothing yet."""
    tables = store._tables
    return journal.Journal(tables.journals, tables.meta, tables.means, tables.ids)


def settle(store: LmdbStore, commits: int = COMMITS_MAX) -> None:
    """Commit until nothing is left to erase, at most so often."""
    for _ in range(commits):
        if not erasing(store):
            return
        store.commit([])
    raise AssertionError("there is still something to erase")


@contextmanager
def without_pauses():
    """Let the slices that go over ids follow each other at once."""
    with patch.object(erasure, "IDS_REST_SECONDS", 0):
        yield


def names(count: int, width: int = 24) -> list[str]:
    """Return UUIDs that are told from each other by all of their bytes."""
    return [f"person-{number * 7919 % count:0{width}}-end" for number in range(count)]


@pytest.mark.parametrize("uuids", [30, 3000, 40_000])
def test_no_compact_copy_has_the_text(tmp_path, uuids):
    """Not of the tally, not of records, not of ids, not of separators of any level: every seventh of many is forgotten."""
    every = names(uuids)
    forgotten = every[::7][:2000]
    with without_pauses(), LmdbStore(tmp_path) as store:
        for start in range(0, uuids, 1000):
            store.commit([Score(uuid, 5, f"id-{uuid[-14:]}") for uuid in every[start : start + 1000]])
        for start in range(0, uuids, 64):  # records of a page of their own
            store.commit([Score(uuid, 3) for uuid in every[start : start + 64]])
        assert all(uuid.encode() in copied(store) for uuid in forgotten[:3])
        for start in range(0, len(forgotten), 100):
            store.commit([Forget(uuid) for uuid in forgotten[start : start + 100]])
        settle(store)
        copy = copied(store)
        assert [uuid for uuid in forgotten if uuid.encode() in copy] == []
        kept = sorted(set(every) - set(forgotten))
        assert store.get(kept) == [Tally(8, 2)] * len(kept)
        assert not store.check()
    assert_sound(tmp_path)


def test_within_the_commits_that_are_promised_with_a_full_journal(tmp_path):
    """A journal that is as long as it may be, of records of one score each, is gone through in time."""
    with LmdbStore(tmp_path) as store:
        store.commit([Score(f"u{number}", 1) for number in range(1000)])
        store.commit([Score("forget-me", 5, "an-id"), Score("other", 1)])
        for number in range(3000):
            store.submit([Score(f"u{number % 1000}", number % 6), Score("forget-me", 2)])
        store.commit([Forget("forget-me")])
        with patch.object(erasure, "SLICE_ENTRIES", 16):  # as many slices as a full journal has of whole ones
            for _ in range(COMMITS_MAX):
                store.commit([Score("other", 1)])
        assert b"forget-me" not in copied(store)


def test_it_goes_on_after_a_restart(tmp_path):
    """What is left to do is kept in the store; and a retry finds its first answer all the same."""
    with LmdbStore(tmp_path) as store:
        store.commit([Score("forget-me", 5, "id-1"), Score("forget-me", 4, "id-2"), Void("id-2"), Score("b", 1)])
        store.commit([Forget("forget-me")])
    with without_pauses(), LmdbStore(tmp_path) as store:
        settle(store)
        assert b"forget-me" not in copied(store)
        assert store.commit([Score("forget-me", 5, "id-1")]) == [Replay(5, 1)]
        assert isinstance(store.commit([Void("id-1")])[0], UnknownId)
        assert not store.check()


def test_a_uuid_without_a_score_left_is_erased_too(tmp_path):
    """Its only score was voided: the record of the id has its text still."""
    with without_pauses(), LmdbStore(tmp_path) as store:
        store.commit([Score("forget-me", 5, "id-1"), Void("id-1")])
        store.commit([Forget("forget-me")])
        settle(store)
        assert b"forget-me" not in copied(store)


def test_who_comes_back_is_kept(tmp_path):
    """A new score of a UUID that is being erased is one like any other, and so is its id."""
    with without_pauses(), LmdbStore(tmp_path) as store:
        store.commit([Score("a", 5, "id-1"), Score("a", 3)])
        store.commit([Score("a", 1)])
        store.commit([Forget("a")])
        store.commit([Score("a", 2, "id-2")])
        store.commit([Score("a", 4)])
        settle(store)
        assert store.get(["a"]) == [Tally(6, 2)]
        assert store.commit([Void("id-2")])[0].tally == Tally(4, 1)
        assert not store.check()


def test_a_reader_that_was_not_asked_meanwhile_knows(tmp_path):
    """It has read the records before, and not the one that told of the forgetting, which is erased."""
    with LmdbStore(tmp_path) as store:
        store.commit([Score("a", 5), Score("b", 1)])
        store.commit([Score("a", 4)])
        journal_of_reader = journal_of_a_reader(store)
        with store._env.begin() as txn:
            assert journal_of_reader.read(txn)
        assert journal_of_reader.get("a") == Tally(9, 2)
        store.commit([Forget("a")])
        settle(store)
        store.commit([Score("b", 1)])
        with store._env.begin() as txn:
            assert journal_of_reader.read(txn)
        assert journal_of_reader.get("a") is None
        assert journal_of_reader.get("b") == Tally(2, 2)


def read_by(reader: journal.Journal, store: LmdbStore, uuid: str) -> Tally | None:
    """Return what another process reads of a UUID, once it has read on in the journal."""
    with store._env.begin() as txn:
        assert reader.read(txn)
        value = txn.get(uuid.encode(), db=store._tables.means)
        return reader.get(uuid) or value and codec.unpack_tally(value)


@pytest.mark.parametrize("slices", range(4))
def test_who_comes_back_and_is_forgotten_again_in_between_slices_stays_gone(tmp_path, slices):
    """The entry that takes back an older one is not erased before it: the old tally would be there again, and count on."""
    with patch.object(erasure, "SLICE_ENTRIES", 1), LmdbStore(tmp_path) as store:
        store.commit([Score("a", 5)])
        store.commit([Score("a", 4)])
        store.commit([Forget("a"), Score("a", 3)])
        for _ in range(slices):
            store.commit([])
        store.commit([Forget("a")])
        while erasing(store):
            assert not store.check()
            assert read_by(journal_of_a_reader(store), store, "a") is None
            store.commit([])


def test_an_older_record_that_is_erased_later_does_not_hide_a_newer_one(tmp_path):
    """A reader that lags behind the newest of them reads all again, whichever was the last."""
    with LmdbStore(tmp_path) as store:
        for uuid in ("a", "b"):
            store.commit([Score(uuid, 5)])
            store.commit([Score(uuid, 4)])
        store.commit([Forget("a"), Score("a", 1)])
        reader = journal_of_a_reader(store)
        assert read_by(reader, store, "b") == Tally(9, 2)
        store.commit([Forget("b")])
        settle(store)
        store.commit([Forget("a")])  # whose entry "in means" is older than that of the other one
        settle(store)
        assert [read_by(reader, store, uuid) for uuid in ("a", "b")] == [None, None]


def test_a_reader_that_reads_all_again_in_parts_begins_anew_when_more_is_erased(tmp_path):
    """What it has read so far may be taken back by what is erased meanwhile."""
    with LmdbStore(tmp_path) as store:
        for uuid in ("a", "b"):
            store.commit([Score(uuid, 5)])
            store.commit([Score(uuid, 4)])
        store.commit([Forget("a"), Score("a", 1)])
        reader = journal_of_a_reader(store)
        assert read_by(reader, store, "b") == Tally(9, 2)
        store.commit([Forget("b")])
        settle(store)
        with store._env.begin() as txn:
            assert not reader.read(txn, 3)
        store.commit([Forget("a")])
        settle(store)
        assert [read_by(reader, store, uuid) for uuid in ("a", "b")] == [None, None]


def test_no_name_waits_for_ids_of_others(tmp_path):
    """Which have a day, and rest between slices: a UUID that is forgotten meanwhile has 1,000 commits all the same."""
    with patch.multiple(erasure, IDS_SLICE_ENTRIES=1, IDS_REST_SECONDS=1 << 20), LmdbStore(tmp_path) as store:
        store.commit([Score("first-one", 5, f"id-{number}") for number in range(5)])
        store.commit([Score("second-one", 5), Score("third", 5)])
        store.commit([Score("second-one", 4)])
        store.commit([Forget("first-one")])
        for _ in range(5):
            store.commit([])
        store.commit([Forget("second-one")])
        for _ in range(10):
            store.commit([])
        assert b"second-one" not in copied(store)


def test_many_at_once_take_no_more_commits(tmp_path):
    """Of all that are forgotten in one commit each is looked up, so many more in a slice."""
    every = names(3000)
    with patch.object(erasure, "SLICE_LOOKUPS", 1), without_pauses(), LmdbStore(tmp_path) as store:
        store.commit([Score(uuid, 5) for uuid in every])
        store.commit([Forget(uuid) for uuid in every[::2]])
        settle(store)
        copy = copied(store)
        assert [uuid for uuid in every[::2] if uuid.encode() in copy] == []


@pytest.mark.parametrize("size", [1500, 2030, 2100, 3000, 4070, 4080, 4090, 9000])
def test_a_record_fills_a_page_of_its_own(size):
    """Whatever LMDB finds behind the value in memory would be written with it."""
    tallies = {"u" * (size - 20): Tally(1, 1)}
    record = codec.Record(tallies, Tally(1, 1), {}, 0, 0)
    packed = codec.pack_record(record)
    assert codec.unpack_record(packed) == record
    page = os.sysconf("SC_PAGESIZE")
    assert len(packed) <= page // 2 or len(packed) > page - 20


def test_a_separator_is_found_on_each_level(tmp_path):
    """Of a tree of three levels, by the keys that its branches have."""
    with LmdbStore(tmp_path) as store:
        every = sorted(f"{number:0200}" for number in range(2000))
        store.commit([Add(uuid, Tally(1, 1)) for uuid in every])
        data = store._lock.data
        separators = [uuid for uuid in every if erasure.behind_separator(data, codec.MEANS_TABLE, uuid.encode()) is not None]
        with store._env.begin() as txn:
            stat = txn.stat(store._tables.means)
        # Each page but the first of its level has one.
        assert len(separators) == stat["leaf_pages"] - 1
        assert stat["depth"] == 3
        assert erasure.behind_separator(data, codec.MEANS_TABLE, b"nobody") is None


class ErasingMachine(RuleBasedStateMachine):
    """Random scores, ids, forgettings and restarts: what a store says is what a plain dict says, and erased text is gone."""

    uuids = st.sampled_from([f"erasable-{letter}" for letter in "abcd"])

    def __init__(self):
        super().__init__()
        self._limits = patch.multiple(journal, **SMALL_JOURNAL)
        self._limits.start()
        self._slices = patch.multiple(erasure, SLICE_ENTRIES=2, SLICE_LOOKUPS=1, IDS_SLICE_ENTRIES=2, IDS_REST_SECONDS=0)
        self._slices.start()
        self._directory = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with  # teardown ends it
        self.path = Path(self._directory.name) / "store"
        self.store = LmdbStore(self.path)
        self.truth: dict[str, Tally] = {}
        self.forgotten: set[str] = set()
        self.ids = 0
        self.reader = journal_of_a_reader(self.store)

    @rule(uuid=uuids, score=st.integers(0, 5), with_id=st.booleans())
    def post(self, uuid, score, with_id):
        """Count one."""
        self.ids += with_id
        self.store.commit([Score(uuid, score, f"id-{self.ids}" if with_id else None)])
        self.truth[uuid] = self.truth.get(uuid, Tally(0, 0)) + Tally(score, 1)
        self.forgotten.discard(uuid)

    @rule(uuid=uuids)
    def forget(self, uuid):
        """Forget one, which may not be there."""
        self.store.commit([Forget(uuid)])
        self.truth.pop(uuid, None)
        self.forgotten.add(uuid)

    @rule(uuid=uuids)
    def come_back(self, uuid):
        """Forget one and count a score of it, in one commit."""
        self.store.commit([Forget(uuid), Score(uuid, 1)])
        self.truth[uuid] = Tally(1, 1)
        self.forgotten.discard(uuid)

    @rule(count=st.integers(1, 4))
    def pass_by(self, count):
        """Commit something else."""
        for _ in range(count):
            self.store.commit([Score("other", 1)])

    @rule()
    def restart(self):
        """Close and open again."""
        self.store.close()
        assert_sound(self.path)
        self.store = LmdbStore(self.path)
        self.reader = journal_of_a_reader(self.store)

    @rule()
    def settle(self):
        """Nothing that was forgotten is in a copy."""
        settle(self.store)
        copy = copied(self.store)
        assert [uuid for uuid in self.forgotten if uuid.encode() in copy] == []

    @rule()
    def read(self):
        """A reader that is asked now and then has what the writer has."""
        for uuid in self.truth.keys() | self.forgotten:
            assert read_by(self.reader, self.store, uuid) == self.truth.get(uuid)

    @rule(entries=st.integers(1, 5))
    def read_a_part(self, entries):
        """It reads on, but not all."""
        with self.store._env.begin() as txn:
            self.reader.read(txn, entries)

    @invariant()
    def sound(self):
        """It says what is true."""
        assert not self.store.check()
        every = list(self.truth.keys() | self.forgotten)
        assert self.store.get(every) == [self.truth.get(uuid) for uuid in every]

    def teardown(self):
        self.store.close()
        assert_sound(self.path)
        self._directory.cleanup()
        self._slices.stop()
        self._limits.stop()


TestErasingMachine = ErasingMachine.TestCase
TestErasingMachine.settings = hypothesis_settings(max_examples=1000 if LONG else 30, stateful_step_count=25)


def test_it_goes_on_while_nobody_posts(tmp_path, monkeypatch):
    """In slices of its own, when there is nothing else to do."""
    monkeypatch.setattr(lmdb_module, "TEND_SECONDS", 0.001)
    with without_pauses(), open_store(tmp_path) as store:
        store.commit([Score("forget-me", 5, "id-1")])
        store.commit([Forget("forget-me")])
        while erasing(store):
            os.sched_yield()
        store.commit([])  # after the one in which the last of it was
        assert b"forget-me" not in copied(store)
