"""The embedded store: one LMDB environment in one directory, and the one thread that writes it.

What is durable, and why (docs/architecture.md has the measurements):

- LMDB copies on write. A commit writes new pages, syncs them, then writes one of two meta pages through a descriptor that
  syncs each write. A power cut leaves the old meta page or the new one, and each is a whole tree: there is nothing to
  recover.
- `sync` and `metasync` stay on and `writemap` off: relaxing any of them loses or corrupts commits on a power cut.
- A new store fsyncs its directory and each one above it that it had to make, or the files could be gone after a power cut
  though their bytes were synced.
- `lib_version=0` pins LMDB 0.9's file format, which py-lmdb 3 would otherwise choose by its own default.

Caveats: keep the store on a local disk, since LMDB's memory map and locks do not work over a network file system. A reader
process that stops while it reads pins the pages it saw, so the file grows until it goes on.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import lmdb
from msgspec.structs import replace

from scoremean import codec
from scoremean.codec import Generation, IdRecord, Record
from scoremean.counts import (
    COMMIT_DURATION,
    COMMIT_SCORES,
    DISK_FREE_BYTES,
    FOLD_DURATION,
    JOURNAL_ENTRIES,
    REPLAYS,
    SCORES,
    VOIDS,
    Counts,
)
from scoremean.errors import (
    Fault,
    IdConflict,
    IdVoided,
    InvalidBatch,
    InvalidScore,
    NoSuchScore,
    RequestError,
    StoreDamaged,
    StoreError,
    StoreForeign,
    StoreFull,
    StoreInUse,
    StoreMissing,
    Stopping,
    UnknownId,
    UnknownUUID,
)
from scoremean.model import (
    SCORE_BOUND,
    Add,
    Batch,
    Forget,
    Merge,
    Page,
    Replay,
    Score,
    Stats,
    Tally,
    Void,
    Voided,
    VoidScore,
    require_uuid,
)
from scoremean.store.base import Change, Outcome, Store
from scoremean.store.journal import IN_MEANS, Journal

SIZE_MAX_BYTES = 64 << 30
ID_RETENTION_SECONDS = 168 * 3600
GIVE_WAY_MAX_SECONDS = 0.0005

# The disk must have this much room before a commit: what a fold and the store's own pages may take, and for each score a page
# of its own and one that is split off it.
DISK_RESERVE_BYTES = 16 << 20
SCORE_RESERVE_BYTES = 8 << 10

DATA_FILE = "data.mdb"
LOCK_FILE = "scoremean.lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_HINTS = {
    errno.EACCES: "run scoremean as the user who owns it, or give --store another directory",
    errno.EROFS: "give --store a directory on a disk that can be written",
    errno.ENOSPC: "make room on its disk, or give --store a directory on another one",
}

_log = logging.getLogger(__name__)


class _Tables(NamedTuple):
    """The handles of all tables; those of ids and of the journal are two each."""

    meta: object
    means: object
    ids: Sequence[object]
    journals: Sequence[object]


class _Meta(NamedTuple):
    """What changes in the table meta, and how many ids are kept, as of the last commit: so that a commit need not read it."""

    generation: Generation
    epoch: int
    kept: int


class LmdbStore(Store):
    """A Store in a directory of its own, for one writing process and any number of reading ones.

    Beyond what every Store promises: a batch is all or nothing, and `scan` goes in the order of UUIDs by code point.

    Args:
        path: the directory. When writing, it is created if it is missing.
        size_max_bytes: the size that the store may grow to. It costs address space, neither memory nor disk.
        readonly: read what another process writes; `submit` is refused.
        id_retention_seconds: ids are kept at least this long, and about twice as long at most while scores come in.
        clock: the Unix time in seconds, by which ids expire.
        counts: where to count what it does; None for counts of its own.

    Attributes:
        bounds: the lowest and the highest score.

    Raises:
        StoreMissing: `readonly`, and there is no store at `path`.
        StoreInUse: another process, or this one, has the store open for writing.
        StoreForeign: `path` holds something else, or a newer format.
        StoreDamaged: the store was not closed before a power cut or after a failed commit, and `check` finds damage.
        StoreError: the operating system refuses the directory; the message says why.
    """

    bounds = (-SCORE_BOUND, SCORE_BOUND)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size_max_bytes: int = SIZE_MAX_BYTES,
        readonly: bool = False,
        id_retention_seconds: int = ID_RETENTION_SECONDS,
        clock: Callable[[], float] = time.time,
        counts: Counts | None = None,
    ):
        self.path = Path(path)
        self.counts = counts or Counts()
        self._id_retention_seconds = id_retention_seconds
        self._clock = clock
        self._closed = self._failed = False
        self._lock: _WriterLock | None = None
        try:
            if readonly:
                require_store(self.path)
            else:
                make_directory(self.path)
                self._lock = _WriterLock(self.path)
                if not (self.path / DATA_FILE).exists():
                    _make_data_file(self.path, size_max_bytes)
                elif not (self.path / DATA_FILE).stat().st_size:
                    # LMDB would take it for a new one, and scoremean never leaves one.
                    raise StoreDamaged(f"{self.path / DATA_FILE} is empty: it was cut off; restore a backup")
            self._env = _open_environment(self.path, 0 if readonly else size_max_bytes, readonly)
        except OSError as error:
            self._unlock()
            raise _refusal("open", self.path, error.strerror, error.errno) from error
        except Exception:
            self._unlock()
            raise
        self._writer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoremean-store")
        self._reading = Lock()
        try:
            self._tables = self._writer_thread.submit(self._open_tables).result()
            self._journal = Journal(self._tables.journals, self._tables.means, self._tables.ids)
            with self._env.begin(db=self._tables.meta) as txn:
                self._journal.read(txn)
                self._meta = _Meta(
                    codec.unpack_generation(txn.get(codec.GENERATION_KEY, b"")),
                    codec.unpack_number(txn.get(codec.EPOCH_KEY, b"")),
                    self._journal.kept,
                )
            if self._lock is not None:
                self.counts.cells[DISK_FREE_BYTES] = _free_bytes(self._lock.descriptor)
                self.counts.cells[JOURNAL_ENTRIES] = self._journal.entries
                if self._lock.in_doubt:
                    self._require_sound()
                    self._lock.trust()
        except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            self.close()
            raise StoreDamaged(f"the store {self.path} is damaged: {error}; restore a backup") from error
        except Exception:
            self.close()
            raise

    def submit(self, batch: Sequence[Change]) -> Future[list[Outcome]]:
        """Start to count `batch`, all or nothing; see Store.submit."""
        if self._lock is None:
            raise StoreError(f"the store {self.path} is open for reading only")
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        if self._failed:
            raise StoreError(f"a commit to the store {self.path} has failed; open it again")
        counted = Lock()  # taken until then; a bare lock, since an Event costs several times as much
        counted.acquire()  # pylint: disable=consider-using-with
        future = self._writer_thread.submit(self._commit, batch, counted)
        # Give way until the batch waits for the disk, which needs no interpreter lock. A caller that goes on at once keeps that
        # lock from the writer thread, with all that it does next: sending answers, for an event loop.
        counted.acquire(timeout=GIVE_WAY_MAX_SECONDS)  # pylint: disable=consider-using-with
        return future

    def get(self, uuids: Sequence[str]) -> list[Tally | None]:
        """Return the durable tally of each UUID, all as of the same commit; None for one without a score."""
        keys = [codec.pack_uuid(require_uuid(uuid)) for uuid in uuids]
        with self._snapshot() as txn:
            return [self._journal.get(uuid) or self._in_means(txn, key) for uuid, key in zip(uuids, keys)]

    def scan(self, after: str | None, limit: int) -> Page:
        """Return up to `limit` tallies in the order of UUIDs by code point, from behind `after`."""
        tallies: list[tuple[str, Tally]] = []
        with self._snapshot() as txn:
            for key, value in _items_after(txn.cursor(self._tables.means), after):
                if len(tallies) == limit:
                    return Page(tallies, tallies[-1][0] if tallies else after)
                uuid = codec.unpack_uuid(key)
                tallies.append((uuid, self._journal.get(uuid) or codec.unpack_tally(value)))
        return Page(tallies, None)

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally, in order, all as of one commit. Meanwhile the pages seen are not used again."""
        with self._reading:
            txn = self._begin()
            journal = self._journal.all()
        with txn:
            for key, value in txn.cursor(self._tables.means):
                uuid = codec.unpack_uuid(key)
                yield uuid, journal.get(uuid) or codec.unpack_tally(value)

    def stats(self) -> Stats:
        """Return what the store holds, as of the last commit; all but the sizes cost the same however much it is."""
        with self._snapshot() as txn:
            uuids = txn.stat(self._tables.means)["entries"]
            scores = self._journal.total.count
            ids = self._journal.kept
        info = self._env.info()
        size_bytes = (info["last_pgno"] + 1) * self._env.stat()["psize"]
        return Stats(uuids, scores, ids, size_bytes, info["map_size"])

    def check(self) -> list[str]:
        """Read everything in one snapshot and return a sentence for each damage found."""
        with self._reading:
            txn = self._begin()
        with txn:
            return list(_Check(txn, self._tables).damages())

    def copy_to(self, descriptor: int) -> None:
        """Write all of the store, as of the last commit, to `descriptor`: a whole DATA_FILE, without free pages.

        Commits go on meanwhile, and the store's file grows as they do: no page is used again until the copy is done.

        Raises:
            StoreDamaged: LMDB finds its pages damaged. It trusts them, so worse damage may end the process by a signal.
        """
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        try:
            self._env.copyfd(descriptor, compact=True)
        except lmdb.Error as error:
            raise StoreDamaged(f"the store {self.path} cannot be copied: {error}") from error

    def close(self) -> None:
        """Wait for the batches under way, then let go of the directory."""
        if self._closed:
            return
        self._closed = True
        self._writer_thread.shutdown(wait=True)
        self._env.close()
        self._unlock()

    @contextmanager
    def _snapshot(self) -> Iterator[lmdb.Transaction]:
        """Give a read transaction, with the journal as of the same commit. The writer waits for its end: keep it short."""
        with self._reading, self._begin() as txn:
            yield txn

    def _begin(self) -> lmdb.Transaction:
        """Return a read transaction of the last commit, and bring the journal up to it."""
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        if self._failed:  # LMDB refuses everything then, or shows what is not on disk
            raise Stopping("a commit has failed and the service is stopping; nothing was read")
        try:
            txn = self._env.begin()
        except lmdb.MapResizedError as error:
            raise StoreError(f"the store {self.path} was restarted with a larger size and has grown; open it again") from error
        if self._lock is None:
            self._journal.read(txn)
        else:
            self._journal.settle(txn.id())
        return txn

    def _in_means(self, txn: lmdb.Transaction, key: bytes) -> Tally | None:
        value = txn.get(key, db=self._tables.means)
        return value and codec.unpack_tally(value)

    def _open_tables(self) -> _Tables:
        """Check the format, or write it when the store is new; return the tables."""
        try:
            if self._lock is not None and self._env.stat()["entries"] == 0:
                return self._create_tables()
            tables = _Tables(
                self._env.open_db(codec.META_TABLE, create=False),
                self._env.open_db(codec.MEANS_TABLE, create=False),
                [self._env.open_db(table, create=False) for table in codec.IDS_TABLES],
                [self._env.open_db(table, create=False) for table in codec.JOURNAL_TABLES],
            )
            with self._env.begin(db=tables.meta) as txn:
                version = codec.unpack_number(txn.get(codec.FORMAT_KEY) or b"")
        except (lmdb.NotFoundError, lmdb.IncompatibleError, StoreDamaged) as error:
            raise StoreForeign(
                f"{self.path / DATA_FILE} was not written by scoremean; give the store a directory of its own"
            ) from error
        if version != codec.FORMAT:
            raise StoreForeign(
                f"the store {self.path} has format {version}, and this version of scoremean reads format {codec.FORMAT};"
                " install the version that wrote it"
            )
        return tables

    def _create_tables(self) -> _Tables:
        # One transaction, so that a crash in it leaves an empty environment, which counts as new.
        with self._env.begin(write=True) as txn:
            tables = _Tables(
                self._env.open_db(codec.META_TABLE, txn=txn),
                self._env.open_db(codec.MEANS_TABLE, txn=txn),
                [self._env.open_db(table, txn=txn) for table in codec.IDS_TABLES],
                [self._env.open_db(table, txn=txn) for table in codec.JOURNAL_TABLES],
            )
            txn.put(codec.FORMAT_KEY, codec.pack_number(codec.FORMAT), db=tables.meta)
            txn.put(codec.GENERATION_KEY, codec.pack_generation(Generation(0, int(self._clock()))), db=tables.meta)
            txn.put(codec.EPOCH_KEY, codec.pack_number(0), db=tables.meta)
        return tables

    def _commit(self, batch: Sequence[Change], counted: Lock) -> list[Outcome]:
        """Count `batch` in one transaction. Runs on the writer thread only.

        Args:
            counted: let go when all that is left is to make it durable.
        """
        started = time.perf_counter_ns()
        scores = _scores_in(batch)
        self._require_free(scores)
        generation = self._generation()
        with self._reading:
            self._journal.turn(expiring=generation != self._meta.generation)
        try:
            outcomes = self._write(batch, generation, counted, fold=True)
        except lmdb.MapFullError:
            outcomes = self._write_without_fold(batch, generation, counted)
        COMMIT_DURATION.observe(self.counts.cells, time.perf_counter_ns() - started)
        COMMIT_SCORES.observe(self.counts.cells, scores)
        return outcomes

    def _write_without_fold(self, batch: Sequence[Change], generation: Generation, counted: Lock) -> list[Outcome]:
        """Write where a fold found no room: it copies pages, and without it the batch may fit. Raises StoreFull."""
        try:
            return self._write(batch, generation, counted, fold=False)
        except lmdb.MapFullError as error:
            raise StoreFull(f"the store {self.path} has reached store_size_max_gib; restart with a larger one") from error

    def _write(self, batch: Sequence[Change], generation: Generation, counted: Lock, *, fold: bool) -> list[Outcome]:
        try:
            with self._env.begin(write=True, db=self._tables.means) as txn:
                if fold:
                    # Before the batch, whose changes to `means` are newer.
                    self._fold(txn)
                commit = _Commit(txn, self._tables, self._meta, self._journal, self.bounds)
                if generation != self._meta.generation:
                    commit.begin(generation)
                outcomes = commit.count(batch)
                txn_id = txn.id()
                if counted.locked():
                    counted.release()
        except lmdb.MapFullError:
            self._journal.abandon()
            raise
        except Exception:
            # What is on disk is unknown, and LMDB would go on all the same.
            self._failed = self._lock.in_doubt = True
            raise
        self._meta = commit.meta
        with self._reading:
            self._journal.settle(txn_id)
        commit.report(self.counts.cells)
        self.counts.cells[JOURNAL_ENTRIES] = self._journal.entries
        return outcomes

    def _fold(self, txn: lmdb.Transaction) -> None:
        started = time.perf_counter_ns()
        if self._journal.fold(txn):
            FOLD_DURATION.observe(self.counts.cells, time.perf_counter_ns() - started)

    def _require_free(self, scores: int) -> None:
        """Refuse a batch while the disk is nearly full: an error in the middle of a commit would be an unknown outcome."""
        self.counts.cells[DISK_FREE_BYTES] = free_bytes = _free_bytes(self._lock.descriptor)
        if free_bytes < (needed_bytes := DISK_RESERVE_BYTES + scores * SCORE_RESERVE_BYTES):
            raise StoreFull(
                f"the disk of the store {self.path} has {free_bytes >> 20} MiB free, of {needed_bytes >> 20} MiB that a commit"
                " may need; nothing was counted, make room and send it again"
            )

    def _require_sound(self) -> None:
        """Check the whole store, since it may not be as the last writer left it. Raises StoreDamaged."""
        _log.warning("the store %s was not closed before a power cut or after a failed commit: checking it", self.path)
        if damages := self.check():
            raise StoreDamaged(f"the store {self.path} is damaged: {summary(damages)}; restore a backup")

    def _generation(self) -> Generation:
        """Return the generation that new ids belong to: a new one when the last one is as old as ids are kept.

        Not while ids of the one before are still to be folded: they would outlive what says that their UUID was forgotten.
        """
        generation, now = self._meta.generation, int(self._clock())
        expired = now - generation.since_seconds >= self._id_retention_seconds and not self._journal.folding
        return Generation(1 - generation.current, now) if expired else generation

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


class _Commit:
    """One write transaction at work: what it has changed is kept here and written once, at the end.

    Args:
        txn: the transaction, which the caller commits.
        meta: the table meta as it is in it.
        journal: what is newer than `means`.
        bounds: the lowest and the highest score that a tally may be made of.

    Attributes:
        meta: the table meta once this is committed.
    """

    def __init__(  # pylint: disable=too-many-arguments,too-many-positional-arguments  # what a commit works on
        self, txn: lmdb.Transaction, tables: _Tables, meta: _Meta, journal: Journal, bounds: tuple[int, int]
    ):
        self._txn = txn
        self._tables = tables
        self.meta = meta
        self._journal = journal
        self._bounds = bounds
        self._tallies: dict[str, Tally] = {}
        self._new: set[str] = set()
        self._new_ids: dict[bytes, bytes] = {}
        self._sum = self._count = 0
        self._taken = self._replays = self._voids = 0

    def begin(self, generation: Generation) -> None:
        """Begin a generation of ids: its table is emptied of the ids of two generations ago, and takes the new ones.

        So ids expire a whole table at a time, without a delete for each: dropping a table touches its branch pages only.
        """
        table = self._tables.ids[generation.current]
        kept = max(0, self.meta.kept - self._txn.stat(table)["entries"])
        self._txn.drop(table, delete=False)
        self._txn.put(codec.GENERATION_KEY, codec.pack_generation(generation), db=self._tables.meta)
        self.meta = self.meta._replace(generation=generation, kept=kept)

    def count(self, changes: Sequence[Change]) -> list[Outcome]:
        """Apply every change in order and return the outcome of each."""
        apply = {
            Add: self._add_tally,
            Void: self._void,
            VoidScore: self._void_score,
            Forget: self._forget,
            Merge: self._merge,
            Batch: self._batch,
        }
        outcomes = [apply.get(change.__class__, self._score)(change) for change in changes]
        room = self._journal.has_room(len(self._tallies) + len(self._new_ids))
        tallies, ids = self._write_tallies(room), self._write_ids(room)
        total = self._journal.total + Tally(self._sum, self._count)
        self._journal.append(self._txn, Record(tallies, total, ids, self.meta.kept, self.meta.generation.current))
        return outcomes

    def report(self, cells: memoryview) -> None:
        """Add to the counts what was counted, once it is durable."""
        cells[SCORES] += self._count + self._taken
        cells[REPLAYS] += self._replays
        cells[VOIDS] += self._voids

    def _write_ids(self, room: bool) -> dict[bytes, bytes]:
        """Write the new records of ids that are not for the journal into their table; return what is for the journal."""
        if room or not self._new_ids:
            return self._new_ids
        known = {key: value for key, value in self._new_ids.items() if self._journal.find(key)}
        in_place = sorted(item for item in self._new_ids.items() if item[0] not in known)
        self._txn.cursor(self._tables.ids[self.meta.generation.current]).putmulti(in_place)
        return known

    def _write_tallies(self, room: bool) -> dict[str, Tally]:
        """Write the new tallies that are not for the journal into `means`; return what is for the journal."""
        if room:
            in_place = {uuid for uuid, tally in self._tallies.items() if not tally.count} | self._new
        else:
            in_place = self._tallies.keys()
        if not in_place:
            return self._tallies
        for uuid in sorted(in_place):  # by key, as it goes into the tree
            key, tally = codec.pack_uuid(uuid), self._tallies[uuid]
            if tally.count:
                self._txn.put(key, codec.pack_tally(tally.sum, tally.count), db=self._tables.means)
            else:
                self._txn.delete(key, db=self._tables.means)
        overridden = {uuid: IN_MEANS for uuid in in_place if self._journal.get(uuid)}
        return {uuid: tally for uuid, tally in self._tallies.items() if uuid not in in_place} | overridden

    def _score(self, score: Score) -> Tally | RequestError:
        if score.id is None:
            return self._add(score.uuid, score.score, 1)
        return self._once(score.id, score.uuid, Tally(score.score, 1), self._add)

    def _add_tally(self, add: Add) -> Tally | RequestError:
        if add.id is None:
            return self._add(add.uuid, add.tally.sum, add.tally.count)
        return self._once(add.id, add.uuid, add.tally, self._add)

    def _void_score(self, void: VoidScore) -> Tally | RequestError:
        score = void.score
        return self._once(score.id, score.uuid, Tally(-score.score, -1), self._take)

    def _once(
        self, name: str, uuid: str, added: Tally, apply: Callable[[str, int, int], Tally | RequestError]
    ) -> Tally | RequestError:
        """Return what `apply` makes of the tally, and keep it with the id `name`; of an id that is kept, what it says."""
        key = codec.pack_id(name)
        if (found := self._find(key)) is not None:
            outcome = _again(name, uuid, added, found[0])
            self._replays += isinstance(outcome, Replay)
            return outcome
        tally = apply(uuid, added.sum, added.count)
        if isinstance(tally, Tally):
            self._new_ids[key] = codec.pack_id_record(IdRecord(uuid, added, tally, self._epoch_of(uuid)))
            self.meta = self.meta._replace(kept=self.meta.kept + 1)
        return tally

    def _batch(self, batch: Batch) -> Outcome:
        if all(score.id is None for score in batch.scores):
            return self._add_all(batch.scores)
        if not batch.skip and (faults := tuple(self._refusals(batch.scores))):
            return InvalidBatch(f"{len(faults)} of {len(batch.scores)} scores are at fault, so none was counted", faults)
        return [self._score(score) for score in batch.scores]

    def _refusals(self, scores: Sequence[Score]) -> Iterator[Fault]:
        """Yield a fault for each score that would be refused, before any of them is counted: only ids can be."""
        new: dict[str, IdRecord] = {}
        for index, score in enumerate(scores):
            if score.id is None:
                continue
            if (record := new.get(score.id)) is None:
                found = self._find(codec.pack_id(score.id))
                record = found[0] if found else IdRecord(score.uuid, Tally(score.score, 1), Tally(0, 0))
                new[score.id] = record
            if isinstance(outcome := _again(score.id, score.uuid, Tally(score.score, 1), record), RequestError):
                yield Fault(f"/{index}/id", outcome.detail)

    def _void(self, void: Void) -> Outcome:
        key = codec.pack_id(void.id)
        found = self._find(key)
        if found is None or found[0].added.count < 0 or found[0].epoch != self._epoch_of(found[0].uuid, found[0].epoch):
            return UnknownId(f"no score carried the id {void.id}, or it has expired, or its UUID was forgotten or merged")
        record, table = found
        if record.voided:
            return Voided(record.uuid, self._tally(record.uuid))
        left = self._take(record.uuid, -record.added.sum, -record.added.count)
        if not isinstance(left, Tally):
            return left
        voided = codec.pack_id_record(replace(record, voided=True))
        if table is None:
            self._new_ids[key] = voided
        else:
            self._txn.put(key, voided, db=table)
        return Voided(record.uuid, left)

    def _take(self, uuid: str, total: int, count: int) -> Tally | RequestError:
        """Do what `_add` does with what is negative, if scores within the bounds can make both it and what is left."""
        old = self._tally(uuid)
        if not old.count:
            return _unknown(uuid)
        taken, left, (low, high) = Tally(-total, -count), Tally(old.sum + total, old.count + count), self._bounds
        if left.count < 0 or not all(low * some.count <= some.sum <= high * some.count for some in (taken, left)):
            what = f"score of {-total}" if count == -1 else f"tally of {-count} scores and the sum {-total}"
            return NoSuchScore(
                f"no {what} can be in the tally of the UUID {uuid}, sum {old.sum} and count {old.count}; nothing was taken out"
            )
        self._voids += 1
        self._taken -= count
        return self._add(uuid, total, count)

    def _forget(self, forget: Forget) -> Outcome:
        tally = self._tally(forget.uuid)
        if not tally.count:
            return _unknown(forget.uuid)
        self._taken += tally.count
        self._empty(forget.uuid, tally)
        return tally

    def _merge(self, merge: Merge) -> Outcome:
        tally = self._tally(merge.uuid)
        if not tally.count:
            return _unknown(merge.uuid)
        try:
            Add(merge.into, tally + self._tally(merge.into))  # what an import may not add no merge may make
        except InvalidScore as error:
            return error
        self._empty(merge.uuid, tally)
        return self._add(merge.into, tally.sum, tally.count)

    def _empty(self, uuid: str, tally: Tally) -> None:
        """Take the whole tally of a UUID out, and begin an epoch of it, in which its ids so far void nothing."""
        self._add(uuid, -tally.sum, -tally.count)
        self.meta = self.meta._replace(epoch=self.meta.epoch + 1)
        epoch = codec.pack_number(self.meta.epoch)
        self._txn.put(codec.EPOCH_KEY, epoch, db=self._tables.meta)
        # The newer table is emptied after every id that was counted until now has expired.
        table = self._tables.ids[self.meta.generation.current]
        kept = self.meta.kept + (self._txn.get(codec.pack_forgotten(uuid), db=table) is None)
        self._txn.put(codec.pack_forgotten(uuid), epoch, db=table)
        self.meta = self.meta._replace(kept=kept)

    def _epoch_of(self, uuid: str, default: int = 0) -> int:
        """Return the epoch of a UUID, `default` if no trace is left of its having been forgotten."""
        if self.meta.epoch:  # in most stores nothing was ever forgotten, and there is nothing to look up
            for table in self._ids_tables():
                if value := self._txn.get(codec.pack_forgotten(uuid), db=table):
                    return codec.unpack_number(value)
        return default

    def _add(self, uuid: str, total: int, count: int) -> Tally:
        old = self._tallies.get(uuid) or self._stored(uuid)
        if not old.count:
            self._new.add(uuid)
        tally = self._tallies[uuid] = Tally(old.sum + total, old.count + count)
        self._sum += total
        self._count += count
        return tally

    def _add_all(self, scores: Sequence[Score]) -> list[Tally | RequestError]:
        """Do for each score what `_add` does, in one loop: a large batch spends most of its time here."""
        tallies, outcomes, total = self._tallies, [], 0
        for score in scores:
            uuid, change = score.uuid, score.score
            old = tallies.get(uuid) or self._stored(uuid)
            if not old.count:
                self._new.add(uuid)
            tallies[uuid] = tally = Tally(old.sum + change, old.count + 1)
            outcomes.append(tally)
            total += change
        self._sum += total
        self._count += len(scores)
        return outcomes

    def _tally(self, uuid: str) -> Tally:
        return self._tallies.get(uuid) or self._stored(uuid)

    def _stored(self, uuid: str) -> Tally:
        """Return the tally of a UUID before this commit."""
        if (tally := self._journal.get(uuid)) is None:
            value = self._txn.get(codec.pack_uuid(uuid), db=self._tables.means)
            tally = codec.unpack_tally(value) if value else IN_MEANS
        return tally

    def _find(self, key: bytes) -> tuple[IdRecord, object] | None:
        """Return what is kept of an id, and the table it is in; None for the journal, or for what is new in this commit."""
        if value := self._new_ids.get(key) or self._journal.find(key):
            return codec.unpack_id_record(value), None
        for table in self._ids_tables():
            if value := self._txn.get(key, db=table):
                return codec.unpack_id_record(value), table
        return None

    def _ids_tables(self) -> tuple[object, object]:
        """Return the tables of ids, the newer one first, where a retry finds its id."""
        current = self.meta.generation.current
        return self._tables.ids[current], self._tables.ids[1 - current]


def _scores_in(batch: Sequence[Change]) -> int:
    return sum(len(change.scores) if isinstance(change, Batch) else 1 for change in batch)


def _free_bytes(descriptor: int) -> int:
    """Return the free space of the disk that has this file."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize


def _unknown(uuid: str) -> UnknownUUID:
    return UnknownUUID(f"no score was counted for the UUID {uuid}")


def _again(name: str, uuid: str, added: Tally, record: IdRecord) -> Replay | RequestError:
    """Return the outcome of a score, tally or void of a score whose id was seen before."""
    if (record.uuid, record.added) != (uuid, added):
        same_kind = record.added.count * added.count > 0
        what = "another UUID or score" if same_kind else "a score" if added.count < 0 else "the void of a score"
        return IdConflict(f"the id {name} was used before, for {what}; give each score and each void an id of its own")
    if record.voided:
        return IdVoided(f"the score with the id {name} was voided; post a new score with a new id")
    return Replay(record.first.sum, record.first.count)


def summary(damages: Sequence[str]) -> str:
    """Return the first of at least one damage, and how many more there are."""
    more = f", and {len(damages) - 1} more" if damages[1:] else ""
    return f"{damages[0]}{more}"


def _refusal(verb: str, path: Path, reason: str, number: int | None) -> StoreError:
    """Return the error for what the operating system refuses with this errno; with what to do, where that is known."""
    hint = f"; {_HINTS[number]}" if number in _HINTS else ""
    return StoreError(f"cannot {verb} the store {path}: {reason}{hint}")


def require_store(path: Path) -> None:
    """Raise StoreMissing unless there is a store at `path`."""
    if not (path / DATA_FILE).exists():
        raise StoreMissing(f"there is no store at {path}; `scoremean serve --store {path}` makes one")


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, so that they survive a power cut. Raises StoreError, OSError."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"cannot open the store {path}: it is not a directory")
    if not path.parent.exists():
        make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    fsync_directory(path.parent)


class _WriterLock:
    """The writer's lock on a store, held until `release` or the death of this process.

    LMDB lets several processes write in turn; the totals that a Writer hands out, and a drain, need there to be only one.

    Its file also tells whether the last writer left the store in doubt. It is empty after a close; else it has the process id
    of the writer and the id of the boot in which it ran. A process that was killed leaves its writes to the kernel, so within
    one boot nothing is in doubt; after a power cut or a failed commit it is.

    Attributes:
        descriptor: of the file.
        in_doubt: the store must be checked; set by a failed commit, too.
    """

    def __init__(self, path: Path):
        self.descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        left = os.read(self.descriptor, 256).decode("ascii", "replace").split()
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.descriptor)
            owner = left[0] if left else "(unknown)"
            raise StoreInUse(f"the store {path} is in use by process {owner}; stop it first") from None
        self._boot = BOOT_ID.read_text(encoding="ascii").strip()
        self.in_doubt = bool(left) and left[1:] != [self._boot]
        self._write(f"{os.getpid()} {'in-doubt' if self.in_doubt else self._boot}\n")

    def trust(self) -> None:
        """Take the store for sound from now on: it was checked."""
        self.in_doubt = False
        self._write(f"{os.getpid()} {self._boot}\n")

    def release(self) -> None:
        """Let go of the lock, after the store was closed."""
        self._write("in-doubt\n" if self.in_doubt else "")
        os.close(self.descriptor)

    def _write(self, text: str) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode(), 0)
        os.fsync(self.descriptor)  # or a power cut takes the mark that tells of it


def _make_data_file(path: Path, size_max_bytes: int) -> None:
    """Make an empty LMDB file.

    LMDB writes the first two pages of a file without a sync; a power cut could leave half of them, which it does not open.
    So they are made under another name, and get theirs once they are on disk.
    """
    made = path / f"{DATA_FILE}.new"
    made.unlink(missing_ok=True)
    try:
        lmdb.Environment(str(made), map_size=size_max_bytes, subdir=False, mode=0o600, lock=False, lib_version=0).close()
    except lmdb.Error as error:
        raise _refusal("make", path, str(error), error.code) from error
    descriptor = os.open(made, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    made.rename(path / DATA_FILE)
    fsync_directory(path)


def _open_environment(path: Path, size_max_bytes: int, readonly: bool) -> lmdb.Environment:
    try:
        env = lmdb.Environment(
            str(path),
            map_size=size_max_bytes,  # 0 takes the size that the writer gave the file
            readonly=readonly,
            create=not readonly,
            mode=0o600,
            max_dbs=6,
            max_spare_txns=8,
            sync=True,
            metasync=True,
            writemap=False,
            lock=True,
            lib_version=0,
        )
    except (lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        raise StoreForeign(f"{path / DATA_FILE} is not an LMDB 0.9 file; give the store a directory of its own") from error
    except lmdb.Error as error:
        if "already open in this process" in str(error):
            raise StoreInUse(f"the store {path} is already open in this process; use it from there") from error
        raise _refusal("open", path, str(error), error.code) from error
    # A reader that was killed leaves its slot, and with it the pages it saw, taken.
    env.reader_check()
    return env


def fsync_directory(path: Path) -> None:
    """Make durable which files a directory holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_pages(path: Path, descriptor: int) -> None:
    """Write the DATA_FILE of the store at `path`, as of the last commit, to `descriptor`: each page as it is, also free ones.

    Unlike `LmdbStore.copy_to` it looks into none of them, so that damaged ones do no harm.

    Raises:
        StoreDamaged: the file's first two pages are damaged, or a page cannot be read.
    """
    try:
        with _open_environment(path, 0, readonly=True) as env:
            env.copyfd(descriptor)
    except lmdb.ReadersFullError as error:
        raise StoreError(f"the store {path} has too many readers: {error}") from error
    except (lmdb.Error, StoreForeign) as error:
        raise StoreDamaged(f"the store {path} cannot be copied: {error}") from error


class _Check:
    """Reads everything that a store holds, as of one commit, from its tables alone: no process's memory is asked."""

    def __init__(self, txn: lmdb.Transaction, tables: _Tables):
        self._txn = txn
        self._tables = tables
        # What the journal says, and the tally over all UUIDs in its newest record.
        self._tallies: dict[str, Tally] = {}
        self._ids: dict[bytes, bytes] = {}
        self._total = Tally(0, 0)
        # The ids of voids of scores by the UUID that they took from, and what was added and is more than its UUID has left.
        self._voids: defaultdict[str, set[bytes]] = defaultdict(set)
        self._short: list[tuple[str, IdRecord]] = []

    def damages(self) -> Iterator[str]:
        """Yield a sentence for each damage."""
        yield from self._in_journal()
        yield from self._in_means()
        for name, table in zip(codec.IDS_TABLES, self._tables.ids):
            yield from self._in_ids(name.decode(), self._txn.cursor(table))
        yield from self._in_ids("journal", self._ids.items())
        yield from self._in_short()

    def _in_journal(self) -> Iterator[str]:
        """Read both tables, the one with the older records first: a number follows the other."""
        tables = [list(self._txn.cursor(table)) for table in self._tables.journals]
        last = None
        for key, value in itertools.chain.from_iterable(sorted(tables, key=lambda records: records[:1])):
            number = codec.unpack_record_number(key)
            if len(key) != 8 or last is not None and number != last + 1:
                yield f"journal: the record {key.hex()} does not follow the record {last}"
            last = number
            try:
                record = codec.unpack_record(value)
            except StoreDamaged as error:
                yield f"journal, record {number}: {error}"
                continue
            self._tallies |= record.tallies
            self._ids |= record.ids
            self._total = record.total
        self._tallies = {uuid: tally for uuid, tally in self._tallies.items() if tally != IN_MEANS}
        for uuid, tally in self._tallies.items():
            if not _is_possible(tally):
                yield f"journal: {tally} of the UUID {uuid!r} was not written by scoremean"
            if self._txn.get(codec.pack_uuid(uuid), db=self._tables.means) is None:
                yield f"journal: the UUID {uuid!r} is not in means"

    def _in_means(self) -> Iterator[str]:
        total = count = 0
        for key, value in self._txn.cursor(self._tables.means):
            try:
                uuid = require_uuid(codec.unpack_uuid(key))
                tally = codec.unpack_tally(value)
            except (StoreDamaged, InvalidScore) as error:
                yield f"means, key {key!r}: {error}"
                continue
            if not _is_possible(tally) or codec.pack_tally(tally.sum, tally.count) != value:
                yield f"means, key {key!r}: {tally} was not written by scoremean"
            tally = self._tallies.get(uuid, tally)
            total += tally.sum
            count += tally.count
        if (summed := Tally(total, count)) != self._total:
            yield f"the tallies add up to {summed}, but the total kept is {self._total}"

    def _in_ids(self, name: str, records: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
        for key, value in records:
            try:
                if codec.is_forgotten_key(key):
                    codec.unpack_number(value)
                else:
                    self._in_id(f"{name}, key {key.hex()}", key, codec.unpack_id_record(self._ids.get(key, value)))
            except (StoreDamaged, InvalidScore) as error:
                yield f"{name}, key {key.hex()}: {error}"

    def _in_id(self, place: str, key: bytes, record: IdRecord) -> None:
        """Take a record, and raise StoreDamaged or InvalidScore if it does not agree with itself."""
        added, first = record.added, record.first
        is_void = added.count == -1 and not record.voided
        Add(record.uuid, Tally(-added.sum, 1) if is_void else added)
        if not all(tally == Tally(0, 0) or _is_possible(tally) for tally in (first - added, first)):
            raise StoreDamaged(f"{added} was added and gave {first}")
        if record.voided or record.epoch != self._epoch(record.uuid, record.epoch):
            return
        if is_void:
            self._voids[record.uuid].add(bytes(key))
        elif self._tally(record.uuid).count < added.count:
            self._short.append((place, record))

    def _in_short(self) -> Iterator[str]:
        """Yield what was added and is not there, nor was taken out since: the id of a void is kept at least as long."""
        for place, record in self._short:
            tally = self._tally(record.uuid)
            if tally.count + len(self._voids.get(record.uuid, ())) < record.added.count:
                yield f"{place}: {record.added} was added to the UUID {record.uuid!r}, whose tally is {tally}"

    def _tally(self, uuid: str) -> Tally:
        if (tally := self._tallies.get(uuid)) is None:
            value = self._txn.get(codec.pack_uuid(uuid), db=self._tables.means)
            tally = codec.unpack_tally(value) if value else Tally(0, 0)
        return tally

    def _epoch(self, uuid: str, default: int) -> int:
        """Return the epoch of a UUID, `default` if no trace is left of its having been forgotten."""
        values = [self._txn.get(codec.pack_forgotten(uuid), db=table) for table in self._tables.ids]
        return max((codec.unpack_number(value) for value in values if value), default=default)


def _is_possible(tally: Tally) -> bool:
    """Return whether this may be the tally of a UUID with scores."""
    return tally.count >= 1 and abs(tally.sum) <= tally.count * SCORE_BOUND


def _items_after(cursor: lmdb.Cursor, after: str | None) -> Iterator[tuple[bytes, bytes]]:
    if after is None:
        return iter(cursor)
    # The smallest key behind `after` is `after` with a zero byte, and no UUID holds one.
    found = cursor.set_range(codec.pack_uuid(after) + b"\0")
    return cursor.iternext() if found else iter(())
