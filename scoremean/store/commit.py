"""One commit of the embedded store: the changes of a batch, counted in a write transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lmdb
from msgspec.structs import replace

from scoremean import codec
from scoremean.codec import Generation, IdRecord, Record
from scoremean.counts import REPLAYS, SCORES, VOIDS
from scoremean.errors import Fault, IdConflict, IdVoided, InvalidBatch, InvalidScore, RequestError, UnknownId, UnknownUUID
from scoremean.model import Add, Batch, Forget, Replay, Score, Tally, Void, Voided
from scoremean.store.base import Change, Outcome
from scoremean.store.erasure import Erasure, Tables
from scoremean.store.journal import IN_MEANS, Journal


class Meta(NamedTuple):
    """What changes in the table meta, and how many ids are kept, as of the last commit: so that a commit need not read it."""

    generation: Generation
    epoch: int
    kept: int


class Commit:  # pylint: disable=too-many-instance-attributes  # what it changes is kept in them until the end
    """One write transaction at work: what it has changed is kept here and written once, at the end.

    Args:
        txn: the transaction, which the caller commits.
        meta: the table meta as it is in it.
        journal: what is newer than `means`.
        bounds: the range of a score.
        erasure: takes what is forgotten; None for one that only reads.

    Attributes:
        meta: the table meta once this is committed.
    """

    def __init__(  # pylint: disable=too-many-arguments,too-many-positional-arguments  # a value each
        self,
        txn: lmdb.Transaction,
        tables: Tables,
        meta: Meta,
        journal: Journal,
        bounds: tuple[int, int],
        erasure: Erasure | None = None,
    ):
        self._txn = txn
        self._tables = tables
        self.meta = meta
        self._journal = journal
        self._low, self._high = bounds
        self._erasure = erasure
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
        apply = {Add: self._add_once, Void: self._void, Forget: self._forget, Batch: self._batch}
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

    def known(self, change: Change) -> Outcome | None:
        """Return the outcome of a change whose ids are known already, so that it counts nothing; None of another one."""
        match change:
            case Batch(scores=scores) if scores:
                outcomes = [self.known(score) for score in scores]
                return outcomes if all(outcomes) and (change.skip or not tuple(self._refusals(scores))) else None
            case Score(id=str()) | Add(id=str()):
                found = self._find(codec.pack_id(change.id))
                return found and _again(_as_add(change), found[0])
            case Void():
                found = self._find(codec.pack_id(change.id))
                return self._void(change) if found is None or found[0].voided else None
        return None

    def _score(self, score: Score) -> Tally | RequestError:
        if score.id is None and self._low <= score.score <= self._high:
            return self._add(score.uuid, score.score, 1)
        return self._add_once(_as_add(score))

    def _add_once(self, add: Add) -> Tally | RequestError:
        if (refusal := self._out_of_range(add)) is not None:
            return refusal
        if add.id is None:
            return self._add(add.uuid, add.tally.sum, add.tally.count)
        key = codec.pack_id(add.id)
        if (found := self._find(key)) is not None:
            outcome = _again(add, found[0])
            self._replays += isinstance(outcome, Replay)
            return outcome
        tally = self._add(add.uuid, add.tally.sum, add.tally.count)
        self._new_ids[key] = codec.pack_id_record(IdRecord(add.uuid, add.tally, tally, self._epoch_of(add.uuid)))
        self.meta = self.meta._replace(kept=self.meta.kept + 1)
        return tally

    def _out_of_range(self, add: Add) -> InvalidScore | None:
        """Return the refusal of a score or a tally that the range of this store does not allow."""
        total, count = add.tally.sum, add.tally.count
        if self._low * count <= total <= self._high * count:
            return None
        text = f"the sum {total} of {count} scores" if count > 1 else f"the score {total}"
        return InvalidScore(f"{text} is outside of the range of this store, {self._low} to {self._high}")

    def _batch(self, batch: Batch) -> Outcome:
        low, high = self._low, self._high
        if all(score.id is None and low <= score.score <= high for score in batch.scores):
            return self._add_all(batch.scores)
        if not batch.skip and (faults := tuple(self._refusals(batch.scores))):
            return InvalidBatch(f"{len(faults)} of {len(batch.scores)} scores are at fault, so none was counted", faults)
        return [self._score(score) for score in batch.scores]

    def _refusals(self, scores: Sequence[Score]) -> Iterator[Fault]:
        """Yield a fault for each score that would be refused, before any of them is counted: only ids can be."""
        new: dict[str, IdRecord] = {}
        for index, score in enumerate(scores):
            if (refusal := self._out_of_range(_as_add(score))) is not None:
                yield Fault(f"/{index}/score", refusal.detail)
                continue
            if score.id is None:
                continue
            if (record := new.get(score.id)) is None:
                found = self._find(codec.pack_id(score.id))
                record = found[0] if found else IdRecord(score.uuid, Tally(score.score, 1), Tally(0, 0))
                new[score.id] = record
            if isinstance(outcome := _again(_as_add(score), record), RequestError):
                yield Fault(f"/{index}/id", outcome.detail)

    def _void(self, void: Void) -> Outcome:
        key = codec.pack_id(void.id)
        found = self._find(key)
        if found is None or isinstance(found[0].uuid, bytes) or found[0].epoch != self._epoch_of(found[0].uuid, found[0].epoch):
            return UnknownId(f"no score carried the id {void.id}, or it has expired or was forgotten")
        record, table = found
        if record.voided:
            return Voided(record.uuid, self._tally(record.uuid))
        voided = codec.pack_id_record(replace(record, voided=True))
        if table is None:
            self._new_ids[key] = voided
        else:
            self._txn.put(key, voided, db=table)
        self._voids += 1
        self._taken += record.added.count
        return Voided(record.uuid, self._add(record.uuid, -record.added.sum, -record.added.count))

    def _forget(self, forget: Forget) -> Outcome:
        tally = self._tally(forget.uuid)
        if tally.count:
            self._taken += tally.count
            self._add(forget.uuid, -tally.sum, -tally.count)
        # Also where no score is left: ids of scores that were voided may be.
        self.meta = self.meta._replace(epoch=self.meta.epoch + 1)
        epoch = codec.pack_number(self.meta.epoch)
        self._txn.put(codec.EPOCH_KEY, epoch, db=self._tables.meta)
        # The newer table is emptied after every id that was counted until now has expired.
        table = self._tables.ids[self.meta.generation.current]
        kept = self.meta.kept + (self._txn.get(codec.pack_forgotten(forget.uuid), db=table) is None)
        self._txn.put(codec.pack_forgotten(forget.uuid), epoch, db=table)
        self.meta = self.meta._replace(kept=kept)
        self._erasure.add(self._txn, forget.uuid, self.meta.epoch)
        return tally if tally.count else UnknownUUID(f"no score was counted for the UUID {forget.uuid}")

    def _epoch_of(self, uuid: str | bytes, default: int = 0) -> int:
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


def scores_in(batch: Sequence[Change]) -> int:
    """Return how many scores a batch has, those of its Batches among them."""
    return sum(len(change.scores) if isinstance(change, Batch) else 1 for change in batch)


def _as_add(score: Score | Add) -> Add:
    return score if isinstance(score, Add) else Add(score.uuid, Tally(score.score, 1), score.id)


def _again(add: Add, record: IdRecord) -> Replay | RequestError:
    """Return the outcome of a score, or tally, whose id was seen before."""
    uuid = add.uuid if isinstance(record.uuid, str) else codec.pack_id(add.uuid)
    if (record.uuid, record.added) != (uuid, add.tally):
        return IdConflict(f"the id {add.id} was used before, for another UUID or score; give each score an id of its own")
    if record.voided:
        return IdVoided(f"the score with the id {add.id} was voided; post a new score with a new id")
    return Replay(record.first.sum, record.first.count)
