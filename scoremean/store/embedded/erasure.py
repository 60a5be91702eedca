"""Erasing: what takes the text of a forgotten UUID out of a store, so that no backup made later holds it.

To forget a UUID takes its tally at once. Its text is still in three places, and is taken out of each in slices inside later
commits, as a fold is; `meta` keeps what is left to do, so that it goes on after a restart:

    forgotten ──> separators of `means` ──> records of the journal ──> (from here on only a hash is known) ──> records of ids

- **Separators.** A branch page of LMDB's tree keeps the first key of each page below it, also when that key is deleted. The
  keys behind the separator are deleted and put back, and LMDB chooses another one.
- **The journal.** Entries of a UUID that is not in `means` say nothing any more, and are taken out of their records from the
  oldest on. When the newest goes, which told readers that `means` is newer, `meta` says up to which record that is so: who has
  not read so far reads all again (`Journal.read`).
- **Ids.** Their records are to be found by a retry, so they stay as long as others, with a hash in place of the UUID.

LMDB copies only what is used of a page into a compact copy. A page of its own, for a value that is too long for its place in
the tree, is copied whole, so `codec.pack_record` fills it up.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import lmdb
from msgspec.structs import replace

from scoremean.store.embedded import format as codec
from scoremean.store.embedded.format import Erasing
from scoremean.store.embedded.journal import Journal

SLICE_ENTRIES = 4096
# Of many UUIDs at once, so many more are looked up in a slice that they take no more slices than this.
LOOKUPS_MAX_SLICES = 256
SLICE_LOOKUPS = 16
MEND_LOOKUPS = 16  # so many take as long as to mend a separator
MEND_ROUNDS = 3
# Ids are more than all else, and have a day: so there is a rest after each slice of them.
IDS_SLICE_ENTRIES = 512
IDS_REST_SECONDS = 0.05


class Tables(NamedTuple):
    """The handles of all tables; those of ids and of the journal are two each."""

    meta: object
    means: object
    ids: Sequence[object]
    journals: Sequence[object]


class Erasure:
    """What is left to erase. Used by the writer thread alone, in write transactions, before their batch is counted.

    Two passes go side by side, each over what was pending when it began: one over what holds names, and one over ids, which
    takes much longer, and which no name waits for.

    Args:
        descriptor: of the data file, of which the pages of the last commit are read.
        tables: all tables of the store.
        journal: of which records are written anew.
        clock: seconds that never go back.
    """

    def __init__(self, descriptor: int, tables: Tables, journal: Journal, clock: Callable[[], float]):
        self._descriptor = descriptor
        self._meta = tables.meta
        self._means = tables.means
        self._ids = tables.ids
        self._journal = journal
        self._clock = clock
        # What is pending by the hash of its UUID: where only records of ids may still hold the text, and where more does.
        self._only_ids: dict[bytes, Erasing] = {}
        self._named: dict[bytes, Erasing] = {}
        self._ids_pass: Iterator[None] | None = None
        self._named_pass: Iterator[None] | None = None
        self._txn: lmdb.Transaction
        self._rest_until = 0.0

    @property
    def due(self) -> bool:
        """Whether anything is left to erase."""
        return bool(self._named or self._only_ids)

    @property
    def ready(self) -> bool:
        """Whether a slice is to be done now."""
        return bool(self._named) or self._ids_are_ready()

    def load(self, txn: lmdb.Transaction) -> None:
        """Read what is left to do, at the start and after a transaction that was aborted."""
        self._ids_pass = self._named_pass = None
        self._only_ids, self._named = {}, {}
        with txn.cursor(self._meta) as cursor:
            if cursor.set_range(codec.ERASING_PREFIX):
                for key, value in cursor:
                    if not key.startswith(codec.ERASING_PREFIX):
                        break
                    self._keep(key.removeprefix(codec.ERASING_PREFIX), codec.unpack_erasing(value))

    def add(self, txn: lmdb.Transaction, uuid: str, epoch: int) -> None:
        """Begin to erase `uuid`, which is forgotten in `txn`: all that is kept of it from before `epoch`."""
        self._put(txn, codec.pack_id(uuid), Erasing(epoch, uuid))

    def slice(self, txn: lmdb.Transaction) -> None:
        """Do a slice of the work, if there is any to do now."""
        self._txn = txn
        if self._named:
            self._named_pass = _stepped(self._named_pass or self._erase_named(dict(self._named)))
        if self._ids_are_ready():
            self._ids_pass = _stepped(self._ids_pass or self._erase_only_ids(dict(self._only_ids)))

    def _ids_are_ready(self) -> bool:
        return bool(self._only_ids) and self._clock() >= self._rest_until

    def _erase_named(self, named: dict[bytes, Erasing]) -> Iterator[None]:
        """Erase all but records of ids, a slice at a time."""
        uuids = {erasing.uuid: erasing.epoch for erasing in named.values()}
        yield from self._mend_separators(list(uuids))
        yield from self._erase_from_journal(uuids)
        for key, erasing in named.items():
            if self._named[key] is erasing:  # else it was forgotten again meanwhile
                self._put(self._txn, key, replace(erasing, uuid=""))

    def _erase_only_ids(self, keys: dict[bytes, Erasing]) -> Iterator[None]:
        """Erase records of ids, a slice at a time."""
        for table in self._ids:
            yield from self._erase_from_ids(table, keys)
        for key, erasing in keys.items():
            if self._only_ids.get(key) is erasing:
                del self._only_ids[key]
                self._txn.delete(codec.ERASING_PREFIX + key, db=self._meta)

    def _put(self, txn: lmdb.Transaction, key: bytes, erasing: Erasing) -> None:
        self._keep(key, erasing)
        txn.put(codec.ERASING_PREFIX + key, codec.pack_erasing(erasing), db=self._meta)

    def _keep(self, key: bytes, erasing: Erasing) -> None:
        to, other = (self._named, self._only_ids) if erasing.uuid else (self._only_ids, self._named)
        other.pop(key, None)
        to[key] = erasing

    def _is_gone(self, uuid: str) -> bool:
        return self._txn.get(codec.pack_uuid(uuid), db=self._means) is None

    def _erase_from_journal(self, uuids: dict[str, int]) -> Iterator[None]:
        """Take what is kept of `uuids` from before their epochs out of the journal's records, from the oldest on.

        Who is there again keeps its entries, all that follow too: one that says "in means" may take back an older one.
        """
        done, end, back = 0, self._journal.last, set[str]()
        while records := self._journal.records(self._txn, done, end, SLICE_ENTRIES):
            done = records[-1][0]
            for number, table, record in records:
                found = record.tallies.keys() & uuids.keys()
                back.update(uuid for uuid in found if not self._is_gone(uuid))
                tallies = {uuid: tally for uuid, tally in record.tallies.items() if uuid not in found or uuid in back}
                ids = {key: self._erased(value, uuids) for key, value in record.ids.items()}
                if len(tallies) < len(record.tallies) or ids != record.ids:
                    self._journal.rewrite(self._txn, number, table, record, replace(record, tallies=tallies, ids=ids))
            yield

    def _erased(self, value: bytes, uuids: dict[str, int]) -> bytes:
        """Return the record of an id without the text of its UUID, if it is one of these and from before its epoch."""
        record = codec.unpack_id_record(value)
        if record.uuid not in uuids or record.epoch >= uuids[record.uuid]:
            return value
        return codec.pack_id_record(replace(record, uuid=codec.pack_id(record.uuid)))

    def _erase_from_ids(self, table: object, keys: dict[bytes, Erasing]) -> Iterator[None]:
        """Put the hash in place of the UUID into the records of a table of ids, those from before its epoch."""
        after = b""
        while True:
            with self._txn.cursor(table) as cursor:
                found = cursor.set_range(after + b"\0") if after else cursor.first()
                items = list(islice(cursor.iternext(), IDS_SLICE_ENTRIES)) if found else []
            for key, value in items:
                if codec.is_forgotten_key(key):
                    continue
                record = codec.unpack_id_record(value)
                if not isinstance(record.uuid, str):
                    continue
                uuid = codec.pack_id(record.uuid)
                if uuid in keys and record.epoch < keys[uuid].epoch:
                    self._txn.put(key, codec.pack_id_record(replace(record, uuid=uuid)), db=table)
            if len(items) < IDS_SLICE_ENTRIES:
                return
            after = items[-1][0]
            self._rest_until = self._clock() + IDS_REST_SECONDS
            yield

    def _mend_separators(self, uuids: list[str]) -> Iterator[None]:
        """Mend those that are separators. Again, since to mend one may move another that was looked up before."""
        lookups = left = max(SLICE_LOOKUPS, len(uuids) // LOOKUPS_MAX_SLICES)
        for _ in range(MEND_ROUNDS):
            mended = []
            for uuid in uuids:
                left -= 1
                if self._mend_separator(uuid.encode()):
                    mended.append(uuid)
                    left -= MEND_LOOKUPS
                if left <= 0:
                    yield
                    left = lookups
            if not mended:
                return
            uuids = mended
            yield

    def _mend_separator(self, key: bytes) -> bool:
        """Have LMDB choose another separator where `key`, which is deleted, still is one. Return whether it was.

        All keys of the page that it stands for are deleted, and with the page goes its separator; then they are put back. For a
        page of leaves these are some hundred keys; for one of branches, a hundred times as many, and as much rarer.
        """
        bounds = behind_separator(self._descriptor, codec.MEANS_TABLE, key)
        if bounds is None or self._txn.get(key, db=self._means) is not None:
            return False
        items = []
        with self._txn.cursor(self._means) as cursor:
            cursor.set_range(key)
            while cursor.key() and (not bounds or cursor.key() < bounds):
                items.append(cursor.item())
                cursor.delete()
            cursor.putmulti(items)
        return True


# LMDB 0.9's file format on a 64-bit machine (mdb.c: MDB_page, MDB_node, MDB_meta, MDB_db): where things stand in a page.
_HEADER_BYTES = 16
_PAGE = struct.Struct("=10xHH")  # flags, and where the list of nodes ends
_NODE = struct.Struct("=HHHH")  # the number of a page in three parts, or the size and flags of a value; the size of a key
_NUMBER = struct.Struct("=Q")
_PSIZE_AT = _HEADER_BYTES + 24
_MAIN_DB_AT = _PSIZE_AT + 48
_TXN_AT = _MAIN_DB_AT + 48 + 8
_ROOT_AT = 40
_NO_PAGE = (1 << 64) - 1


def _stepped(steps: Iterator[None]) -> Iterator[None] | None:
    """Do the next step and return what is left; None if that was all."""
    return None if next(steps, steps) is steps else steps


def behind_separator(descriptor: int, table: bytes, key: bytes) -> bytes | None:
    """Return the separator that follows `key` in a table if `key` is one, empty if none follows; None if it is not one.

    As of the last commit to the data file, on the highest level on which it is one. Nobody may write meanwhile.
    """
    size = struct.unpack_from("=I", os.pread(descriptor, _PSIZE_AT + 4, 0), _PSIZE_AT)[0]

    def read(number: int) -> bytes:
        return os.pread(descriptor, size, number * size)

    newest = max(read(0), read(1), key=lambda meta: _NUMBER.unpack_from(meta, _TXN_AT))
    leaf = [page for page, _ in _descend(read, _NUMBER.unpack_from(newest, _MAIN_DB_AT + _ROOT_AT)[0], table)][-1]
    root = next(_NUMBER.unpack_from(leaf, at + _ROOT_AT)[0] for name, _, at in _nodes(leaf) if name == table)
    if root == _NO_PAGE:
        return None
    behind = b""
    for page, place in _descend(read, root, key):
        nodes = _nodes(page)
        if not _is_branch(page):
            break
        if place + 1 < len(nodes):
            behind = nodes[place + 1][0]
        if nodes[place][0] == key:
            return behind
    return None


def _descend(read: Callable[[int], bytes], number: int, key: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the pages from the root with this number to the leaf where `key` belongs; with a branch, the place of the next."""
    while _is_branch(page := read(number)):
        nodes = _nodes(page)
        place = max(at for at, (separator, _, _) in enumerate(nodes) if at == 0 or separator <= key)
        yield page, place
        number = nodes[place][1]
    yield page, 0


def _is_branch(page: bytes) -> bool:
    return bool(_PAGE.unpack_from(page)[0] & 1)


def _nodes(page: bytes) -> list[tuple[bytes, int, int]]:
    """Return of each node of a page its key, the page below it if this is a branch, and where its value begins."""
    nodes = []
    for (at,) in struct.iter_unpack("=H", page[_HEADER_BYTES : _PAGE.unpack_from(page)[1]]):
        low, high, flags, size = _NODE.unpack_from(page, at)
        start = at + _NODE.size
        nodes.append((page[start : start + size], low | high << 16 | flags << 32, start + size))
    return nodes
