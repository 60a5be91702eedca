"""The bytes on disk and their format version. The only user of msgpack.

Format 1:

    table         key                    value
    means         the UUID, UTF-8        msgpack [sum, count]
    ids-0, ids-1  BLAKE2b-128 of the id  msgpack [UUID, score, 1, sum, count, voided, epoch]: what was added, first answer;
                                         of a UUID that was erased, its BLAKE2b-128 in its place
                  0, BLAKE2b of a UUID   msgpack epoch: the UUID was forgotten, with the ids of its scores of other epochs,
                                         or merged into another one
    journal-0, -1 record number, 8 bytes msgpack [sum, count, [UUID, sum, count, UUID, ...], ids, n, [key, value, key, ...]]:
                                         over all UUIDs, new tallies, how many ids are kept, new records of ids for ids-n;
                                         and zero bytes that fill the page, where the value has one of its own
    meta          "format"               msgpack 1
    meta          "epoch"                msgpack integer: how many times a UUID was forgotten or merged
    meta          "generation"           msgpack [n, since]: new ids go to the table ids-n, since that Unix time in seconds
    meta          "range"                msgpack [score_min, score_max]: what the scores of this store are
    meta          "erasing-", BLAKE2b    msgpack [epoch, UUID]: what is left to erase of a UUID; of ids alone if it is empty
                  of a UUID
    meta          "erased"               msgpack [number, txn]: up to this record, entries that said "in means" may have been
                                         erased, the last time in this transaction

What a UUID's tally is, the newest record of the journal that names it says, unless with a count of 0, and otherwise `means`;
likewise for ids.
Record numbers go up by one, big-endian, over both tables; all records of the one are newer than all of the other.

UTF-8 keeps the order of code points, so LMDB's order of keys is the order of UUIDs. msgpack writes an integer in as few
bytes as it fits: a tally of small scores takes 3 to 7 bytes. An id is hashed to a key of one size, so that a long id costs no
more than a short one; two ids of the same 128-bit hash are not to be expected before 2**60 ids are kept at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from hashlib import blake2b

import msgpack
from msgspec import Struct

from scoremean.errors import StoreDamaged
from scoremean.model import Tally

FORMAT = 1

MEANS_TABLE = b"means"
META_TABLE = b"meta"
JOURNAL_TABLES = (b"journal-0", b"journal-1")
FORMAT_KEY = b"format"
IDS_TABLES = (b"ids-0", b"ids-1")
GENERATION_KEY = b"generation"
EPOCH_KEY = b"epoch"
RANGE_KEY = b"range"
ERASING_PREFIX = b"erasing-"
ERASED_KEY = b"erased"

# LMDB puts a value on pages of its own, behind their header, if two like it would not fit on one with their keys.
_OWN_PAGE_BYTES = mmap.PAGESIZE - 16
_OWN_PAGE_FROM_BYTES = _OWN_PAGE_BYTES // 2 - 18


class IdRecord(Struct, frozen=True, gc=False):
    """What is kept of an id: what it added, the tally that was its first answer, and whether it was voided.

    A score adds `(score, 1)`, an imported tally more; the void of a score, `(-score, -1)`.

    `epoch` is that of the UUID when the score was counted: 0 if it was never forgotten. `uuid` is `pack_id(UUID)` of one whose
    text was erased.
    """

    uuid: str | bytes
    added: Tally
    first: Tally
    epoch: int = 0
    voided: bool = False


class Record(Struct, frozen=True, gc=False):
    """What a commit appends to the journal.

    Attributes:
        tallies: the new tally of each UUID; one with the count 0 says that `means` is newer.
        total: the tally over all UUIDs.
        ids: the new records of ids, packed, by their keys.
        kept: how many ids are kept.
        ids_table: which of the two tables of ids they belong to.
    """

    tallies: Mapping[str, Tally]
    total: Tally
    ids: Mapping[bytes, bytes]
    kept: int
    ids_table: int

    @property
    def entries(self) -> int:
        """How many tallies and ids it has."""
        return len(self.tallies) + len(self.ids)


class Erasing(Struct, frozen=True, gc=False):
    """What is left to erase of a UUID, from before its `epoch`. `uuid` is empty once only records of ids may hold it."""

    epoch: int
    uuid: str


class Generation(Struct, frozen=True, gc=False):
    """Which of the two ids tables takes new ids, and since when, in Unix time."""

    current: int
    since_seconds: int


def pack_uuid(uuid: str) -> bytes:
    """Return the key of `uuid`, 1 to 256 bytes."""
    return uuid.encode()


def unpack_uuid(key: bytes) -> str:
    """Return the UUID of a key. Raises StoreDamaged when the key is not UTF-8."""
    try:
        return bytes(key).decode()
    except UnicodeDecodeError as error:
        raise StoreDamaged(f"the key {bytes(key)!r} is not UTF-8") from error


def pack_tally(total: int, count: int) -> bytes:
    """Return the bytes of the pair; both fit 64 bits, since 2**63 scores take longer to post than anyone has."""
    return msgpack.packb((total, count))


def unpack_tally(value: bytes) -> Tally:
    """Return the Tally of a value. Raises StoreDamaged when the bytes are not a pair of integers."""
    match _unpack(value):
        case [total, count] if total.__class__ is int and count.__class__ is int:  # as _are has it, where it is called most
            return Tally(total, count)
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not a tally")


def pack_record_number(number: int) -> bytes:
    """Return the key of a journal record, 8 bytes."""
    return number.to_bytes(8, "big")


def unpack_record_number(key: bytes) -> int:
    """Return the number of a journal record."""
    return int.from_bytes(key, "big")


def pack_record(record: Record) -> bytes:
    """Return the bytes of a journal record."""
    tallies: list[str | int] = []
    for uuid, tally in record.tallies.items():
        tallies += (uuid, tally.sum, tally.count)
    ids: list[bytes] = []
    for item in record.ids.items():
        ids += item
    value = msgpack.packb((record.total.sum, record.total.count, tallies, record.kept, record.ids_table, ids))
    if _OWN_PAGE_FROM_BYTES < len(value) < _OWN_PAGE_BYTES - 3:
        # LMDB writes the page as it finds it in memory, with what is left there of another one behind the value. So the array
        # of six gets a seventh: zeros, as a bin 16.
        zeros = bytes(_OWN_PAGE_BYTES - 3 - len(value))
        return b"\x97" + value[1:] + b"\xc5" + len(zeros).to_bytes(2, "big") + zeros
    return value


def unpack_record(value: bytes) -> Record:
    """Return the Record of a value. Raises StoreDamaged when the bytes are not one."""
    match _unpack(value):
        case [total, count, list() as flat, kept, (0 | 1) as table, list() as ids, *_] if _are(int, total, count, kept, table):
            uuids, sums, counts = flat[::3], flat[1::3], flat[2::3]
            types = set(map(type, uuids)) <= {str}, set(map(type, sums + counts)) <= {int}, set(map(type, ids)) <= {bytes}
            if all(types) and len(flat) % 3 == len(ids) % 2 == 0:
                tallies = dict(zip(uuids, map(Tally, sums, counts)))
                return Record(tallies, Tally(total, count), dict(zip(ids[::2], ids[1::2])), kept, table)
    raise StoreDamaged(f"the {len(value)} bytes {bytes(value[:32]).hex()}... are not a record of the journal")


def pack_id(name: str) -> bytes:
    """Return the key of an id, 16 bytes."""
    return blake2b(name.encode(), digest_size=16).digest()


def pack_id_record(record: IdRecord) -> bytes:
    """Return the bytes of what is kept of an id."""
    added, first = record.added, record.first
    return msgpack.packb((record.uuid, added.sum, added.count, first.sum, first.count, record.voided, record.epoch))


def unpack_id_record(value: bytes) -> IdRecord:
    """Return the IdRecord of a value. Raises StoreDamaged when the bytes are not one."""
    match _unpack(value):
        case [(str() | bytes()) as uuid, total, count, first_sum, first_count, bool() as voided, epoch] if _are(
            int, total, count, first_sum, first_count, epoch
        ):
            return IdRecord(uuid, Tally(total, count), Tally(first_sum, first_count), epoch, voided)
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not the record of an id")


def pack_generation(generation: Generation) -> bytes:
    """Return the bytes of a generation."""
    return msgpack.packb((generation.current, generation.since_seconds))


def unpack_generation(value: bytes) -> Generation:
    """Return the Generation of a value. Raises StoreDamaged when the bytes are not one."""
    match _unpack(value):
        case [current, since_seconds] if _are(int, current, since_seconds) and current in (0, 1):
            return Generation(current, since_seconds)
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not a generation")


def pack_range(low: int, high: int) -> bytes:
    """Return the bytes of the range of a store's scores."""
    return msgpack.packb((low, high))


def unpack_range(value: bytes) -> tuple[int, int]:
    """Return `(score_min, score_max)` of a value. Raises StoreDamaged when the bytes are no range."""
    match _unpack(value):
        case [low, high] if _are(int, low, high) and low < high:
            return low, high
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not a range of scores")


def pack_erasing(erasing: Erasing) -> bytes:
    """Return the bytes of what is left to erase of a UUID."""
    return msgpack.packb((erasing.epoch, erasing.uuid))


def unpack_erasing(value: bytes) -> Erasing:
    """Return what is left to erase of a UUID. Raises StoreDamaged when the bytes do not say it."""
    match _unpack(value):
        case [epoch, str() as uuid] if _are(int, epoch):
            return Erasing(epoch, uuid)
    raise StoreDamaged(f"the bytes {bytes(value).hex()} do not say what is to be erased")


def pack_erased(number: int, txn_id: int) -> bytes:
    """Return the bytes of what tells readers that entries were erased."""
    return msgpack.packb((number, txn_id))


def unpack_erased(value: bytes | None) -> tuple[int, int]:
    """Return `(number, txn_id)` of a value, or of none. Raises StoreDamaged when the bytes are not a pair of integers."""
    match _unpack(value) if value else (0, 0):
        case [number, txn_id] if _are(int, number, txn_id):
            return number, txn_id
    raise StoreDamaged(f"the bytes {bytes(value).hex()} do not say what was erased")


def pack_forgotten(uuid: str | bytes) -> bytes:
    """Return the key, in a table of ids, that says that `uuid`, or the UUID with this `pack_id`, was forgotten.

    It has 17 bytes, so it is never that of an id.
    """
    return b"\0" + (pack_id(uuid) if isinstance(uuid, str) else uuid)


def is_forgotten_key(key: bytes) -> bool:
    """Return whether a key of a table of ids is that of a forgotten UUID."""
    return len(key) == 17


def pack_number(number: int) -> bytes:
    """Return the bytes of a format version or an epoch."""
    return msgpack.packb(number)


def unpack_number(value: bytes) -> int:
    """Return the format version or epoch of a value. Raises StoreDamaged when the bytes are not an integer."""
    if _are(int, number := _unpack(value)):
        return number
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not an integer")


def _are(kind: type, *values: object) -> bool:
    """Return whether each value is of exactly this type: True is an int to isinstance, and 0.0 equals 0."""
    return all(value.__class__ is kind for value in values)


def _unpack(value: bytes) -> object:
    try:
        return msgpack.unpackb(value)
    except (ValueError, msgpack.UnpackException) as error:
        raise StoreDamaged(f"the bytes {bytes(value).hex()} are not msgpack") from error
