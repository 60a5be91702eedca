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

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

import lmdb

from scoremean.counts import COMMIT_DURATION, COMMIT_SCORES, DISK_FREE_BYTES, FOLD_DURATION, JOURNAL_ENTRIES, Counts
from scoremean.errors import InvalidQuery, Stopping, StoreDamaged, StoreError, StoreForeign, StoreFull
from scoremean.model import Page, Stats, Tally, Text, require_uuid, require_uuids
from scoremean.process import hold_standard_descriptors
from scoremean.store.base import ID_RETENTION_SECONDS, SIZE_MAX_BYTES, Change, Outcome, Store
from scoremean.store.embedded import format as codec
from scoremean.store.embedded.check import Check, summary
from scoremean.store.embedded.commit import Commit, Meta, scores_in
from scoremean.store.embedded.erasure import Erasure, Tables
from scoremean.store.embedded.files import (
    DATA_FILE,
    WriterLock,
    copying,
    free_bytes,
    lmdb_refusal,
    make_data_file,
    make_directory,
    open_environment,
    refusal,
    require_store,
    require_whole,
)
from scoremean.store.embedded.format import Generation
from scoremean.store.embedded.journal import Journal

SCORE_RANGE = (0, 5)
GIVE_WAY_MAX_SECONDS = 0.0005

# How often the writer looks whether its files are there still and anything is due; how soon it goes on with what is; and for
# how long a close does, so that ids expire in a store that is never open for long.
TEND_SECONDS, TEND_AGAIN_SECONDS, CLOSE_TEND_SECONDS = 1.0, 0.01, 10.0
# A reader that is not asked reads so many entries of the journal at a time.
CATCH_UP_ENTRIES = 2000

# The disk must have this much room before a commit: what a fold and the store's own pages may take, and for each score a page
# of its own and one that is split off it.
DISK_RESERVE_BYTES = 16 << 20
SCORE_RESERVE_BYTES = 8 << 10

_log = logging.getLogger(__name__)

_open_stores: weakref.WeakSet[LmdbStore] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [store.after_fork() for store in _open_stores])


class LmdbStore(Store):  # pylint: disable=too-many-instance-attributes  # each is a part that it is made of
    """A Store in a directory of its own, for one writing process and any number of reading ones.

    Beyond what every Store promises: a batch is all or nothing, and `scan` goes in the order of UUIDs by code point.

    Args:
        path: the directory. When writing, it is created if it is missing.
        size_max_bytes: the size that the store may grow to. It costs address space, neither memory nor disk.
        readonly: read what another process writes; `submit` is refused.
        id_retention_seconds: ids are kept at least this long, and about twice as long at most.
        score_min, score_max: the range of the scores, which a new store keeps (default: 0 to 5). Scores and tallies outside it
            are refused. A store that is there is opened with the range that it keeps, or none is named.
        clock: the Unix time in seconds, by which ids expire.
        counts: where to count what it does; None for counts of its own.

    Attributes:
        bounds: the lowest and the highest score.

    Raises:
        StoreMissing: `readonly`, and there is no store at `path`.
        StoreInUse: another process, or this one, has the store open for writing.
        StoreForeign: `path` holds something else, or a newer format.
        StoreDamaged: the store was not closed before a power cut or after a failed commit, and `check` finds damage.
        StoreError: the store keeps another range; or the operating system refuses the directory; the message says why.
    """

    def __init__(  # pylint: disable=too-many-arguments,too-many-statements  # each is a choice, or a part
        self,
        path: str | os.PathLike[str],
        *,
        size_max_bytes: int = SIZE_MAX_BYTES,
        readonly: bool = False,
        id_retention_seconds: int = ID_RETENTION_SECONDS,
        score_min: int | None = None,
        score_max: int | None = None,
        clock: Callable[[], float] = time.time,
        counts: Counts | None = None,
    ):
        self.path = Path(path)
        self.counts = counts or Counts()
        self.failed: Future[BaseException] = Future()
        self._id_retention_seconds = id_retention_seconds
        self._clock = clock
        self._closed = self._failed = self._forked = False
        self._caught_up = True
        self._commits = self._commits_tended = 0
        self._lock: WriterLock | None = None
        self._reading = Lock()
        _open_stores.add(self)
        try:
            hold_standard_descriptors()
            if readonly:
                require_store(self.path)
            else:
                make_directory(self.path)
                self._lock = WriterLock(self.path)
                if not (self.path / DATA_FILE).exists():
                    make_data_file(self.path, size_max_bytes)
                self._lock.hold(self.path / DATA_FILE)
            require_whole(self.path)
            self._env = open_environment(self.path, size_max_bytes, readonly)
            if self._lock is not None:
                self._lock.watch(self.path)
        except OSError as error:
            self._unlock()
            raise refusal("open", self.path, error.strerror, error.errno) from error
        except Exception:
            self._unlock()
            raise
        self._writer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoremean-store")
        self._closing = Event()
        self._tender = Thread(target=self._tend, name="scoremean-tender", daemon=True)
        try:
            self._read_state(score_min, score_max)
        except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            self.close()
            raise StoreDamaged(f"the store {self.path} is damaged: {error}; restore a backup") from error
        except lmdb.Error as error:  # such as a disk that has no room for the first commit
            self.close()
            raise lmdb_refusal("open", self.path, error) from error
        except Exception:
            self.close()
            raise
        if self._lock is not None:
            self._tender.start()

    def _read_state(self, score_min: int | None, score_max: int | None) -> None:
        """Read the journal and the table meta, and check a store in doubt."""
        new = _with(SCORE_RANGE, score_min, score_max)
        self._tables = self._writer_thread.submit(self._open_tables, new).result()
        self._journal = Journal(self._tables.journals, self._tables.meta, self._tables.means, self._tables.ids)
        self._erasure = Erasure(self._lock.data if self._lock else -1, self._tables, self._journal, time.monotonic)
        with self._env.begin(db=self._tables.meta) as txn:
            self._journal.read(txn)
            self._erasure.load(txn)
            self._meta = Meta(
                codec.unpack_generation(txn.get(codec.GENERATION_KEY, b"")),
                codec.unpack_number(txn.get(codec.EPOCH_KEY, b"")),
                self._journal.kept,
            )
            kept = txn.get(codec.RANGE_KEY)
        if self._lock is not None:
            self.counts.cells[DISK_FREE_BYTES] = free_bytes(self._lock.descriptor)
            self.counts.cells[JOURNAL_ENTRIES] = self._journal.entries
            if self._lock.in_doubt:
                self._require_sound()
                self._lock.trust()
        self.bounds = codec.unpack_range(kept) if kept else new
        self._require_range(score_min, score_max)
        if kept is None and self._lock is not None:  # an earlier version made it, which kept none
            with self._env.begin(write=True, db=self._tables.meta) as txn:
                txn.put(codec.RANGE_KEY, codec.pack_range(*self.bounds))

    def _require_range(self, score_min: int | None, score_max: int | None) -> None:
        """Raise StoreError if the store is to be opened with another range than the one that it keeps."""
        low, high = self.bounds
        if (wanted := _with(self.bounds, score_min, score_max)) != self.bounds:
            raise StoreError(
                f"the store {self.path} holds scores from {low} to {high}, and was opened for scores from {wanted[0]} to"
                f" {wanted[1]}: give --score-min {low} --score-max {high}. To change the range for good, export the tallies and"
                " import them into a new store that has the new range: scoremean export, scoremean import --tallies"
            )

    def submit(self, batch: Sequence[Change]) -> Future[list[Outcome]]:
        """Start to count `batch`, all or nothing; see Store.submit."""
        if self._lock is None:
            raise StoreError(f"the store {self.path} is open for reading only")
        self._require_open()
        if self._failed:
            raise StoreError(f"a commit to the store {self.path} has failed; open it again")
        counted = Lock()  # taken until then; a bare lock, since an Event costs several times as much
        counted.acquire()  # pylint: disable=consider-using-with
        future = self._writer_thread.submit(self._commit, batch, counted)
        # Give way until the batch waits for the disk, which needs no interpreter lock. A caller that goes on at once keeps that
        # lock from the writer thread, with all that it does next: sending answers, for an event loop.
        counted.acquire(timeout=GIVE_WAY_MAX_SECONDS)  # pylint: disable=consider-using-with
        return future

    def get(self, uuids: Iterable[Text]) -> list[Tally | None]:
        """Return the durable tally of each UUID, all as of the same commit; None for one without a score."""
        uuids = require_uuids(uuids)
        keys = [codec.pack_uuid(uuid) for uuid in uuids]
        with self._snapshot() as txn:
            return [self._journal.get(uuid) or self._in_means(txn, key) for uuid, key in zip(uuids, keys)]

    def scan(self, after: Text | None, limit: int) -> Page:
        """Return up to `limit` tallies in the order of UUIDs by code point, from behind `after`."""
        after = after if after is None else require_uuid(after)
        if limit < 1:
            raise InvalidQuery(f"limit must be at least 1, not {limit}")
        tallies: list[tuple[str, Tally]] = []
        with self._snapshot() as txn:
            for key, value in _items_after(txn.cursor(self._tables.means), after):
                if len(tallies) >= limit:
                    return Page(tallies, tallies[-1][0] if tallies else after)
                uuid = codec.unpack_uuid(key)
                tallies.append((uuid, self._journal.get(uuid) or codec.unpack_tally(value)))
        return Page(tallies, None)

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally, in order, all as of one commit. Meanwhile the pages seen are not used again."""
        with self._reading:
            txn = self._begin()
            journal = self._journal.all()
        with self._until_closed(txn):
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
        with self._until_closed(txn):
            return list(Check(txn, self._tables).damages())

    def copy_to(self, descriptor: int) -> None:
        """Write all of the store, as of the last commit, to `descriptor`: a whole DATA_FILE, without free pages.

        Commits go on meanwhile, and the store's file grows as they do: no page is used again until the copy is done.

        Raises:
            StoreDamaged: LMDB finds its pages damaged. It trusts them, so worse damage may end the process by a signal.
            StoreError: the operating system lacks what it takes.
        """
        self._require_open()
        with copying(self.path):
            self._env.copyfd(descriptor, compact=True)

    def catch_up(self) -> bool:
        """Read on in the journal of a store that another process writes, a slice of it. Return whether that was all.

        Whoever reads seldom does this in between, or a read takes as long as all that was counted since the last one.
        """
        with self._reading, self._begin(CATCH_UP_ENTRIES):
            return self._caught_up

    def close(self) -> None:
        """Wait for the batches under way, and for ids that are late to expire; then let go of the directory."""
        if self._closed:
            return
        self._closed = True
        if self._forked:  # everything is the parent's
            return
        self._closing.set()
        try:
            if self._tender.is_alive():
                self._tender.join()
                self._expire()
        finally:
            self._writer_thread.shutdown(wait=True)
            with self._reading:
                self._env.close()
            self._unlock()

    def _expire(self) -> None:
        """Have ids expire that are late to, if they can: a store that is never open for long has no other time for it."""
        ends = time.monotonic() + CLOSE_TEND_SECONDS
        with suppress(StoreFull):
            while not self._failed and self._is_late() and time.monotonic() < ends:
                if not self._writer_thread.submit(self._commit_what_is_due).result():
                    return

    def after_fork(self) -> None:
        """Be of no use in the child of a fork: the threads are the parent's, and so is the lock, which must end with it."""
        self._forked = True
        self._reading = Lock()  # which another thread of the parent may have held
        if self._lock is not None:
            self._lock.abandon()

    def _require_open(self) -> None:
        if self._forked:
            raise StoreError(f"the store {self.path} was opened before this process was forked: open it in the child")
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")

    @contextmanager
    def _snapshot(self) -> Iterator[lmdb.Transaction]:
        """Give a read transaction, with the journal as of the same commit. The writer waits for its end: keep it short."""
        with self._reading, self._begin() as txn:
            yield txn

    @contextmanager
    def _until_closed(self, txn: lmdb.Transaction) -> Iterator[None]:
        """Use a transaction that is too long to hold the writer up, and that a `close` ends. Raises StoreError then."""
        try:
            with txn:
                yield
        except lmdb.Error as error:
            if self._closed:
                raise StoreError(f"the store {self.path} was closed meanwhile") from error
            raise

    def _begin(self, entries_max: int | None = None) -> lmdb.Transaction:
        """Return a read transaction of the last commit, and bring the journal up to it, or by `entries_max` nearer to it."""
        if self._closed or self._forked:
            self._require_open()
        if self._failed:  # LMDB refuses everything then, or shows what is not on disk
            raise Stopping("a commit has failed and the service is stopping; nothing was read")
        try:
            txn = self._env.begin()
        except lmdb.MapResizedError as error:
            raise StoreError(f"the store {self.path} was restarted with a larger size and has grown; open it again") from error
        if self._lock is None:
            self._caught_up = self._journal.read(txn, entries_max)
        else:
            self._journal.settle(txn.id())
        return txn

    def _in_means(self, txn: lmdb.Transaction, key: bytes) -> Tally | None:
        value = txn.get(key, db=self._tables.means)
        return value and codec.unpack_tally(value)

    def _open_tables(self, bounds: tuple[int, int]) -> Tables:
        """Check the format, or write it when the store is new; return the tables."""
        try:
            if self._lock is not None and self._env.stat()["entries"] == 0:
                return self._create_tables(bounds)
            tables = Tables(
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

    def _create_tables(self, bounds: tuple[int, int]) -> Tables:
        # One transaction, so that a crash in it leaves an empty environment, which counts as new.
        with self._env.begin(write=True) as txn:
            tables = Tables(
                self._env.open_db(codec.META_TABLE, txn=txn),
                self._env.open_db(codec.MEANS_TABLE, txn=txn),
                [self._env.open_db(table, txn=txn) for table in codec.IDS_TABLES],
                [self._env.open_db(table, txn=txn) for table in codec.JOURNAL_TABLES],
            )
            txn.put(codec.FORMAT_KEY, codec.pack_number(codec.FORMAT), db=tables.meta)
            txn.put(codec.GENERATION_KEY, codec.pack_generation(Generation(0, int(self._clock()))), db=tables.meta)
            txn.put(codec.EPOCH_KEY, codec.pack_number(0), db=tables.meta)
            txn.put(codec.RANGE_KEY, codec.pack_range(*bounds), db=tables.meta)
        return tables

    def _commit(self, batch: Sequence[Change], counted: Lock) -> list[Outcome]:
        """Count `batch` in one transaction. Runs on the writer thread only.

        Args:
            counted: let go when all that is left is to make it durable.
        """
        started = time.perf_counter_ns()
        self._require_files()
        scores = scores_in(batch)
        try:
            self._require_free(scores)
            generation = self._generation()
            with self._reading:
                self._journal.turn(expiring=generation != self._meta.generation)
            try:
                outcomes = self._write(batch, generation, counted, fold=True)
            except lmdb.MapFullError:
                outcomes = self._write_without_fold(batch, generation, counted)
        except StoreFull as error:
            if any(outcomes := self._known(batch)):
                return [outcome or error for outcome in outcomes]
            raise
        COMMIT_DURATION.observe(self.counts.cells, time.perf_counter_ns() - started)
        COMMIT_SCORES.observe(self.counts.cells, scores)
        return outcomes

    def _known(self, batch: Sequence[Change]) -> list[Outcome | None]:
        """Return the outcomes of what counts nothing, which needs no room; None for all other changes.

        Nothing may be raised here: the transaction would live as long as the error, and with it a place among LMDB's readers.
        """
        with self._env.begin(db=self._tables.means) as txn:
            return [Commit(txn, self._tables, self._meta, self._journal, self.bounds).known(change) for change in batch]

    def _tend(self) -> None:
        """Look after the store between commits: its own thread does, which leaves the work to the writer thread."""
        more = False
        while not self._closing.wait(TEND_AGAIN_SECONDS if more else TEND_SECONDS):
            if self._failed:
                return
            try:
                more = self._writer_thread.submit(self._tend_once).result()
            except StoreFull:
                more = False
            except Exception as error:  # pylint: disable=broad-exception-caught  # whatever it is, nothing is counted now
                if threading.main_thread().is_alive():  # else nobody closes the store, and the interpreter ends
                    self.failed.set_result(error)
                return

    def _tend_once(self) -> bool:
        """Do a slice of what is due, unless commits came meanwhile, which do that themselves. Return whether there was any."""
        self._require_files()
        tended, self._commits_tended = self._commits_tended, self._commits
        return tended == self._commits and self._commit_what_is_due()

    def _commit_what_is_due(self) -> bool:
        """Do a slice of what is due in a commit of its own. Return whether there may be more. On the writer thread only."""
        if not (self._journal.folding or self._erasure.ready or self._is_late()):
            return self._erasure.due
        self._commit([], Lock())
        self._commits_tended = self._commits
        return True

    def _is_late(self) -> bool:
        """Whether ids wait for their expiry, perhaps for the end of a fold."""
        return int(self._clock()) - self._meta.generation.since_seconds >= self._id_retention_seconds

    def _require_files(self) -> None:
        """Raise StoreError if the files of the store are not where they were: what is written to them would be lost."""
        if not self._lock.is_there():
            self._failed = True
            raise StoreError(
                f"the files of the store {self.path} were removed or replaced while it was open; nothing is counted any more"
            )

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
                    self._erasure.slice(txn)
                commit = Commit(txn, self._tables, self._meta, self._journal, self.bounds, self._erasure)
                if generation != self._meta.generation:
                    commit.begin(generation)
                outcomes = commit.count(batch)
                txn_id = txn.id()
                if counted.locked():
                    counted.release()
        except lmdb.MapFullError:
            self._journal.abandon()
            with self._env.begin(db=self._tables.meta) as txn:
                self._erasure.load(txn)
            raise
        except Exception:
            # What is on disk is unknown, and LMDB would go on all the same.
            self._failed = self._lock.in_doubt = True
            raise
        self._meta = commit.meta
        self._commits += 1
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
        self.counts.cells[DISK_FREE_BYTES] = free = free_bytes(self._lock.descriptor)
        if free < (needed_bytes := DISK_RESERVE_BYTES + scores * SCORE_RESERVE_BYTES):
            raise StoreFull(
                f"the disk of the store {self.path} has {free >> 20} MiB free, of {needed_bytes >> 20} MiB that a commit"
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
        generation = self._meta.generation
        if self._is_late() and not self._journal.folding:
            return Generation(1 - generation.current, int(self._clock()))
        return generation

    def _unlock(self) -> None:
        _open_stores.discard(self)
        if self._lock is not None:
            self._lock.release()


def _with(bounds: tuple[int, int], score_min: int | None, score_max: int | None) -> tuple[int, int]:
    """Return a range with the ends that are given, and those of `bounds` for the others."""
    low, high = bounds
    return low if score_min is None else score_min, high if score_max is None else score_max


def _items_after(cursor: lmdb.Cursor, after: str | None) -> Iterator[tuple[bytes, bytes]]:
    if after is None:
        return iter(cursor)
    # The smallest key behind `after` is `after` with a zero byte, and no UUID holds one.
    found = cursor.set_range(codec.pack_uuid(after) + b"\0")
    return cursor.iternext() if found else iter(())
