"""What an operator does with a whole store: check it, back it up, restore it.

A file may be damaged, or may come from anywhere, and LMDB trusts its file: a bad page can end a process, and so can one that is
missing from the memory map (SIGBUS). So LMDB reads a file here only in one of two ways:

- in a process of its own, which copies a store and whose death is an answer (`_copy`);
- in this process, after `lmdb.verify`, which trusts nothing and maps nothing, has walked every page (`check_file`).

What is written gets its name last, once it is durable; a backup and a restored store never take the place of anything.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from lmdb.verify import VerifyError, verify
from msgspec import Struct

from scoremean.errors import NotWritten, ScoremeanError, StoreDamaged, StoreError, StoreForeign
from scoremean.model import Stats
from scoremean.process import child_command, child_environment
from scoremean.store.embedded.check import summary
from scoremean.store.embedded.files import DATA_FILE, copy_pages, fsync_directory, make_directory, require_store
from scoremean.store.embedded.store import DISK_RESERVE_BYTES, LmdbStore

CHUNK_BYTES = 1 << 20

# How a store is copied: as it is, with its free pages, or without them.
PAGES, COMPACT = "pages", "compact"

# What a copying process says by its exit code: the sentence on its standard error is about damage, or about anything else.
_DAMAGED, _FAILED = 4, 1

# What a bad page can end a process by; a page that is missing or cannot be read, by SIGBUS.
_SIGNALS_OF_DAMAGE = {signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE}

# Called with the bytes copied so far.
Progress = Callable[[int], None]


class Health(Struct, frozen=True):
    """What a check found: a sentence for each damage, and what the store holds if it can be read."""

    damages: list[str]
    stats: Stats | None = None


def check(path: Path, progress: Progress) -> Health:
    """Check the store at `path`, also while it is served: a hot copy of it, with all its pages.

    The copy is a file without a name on the store's disk, which is gone when this returns, or however this process ends.

    Raises:
        StoreMissing, StoreForeign: there is none, or one that this version cannot read.
        NotWritten: the disk has no room for the copy.
        OSError: the directory cannot be read, or not written.
    """
    require_store(path)
    data = path / DATA_FILE
    if not data.stat().st_size:  # LMDB takes it for a store that is still to be made
        return Health(_structure(data))
    with tempfile.TemporaryFile(dir=path) as copy:
        out = _Output(copy, progress, data.stat().st_size)
        try:
            _copy(path, PAGES, out.write)
        except StoreDamaged as error:
            # What kind of damage, the walk of the file itself may tell. Nothing of it is trusted, so it can change meanwhile.
            return Health(_structure(data) or [str(error)])
        return check_file(Path(f"/proc/self/fd/{copy.fileno()}"), str(path))


def check_file(path: Path, name: str) -> Health:
    """Check a file that nobody writes: a backup.

    Args:
        name: what it is called in messages.

    Raises:
        StoreForeign: sound, but not a store of scoremean, or of a format that this version does not read.
        OSError: it cannot be read.
    """
    if damages := _structure(path):
        return Health(damages)
    try:
        with _opened(path, name) as store:
            return Health(store.check(), store.stats())
    except StoreDamaged as error:
        return Health([str(error)])


def backup(path: Path, target: Path, progress: Progress) -> Stats:
    """Write a copy of the store at `path`, as of one commit and without free pages, to the new file `target`.

    Returns what it holds, once it was checked and is durable. Every score that was answered before the call is in it.

    Raises:
        StoreDamaged: the store is, so that there is no backup.
        StoreError: it cannot be read.
        NotWritten: `target` exists, or its disk has no room.
        OSError: it cannot be written.
    """
    with _part(target) as file:
        _copy(path, COMPACT, _Output(file, progress).write)
        return _require_sound(check_file(Path(file.name), str(path)), f"the store {path} is damaged, and there is no backup")


def stream(path: Path, file: IO[bytes], progress: Progress) -> int:
    """Write what `backup` writes to `file`, a pipe perhaps, and return how many bytes it is.

    Only when this returns is it whole; and only `restore` or `check_file` tell whether it is sound.
    """
    out = _Output(file, progress)
    _copy(path, COMPACT, out.write)
    return out.bytes_written


def restore(source: IO[bytes], name: str, path: Path, progress: Progress) -> Stats:
    """Make a store at `path` of the backup that `source` gives, and return what it holds, once it is durable.

    `path` is made, unless it is an empty directory. If anything fails nothing is left of it.

    Args:
        name: what the backup is called in messages.

    Raises:
        StoreDamaged: the backup is.
        StoreForeign: it is none, or one that this version cannot read.
        NotWritten: there is something at `path`, or its disk has no room.
        OSError: the backup cannot be read, or the store not be written.
    """
    with _made(path), _part(path / DATA_FILE) as file:
        out = _Output(file, progress, os.fstat(source.fileno()).st_size)
        while data := source.read(CHUNK_BYTES):
            out.write(data)
        sentence = f"the backup {name} is damaged, and nothing was restored"
        return _require_sound(check_file(Path(file.name), name), sentence)


def _require_sound(health: Health, sentence: str) -> Stats:
    if health.damages:
        raise StoreDamaged(f"{sentence}: {summary(health.damages)}")
    return health.stats


class _Output:
    """Writes to a file, says how far it is, and stops before a disk is so full that a store on it takes no more scores.

    Args:
        size_bytes: how much is to come at most, if that is known.
    """

    def __init__(self, file: IO[bytes], progress: Progress, size_bytes: int = 0):
        self.bytes_written = 0
        self._file = file
        self._progress = progress
        self._require_room(size_bytes)

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        self._require_room(len(data))
        self._file.write(data)
        self._file.flush()
        self.bytes_written += len(data)
        self._progress(self.bytes_written)

    def _require_room(self, size_bytes: int) -> None:
        disk = os.fstatvfs(self._file.fileno())
        free_bytes = disk.f_bavail * disk.f_frsize
        # A pipe's file system has no blocks.
        if disk.f_blocks and free_bytes < (needed_bytes := size_bytes + DISK_RESERVE_BYTES):
            raise NotWritten(f"the disk has {free_bytes >> 20} MiB free, and {needed_bytes >> 20} MiB are needed")


def _copy(path: Path, how: str, write: Callable[[bytes], None]) -> None:
    """Pass the bytes of a copy of the store at `path` to `write`.

    Raises:
        StoreDamaged: the process that reads the store says so, or is ended by what it reads.
        StoreError: it cannot be read.
    """
    with subprocess.Popen(
        child_command("scoremean.ops.backup", how, str(path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # The SIGINT of a terminal is for this process alone. When it closes the pipe, that one ends too, and lets go of the
        # pages that it reads; one that is killed would hold them until the store is opened by another.
        start_new_session=True,
        env=child_environment(),
    ) as process:
        while data := process.stdout.read(CHUNK_BYTES):
            write(data)
        sentence = process.stderr.read().decode(errors="replace").strip()
    code = process.returncode
    if code < 0:
        sentence = f"reading the store {path} ended a process by {signal.Signals(-code).name}"
    if code:
        raise (StoreDamaged if code == _DAMAGED or -code in _SIGNALS_OF_DAMAGE else StoreError)(sentence)


def _structure(path: Path) -> list[str]:
    """Return a sentence for each damage that a walk over all pages of a file finds."""
    try:
        return [f"pages: {damage}" for damage in verify(str(path), subdir=False)]
    except VerifyError as error:
        return [f"pages: {error}"]


@contextmanager
def _opened(path: Path, name: str) -> Iterator[LmdbStore]:
    """Open a file as a store. LMDB wants it in a directory, which gets the table of readers too."""
    with tempfile.TemporaryDirectory(prefix="scoremean-") as directory:
        data = Path(directory, DATA_FILE)
        data.symlink_to(path.absolute())
        try:
            store = LmdbStore(directory, readonly=True)
        except (StoreDamaged, StoreForeign) as error:
            raise type(error)(str(error).replace(str(data), name).replace(directory, name)) from error
        with store:
            yield store


def replacing(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Return what gives a file that takes the place of the one at `path` once it is whole and durable, or else is gone.

    A link leads to the file that is replaced. What is no file, such as a pipe or /dev/stdout, is written as it stands.
    """
    target, directory = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    if target.exists() and not target.is_file() or directory == Path("/dev") or directory.is_relative_to("/proc"):
        return open(path, "ab")
    return _part(target, replace=True)


@contextmanager
def _part(target: Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """Give a new file that is called `target` once it is whole and durable; or else is gone.

    Unless it is to replace what is there, it is for its owner's eyes only, and nothing may be there.
    """
    if not replace:
        _require_nothing_at(target)
    part = target.with_name(f"{target.name}{f'.{secrets.token_hex(4)}' if replace else ''}.part")
    _require_nothing_at(part)
    with open(part, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if replace else 0o600)) as file:
        try:
            if replace and target.exists():
                shutil.copymode(target, part)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not replace:
                _require_nothing_at(target)
            os.rename(part, target)
        except BaseException:
            part.unlink()
            raise
    fsync_directory(target.parent)


def _require_nothing_at(path: Path) -> None:
    if os.path.lexists(path):
        raise NotWritten(f"{path} exists, and nothing is overwritten; remove it or choose another name")


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Make a directory that is not there or empty; if what follows fails, the directories made are gone."""
    if path.is_dir() and any(path.iterdir()):
        raise NotWritten(f"{path} is not empty, and nothing is overwritten; give the store a directory of its own")
    missing = [one for one in (path, *path.parents) if not one.exists()]
    make_directory(path)
    try:
        yield
    except BaseException:
        for one in missing:
            one.rmdir()
        raise


def main(how: str, path: str) -> int:
    """Be the process that copies: write the store at `path` to standard output, and return the exit code."""
    try:
        if how == PAGES:
            copy_pages(Path(path), sys.stdout.fileno())
        else:
            with LmdbStore(path, readonly=True) as store:
                store.copy_to(sys.stdout.fileno())
    except ScoremeanError as error:
        print(error, file=sys.stderr)
        return _DAMAGED if isinstance(error, StoreDamaged) else _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
