"""The embedded store: the contract, and what it alone promises or refuses."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock, patch

import lmdb
import pytest
from hypothesis import settings

from scoremean import open_store
from scoremean.errors import (
    IdVoided,
    InvalidBatch,
    NoSuchScore,
    OutcomeUnknown,
    SettingError,
    Stopping,
    StoreDamaged,
    StoreError,
    StoreForeign,
    StoreFull,
    StoreInUse,
    StoreMissing,
    UnknownId,
    UnknownUUID,
)
from scoremean.model import Add, Batch, Forget, Merge, Replay, Score, Tally, Void, Voided, VoidScore
from scoremean.process import child_environment
from scoremean.store.embedded import files, journal
from scoremean.store.embedded import format as codec
from scoremean.store.embedded import store as lmdb_module
from scoremean.store.embedded.commit import Commit
from scoremean.store.embedded.store import DISK_RESERVE_BYTES, ID_RETENTION_SECONDS, LmdbStore
from tests.store_contract import StoreContract, StoreMachine
from tests.support import LONG, SMALL_JOURNAL, assert_sound, plain, scores_of


class TestContract(StoreContract):
    """LmdbStore keeps what every store keeps."""

    def open(self, place, **options):
        return open_store(place, **options)


class LmdbMachine(StoreMachine):
    """LmdbStore against the oracle, with a journal that a few commits fill."""

    def __init__(self):
        self._limits = patch.multiple(journal, **SMALL_JOURNAL)
        self._limits.start()
        self._directory = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with  # teardown ends it
        self._path = Path(self._directory.name) / "store"
        super().__init__()

    def open(self):
        return LmdbStore(self._path)

    def assert_sound(self):
        assert_sound(self._path)

    def teardown(self):
        super().teardown()
        self._directory.cleanup()
        self._limits.stop()


TestMachine = LmdbMachine.TestCase
TestMachine.settings = settings(max_examples=1000 if LONG else 25, stateful_step_count=20, deadline=None)


def test_a_store_is_private_to_its_owner(store):
    """Nobody else on the machine reads or changes the scores."""
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o700
    assert {name: stat.S_IMODE((store.path / name).stat().st_mode) for name in os.listdir(store.path)} == {
        "data.mdb": 0o600,
        "lock.mdb": 0o600,
        "scoremean.lock": 0o600,
    }


def test_a_batch_is_all_or_nothing_and_a_full_store_goes_on(tmp_path):
    """A map that is full refuses the whole batch, reads on, and takes what still fits."""
    with LmdbStore(tmp_path, size_max_bytes=1 << 18) as store:
        stored = 0
        with pytest.raises(StoreFull, match="store_size_max_gib"):
            while True:
                store.commit([Score(f"{stored + n:0200}", 1) for n in range(100)])
                stored += 100
        assert stored > 0
        assert store.stats().uuids == store.stats().scores == stored
        assert store.get([f"{stored:0200}"]) == [None]
        assert store.commit([Score(f"{0:0200}", 5)]) == [Tally(6, 2)]
        assert not store.check()
    with LmdbStore(tmp_path, size_max_bytes=1 << 20) as store:
        assert len(store.commit([Score(f"{stored + n:0200}", 1) for n in range(100)])) == 100
    assert_sound(tmp_path)


def test_a_second_writer_is_refused_with_the_process_that_has_it(store):
    """In this process and in another one."""
    with pytest.raises(StoreInUse, match=f"is in use by process {os.getpid()}; stop it first"):
        LmdbStore(store.path)
    code = "import sys, scoremean; scoremean.open_store(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=False)
    assert f"is in use by process {os.getpid()}" in done.stderr
    assert store.commit([Score("a", 1)]) == [Tally(1, 1)]


def test_the_writing_process_reads_through_its_own_store(store):
    """LMDB opens a file once in a process."""
    with pytest.raises(StoreInUse, match="already open in this process"):
        LmdbStore(store.path, readonly=True)


def test_a_reader_that_the_store_outgrew_says_so(tmp_path):
    """It mapped the size that the store had when it was opened."""
    LmdbStore(tmp_path, size_max_bytes=1 << 18).close()
    code = (
        "import sys, scoremean\nwith scoremean.open_store(sys.argv[1], size_max_bytes=1 << 24) as s:"
        " s.commit([scoremean.Score(f'{n:0200}', 1) for n in range(3000)])"
    )
    with LmdbStore(tmp_path, readonly=True) as reader:
        subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
        with pytest.raises(StoreError, match="has grown; open it again"):
            reader.stats()


def test_a_store_may_be_several_directories_deep(tmp_path):
    """Each that was missing is made."""
    with LmdbStore(tmp_path / "a" / "b" / "c") as store:
        assert store.commit([Score("a", 1)]) == [Tally(1, 1)]


def test_another_process_reads_while_it_is_served(store):
    """It sees every commit that was answered before it looked."""
    store.commit(scores_of([("a", 5), ("a", 2)]))
    code = "import sys, scoremean\nwith scoremean.open_store(sys.argv[1], readonly=True) as s: print(s.get(['a']), s.check())"
    done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    assert done.stdout == "[Tally(sum=7, count=2)] []\n"


def test_a_reader_sees_the_commits_that_come_after_it_opened(tmp_path):
    """It is no snapshot."""
    writer_code = "import sys, scoremean\nwith scoremean.open_store(sys.argv[1]) as s: s.commit([scoremean.Score('a', 5)])"
    write = [sys.executable, "-c", writer_code, tmp_path]
    subprocess.run(write, check=True)
    with open_store(tmp_path, readonly=True) as reader:
        assert reader.get(["a"]) == [Tally(5, 1)]
        subprocess.run(write, check=True)
        assert reader.get(["a"]) == [Tally(10, 2)]
        with pytest.raises(StoreError, match="open for reading only"):
            reader.post(Score("a", 1))


def test_a_store_of_another_format_is_refused(tmp_path):
    """The message says which one it is and what to do; nothing in it is changed."""
    LmdbStore(tmp_path).close()
    _overwrite(tmp_path, codec.META_TABLE, codec.FORMAT_KEY, codec.pack_number(codec.FORMAT + 1))
    before = (tmp_path / "data.mdb").read_bytes()
    for readonly in (False, True):
        with pytest.raises(StoreForeign, match="has format 2, and this version of scoremean reads format 1"):
            LmdbStore(tmp_path, readonly=readonly)
    assert (tmp_path / "data.mdb").read_bytes() == before


def test_what_scoremean_did_not_write_is_refused(tmp_path):
    """Another program's LMDB, LMDB 1.0's format, no LMDB at all, an unreadable format."""
    foreign = tmp_path / "foreign"
    with lmdb.Environment(str(foreign), max_dbs=1, lib_version=0) as env:
        env.open_db(b"theirs")
    newer = tmp_path / "newer"
    lmdb.Environment(str(newer), lib_version=1).close()
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / "data.mdb").write_bytes(b"not LMDB" * 1000)
    odd = tmp_path / "odd"
    LmdbStore(odd).close()
    _overwrite(odd, codec.META_TABLE, codec.FORMAT_KEY, b"\xc1")
    for path in (foreign, newer, garbage, odd):
        for readonly in (False, True):
            with pytest.raises(StoreForeign, match="give the store a directory of its own"):
                LmdbStore(path, readonly=readonly)


def test_a_directory_that_cannot_be_used_is_refused(tmp_path):
    """The message says why, in a sentence."""
    with pytest.raises(StoreMissing, match="there is no store at .*; `scoremean serve --store "):
        LmdbStore(tmp_path / "none", readonly=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a directory"):
        LmdbStore(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot open the store /proc/none: No such file or directory"):
        LmdbStore("/proc/none")
    (tmp_path / "blocked" / "data.mdb").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot open the store .*blocked: "):
        LmdbStore(tmp_path / "blocked")


@pytest.mark.parametrize("path", [None, 5, b"/tmp/store", "", ["a"]])
def test_what_is_no_path_is_refused(path):
    """With a sentence; an empty one would make a store of the directory that one happens to be in."""
    with pytest.raises(SettingError, match="a store is at the path of a directory, such as './scoremean-data', not at"):
        open_store(path)


@pytest.mark.parametrize("option", ["size_max_bytes", "id_retention_seconds"])
@pytest.mark.parametrize("value", [0, -1, 1 << 70, "1G", None, 2.5])
def test_an_option_of_a_store_has_bounds(tmp_path, option, value):
    """They are told, and nothing is made."""
    with pytest.raises(SettingError, match=f"{option} must be an integer from .* not {value!r}"):
        open_store(tmp_path / "store", **{option: value})
    assert not (tmp_path / "store").exists()


def test_a_misspelt_option_of_a_store_is_refused(tmp_path):
    """Whoever asks for a store to read must not get one to write."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'read_only'"):
        open_store(tmp_path / "store", read_only=True)  # pylint: disable=unexpected-keyword-arg
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_closed_ends_what_goes_over_its_tallies(tmp_path):
    """With a sentence, as every other use of a closed store."""
    with open_store(tmp_path) as store:
        store.post_many(scores_of([("a", 5), ("b", 2)]))
        tallies = store.tallies()
        assert next(tallies) == ("a", Tally(5, 1))
    with pytest.raises(StoreError, match="was closed meanwhile"):
        next(tallies)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "Permission denied; run scoremean as the user who owns it, or give --store another directory"),
        (errno.EROFS, "Read-only file system; give --store a directory on a disk that can be written"),
        (errno.ENOSPC, "No space left on device; make room on its disk, or give --store a directory on another one"),
        (errno.EIO, "Input/output error$"),
    ],
)
def test_a_start_that_the_system_refuses_says_what_to_do(tmp_path, monkeypatch, number, message):
    """Where that is known."""

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "fsync_directory", refuse)
    with pytest.raises(StoreError, match=f"cannot open the store {tmp_path}/new: {message}"):
        LmdbStore(tmp_path / "new")


def test_a_disk_that_is_full_before_the_store_is_made(tmp_path, monkeypatch):
    """LMDB's own error for it says what to do too."""

    def refuse(*_, **__):
        error = lmdb.DiskError("No space left on device")
        error.code = errno.ENOSPC
        raise error

    monkeypatch.setattr(lmdb_module.lmdb, "Environment", refuse)
    with pytest.raises(StoreError, match="cannot make the store .*/new: No space left on device; make room on its disk"):
        LmdbStore(tmp_path / "new")


def test_an_environment_left_empty_by_a_crash_is_a_new_store(tmp_path):
    """The tables and the format are written in one transaction; before it there is nothing to lose."""
    lmdb.Environment(str(tmp_path), lib_version=0).close()
    with LmdbStore(tmp_path) as store:
        assert store.commit([Score("a", 1)]) == [Tally(1, 1)]


def test_a_store_that_was_cut_to_nothing_is_not_a_new_one(tmp_path):
    """LMDB would begin a new one in the empty file."""
    LmdbStore(tmp_path).close()
    os.truncate(tmp_path / "data.mdb", 0)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="data.mdb is empty: it was cut off; restore a backup"):
            LmdbStore(tmp_path)


def test_what_a_crash_left_of_a_store_in_the_making_is_made_anew(tmp_path):
    """The file has another name until it is whole."""
    (tmp_path / "data.mdb.new").write_bytes(b"half of a page")
    with LmdbStore(tmp_path) as store:
        assert store.commit([Score("a", 1)]) == [Tally(1, 1)]
    assert sorted(os.listdir(tmp_path)) == ["data.mdb", "lock.mdb", "scoremean.lock"]


def test_ids_expire_a_table_at_a_time(tmp_path):
    """Kept at least the retention, gone at twice of it; an id that is in use in the older table is still found."""
    now = 1000.0
    with LmdbStore(tmp_path, id_retention_seconds=100, clock=lambda: now) as store:
        store.commit([Score("a", 1, "old")])
        now = 1100.0
        store.commit([Score("a", 2, "new")])
        assert store.commit([Score("a", 1, "old")]) == [Replay(1, 1)]
        for _ in range(8):  # until the journal is folded
            store.commit([])
        store.commit([Void("old")])
        now = 1199.0
        assert isinstance(store.commit([Score("a", 1, "old")])[0], IdVoided)
        now = 1200.0
        assert store.commit([Score("a", 2, "new")]) == [Replay(3, 2)]
        assert isinstance(store.commit([Void("old")])[0], UnknownId)
        assert store.commit([Score("a", 1, "old")]) == [Tally(3, 2)]
        assert store.stats().ids == 2
        now = 900.0
        assert store.commit([Score("a", 1, "old")]) == [Replay(3, 2)], "a clock that jumps back keeps ids longer"


@pytest.mark.parametrize(
    ("scores", "void", "left"),
    [
        ([5], 4, None),
        ([5], 5, Tally(0, 0)),
        ([5, 3], 2, None),  # a 6 would be left
        ([5, 3], 3, Tally(5, 1)),
        ([5, 3], 4, Tally(4, 1)),  # a 5 and a 3 cannot be told from two 4s
        ([0, 0, 1], 4, None),
        ([-1, 5, 5], 6, None),
        ([-1, 5, 5], -1, Tally(10, 2)),
        ([-1, 5, 5], -2, None),
        ([2, 2, 2], 6, None),  # enough would be left for two scores, but 6 is none
    ],
)
def test_what_is_voided_and_what_is_left_are_scores_of_the_range(tmp_path, scores, void, left):
    """Whatever the tally was made of, it must go on being one that scores of the store's range make."""
    with LmdbStore(tmp_path, score_min=-1) as store:
        store.commit([Score("a", score) for score in scores])
        [outcome] = store.commit([VoidScore(Score("a", void, "void"))])
        assert plain(outcome) == (left or NoSuchScore)
        assert store.get(["a"]) == [(left or Tally(sum(scores), len(scores))) if left != Tally(0, 0) else None]
        assert not store.check()


def test_a_void_of_an_imported_tally_leaves_what_scores_can_make(store):
    """By its id, after some of it was voided by value."""
    store.commit([Add("a", Tally(8, 2), "file"), Score("a", 0), Score("a", 0)])
    store.commit([VoidScore(Score("a", 5, "void"))])
    assert plain(store.commit([Void("file")])[0]) is NoSuchScore
    assert store.commit([Score("a", 5), Void("file")])[1] == Voided("a", Tally(0, 2))


def test_a_void_by_value_expires_as_an_id_does(tmp_path):
    """Its id is replayed as long as ids are kept, and is new again afterwards; check knows of it as long as of the score."""
    now = 0.0
    with LmdbStore(tmp_path, id_retention_seconds=100, clock=lambda: now) as store:
        void = VoidScore(Score("a", 5, "void"))
        store.commit([Score("a", 5, "score"), void])
        now = 150.0
        assert store.commit([void, Score("a", 5, "score")]) == [Replay(0, 0), Replay(5, 1)]
        assert not store.check()
        for now in (150.0, 250.0, 350.0):
            for _ in range(8):  # until the journal is folded
                store.commit([])
                assert not store.check()
        assert (store.stats().ids, plain(store.commit([void])[0])) == (0, UnknownUUID)
        assert store.commit([Score("a", 5, "score"), void]) == [Tally(5, 1), Tally(0, 0)]
        assert not store.check()


def test_a_merged_uuid_stays_merged_as_long_as_its_ids_live(tmp_path):
    """As one that was forgotten."""
    now = 0.0
    with LmdbStore(tmp_path, id_retention_seconds=100, clock=lambda: now) as store:
        store.commit([Score("a", 1, "before"), Merge("a", "b"), Score("a", 2, "after")])
        for now in (0.0, 100.0):
            assert plain(store.commit([Void("before")])[0]) is UnknownId
        assert store.commit([Void("after")]) == [Voided("a", Tally(0, 0))]
        assert store.get(["a", "b"]) == [None, Tally(1, 1)]


def test_a_forgotten_uuid_stays_forgotten_as_long_as_its_ids_live(tmp_path):
    """Over rotations, and with ids of before and after the forgetting beside each other."""
    now = 0.0
    with LmdbStore(tmp_path, id_retention_seconds=100, clock=lambda: now) as store:
        store.commit([Score("a", 1, "before"), Forget("a"), Score("a", 2, "after")])
        assert plain(store.commit([Void("before")])[0]) is UnknownId
        now = 100.0
        store.commit([])
        assert plain(store.commit([Void("before")])[0]) is UnknownId
        now = 200.0
        store.commit([Score("a", 3, "later"), Forget("a"), Score("a", 4, "last")])
        assert plain(store.commit([Void("later")])[0]) is UnknownId
        assert store.commit([Void("last")]) == [Voided("a", Tally(0, 0))]
        assert not store.check()


def test_a_commit_that_does_not_fit_keeps_no_id(tmp_path):
    """So the retry is counted once there is room."""
    with LmdbStore(tmp_path, size_max_bytes=1 << 18) as store:
        batch = [Score(f"{n:0250}", 1, f"{n}") for n in range(2000)]
        with pytest.raises(StoreFull):
            store.commit(batch)
        assert store.stats().ids == 0
        assert store.commit(batch[:1]) == [Tally(1, 1)]


@pytest.mark.parametrize(
    ("table", "key", "value", "damage"),
    [
        (codec.MEANS_TABLE, b"a", b"\xc1", "means, key b'a': the bytes c1 are not msgpack"),
        (codec.MEANS_TABLE, b"a", codec.pack_tally(0, 0), "was not written by scoremean"),
        (codec.MEANS_TABLE, b"a", b"\x92\xd0\x05\x01", "was not written by scoremean"),
        (codec.MEANS_TABLE, b"a", codec.pack_tally(4, 1), "the tallies add up to Tally(sum=6, count=2), but the total kept"),
        (codec.MEANS_TABLE, b"\n", codec.pack_tally(0, 1), "control characters"),
        (codec.MEANS_TABLE, b"\xff", codec.pack_tally(0, 1), "is not UTF-8"),
        (codec.IDS_TABLES[0], bytes(16), codec.pack_tally(7, 3), "ids-0, key 00000000000000000000000000000000: the bytes"),
        (codec.IDS_TABLES[1], bytes(16), b"\x97\xa0\x01\x01\x01\x01\xc2\x00", "it has 0"),
        (
            codec.JOURNAL_TABLES[0],
            b"\0" * 7 + b"\1",
            codec.pack_record(codec.Record({}, Tally(7, 3), {}, 0, 0)),
            "total kept is Tally(sum=7, count=3)",
        ),
        (
            codec.JOURNAL_TABLES[0],
            b"\0" * 7 + b"\1",
            codec.pack_record(codec.Record({"c": Tally(0, 1)}, Tally(7, 2), {}, 0, 0)),
            "journal: the UUID 'c' is not in means",
        ),
    ],
)
def test_check_finds_damage(tmp_path, table, key, value, damage):
    """Any byte that scoremean cannot have written, and tallies that do not add up."""
    with LmdbStore(tmp_path) as store:
        store.commit(scores_of([("a", 5), ("b", 2)]))
    _overwrite(tmp_path, table, key, value)
    with LmdbStore(tmp_path) as store:
        assert damage in "\n".join(store.check())


def _overwrite(path: Path, table: bytes, key: bytes, value: bytes) -> None:
    with lmdb.Environment(str(path), max_dbs=6, lib_version=0) as env:
        handle = env.open_db(table)
        with env.begin(write=True) as txn:
            txn.put(key, value, db=handle)


@pytest.fixture(name="checks")
def fixture_checks(monkeypatch) -> list[Path]:
    """The stores that were checked at an open."""
    checks: list[Path] = []
    check = LmdbStore.check
    monkeypatch.setattr(LmdbStore, "check", lambda self: checks.append(self.path) or check(self))
    return checks


def _killed_writer(path: Path) -> None:
    code = "import os, sys, scoremean; scoremean.open_store(sys.argv[1]).commit([scoremean.Score('a', 5)]); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, path], check=False)


def test_a_store_is_checked_after_a_power_cut_and_not_after_a_kill(tmp_path, checks, monkeypatch, caplog):
    """Within one boot the kernel has all that a killed process wrote; a new boot says that it may not."""
    _killed_writer(tmp_path / "store")
    LmdbStore(tmp_path / "store").close()
    assert not checks
    _killed_writer(tmp_path / "store")
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr("scoremean.store.embedded.files.BOOT_ID", tmp_path / "boot")
    with LmdbStore(tmp_path / "store") as store:
        assert len(checks) == 1 and "checking it" in caplog.text
        assert store.get(["a"]) == [Tally(10, 2)]
    LmdbStore(tmp_path / "store").close()
    assert len(checks) == 1, "it was closed"


def test_a_damaged_store_is_refused_until_it_is_restored(tmp_path, monkeypatch):
    """Not only by the first open after the power cut."""
    _killed_writer(tmp_path / "store")
    lock = (tmp_path / "store" / "scoremean.lock").read_text()
    wrong = codec.pack_record(codec.Record({}, Tally(7, 3), {}, 0, 0))
    _overwrite(tmp_path / "store", codec.JOURNAL_TABLES[0], b"\0" * 7 + b"\1", wrong)
    (tmp_path / "store" / "scoremean.lock").write_text(lock)
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr("scoremean.store.embedded.files.BOOT_ID", tmp_path / "boot")
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="is damaged: the tallies add up to .*; restore a backup"):
            LmdbStore(tmp_path / "store")


def test_a_failed_commit_stops_the_store(tmp_path, checks, monkeypatch):
    """It takes nothing more, shows nothing that may not be on disk, and the next open checks it."""
    store = LmdbStore(tmp_path)
    store.commit([Score("a", 5)])

    def fail(*_):
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    monkeypatch.setattr(journal.Journal, "append", fail)
    with pytest.raises(OutcomeUnknown, match="Input/output error") as caught:
        store.post(Score("a", 3))
    assert isinstance(caught.value.__cause__, lmdb.Error)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="a commit to the store .* has failed; open it again"):
        store.submit([Score("a", 3)])
    with pytest.raises(Stopping, match="a commit has failed"):
        store.get(["a"])
    store.close()
    monkeypatch.setattr(LmdbStore, "check", lambda self: checks.append(self.path) or [])
    with LmdbStore(tmp_path) as store:
        assert len(checks) == 1
        assert store.get(["a"]) == [Tally(5, 1)]


def test_a_disk_that_is_nearly_full_refuses_a_commit_and_is_forgiven(store, monkeypatch):
    """Before anything is written. What is free decides, and how much the batch may need."""
    def nearly_full(descriptor):
        values = list(os.statvfs(descriptor))
        values[0], values[1], values[4] = 4096, 4096, DISK_RESERVE_BYTES // 4096 + 100
        return os.statvfs_result(values)

    monkeypatch.setattr("os.fstatvfs", nearly_full)
    assert store.commit([Score("a", 5)]) == [Tally(5, 1)]
    with pytest.raises(StoreFull, match="has 16 MiB free, of 23 MiB that a commit may need; nothing was counted"):
        store.commit([Batch([Score("a", 5)] * 1000)])
    monkeypatch.undo()
    assert store.commit([Score("a", 5)]) == [Tally(10, 2)]


# -- ids that expire, folds that go on

DAY_SECONDS = 24 * 3600


class Clock:
    """The time, as the test sets it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("limits", [{"SHARDS": 64}, SMALL_JOURNAL], ids=["journal", "small journal"])
@pytest.mark.parametrize("scores", [1, 10])
def test_ids_expire_in_a_store_that_is_opened_for_one_commit_a_day(tmp_path, limits, scores):
    """No id is kept for more than twice the retention and a day, and none for less than the retention."""
    clock = Clock()
    for day in range(61):
        with patch.multiple(journal, **limits), LmdbStore(tmp_path, id_retention_seconds=7 * DAY_SECONDS, clock=clock) as store:
            store.commit([Score("a", 5, f"id-{day}-{number}") for number in range(scores)])
            first = 1 + scores * max(day - 7, 0)
            assert store.commit([Score("a", 5, f"id-{max(day - 7, 0)}-0")]) == [Replay(5 * first, first)]
            assert store.stats().ids <= scores * 15 + 1
        clock.now += DAY_SECONDS
    assert_sound(tmp_path)


def test_ids_expire_and_folds_go_on_while_nobody_posts(tmp_path, monkeypatch):
    """The store looks after itself."""
    monkeypatch.setattr(lmdb_module, "TEND_SECONDS", 0.001)
    clock = Clock()
    with patch.multiple(journal, **SMALL_JOURNAL), LmdbStore(tmp_path, clock=clock) as store:
        store.commit([Score(f"u{number}", 1, f"id-{number}") for number in range(4)])
        for number in range(40):
            store.commit([Score(f"u{number % 4}", 1, f"id-more-{number}")])
        while store._journal.folding:  # pylint: disable=protected-access
            os.sched_yield()
        assert store.stats().ids == 44
        for _ in range(2):
            clock.now += ID_RETENTION_SECONDS
            since = clock.now
            while store._meta.generation.since_seconds < since:  # pylint: disable=protected-access
                os.sched_yield()
        assert store.stats().ids == 0
        assert store.get(["u0"]) == [Tally(11, 11)]


# -- no room


def test_a_retry_needs_no_room(store, monkeypatch):
    """It gets its first answer from a disk that is full, and only what would be counted is refused."""
    scores = [Score("a", 5, "id-1"), Score("a", 3, "id-2")]
    store.commit([*scores, Void("id-2")])
    monkeypatch.setattr(lmdb_module, "free_bytes", lambda _: 0)
    refused = Batch([scores[0], scores[1]])  # as it is with room: a retry of what was counted, and of what was voided since
    batches = [Batch([scores[0], scores[0]]), Batch([scores[0], Score("b", 1, "id-3")]), refused]
    outcomes = store.commit([scores[0], Score("b", 1), *batches, *scores[1:], Void("id-2")])
    assert [plain(outcome) for outcome in outcomes] == [
        Replay(5, 1),
        StoreFull,
        [Replay(5, 1)] * 2,
        StoreFull,
        InvalidBatch,
        IdVoided,
        Voided("a", Tally(5, 1)),
    ]
    errors = []
    for _ in range(100):
        with pytest.raises(StoreFull, match="nothing was counted") as caught:
            store.commit([Score("b", 1)])
        errors.append(caught.value)
    # Each has a slot in a file that may have no room for more, on a disk that is full: it would be a SIGBUS.
    assert store._env.info()["num_readers"] <= 3  # pylint: disable=protected-access
    monkeypatch.undo()
    assert store.commit([Score("b", 1)]) == [Tally(1, 1)]


def test_a_retry_needs_no_room_in_a_store_that_is_full(tmp_path):
    """Likewise where the store may not grow."""
    with LmdbStore(tmp_path, size_max_bytes=1 << 18) as store:
        first = Score("a", 5, "id-1")
        store.commit([first])
        with pytest.raises(StoreFull):
            for number in itertools.count():
                store.commit([Score(f"{number:0250}", 1)])
        with pytest.raises(StoreFull):
            store.commit([Score("x" * 256, 1)] * 2000)
        assert store.commit([Score("y" * 250, 1, "id-2"), first])[1:] == [Replay(5, 1)]


# -- what the surroundings do


@pytest.mark.parametrize("name", ["data.mdb", "scoremean.lock", "lock.mdb", ""])
@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_store_that_is_removed_counts_nothing_any_more(tmp_path, name, how):
    """What it would write is nowhere, or not where it is looked for."""
    store = LmdbStore(tmp_path / "store")
    store.commit([Score("a", 1)])
    store.commit([Score("a", 1)])
    place = tmp_path / "store" / name
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    place.rename(tmp_path / "old")
    if how == "removed" and name:
        (tmp_path / "old").unlink()
    elif how == "removed":
        shutil.rmtree(tmp_path / "old")
    elif how == "replaced":
        (tmp_path / "copy" / name).rename(place)
    with pytest.raises(StoreError, match="were removed or replaced while it was open"):
        store.commit([Score("a", 1)])
    with pytest.raises(StoreError, match="open it again"):
        store.commit([Score("a", 1)])
    store.close()


def test_a_store_finds_its_files_from_every_directory(tmp_path, monkeypatch):
    """Its name may be relative to the one that the process was in."""
    monkeypatch.chdir(tmp_path)
    with LmdbStore("store") as store:
        store.commit([Score("a", 1)])
        monkeypatch.chdir("/")
        store.commit([Score("a", 1)])


@pytest.mark.parametrize("full", [True, False])
def test_ids_that_cannot_expire_keep_no_store_open(tmp_path, monkeypatch, full):
    """At a close: with a full disk nothing is written, nor after a commit of which nobody knows what became."""
    now = [1e9]
    store = LmdbStore(tmp_path, clock=lambda: now[0], id_retention_seconds=10)
    store.commit([Score("a", 5, "id-1")])
    now[0] += 20
    with monkeypatch.context() as disk:
        disk.setattr(lmdb_module, "free_bytes", lambda _: 0)
        if not full:
            disk.setattr(lmdb_module, "free_bytes", lambda _: 1 << 40)
            disk.setattr(Commit, "count", counting := Mock(side_effect=[OSError("the disk fails"), []]))
            with pytest.raises(OutcomeUnknown):
                store.commit([Score("a", 5)])
        store.close()
        assert full or counting.call_count == 1
    with LmdbStore(tmp_path, clock=lambda: 1e9) as store:
        assert store.commit([Score("a", 5, "id-1")]) == [Replay(5, 1)]


def test_a_store_that_is_removed_is_found_while_nobody_posts(tmp_path, monkeypatch):
    """Whoever serves it is told."""
    monkeypatch.setattr(lmdb_module, "TEND_SECONDS", 0.001)
    store = LmdbStore(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    assert "were removed or replaced" in str(store.failed.result(timeout=60))
    store.close()


def test_a_child_of_a_fork_is_refused_and_the_parent_goes_on(store):
    """In one sentence, for every use; the lock is the parent's alone."""
    store.commit([Score("a", 5)])
    code = []
    child = os.fork()
    if not child:
        for use in (lambda: store.commit([Score("a", 1)]), lambda: store.get(["a"]), store.stats, store.check, store.close):
            try:
                use()
                code.append("closed")
            except StoreError as error:
                code.append(str(error))
        told = all("before this process was forked: open it in the child" in text for text in code[:4])
        os._exit(0 if told and code[4] == "closed" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.commit([Score("a", 3)]) == [Tally(8, 2)]


def test_no_file_becomes_standard_output(tmp_path):
    """In a process that was started without the descriptors 0 to 2, whatever it prints goes nowhere, and not into the store."""
    source = (
        "import os, sys; os.closerange(0, 3); from scoremean import Score, open_store\n"
        "with open_store(sys.argv[1]) as store:\n"
        "    store.commit([Score('a', 5)])\n"
        "    names = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]\n"
        "    os.write(1, b'x' * 10000); os.write(2, b'x' * 10000)\n"
        "sys.exit(names != ['/dev/null'] * 3)\n"
    )
    assert subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=False).returncode == 0
    assert_sound(tmp_path)


@pytest.mark.parametrize("verb", [["get", "a"], ["stats"], ["export"], ["check"], ["backup", "--output", "copy"]])
def test_a_reader_needs_no_more_address_space_than_there_is(tmp_path, verb):
    """The writer may have 64 GiB of it, and the next process less."""
    with LmdbStore(tmp_path / "store") as store:
        store.commit([Score("a", 5)])
    command = [sys.executable, "-m", "scoremean", *verb, "--store", str(tmp_path / "store"), "--store-size-max-gib", "1"]
    limited = ["sh", "-c", 'cd "$0" && ulimit -v 4000000 && exec "$@"', str(tmp_path)]
    done = subprocess.run([*limited, *command], capture_output=True, text=True, check=False, env=child_environment())
    assert done.returncode == 0, done.stderr


def test_a_writer_without_address_space_names_the_flag(tmp_path):
    """And makes the store with less."""
    command = [sys.executable, "-m", "scoremean", "import", "/dev/null", "--store", str(tmp_path)]
    limited = ["sh", "-c", 'ulimit -v 4000000 && exec "$@"', "sh"]
    done = subprocess.run([*limited, *command], capture_output=True, text=True, check=False, env=child_environment())
    assert done.returncode == 3
    assert "the address space of the process is limited: give --store-size-max-gib a smaller number" in done.stderr
    small = subprocess.run([*limited, *command, "--store-size-max-gib", "1"], check=False, env=child_environment())
    assert small.returncode == 0


SCHEMES = ["REDIS://host", "postgres:/x", "unix://", "postgresql:x", "s3://a/store", "file:///tmp/x", "://host", "a:b"]
# As an env file, or a shell, leaves them behind.
QUOTED = [" redis://host", "'postgres://u:secret@h/x'", '"redis://host"', "redis_cluster://host", "1redis://", "rédis://h"]


@pytest.mark.parametrize("name", [*SCHEMES, *QUOTED, "u:secret@host:6379/0"])
def test_a_scheme_is_no_directory(name, tmp_path, monkeypatch):
    """A mistyped one would be made as a new, empty store; a directory of that name can still be told. No password is shown."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=f"the scheme {name.partition(':')[0].strip()}: of the store") as caught:
        open_store(name)
    assert "secret" not in str(caught.value)
    assert not os.listdir(tmp_path)
    with open_store(f"./{name}") as store:
        assert store.stats().scores == 0


def test_a_store_without_a_range_gets_the_one_that_it_is_opened_with(tmp_path):
    """An earlier version kept none."""
    with LmdbStore(tmp_path, score_max=10) as store:
        store.commit([Score("a", 10)])
    with lmdb.Environment(str(tmp_path), max_dbs=6) as env, env.begin(write=True) as txn:
        txn.delete(codec.RANGE_KEY, db=env.open_db(codec.META_TABLE, txn=txn))
    with LmdbStore(tmp_path, score_max=10) as store:
        assert store.get(["a"]) == [Tally(10, 1)]
    with pytest.raises(StoreError, match="holds scores from 0 to 10"):
        LmdbStore(tmp_path, score_max=5)


@pytest.mark.usefixtures("uncovered")
def test_a_new_store_on_a_full_disk_is_one_sentence(tmp_path):
    """Wherever the room ends: in the first pages, or in the first commit."""
    command = [sys.executable, "-m", "scoremean", "import", "/dev/null", "--store", str(tmp_path / "store")]
    for blocks in (1, 8, 16, 24, 32):
        limited = ["sh", "-c", f'ulimit -f {blocks} && exec "$@"', "sh"]
        done = subprocess.run([*limited, *command], capture_output=True, text=True, check=False, env=child_environment())
        assert done.returncode in (0, 3) and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr, done.stderr


def test_what_the_system_lacks_is_no_damage(store):
    """Or an operator would restore a backup over a store that is sound."""
    error = lmdb.Error("no thread")
    error.code = errno.EAGAIN
    with pytest.raises(StoreError, match="cannot copy the store") as caught, files.copying(store.path):
        raise error
    assert not isinstance(caught.value, StoreDamaged)


@pytest.mark.parametrize("readonly", [True, False])
def test_a_file_is_no_store_and_an_empty_one_is_cut_off(tmp_path, readonly):
    """Whoever opens it is told the same."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="it is not a directory"):
        LmdbStore(tmp_path / "file", readonly=readonly)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data.mdb").touch()
    with pytest.raises(StoreDamaged, match="is empty: it was cut off"):
        LmdbStore(tmp_path / "store", readonly=readonly)
