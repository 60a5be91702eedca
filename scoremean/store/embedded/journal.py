"""The journal of the embedded store: what commits have appended and a fold has not yet written in place.

In place, each of 64 random UUIDs lies on a page of its own, so a commit of 64 scores writes 64 pages, and as many again for
their ids. Instead a commit appends one record with its new tallies and ids to a journal table, in the same transaction, and
keeps them in memory. Much later a *fold* writes the newest tally of each UUID into `means`, and the ids into their table, in
the order of keys, so that those on one page are written together.

    commit ──> record in the newer table ──(FOLD_AT_ENTRIES: the tables change roles)──> fold of the older one ──> means, ids

Rules, on which the rest stands:

- Every UUID with a score has an entry in `means`, so that a listing goes in order and counting UUIDs is free. A journal entry
  only overrides its tally. A new UUID is therefore written in place, and so are a UUID that has lost its last score and a
  batch for which the journal has no room. Where the journal had an entry for it, an entry `IN_MEANS` then takes it back.
- An id is in the journal only if it is new, or if the journal has it already. So what the journal says of it is newer.
- Records hold tallies, not changes. To read a record twice, or to fold a part twice, changes nothing.
- The older table's records are dropped, oldest first, only after all of them are folded. What is left of it after a crash
  says nothing that `means` does not say too, or that the newer table does not override.
- Each commit appends a record, an empty one if need be, with the tally over all UUIDs and how many ids are kept. The newest
  record is never dropped.
- A fold works in slices inside commits. A slice adds a few milliseconds to its commit and needs no sync of its own.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import lmdb

from scoremean.model import Tally
from scoremean.store.embedded import format as codec
from scoremean.store.embedded.format import Record

FOLD_AT_ENTRIES = 3 << 17
FOLD_SLICE_ENTRIES = 1024
SORT_SLICE_ENTRIES = 2048
DROP_SLICE_RECORDS = 64
BATCH_MAX_ENTRIES = 16_384
SHARDS = 64

# An entry that says: what stands in `means` is newer.
IN_MEANS = Tally(0, 0)


class Journal:
    """The records of both tables as dicts, for one process. Not safe to use from two threads at once; LmdbStore has a lock.

    Args:
        tables: the two journal tables.
        meta: the table `meta`.
        means: the table that tallies are folded into.
        ids: the two tables of ids.
    """

    def __init__(self, tables: Sequence[object], meta: object, means: object, ids: Sequence[object]):
        self._newer, self._older = (_Part(table) for table in tables)
        self._meta = meta
        self._means = means
        self._ids = ids
        self._slices: Iterator[list[str] | list[bytes]] | None = None
        self._dead: list[dict] = []
        self._appended: _Appended | None = None
        self._emptied = False
        self._erased = 0, 0

    @property
    def total(self) -> Tally:
        """The tally over all UUIDs, as of the newest record."""
        return self._newer.record.total

    @property
    def kept(self) -> int:
        """How many ids are kept, as of the newest record; one that was voided just as ids expired may be missing."""
        return self._newer.record.kept

    @property
    def entries(self) -> int:
        """The tallies and ids in its records, folded or not."""
        return self._newer.entries + self._older.entries

    @property
    def last(self) -> int:
        """The number of the newest record; 0 if there is none."""
        return self._newer.last

    @property
    def folding(self) -> bool:
        """Whether there are records in the older table."""
        return bool(self._older.last)

    def get(self, uuid: str) -> Tally | None:
        """Return the tally of `uuid`, or None where `means` says what it is."""
        shard = hash(uuid) % SHARDS
        entry = self._newer.tallies[shard].get(uuid)
        if entry is None:
            entry = self._older.tallies[shard].get(uuid)
        return entry if entry is not None and entry.count else None

    def find(self, key: bytes) -> bytes | None:
        """Return the packed record of an id, or None where the tables of ids say whether it is kept."""
        shard = hash(key) % SHARDS
        return self._newer.ids[shard].get(key) or self._older.ids[shard].get(key)

    def all(self) -> dict[str, Tally]:
        """Return a copy of all that the journal says of UUIDs, as `get` does."""
        every: dict[str, Tally] = {}
        for shard in self._older.tallies + self._newer.tallies:
            every |= shard
        return {uuid: tally for uuid, tally in every.items() if tally.count}

    def read(self, txn: lmdb.Transaction, entries_max: int | None = None) -> bool:
        """Read the records that `txn` sees and that were not read before, and let go of those that were dropped since.

        Args:
            txn: a read transaction.
            entries_max: read no more, roughly, and leave the rest for the next time.

        Returns whether that is all; until then what the Journal says is of no moment.

        Raises:
            StoreDamaged: a record is none.
        """
        parts = (self._newer, self._older)
        if (erased := self._erased_in(txn)) != self._erased:
            if self.last < erased[0]:  # it may not have read what was erased, and go by older entries
                for part in parts:
                    part.clear()
            self._erased = erased
        left = entries_max
        for part in parts:
            left = part.read(txn, left)
        self._newer, self._older = sorted(parts, key=lambda part: part.last, reverse=True)
        return left is None or left > 0

    def records(self, txn: lmdb.Transaction, after: int, end: int, entries_max: int) -> list[tuple[int, object, Record]]:
        """Return the records from behind number `after` to `end`, each with its number and table, oldest first.

        Only so many that they have about `entries_max` entries; none if there are no more.
        """
        found: list[tuple[int, object, Record]] = []
        for part in (self._older, self._newer):
            with txn.cursor(part.table) as cursor:
                for key, value in cursor if cursor.set_range(codec.pack_record_number(after + 1)) else ():
                    if (number := codec.unpack_record_number(key)) > end or entries_max <= 0:
                        return found
                    found.append((number, part.table, record := codec.unpack_record(value)))
                    entries_max -= record.entries + 1
        return found

    def rewrite(self, txn: lmdb.Transaction, number: int, table: object, old: Record, new: Record) -> None:
        """Put `new`, with less in it or other ids, into the place of the record `old`."""
        key = codec.pack_record_number(number)
        # Not over the old one, of which LMDB would leave the rest behind a shorter value.
        txn.delete(key, db=table)
        txn.put(key, codec.pack_record(new), db=table)
        if any(not old.tallies[uuid].count for uuid in old.tallies.keys() - new.tallies.keys()):
            last = max(number, self._erased_in(txn)[0])
            txn.put(codec.ERASED_KEY, codec.pack_erased(last, txn.id()), db=self._meta)
        for id_key, value in new.ids.items():
            for part in (self._newer, self._older):  # a fold would write the old one
                ids = part.ids[hash(id_key) % SHARDS]
                if ids.get(id_key) == old.ids[id_key]:
                    ids[id_key] = value

    def _erased_in(self, txn: lmdb.Transaction) -> tuple[int, int]:
        return codec.unpack_erased(txn.get(codec.ERASED_KEY, db=self._meta))

    def has_room(self, entries: int) -> bool:
        """Return whether a batch of so many tallies and ids should go to the journal, or rather in place."""
        return entries <= BATCH_MAX_ENTRIES and self._newer.entries + entries <= FOLD_AT_ENTRIES

    def turn(self, expiring: bool) -> None:
        """Let the tables change roles if the newer one is full and the older one folded and empty.

        Args:
            expiring: also if it is not full, since the ids that it holds will expire before those to come.
        """
        if (expiring or self._newer.entries > FOLD_AT_ENTRIES - BATCH_MAX_ENTRIES) and not self._older.last:
            self._newer, self._older = self._older, self._newer
            self._newer.last, self._newer.record = self._older.last, self._older.record

    def fold(self, txn: lmdb.Transaction) -> bool:
        """Do a slice of the fold in `txn`, before its batch is counted. Return whether there was anything to do."""
        if self._dead:
            self._dead.pop()  # a shard at a time, as everything here
        if not self._older.last:
            return False
        if self._slices is None:
            self._slices = itertools.chain(_in_order(self._older.tallies), _in_order(self._older.ids))
        if (keys := next(self._slices, None)) is None:
            self._emptied = self._older.drop(txn)
        elif keys and isinstance(keys[0], bytes):
            table = self._ids[self._older.record.ids_table]
            txn.cursor(table).putmulti(_superseding(keys, self._older.ids, self._newer.ids))
        elif keys:
            tallies = _superseding(keys, self._older.tallies, self._newer.tallies)
            txn.cursor(self._means).putmulti(
                [(codec.pack_uuid(uuid), codec.pack_tally(tally.sum, tally.count)) for uuid, tally in tallies if tally.count]
            )
        return True

    def append(self, txn: lmdb.Transaction, record: Record) -> None:
        """Write the record of a commit; `settle` makes it part of the journal, once it is durable."""
        number = self._newer.last + 1
        txn.put(codec.pack_record_number(number), codec.pack_record(record), db=self._newer.table, append=True)
        self._appended = _Appended(txn.id(), number, record)

    def settle(self, txn_id: int) -> None:
        """Take over what was appended if the last durable transaction is `txn_id`, or a later one."""
        appended = self._appended
        if appended is None or appended.txn_id > txn_id:
            return
        self._appended = None
        self._newer.add(appended.number, appended.record)
        if self._emptied:
            self._dead = self._older.tallies + self._older.ids
            self._older.clear()
            self._slices, self._emptied = None, False

    def abandon(self) -> None:
        """Give up what was appended and folded since the last `settle`: its transaction was aborted."""
        # The slice that is lost may be any of the older ones too: to fold from the start again is right, and rare.
        self._appended, self._slices, self._emptied = None, None, False


class _Appended(NamedTuple):
    txn_id: int
    number: int
    record: Record


_NO_RECORD = Record({}, Tally(0, 0), {}, 0, 0)


class _Part:
    """One journal table, as it was read.

    Attributes:
        table: the handle.
        tallies: the newest entry of each UUID, in dicts by its hash: to grow or free a single large one would hold up a commit.
        ids: the newest record of each id, packed, likewise.
        entries: entries in all its records, which bounds how long it takes to read.
        last: the number of the newest record; 0 if there is none.
        record: the newest record.
    """

    def __init__(self, table: object):
        self.table = table
        self.tallies: list[dict[str, Tally]] = [{} for _ in range(SHARDS)]
        self.ids: list[dict[bytes, bytes]] = [{} for _ in range(SHARDS)]
        self.entries = self.last = 0
        self.record = _NO_RECORD

    def clear(self) -> None:
        """Let go of everything: the table is empty, or holds none of what was read."""
        vars(self).update(vars(_Part(self.table)))

    def add(self, number: int, record: Record) -> None:
        """Take over a record."""
        _spread(record.tallies, self.tallies)
        _spread(record.ids, self.ids)
        self.entries += record.entries
        self.last, self.record = number, record

    def read(self, txn: lmdb.Transaction, entries_max: int | None) -> int | None:
        """Read the records that are new, after letting go of all others if they are gone. Return how many entries are left."""
        with txn.cursor(self.table) as cursor:
            if not cursor.first() or codec.unpack_record_number(cursor.key()) > self.last:
                self.clear()
            if cursor.set_range(codec.pack_record_number(self.last + 1)):
                for key, value in cursor:
                    if entries_max is not None and entries_max <= 0:
                        break
                    self.add(codec.unpack_record_number(key), record := codec.unpack_record(value))
                    if entries_max is not None:
                        entries_max -= record.entries + 1
        return entries_max

    def drop(self, txn: lmdb.Transaction) -> bool:
        """Delete the oldest records, a slice of them. Return whether that was the last.

        In slices, since LMDB writes the numbers of all the pages that it has at hand to use again into every commit.
        """
        with txn.cursor(self.table) as cursor:
            cursor.first()
            for _ in range(DROP_SLICE_RECORDS):
                cursor.delete()
            return not cursor.first()


def _spread(entries: Mapping, shards: Sequence[dict]) -> None:
    """Put entries into the shards that they belong to."""
    size = SHARDS
    for key, value in entries.items():
        shards[hash(key) % size][key] = value


def _superseding(keys: Iterable, older: Sequence[Mapping], newer: Sequence[Mapping]) -> list[tuple]:
    """Return the entries of `older` with these keys, without those that `newer` has something newer for."""
    size = SHARDS
    return [(key, older[hash(key) % size][key]) for key in keys if key not in newer[hash(key) % size]]


def _in_order(shards: Sequence[Mapping]) -> Iterator[list]:
    """Yield the keys of all shards in order, a slice at a time.

    To sort all of them at once would hold up everything else for tenths of a second. So short runs are sorted, with an empty
    slice yielded after each, and then merged.
    """
    keys = itertools.chain.from_iterable(shards)
    runs = []
    while some := list(islice(keys, SORT_SLICE_ENTRIES)):
        runs.append(sorted(some))
        yield []
    merged = heapq.merge(*runs)
    while some := list(islice(merged, FOLD_SLICE_ENTRIES)):
        yield some
