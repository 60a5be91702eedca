"""One commit of the embedded store: the changes of a batch, counted in a write transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import lmdb
from msgspec.structs import replace

from scoremean.counts import REPLAYS, SCORES, VOIDS
from scoremean.errors import (
    Fault,
    IdConflict,
    IdVoided,
    InvalidBatch,
    InvalidScore,
    NoSuchScore,
    RequestError,
    UnknownId,
    UnknownUUID,
)
from scoremean.model import SUM_BOUND, Add, Batch, Forget, Merge, Replay, Score, Tally, Void, Voided, VoidScore
from scoremean.store.base import Change, Outcome
from scoremean.store.embedded import format as codec
from scoremean.store.embedded.erasure import Erasure, Tables
from scoremean.store.embedded.format import Generation, IdRecord, Record
from scoremean.store.embedded.journal import IN_MEANS, Journal


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

    def known(self, change: Change) -> Outcome | None:
        """Return the outcome of a change that counts nothing: its ids are known or its batch is refused; None of others."""
        match change:
            case Batch(scores=scores) if scores:
                outcomes = [self.known(score) for score in scores]
                return self._refusal(change) or (outcomes if all(outcomes) else None)
            case Score(id=str()):
                return self._known(change.id, change.uuid, Tally(change.score, 1))
            case Add(id=str()):
                return self._known(change.id, change.uuid, change.tally)
            case VoidScore():
                return self._known(change.score.id, change.score.uuid, Tally(-change.score.score, -1))
            case Void():
                found = self._find(codec.pack_id(change.id))
                return self._void(change) if found is None or found[0].voided else None
        return None

    def _known(self, name: str, uuid: str, added: Tally) -> Replay | RequestError | None:
        found = self._find(codec.pack_id(name))
        return found and _again(name, uuid, added, found[0])

    def _score(self, score: Score) -> Tally | RequestError:
        if score.id is None and self._low <= score.score <= self._high:
            return self._add(score.uuid, score.score, 1)
        return self._add_in_range(score.id, score.uuid, Tally(score.score, 1))

    def _add_tally(self, add: Add) -> Tally | RequestError:
        return self._add_in_range(add.id, add.uuid, add.tally)

    def _void_score(self, void: VoidScore) -> Tally | RequestError:
        score = void.score
        return self._once(score.id, score.uuid, Tally(-score.score, -1), self._take)

    def _add_in_range(self, name: str | None, uuid: str, added: Tally) -> Tally | RequestError:
        if not self._is_possible(added):
            return self._out_of_range(added)
        if abs(self._journal.total.sum + self._sum + added.sum) > SUM_BOUND:
            return InvalidScore(f"the sum over all UUIDs would be outside of {SUM_BOUND} both ways")
        if name is None:
            return self._add(uuid, added.sum, added.count)
        return self._once(name, uuid, added, self._add)

    def _once(
        self, name: str, uuid: str, added: Tally, apply: Callable[[str, int, int], Tally | RequestError]
    ) -> Tally | RequestError:
        """Return what `apply` makes of the tally, and keep it with the id `name`; of an id that is kept, what it says."""
        if (outcome := self._known(name, uuid, added)) is not None:
            self._replays += isinstance(outcome, Replay)
            return outcome
        tally = apply(uuid, added.sum, added.count)
        if isinstance(tally, Tally):
            self._new_ids[codec.pack_id(name)] = codec.pack_id_record(IdRecord(uuid, added, tally, self._epoch_of(uuid)))
            self.meta = self.meta._replace(kept=self.meta.kept + 1)
        return tally

    def _is_possible(self, tally: Tally) -> bool:
        """Return whether so many scores of this store can have this sum."""
        return tally.count >= 0 and self._low * tally.count <= tally.sum <= self._high * tally.count

    def _out_of_range(self, tally: Tally) -> InvalidScore:
        text = f"the sum {tally.sum} of {tally.count} scores" if tally.count > 1 else f"the score {tally.sum}"
        return InvalidScore(f"{text} is outside of the range of this store, {self._low} to {self._high}")

    def _batch(self, batch: Batch) -> Outcome:
        low, high = self._low, self._high
        if all(score.id is None and low <= score.score <= high for score in batch.scores):
            return self._add_all(batch.scores)
        return self._refusal(batch) or [self._score(score) for score in batch.scores]

    def _refusal(self, batch: Batch) -> InvalidBatch | None:
        """Return the error of a batch of which none is counted, since some of its scores would be refused."""
        if batch.skip or not (faults := tuple(self._refusals(batch.scores))):
            return None
        return InvalidBatch(f"{len(faults)} of {len(batch.scores)} scores are at fault, so none was counted", faults)

    def _refusals(self, scores: Sequence[Score]) -> Iterator[Fault]:
        """Yield a fault for each score that would be refused, before any of them is counted: only ids can be."""
        new: dict[str, IdRecord] = {}
        for index, score in enumerate(scores):
            if not self._is_possible(added := Tally(score.score, 1)):
                yield Fault(f"/{index}/score", self._out_of_range(added).detail)
                continue
            if score.id is None:
                continue
            if (record := new.get(score.id)) is None:
                found = self._find(codec.pack_id(score.id))
                record = found[0] if found else IdRecord(score.uuid, added, Tally(0, 0))
                new[score.id] = record
            if isinstance(outcome := _again(score.id, score.uuid, added, record), RequestError):
                yield Fault(f"/{index}/id", outcome.detail)

    def _void(self, void: Void) -> Outcome:
        key = codec.pack_id(void.id)
        found = self._find(key)
        if found is None or not self._can_be_voided(found[0]):
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

    def _can_be_voided(self, record: IdRecord) -> bool:
        """Return whether this is the id of a score, of a UUID that is still what it was."""
        if record.added.count < 0 or isinstance(record.uuid, bytes):
            return False
        return record.epoch == self._epoch_of(record.uuid, record.epoch)

    def _take(self, uuid: str, total: int, count: int) -> Tally | RequestError:
        """Do what `_add` does with what is negative, if scores of this store can make both it and what is left."""
        old = self._tally(uuid)
        if not old.count:
            return _unknown(uuid)
        if not all(map(self._is_possible, (Tally(-total, -count), Tally(old.sum + total, old.count + count)))):
            what = f"score of {-total}" if count == -1 else f"tally of {-count} scores and the sum {-total}"
            return NoSuchScore(
                f"no {what} can be in the tally of the UUID {uuid}, sum {old.sum} and count {old.count}; nothing was taken out"
            )
        self._voids += 1
        self._taken -= count
        return self._add(uuid, total, count)

    def _forget(self, forget: Forget) -> Outcome:
        tally = self._tally(forget.uuid)
        self._taken += tally.count
        self._empty(forget.uuid, tally)
        return tally if tally.count else _unknown(forget.uuid)

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
        """Take the whole tally of a UUID out, and begin an epoch of it, in which its ids so far void nothing.

        Also where no score is left: ids of scores that were voided may be.
        """
        if tally.count:
            self._add(uuid, -tally.sum, -tally.count)
        self.meta = self.meta._replace(epoch=self.meta.epoch + 1)
        epoch = codec.pack_number(self.meta.epoch)
        self._txn.put(codec.EPOCH_KEY, epoch, db=self._tables.meta)
        # The newer table is emptied after every id that was counted until now has expired.
        table = self._tables.ids[self.meta.generation.current]
        kept = self.meta.kept + (self._txn.get(codec.pack_forgotten(uuid), db=table) is None)
        self._txn.put(codec.pack_forgotten(uuid), epoch, db=table)
        self.meta = self.meta._replace(kept=kept)
        self._erasure.add(self._txn, uuid, self.meta.epoch)

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


def _unknown(uuid: str) -> UnknownUUID:
    return UnknownUUID(f"no score was counted for the UUID {uuid}")


def _again(name: str, uuid: str, added: Tally, record: IdRecord) -> Replay | RequestError:
    """Return the outcome of a score, tally or void of a score whose id was seen before."""
    if record.added != added or record.uuid not in (uuid, codec.pack_id(uuid)):
        same_kind = record.added.count * added.count > 0
        what = "another UUID or score" if same_kind else "a score" if added.count < 0 else "the void of a score"
        return IdConflict(f"the id {name} was used before, for {what}; give each score and each void an id of its own")
    if record.voided:
        return IdVoided(f"the score with the id {name} was voided; post a new score with a new id")
    return Replay(record.first.sum, record.first.count)
