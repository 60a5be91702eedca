"""The bytes on disk and their format version. The only user of msgpack.

Format 1:

    table  key               value
    means  the UUID, UTF-8   msgpack [sum, count]
    meta   "format"          msgpack 1
    meta   "total"           msgpack [sum, count] over all UUIDs

UTF-8 keeps the order of code points, so LMDB's order of keys is the order of UUIDs. msgpack writes an integer in as few
bytes as it fits: a tally of small scores takes 3 to 7 bytes.
"""

from __future__ import annotations

import msgpack

from scoremean.errors import StoreDamaged
from scoremean.model import Tally

FORMAT = 1

MEANS_TABLE = b"means"
META_TABLE = b"meta"
FORMAT_KEY = b"format"
TOTAL_KEY = b"total"


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
        case [int() as total, int() as count]:
            return Tally(total, count)
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not a tally")


def pack_format(version: int) -> bytes:
    """Return the bytes of a format version."""
    return msgpack.packb(version)


def unpack_format(value: bytes) -> int:
    """Return the format version of a value. Raises StoreDamaged when the bytes are not an integer."""
    match _unpack(value):
        case int() as version:
            return version
    raise StoreDamaged(f"the bytes {bytes(value).hex()} are not a format version")


def _unpack(value: bytes) -> object:
    try:
        return msgpack.unpackb(value)
    except (ValueError, msgpack.UnpackException) as error:
        raise StoreDamaged(f"the bytes {bytes(value).hex()} are not msgpack") from error
