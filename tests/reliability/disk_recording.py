"""What a program did to one file, call by call as strace saw it, and the files that a power cut could have left of it.

The model of the disk:

- A sync (fdatasync, fsync) that has ended made every write before it durable.
- A write through a descriptor with O_DSYNC makes itself durable when it has ended, and nothing else.
- Of any other write each sector of 512 bytes is on the disk or is not, whatever became of the writes before it.

What the model leaves out: a disk that lies about a sync, and one that tears a sector.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.reliability.campaign import Missing, Unable

SECTOR_BYTES = 512
PAGE_SECTORS = 8
# Without syncs the writes that may be missing would grow for ever; the kernel has written back older ones by itself.
PENDING_MAX_WRITES = 64
# A file may be made under its name with this behind it.
UNNAMED_SUFFIX = ".new"

_TRACED = (
    "openat,close,rename,renameat,renameat2,lseek,write,writev,pwrite64,pwritev,pwritev2,"
    "fdatasync,fsync,ftruncate,fallocate,msync,mmap"
)
_CALL = re.compile(rb"\d+ +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+)[^)]*$", re.DOTALL)
_BEGUN = re.compile(rb"(\d+) +(.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(rb"(\d+) +<\.\.\. \w+ resumed>(.*)$", re.DOTALL)
_MAPPED_TO_WRITE = b"PROT_READ|PROT_WRITE, MAP_SHARED, %d,"


class Write(NamedTuple):
    """Bytes that were written; `synced` if through a descriptor with O_DSYNC."""

    offset: int
    data: bytes
    synced: bool


class Sync(NamedTuple):
    """A sync of the whole file."""


class Mark(NamedTuple):
    """A number that the program wrote to its marker file: what it had acknowledged by then."""

    number: int


class Named(NamedTuple):
    """The file got its name, with what it held by then, all of it durable; before, it had another one."""

    data: bytes


Call = Write | Sync | Mark | Named


class State(NamedTuple):
    """A file that a power cut may leave, and what had been acknowledged before it."""

    image: bytes
    acknowledged: int


def record(command: Sequence[str], data_file: Path, marker_file: Path, cwd: Path) -> list[Call]:
    """Run `command` under strace and return what it did to the two files, in order.

    Raises:
        Missing: there is no strace, or it may not trace.
    """
    if not shutil.which("strace"):
        raise Missing("needs strace")
    trace = marker_file.with_suffix(".strace")
    # All strings whole and in hexadecimal, so that none of them holds a quote or a comma.
    strace = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "100000000", "-e", f"trace={_TRACED}", "-e", "signal=none"]
    done = subprocess.run(
        [*strace, "-o", str(trace), *command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        if "PTRACE" in done.stderr:
            raise Unable(f"strace cannot trace here: {done.stderr.strip()}")
        raise RuntimeError(f"what was to be recorded failed: {done.stderr}")
    with open(trace, "rb") as lines:
        return list(_Parser(data_file, marker_file).calls(lines))


class _Parser:
    """Reads strace's lines. A call that it does not know how to play again is an error, never skipped."""

    def __init__(self, data_file: Path, marker_file: Path):
        unnamed = f"{data_file}{UNNAMED_SUFFIX}"
        self._paths = {str(data_file).encode(): "data", unnamed.encode(): "unnamed", str(marker_file).encode(): "marker"}
        self._unnamed = _Disk()
        self._files: dict[int, str] = {}
        self._synced: set[int] = set()
        self._positions: dict[int, int] = {}

    def calls(self, lines: Iterable[bytes]) -> Iterator[Call]:
        """Yield the calls on the two files.

        Raises:
            ValueError: two threads called at once, so that the order is not known.
        """
        begun: dict[bytes, tuple[bytes, int]] = {}
        number = 0
        for line in lines:
            since = number
            if found := _BEGUN.match(line):
                begun[found[1]] = found[2], number
                continue
            if found := _RESUMED.match(line):
                start, since = begun.pop(found[1])
                line = found[1] + b" " + start + found[2]
            for call in self._line(line):
                if since != number:
                    raise ValueError(f"two calls at once: {line[:200]!r}")
                number += 1
                yield call

    def _line(self, line: bytes) -> Iterator[Call]:
        if (found := _CALL.match(line)) is None:
            return
        name, arguments, result = found[1].decode(), found[2], int(found[3], 0)
        if result < 0:
            return
        if name == "openat":
            self._open(result, arguments)
        else:
            yield from self._call(name, arguments, result)

    def _open(self, descriptor: int, arguments: bytes) -> None:
        self._close(descriptor)
        if name := self._paths.get(_strings(arguments)[0]):
            self._files[descriptor] = name
            self._positions[descriptor] = 0
            if b"O_DSYNC" in arguments or b"O_SYNC" in arguments:
                self._synced.add(descriptor)

    def _close(self, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        self._synced.discard(descriptor)

    def _call(self, name: str, arguments: bytes, result: int) -> Iterator[Call]:
        if name.startswith("rename"):
            if [self._paths.get(path) for path in _strings(arguments)] == ["unnamed", "data"]:
                yield Named(self._unnamed.whole())
            return
        if name == "mmap":
            if any(_MAPPED_TO_WRITE % one in arguments for one, file in self._files.items() if file == "data"):
                raise ValueError("the file is written through a memory map, which no recording sees")
            return
        descriptor = int(arguments.split(b",", 1)[0], 0) if name != "msync" else -1
        if self._files.get(descriptor) == "marker" and name == "write":
            yield Mark(int(_strings(arguments)[0]))
        file = self._files.get(descriptor)
        if name == "close":
            self._close(descriptor)
        elif name == "lseek":
            self._positions[descriptor] = result
        elif file == "data":
            yield self._data_call(name, descriptor, arguments, result)
        elif file == "unnamed":
            call = self._data_call(name, descriptor, arguments, result)
            self._unnamed.begin(call)
            self._unnamed.end(call)

    def _data_call(self, name: str, descriptor: int, arguments: bytes, result: int) -> Write | Sync:
        if name in ("fdatasync", "fsync"):
            return Sync()
        if name in ("pwrite64", "pwritev"):
            offset = int(arguments.rsplit(b",", 1)[1], 0)
        elif name in ("write", "writev"):
            offset = self._positions[descriptor]
            self._positions[descriptor] += result
        else:
            raise ValueError(f"the model does not know the call {name}")
        return Write(offset, b"".join(_strings(arguments))[:result], descriptor in self._synced)


def _strings(arguments: bytes) -> list[bytes]:
    """Return the strings of a line, of which all are in hexadecimal."""
    return [bytes.fromhex(text.replace(b"\\x", b"").decode()) for text in arguments.split(b'"')[1::2]]


class _Disk:
    """What is durable, and the writes that may or may not be there."""

    def __init__(self) -> None:
        self._durable = bytearray()
        self._pending: list[Write] = []

    def begin(self, call: Call) -> None:
        """Do what a call may have done when it is cut off; `end` it before the next."""
        match call:
            case Named():
                self._durable[:] = call.data
            case Sync():
                for write in self._pending:
                    _put(self._durable, write)
                self._pending.clear()
            case Write():
                self._pending.append(call)
                if len(self._pending) > PENDING_MAX_WRITES:
                    _put(self._durable, self._pending.pop(0))

    def end(self, call: Call) -> None:
        """Do what a call has surely done."""
        if isinstance(call, Write) and call.synced:
            _put(self._durable, self._pending.pop())

    def whole(self) -> bytes:
        """Return the file if all of it is durable."""
        if self._pending:
            raise ValueError("a file got its name before it was synced")
        return bytes(self._durable)

    def images(self, chance: Random, tries: int) -> Iterator[bytes]:
        """Yield what a power cut may leave now: without and with all that is pending, and random choices of it."""
        yield bytes(self._durable)
        if not self._pending:
            return
        yield self._image(_sectors(self._pending))
        pages = _pages(self._pending)
        sectors = _sectors(self._pending[-1:])
        for _ in range(tries):
            share = chance.random()
            yield self._image(sector for page in pages if chance.random() < share for sector in page)
            yield self._image(sector for page in pages for sector in page if chance.random() < share)
            # The last write torn, behind all the others.
            yield self._image(_sectors(self._pending[:-1]) + sectors[: chance.randrange(len(sectors))])

    def _image(self, sectors: Iterable[Write]) -> bytes:
        image = bytearray(self._durable)
        for sector in sectors:
            _put(image, sector)
        return bytes(image)


def _put(image: bytearray, write: Write) -> None:
    if (missing := write.offset - len(image)) > 0:
        image += bytes(missing)
    image[write.offset : write.offset + len(write.data)] = write.data


def _sectors(writes: Iterable[Write]) -> list[Write]:
    """Return the writes cut at the borders of sectors."""
    sectors = []
    for offset, data, synced in writes:
        start = 0
        while start < len(data):
            end = start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES
            sectors.append(Write(offset + start, data[start:end], synced))
            start = end
    return sectors


def _pages(writes: Iterable[Write]) -> list[list[Write]]:
    """Return the sectors of each write, a page of them at a time."""
    every = [_sectors([write]) for write in writes]
    return [sectors[at : at + PAGE_SECTORS] for sectors in every for at in range(0, len(sectors), PAGE_SECTORS)]


def crash_states(calls: Iterable[Call], chance: Random, tries: int) -> Iterator[State]:
    """Yield, for a power cut during and after each call, the states that it may leave, each of them once.

    Args:
        tries: how many random choices of the pending writes are made of each kind.
    """
    disk, acknowledged, seen = _Disk(), 0, set()
    for call in calls:
        if isinstance(call, Mark):
            acknowledged = call.number
            seen.clear()  # the same file must now hold more
        disk.begin(call)
        for image in disk.images(chance, tries):
            if (key := hash(image)) not in seen:
                seen.add(key)
                yield State(image, acknowledged)
        disk.end(call)  # what it leaves then was among the images already
