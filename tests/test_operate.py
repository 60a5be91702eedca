"""Whole stores: check, backup and restore, of sound ones, served ones and damaged ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import random
import signal
import stat
import subprocess
import sys
from collections import Counter
from unittest.mock import patch

import lmdb
import pytest
from aiohttp import ClientSession
from msgspec.structs import replace

from scoremean import Add, Forget, Merge, Replay, Score, Tally, Void, VoidScore, cli, open_store
from scoremean.errors import NotWritten, StoreDamaged, StoreError, StoreForeign, StoreMissing
from scoremean.ops import backup as operate
from scoremean.store.embedded import format as codec
from scoremean.store.embedded import journal
from scoremean.store.embedded.store import LmdbStore
from tests.support import LONG, SMALL_JOURNAL, Server, assert_sound, post, scores_of

PAGE_BYTES = 4096

PLAIN = codec.Record({}, Tally(5, 1), {}, 0, 0)
RECORD = codec.pack_record(PLAIN)
IMPOSSIBLE = codec.pack_record(replace(PLAIN, tallies={"a": Tally(1, -1)}))
TWO = Tally(3, 2)


def number(of_record: int) -> bytes:
    """Return the key of a record of the journal."""
    return codec.pack_record_number(of_record)


def pack_id(uuid: str, added: Tally, first: Tally, voided: bool = False) -> bytes:
    """Return what is kept of an id."""
    return codec.pack_id_record(codec.IdRecord(uuid, added, first, voided=voided))


def silent(_: int) -> None:
    """Show no progress."""


@pytest.fixture(name="filled")
def fixture_filled(tmp_path):
    """A store with all that there can be in one: ids of every kind and fate, both journals, pages of every kind."""
    path = tmp_path / "filled"
    with patch.multiple(journal, **SMALL_JOURNAL), LmdbStore(path) as store:
        store.commit([Score(f"uuid-{place:04}", place % 6, f"id-{place}") for place in range(500)])
        store.commit([Void("id-7"), Forget("uuid-0008"), Score("uuid-0008", 5, "id-new")])
        for place in range(30):
            store.commit(scores_of([(f"uuid-{place:04}", 5), ("a1-b1", place % 6)]))
        store.commit([VoidScore(Score("uuid-0009", 3, "void")), Score("uuid-0009", 1), Merge("uuid-0100", "uuid-new")])
    return path


@pytest.fixture(name="run")
def fixture_run(capfd):
    """Run a verb; return the exit code, the JSON on standard output, and standard error."""

    def run(*arguments: object):
        code = cli.main([*map(str, arguments)])
        output = capfd.readouterr()
        assert "Traceback" not in output.err
        return code, json.loads(output.out) if output.out else None, output.err

    return run


def contents(path) -> dict[str, Tally]:
    """Return everything that a store holds."""
    with open_store(path, readonly=True) as store:
        return dict(store.tallies())


def names(path) -> set[str]:
    """Return the names in a directory."""
    return set(os.listdir(path))


def flip(path, position: int, bits: int = 0xFF) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ bits]))


def test_a_backup_restored_holds_the_same(run, filled, tmp_path):
    """To the id; both are private, and there is nothing else beside them."""
    code, stats, _ = run("backup", "--store", filled, "--output", tmp_path / "copy")
    assert (code, stats["uuids"], stats["scores"]) == (0, 501, 559)
    assert stats["store_size_bytes"] == (tmp_path / "copy").stat().st_size < (filled / "data.mdb").stat().st_size
    assert run("restore", tmp_path / "copy", "--store", tmp_path / "new") == (0, stats, "")
    assert names(tmp_path) == {"filled", "copy", "new"} and names(tmp_path / "new") == {"data.mdb"}
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("copy", "new", "new/data.mdb")]
    assert modes == [0o600, 0o700, 0o600]
    assert contents(tmp_path / "new") == contents(filled)
    assert_sound(tmp_path / "new")
    with open_store(tmp_path / "new") as store:
        assert store.commit([Score("uuid-0001", 1, "id-1")])[0].count == 1, "an id that was counted before the backup"
        assert isinstance(store.commit([VoidScore(Score("uuid-0009", 3, "void"))])[0], Replay)


async def test_a_backup_of_a_served_store_has_all_that_was_answered(run, tmp_path):
    """Before it began; and each UUID has a tally that it once had. Meanwhile posts are answered, and folds go on."""
    answered: Counter[str] = Counter()

    async def post_on(client: ClientSession, name: str) -> None:
        while True:
            await post(client, name, 3)
            answered[name] += 1

    with Server(tmp_path / "served", small_journal=True) as server:
        async with ClientSession(server.url) as client:
            posting = [asyncio.create_task(post_on(client, f"uuid-{number}")) for number in range(12)]
            for round_ in range(3):
                while answered.total() < 200 * (round_ + 1):
                    await asyncio.sleep(0)
                before = Counter(answered)
                copy = tmp_path / f"copy-{round_}"
                await asyncio.to_thread(operate.backup, server.store, copy, silent)
                health = await asyncio.to_thread(operate.check, server.store, silent)
                assert not health.damages and health.stats.scores >= before.total()
                after = Counter(answered)
                assert run("restore", copy, "--store", tmp_path / f"new-{round_}")[0] == 0
                assert_sound(tmp_path / f"new-{round_}")
                for uuid, tally in contents(tmp_path / f"new-{round_}").items():
                    assert tally.sum == 3 * tally.count
                    assert before[uuid] <= tally.count <= after[uuid] + 1, "one more may be on its way to be answered"
            for task in posting:
                task.cancel()
            await asyncio.gather(*posting, return_exceptions=True)


def test_through_pipes(filled, tmp_path):
    """From standard output to standard input, the store named by its variable; the copy is the same as in a file."""
    command = f"{sys.executable} -m scoremean backup | {sys.executable} -m scoremean restore - --store {tmp_path / 'new'}"
    done = subprocess.run(
        command, shell=True, capture_output=True, check=True, text=True, env=os.environ | {"SCOREMEAN_STORE": str(filled)}
    )
    assert (json.loads(done.stdout)["scores"], done.stderr) == (559, "")
    assert contents(tmp_path / "new") == contents(filled)
    assert_sound(tmp_path / "new")


def test_nothing_is_overwritten(run, filled, tmp_path):
    """Not a file, nor a directory with anything in it, a store or not; nor what another backup is writing."""
    copy = tmp_path / "copy"
    assert run("backup", "--store", filled, "--output", copy)[0] == 0
    before = copy.read_bytes()
    assert run("backup", "--store", filled, "--output", copy)[::2] == (
        1,
        f"scoremean: {copy} exists, and nothing is overwritten; remove it or choose another name\n",
    )
    (tmp_path / "other.part").write_text("theirs")
    code, _, message = run("backup", "--store", filled, "--output", tmp_path / "other")
    assert (code, "other.part exists" in message, (tmp_path / "other.part").read_text()) == (1, True, "theirs")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_text("theirs")
    for path in (filled, tmp_path / "directory"):
        held = names(path)
        code, _, message = run("restore", copy, "--store", path)
        assert (code, "is not empty, and nothing is overwritten" in message, names(path)) == (1, True, held)
    assert run("restore", copy, "--store", copy)[0] == 3, "a file is no directory"
    assert copy.read_bytes() == before


def test_what_appears_meanwhile_is_not_overwritten(filled, tmp_path):
    """A file that gets the backup's name while it is written."""
    copy = tmp_path / "copy"
    with pytest.raises(NotWritten, match="copy exists"):
        operate.backup(filled, copy, lambda _: copy.write_text("theirs"))
    assert copy.read_text() == "theirs" and names(tmp_path) == {"filled", "copy"}


def test_restore_takes_an_empty_directory_or_makes_some(run, filled, tmp_path):
    """One that is mounted is there already. What was made is gone after a failure, what was there stays."""
    assert run("backup", "--store", filled, "--output", tmp_path / "copy")[0] == 0
    (tmp_path / "cut").write_bytes((tmp_path / "copy").read_bytes()[:-1])
    (tmp_path / "empty").mkdir()
    assert run("restore", tmp_path / "cut", "--store", tmp_path / "empty")[0] == 4
    assert run("restore", tmp_path / "cut", "--store", tmp_path / "a" / "b" / "c")[0] == 4
    assert names(tmp_path) == {"filled", "copy", "cut", "empty"} and not names(tmp_path / "empty")
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert run("restore", tmp_path / "copy", "--store", path)[0] == 0
        assert contents(path) == contents(filled)


def test_a_backup_that_is_cut_off_is_refused(run, filled, tmp_path):
    """Wherever it is cut, down to nothing; and nothing is left."""
    operate.backup(filled, tmp_path / "copy", silent)
    whole = (tmp_path / "copy").read_bytes()
    size = len(whole)
    for length in (0, 1, 100, PAGE_BYTES, PAGE_BYTES + 200, 2 * PAGE_BYTES, size // 2, size - PAGE_BYTES, size - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        code, _, message = run("restore", tmp_path / "cut", "--store", tmp_path / "new")
        assert (code, names(tmp_path)) == (4, {"filled", "copy", "cut"}), length
        assert message.startswith(f"scoremean: the backup {tmp_path / 'cut'} is damaged, and nothing was restored: pages: ")
        assert message.count("\n") == 1
        code, health, message = run("check", tmp_path / "cut")
        assert (code, health["stats"], message.count("\n")) == (4, None, 1) and health["damages"]


def test_a_byte_that_flips_is_found_or_changes_no_tally(filled, tmp_path):
    """LMDB has no checksums. Here each UUID has an id, so that its name stands in two places."""
    operate.backup(filled, tmp_path / "copy", silent)
    whole, expected = (tmp_path / "copy").read_bytes(), contents(filled)
    pick, found = random.Random(5), 0
    for _ in range(1000 if LONG else 50):
        (tmp_path / "copy").write_bytes(whole)
        flip(tmp_path / "copy", pick.randrange(len(whole)), 1 << pick.randrange(8))
        try:
            with (tmp_path / "copy").open("rb") as file:
                operate.restore(file, "copy", tmp_path / "new", silent)
        except (StoreDamaged, StoreForeign):
            found += 1
            continue
        assert contents(tmp_path / "new") == expected
        for name in names(tmp_path / "new"):
            (tmp_path / "new" / name).unlink()
        (tmp_path / "new").rmdir()
    assert found > 10


@pytest.mark.parametrize("length", [0, 100, PAGE_BYTES, 2 * PAGE_BYTES - 1, 3 * PAGE_BYTES, -4 * PAGE_BYTES])
def test_a_store_that_is_cut_off_is_damaged(run, filled, tmp_path, length):
    """For check and for backup, whatever LMDB makes of it; and no backup is left."""
    size = (filled / "data.mdb").stat().st_size
    os.truncate(filled / "data.mdb", length if length >= 0 else size + length)
    held = names(filled)
    code, health, message = run("check", "--store", filled)
    assert (code, health["stats"]) == (4, None) and health["damages"]
    assert message.startswith(f"scoremean: {filled} is damaged: keep it, and let") and "`scoremean restore`" in message
    assert names(filled) == held
    code, _, message = run("backup", "--store", filled, "--output", tmp_path / "copy")
    assert code in (3, 4) and message.count("\n") == 1
    assert names(tmp_path) == {"filled"}


def test_check_of_a_sound_store(run, filled):
    """It says what there is, and leaves nothing in the directory."""
    held = names(filled)
    code, health, message = run("check", "--store", filled)
    assert (code, health["damages"], health["stats"]["scores"], message) == (0, [], 559, "")
    assert names(filled) == held


def test_check_finds_what_lmdb_cannot(run, filled, tmp_path):
    """A tally that was written by another program: the pages are sound, but the total does not agree."""
    with lmdb.Environment(str(filled), max_dbs=6, lib_version=0) as env, env.begin(write=True) as txn:
        means = env.open_db(b"means", txn=txn)
        txn.put(b"uuid-0400", b"\x92\x04\x02", db=means)
    code, health, _ = run("check", "--store", filled)
    assert code == 4
    assert any("the tallies add up to" in damage for damage in health["damages"])
    code, _, message = run("backup", "--store", filled, "--output", tmp_path / "copy")
    assert code == 4 and "is damaged, and there is no backup: the tallies add up to" in message
    (tmp_path / "pipe").write_bytes(subprocess.check_output([sys.executable, "-m", "scoremean", "backup", "--store", filled]))
    code, piped, _ = run("check", tmp_path / "pipe")
    assert (code, piped["damages"]) == (4, health["damages"]), "what goes through a pipe is checked on the other side"
    (tmp_path / "pipe").unlink()
    assert names(tmp_path) == {"filled"}


def test_a_damaged_record_of_the_journal_is_found(run, filled):
    """No store can be opened with it; check says why."""
    with lmdb.Environment(str(filled), max_dbs=6, lib_version=0) as env, env.begin(write=True) as txn:
        for name in (b"journal-0", b"journal-1"):
            table = env.open_db(name, txn=txn)
            for key, _ in txn.cursor(table):
                txn.put(key, b"\xc1", db=table)
    code, health, _ = run("check", "--store", filled)
    assert (code, health["damages"]) == (4, ["the bytes c1 are not msgpack"])
    assert run("backup", "--store", filled, "--output", filled.parent / "copy")[0] == 4
    code, _, message = run("get", "a1-b1", "--store", filled)
    assert (code, message) == (4, "scoremean: the bytes c1 are not msgpack\n")


def test_what_is_no_store_is_refused(run, tmp_path):
    """None at all, another program's, a newer format; each by its name."""
    foreign, newer = tmp_path / "foreign", tmp_path / "newer"
    with lmdb.Environment(str(foreign), max_dbs=1, lib_version=0) as env:
        env.open_db(b"theirs")
    LmdbStore(newer).close()
    with lmdb.Environment(str(newer), max_dbs=6, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"\x02", db=env.open_db(b"meta", txn=txn))
    for path, sentence in (
        (tmp_path / "none", f"there is no store at {tmp_path / 'none'}"),
        (foreign, f"{foreign} was not written by scoremean"),
        (newer, f"the store {newer} has format 2, and this version of scoremean reads format 1"),
    ):
        code, _, message = run("check", "--store", path)
        assert (code, sentence in message) == (3, True), message
        assert run("backup", "--store", path, "--output", tmp_path / "copy")[0] == 3
        if path.exists():
            code, _, message = run("restore", path / "data.mdb", "--store", tmp_path / "new")
            assert (code, str(path / "data.mdb") in message) == (3, True)
    assert names(tmp_path) == {"foreign", "newer"}


def test_what_the_system_refuses_is_a_sentence(run, filled, tmp_path):
    """Exit code 1, and which file it is about."""
    none = tmp_path / "none" / "file"
    assert run("backup", "--store", filled, "--output", none) == (
        1,
        None,
        f"scoremean: cannot write {none}: No such file or directory\n",
    )
    assert run("restore", none, "--store", tmp_path / "new")[::2] == (
        1,
        f"scoremean: cannot restore {none} to {tmp_path / 'new'}: No such file or directory\n",
    )
    assert run("check", none)[::2] == (1, f"scoremean: cannot check {none}: No such file or directory\n")
    assert run("check", "", "--store", filled)[::2] == (1, "scoremean: cannot check : Is a directory\n")
    for name, path in {"": ".", "/": "/"}.items():
        sentence = f"{path} exists, and nothing is overwritten; remove it or choose another name"
        assert run("backup", "--store", filled, "--output", name) == (1, None, f"scoremean: {sentence}\n")
    assert names(tmp_path) == {"filled"}


def test_a_disk_without_room_is_left_alone(run, filled, tmp_path):
    """Less is free than what is to be written and what a served store needs to go on."""
    operate.backup(filled, tmp_path / "copy", silent)
    with patch.object(operate, "DISK_RESERVE_BYTES", 1 << 60):
        for arguments in (
            ("check", "--store", filled),
            ("backup", "--store", filled, "--output", tmp_path / "other"),
            ("restore", tmp_path / "copy", "--store", tmp_path / "new"),
        ):
            code, _, message = run(*arguments)
            assert (code, "MiB free, and" in message) == (1, True)
    assert names(tmp_path) == {"filled", "copy"}


def test_a_reader_that_dies(filled):
    """By what it read, the store is damaged; by anything else, that is an error."""
    for name, error in (("SIGBUS", StoreDamaged), ("SIGKILL", StoreError)):
        with patch.object(operate.subprocess, "Popen") as popen:
            process = popen.return_value.__enter__.return_value
            process.stdout.read.return_value = process.stderr.read.return_value = b""
            process.returncode = -getattr(signal, name)
            with pytest.raises(error, match=f"reading the store .* ended a process by {name}") as caught:
                operate.backup(filled, filled.parent / "copy", silent)
            assert isinstance(caught.value, StoreDamaged) == (error is StoreDamaged)


def test_a_backup_that_is_interrupted(filled, tmp_path):
    """Leaves no file, and holds no page."""
    with LmdbStore(filled) as store:
        store.commit(scores_of((f"more-{place}", 1) for place in range(9_999)))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        operate.backup(filled, tmp_path / "copy", interrupt)
    assert names(tmp_path) == {"filled"}
    with lmdb.Environment(str(filled), readonly=True, lib_version=0) as env:
        assert env.readers() == "(no active readers)\n"


def test_the_process_that_copies(filled, tmp_path, capfdbinary):
    """What it writes is the file, as it is or compact; else one sentence."""
    assert operate.main("pages", str(filled)) == 0
    pages = capfdbinary.readouterr().out
    assert len(pages) == (filled / "data.mdb").stat().st_size
    assert operate.main("compact", str(filled)) == 0
    (tmp_path / "copy").write_bytes(capfdbinary.readouterr().out)
    assert operate.check_file(tmp_path / "copy", "copy").stats.scores == 559
    assert operate.main("compact", str(tmp_path)) == 1
    assert capfdbinary.readouterr().err.startswith(b"there is no store at ")
    flip(filled / "data.mdb", 16)
    assert operate.main("pages", str(filled)) == 4
    assert capfdbinary.readouterr().err.count(b"\n") == 1


def test_a_store_is_copied_by_a_program_too(filled, tmp_path):
    """LmdbStore.copy_to, while it is written."""
    with LmdbStore(filled) as store:
        with (tmp_path / "copy").open("wb") as file:
            store.copy_to(file.fileno())
        store.commit([Score("a", 1)])
    assert operate.check_file(tmp_path / "copy", "copy").stats.scores == 559
    with pytest.raises(StoreError, match="is closed"):
        store.copy_to(1)


def test_a_backup_is_not_for_a_terminal(filled):
    """Standard output is refused if it is one; progress is shown on one that is standard error."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "scoremean", "backup", "--store", filled]
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "a backup is not for a terminal" in done.stderr) == (2, True)
    done = subprocess.run([*command, "--output", filled.parent / "copy"], stdout=subprocess.PIPE, stderr=follower, check=True)
    assert "MB/s" in os.read(leader, 10_000).decode()
    with contextlib.suppress(OSError):
        os.close(leader)
    os.close(follower)


def test_a_pipe_that_closes(filled):
    """The one who reads the backup went away."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "scoremean", "backup", "--store", filled]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "scoremean: cannot write -: Broken pipe\n")


def test_check_raises_for_no_store(tmp_path):
    """And not for a missing directory only."""
    with pytest.raises(StoreMissing):
        operate.check(tmp_path, silent)


@pytest.mark.parametrize("seed", range(40 if LONG else 2))
def test_what_check_demands_is_so_after_every_commit(tmp_path, seed):
    """Of ids above all: voided, forgotten, merged and expired ones, in the journal and out of it, over restarts."""
    pick, now = random.Random(seed), 0.0

    def change(place: int):
        uuid = pick.choice("abcdefgh")
        void = Void(f"{pick.randrange(place + 1)}")
        by_value = VoidScore(Score(uuid, pick.choice((2, 3)), f"{place}"))
        scores = [Score(uuid, 3), Score(uuid, 2, f"{place}"), Add(uuid, Tally(6, 3), f"{place}")]
        return pick.choices([*scores, void, by_value, Forget(uuid), Merge(uuid, "z")], (4, 8, 2, 4, 6, 1, 1))[0]

    with patch.multiple(journal, **SMALL_JOURNAL):
        done = 0
        for _ in range(8):
            with LmdbStore(tmp_path / "store", id_retention_seconds=100, clock=lambda: now) as store:
                for _ in range(20):
                    now += pick.choice((0, 0, 1, 10, 60))
                    batch = [change(done + place) for place in range(pick.randrange(6))]
                    done += len(batch)
                    store.commit(batch)
                    assert not store.check()
    assert not operate.check(tmp_path / "store", silent).damages


def test_check_finds_what_no_void_explains(tmp_path):
    """A tally may have fewer scores than an id has added, by as many as were voided by their value, and no more."""
    with LmdbStore(tmp_path) as store:
        voids = [VoidScore(Score("a", 2, "one")), VoidScore(Score("a", 1, "two"))]
        store.commit([Add("a", Tally(3, 2), "file"), *voids, Score("a", 5)])
        assert not store.check()
    with lmdb.Environment(str(tmp_path), max_dbs=6, lib_version=0) as env, env.begin(write=True) as txn:
        key, value = codec.pack_id("other"), pack_id("a", Tally(4, 4), Tally(4, 4))
        txn.put(key, value, db=env.open_db(b"ids-0", txn=txn))
    [damage] = operate.check(tmp_path, silent).damages
    added = "Tally(sum=4, count=4) was added to the UUID 'a', whose tally is Tally(sum=5, count=1)"
    assert damage == f"ids-0, key {key.hex()}: {added}"


@pytest.mark.parametrize(
    ("table", "key", "value", "damage"),
    [
        ("journal-0", number(3), RECORD, "the record 0000000000000003 does not follow the record 1"),
        ("journal-1", number(3), RECORD, "the record 0000000000000003 does not follow the record 1"),
        ("journal-0", b"\0\2", RECORD, "the record 0002 does not follow the record 1"),
        ("journal-0", number(2), IMPOSSIBLE, "Tally(sum=1, count=-1) of the UUID 'a' was not written"),
        ("means", b"a", codec.pack_tally(10**9, 1), "Tally(sum=1000000000, count=1) was not written"),
        ("ids-0", bytes(16), pack_id("a", TWO, TWO), f"{TWO} was added to the UUID 'a', whose tally is Tally(sum=5, count=1)"),
        ("ids-1", bytes(16), pack_id("b", TWO, TWO), f"{TWO} was added to the UUID 'b', whose tally is Tally(sum=0, count=0)"),
        ("ids-1", bytes(16), pack_id("a", TWO, Tally(2, 2)), f"{TWO} was added and gave Tally(sum=2, count=2)"),
        ("ids-1", bytes(16), pack_id("a", Tally(-5, -1), Tally(1, 0)), "was added and gave Tally(sum=1, count=0)"),
        ("ids-1", bytes(16), pack_id("a", Tally(-5, -2), Tally(5, 1)), "Tally(sum=-5, count=-2) is not the tally of"),
        ("ids-1", bytes(16), pack_id("a", Tally(-(10**9), -1), Tally(5, 1)), "sum=1000000000, count=1) is not the tally of"),
        ("ids-1", bytes(16), pack_id("a", Tally(-5, -1), Tally(5, 1), True), "Tally(sum=-5, count=-1) is not the tally of"),
    ],
)
def test_check_finds(tmp_path, table, key, value, damage):
    """What cannot be, although each of the bytes could: records out of order, ids that no tally has room for."""
    with LmdbStore(tmp_path) as store:
        store.commit([Score("a", 5)])
    with lmdb.Environment(str(tmp_path), max_dbs=6, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(key, value, db=env.open_db(table.encode(), txn=txn))
    health = operate.check(tmp_path, silent)
    assert damage in "\n".join(health.damages)
