"""The data: UUIDs spread evenly, files of scores in the form that each subject loads fastest, and stores of many UUIDs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from scoremean import Add, ScoremeanError, Tally
from scoremean.store.embedded.store import LmdbStore

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".bench"
CHUNK = 100_000
# Bytes of disk that a UUID may need: its store in the cache, and a copy.
UUID_DISK_BYTES = 2 * 250

_GOLDEN = 0x9E3779B97F4A7C15F39CC0605CEDC835
_FORMS = {
    ".ndjson": '{{"UUID":"{}","score":{}}}\n',
    ".paths": "/means/{}\n",  # to GET
    ".resp": (  # Redis's protocol
        "*4\r\n$7\r\nHINCRBY\r\n$36\r\n{0}\r\n$3\r\nsum\r\n$1\r\n{1}\r\n"
        "*4\r\n$7\r\nHINCRBY\r\n$36\r\n{0}\r\n$5\r\ncount\r\n$1\r\n1\r\n"
    ),
    ".tsv": "{}\t{}\n",
}


def uuid_at(index: int, count: int) -> str:
    """Return UUID number `index` of `count`: 36 characters, ascending with `index`, and spread over all UUIDs.

    So the many need not be kept anywhere to be written in order or to be drawn at random.
    """
    step = (1 << 128) // count
    digits = f"{index * step + index * _GOLDEN % step:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def drawn(uuids: int, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yield `count` scores of UUIDs drawn uniformly out of `uuids`."""
    chance = random.Random(seed)
    for _ in range(count):
        yield uuid_at(int(chance.random() * uuids), uuids), int(chance.random() * 6)


def once(uuids: int) -> Iterator[tuple[str, int]]:
    """Yield one score for each UUID, in no order."""
    indexes = list(range(uuids))
    random.Random(0).shuffle(indexes)
    return ((uuid_at(index, uuids), index % 6) for index in indexes)


def write(path: Path, scores: Iterator[tuple[str, int]]) -> Path:
    """Write scores in the form that the suffix of `path` names, and return `path`."""
    line = _FORMS[path.suffix]
    with path.open("w", encoding="ascii", newline="") as file:
        file.writelines(line.format(uuid, score) for uuid, score in scores)
    os.sync()  # or the kernel writes it out while something else is measured
    return path




def store(path: Path, uuids: int) -> Path:
    """Make a store at `path` with one score for each of `uuids`, and return `path`: a copy of one that is kept in CACHE.

    Raises:
        OSError: the disk has no room for it.
    """
    free = shutil.disk_usage(CACHE).free
    if free < uuids * UUID_DISK_BYTES:
        raise OSError(f"{uuids:,} UUIDs need {uuids * UUID_DISK_BYTES >> 20:,} MiB of disk, and {free >> 20:,} are free")
    cached = CACHE / "stores" / str(uuids)
    if not _usable(cached, uuids):
        shutil.rmtree(cached, ignore_errors=True)
        _fill(cached, uuids)
    shutil.copytree(cached, path)
    os.sync()
    return path


def _usable(path: Path, uuids: int) -> bool:
    """Return whether a cached store is whole and can be read by the code as it is now."""
    try:
        with LmdbStore(path, readonly=True) as found:
            return found.stats().uuids == uuids
    except ScoremeanError:
        return False


def _fill(path: Path, uuids: int) -> None:
    with LmdbStore(path) as new:
        for start in range(0, uuids, CHUNK):
            some = range(start, min(start + CHUNK, uuids))
            new.commit([Add(uuid_at(index, uuids), Tally(index % 6, 1)) for index in some])
