"""The check of an embedded store: all that it holds is read, and each damage is a sentence."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import lmdb

from scoremean.errors import InvalidScore, StoreDamaged
from scoremean.model import SCORE_BOUND, Add, Tally, require_uuid
from scoremean.store.embedded import format as codec
from scoremean.store.embedded.erasure import Tables
from scoremean.store.embedded.format import IdRecord
from scoremean.store.embedded.journal import IN_MEANS


class Check:
    """Reads everything that a store holds, as of one commit, from its tables alone: no process's memory is asked."""

    def __init__(self, txn: lmdb.Transaction, tables: Tables):
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
        if isinstance(record.uuid, bytes):  # erased: of its UUID no more is known
            return
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


def summary(damages: Sequence[str]) -> str:
    """Return the first of at least one damage, and how many more there are."""
    more = f", and {len(damages) - 1} more" if damages[1:] else ""
    return f"{damages[0]}{more}"
