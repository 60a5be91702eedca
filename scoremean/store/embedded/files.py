"""The files of an embedded store: how they are made, opened, locked and copied, and what the operating system may refuse."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from scoremean.errors import StoreDamaged, StoreError, StoreForeign, StoreInUse, StoreMissing

DATA_FILE = "data.mdb"
LOCK_FILE = "scoremean.lock"
# With LMDB's own table of readers. One that opens a new one would not be seen, and read pages that are being written.
_FILES = (DATA_FILE, LOCK_FILE, "lock.mdb")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# What is no fault of the store's, when LMDB has none of it.
_LACKS = {errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EPIPE}

_HINTS = {
    errno.EACCES: "run scoremean as the user who owns it, or give --store another directory",
    errno.EROFS: "give --store a directory on a disk that can be written",
    errno.ENOSPC: "make room on its disk, or give --store a directory on another one",
    errno.ENOMEM: "the address space of the process is limited: give --store-size-max-gib a smaller number",
}


def refusal(verb: str, path: Path, reason: str, number: int | None) -> StoreError:
    """Return the error for what the operating system refuses with this errno; with what to do, where that is known."""
    hint = f"; {_HINTS[number]}" if number in _HINTS else ""
    return StoreError(f"cannot {verb} the store {path}: {reason}{hint}")


def lmdb_refusal(verb: str, path: Path, error: lmdb.Error) -> StoreError:
    """Return the error for what LMDB refuses, which is mostly what the operating system refuses to it."""
    return refusal(verb, path, str(error).removeprefix(f"{path}: "), error.code)


def require_whole(path: Path) -> None:
    """Raise StoreDamaged for a data file without a byte: LMDB takes it for a new one, and scoremean never leaves one."""
    if not (path / DATA_FILE).stat().st_size:
        raise StoreDamaged(f"{path / DATA_FILE} is empty: it was cut off; restore a backup")


@contextmanager
def copying(path: Path) -> Iterator[None]:
    """Make StoreDamaged of what LMDB finds wrong with the pages that it copies, and StoreError of what it lacks for it."""
    try:
        yield
    except lmdb.ReadersFullError as error:
        raise StoreError(f"the store {path} has too many readers: {error}") from error
    except lmdb.Error as error:
        if error.code in _LACKS:
            raise lmdb_refusal("copy", path, error) from error
        raise StoreDamaged(f"the store {path} cannot be copied: {error}") from error


def require_store(path: Path) -> None:
    """Raise StoreMissing unless there is a store at `path`; StoreError for a file."""
    _require_no_file(path)
    if not (path / DATA_FILE).exists():
        raise StoreMissing(f"there is no store at {path}; `scoremean serve --store {path}` makes one")


def make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, so that they survive a power cut. Raises StoreError, OSError."""
    _require_no_file(path)
    if not path.parent.exists():
        make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    fsync_directory(path.parent)


def _require_no_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StoreError(f"cannot open the store {path}: it is not a directory")


def free_bytes(descriptor: int) -> int:
    """Return the free space of the disk that has this file."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize


class WriterLock:
    """The writer's lock on a store, held until `release` or the death of this process.

    LMDB lets several processes write in turn; the totals that a Writer hands out, and a drain, need there to be only one.

    Its file also tells whether the last writer left the store in doubt. It is empty after a close; else it has the process id
    of the writer and the id of the boot in which it ran. A process that was killed leaves its writes to the kernel, so within
    one boot nothing is in doubt; after a power cut or a failed commit it is.

    Attributes:
        descriptor: of the file.
        data: a descriptor of the data file, once `hold` was called.
        in_doubt: the store must be checked; set by a failed commit, too.
    """

    def __init__(self, path: Path):
        self.descriptor = self.data = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        left = os.read(self.descriptor, 256).decode("ascii", "replace").split()
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.descriptor)
            owner = left[0] if left else "(unknown)"
            raise StoreInUse(f"the store {path} is in use by process {owner}; stop it first") from None
        self._watched: dict[str, os.stat_result] = {}
        self._boot = BOOT_ID.read_text(encoding="ascii").strip()
        self.in_doubt = bool(left) and left[1:] != [self._boot]
        self._write(f"{os.getpid()} {'in-doubt' if self.in_doubt else self._boot}\n")

    def hold(self, path: Path) -> None:
        """Open the data file, to read what LMDB has written to it."""
        self.data = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def watch(self, path: Path) -> None:
        """Know from now on whether the files that are in the directory at `path` still are."""
        # By their full names: the process may go to another directory.
        self._watched = {name: os.stat(name) for name in (os.path.abspath(path / file) for file in _FILES)}

    def is_there(self) -> bool:
        """Return whether the files are in their places: not removed, nor moved, nor replaced by others."""
        try:
            return all(os.path.samestat(os.stat(name), was) for name, was in self._watched.items())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # this process may not look any more
            return True

    def abandon(self) -> None:
        """Close the files, which another process has too and goes on to use."""
        os.close(self.descriptor)
        if self.data != self.descriptor:
            os.close(self.data)

    def trust(self) -> None:
        """Take the store for sound from now on: it was checked."""
        self.in_doubt = False
        self._write(f"{os.getpid()} {self._boot}\n")

    def release(self) -> None:
        """Let go of the lock, after the store was closed."""
        self._write("in-doubt\n" if self.in_doubt else "")
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)  # also that of a child which was forked just now
        self.abandon()

    def _write(self, text: str) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode(), 0)
        os.fsync(self.descriptor)  # or a power cut takes the mark that tells of it


def make_data_file(path: Path, size_max_bytes: int) -> None:
    """Make an empty LMDB file.

    LMDB writes the first two pages of a file without a sync; a power cut could leave half of them, which it does not open.
    So they are made under another name, and get theirs once they are on disk.
    """
    made = path / f"{DATA_FILE}.new"
    made.unlink(missing_ok=True)
    try:
        lmdb.Environment(str(made), map_size=size_max_bytes, subdir=False, mode=0o600, lock=False, lib_version=0).close()
    except lmdb.Error as error:
        raise refusal("make", path, str(error), error.code) from error
    descriptor = os.open(made, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    made.rename(path / DATA_FILE)
    fsync_directory(path)


def open_environment(path: Path, size_max_bytes: int, readonly: bool) -> lmdb.Environment:
    """Return LMDB's environment; one that only reads takes less address space than the writer's where that is limited."""
    sizes = [0, size_max_bytes, (path / DATA_FILE).stat().st_size] if readonly else [size_max_bytes]  # 0: as the writer has it
    for size_bytes in sizes[:-1]:
        with suppress(lmdb.MemoryError):
            return _environment(path, size_bytes, readonly)
    return _environment(path, sizes[-1], readonly)


def _environment(path: Path, size_max_bytes: int, readonly: bool) -> lmdb.Environment:
    try:
        env = lmdb.Environment(
            str(path),
            map_size=size_max_bytes,
            readonly=readonly,
            create=not readonly,
            mode=0o600,
            max_dbs=6,
            max_spare_txns=8,
            sync=True,
            metasync=True,
            writemap=False,
            lock=True,
            lib_version=0,
        )
    except (lmdb.InvalidError, lmdb.VersionMismatchError) as error:
        raise StoreForeign(f"{path / DATA_FILE} is not an LMDB 0.9 file; give the store a directory of its own") from error
    except lmdb.MemoryError as error:
        if readonly:
            raise
        raise refusal("open", path, "not enough memory", errno.ENOMEM) from error
    except lmdb.Error as error:
        if "already open in this process" in str(error):
            raise StoreInUse(f"the store {path} is already open in this process; use it from there") from error
        raise lmdb_refusal("open", path, error) from error
    # A reader that was killed leaves its slot, and with it the pages it saw, taken.
    env.reader_check()
    return env


def fsync_directory(path: Path) -> None:
    """Make durable which files a directory holds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_pages(path: Path, descriptor: int) -> None:
    """Write the DATA_FILE of the store at `path`, as of the last commit, to `descriptor`: each page as it is, also free ones.

    Unlike `LmdbStore.copy_to` it looks into none of them, so that damaged ones do no harm.

    Raises:
        StoreDamaged: the file's first two pages are damaged, or a page cannot be read.
    """
    try:
        with copying(path), open_environment(path, 0, readonly=True) as env:
            env.copyfd(descriptor)
    except StoreForeign as error:
        raise StoreDamaged(f"the store {path} cannot be copied: {error}") from error
