"""A file system of our own, whose power can be cut and which can be filled: ext4 in a file on a loop device."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.reliability.campaign import Missing, Unable

# _IOR('X', 125, __u32) of linux/ext4.h: from now on every write fails, and what was not synced, the journal's own
# transaction included, is gone.
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2
CLONE_NEWNS = 0x20000

UNMOUNT_TRIES = 50


class Ext4:
    """Made and mounted on entry; unmounted, with its loop device, on exit, whatever happened.

    Args:
        work: an empty directory for the file and the mount point.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, work: Path, size_mib: int):
        self._image = work / "ext4.image"
        self._size_mib = size_mib
        self.path = work / "mounted"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise Unable("needs root, to mount a file system on a loop device")
        for program in ("mkfs.ext4", "mount"):
            if not shutil.which(program):
                raise Missing(f"needs {program}")
        _leave_the_mounts_of_others()
        with open(self._image, "wb") as image:
            image.truncate(self._size_mib << 20)
        self.path.mkdir()
        # No part of it kept for root, who runs this: free is then what everyone means by it.
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        try:
            self.mount()
        except subprocess.CalledProcessError as error:
            raise Unable(f"needs a loop device: {error.stderr.strip()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if os.path.ismount(self.path):
            try:
                self.unmount()
            except subprocess.CalledProcessError:
                _run("umount", "--lazy", str(self.path))

    def mount(self) -> None:
        """Mount it; after a power cut this plays the journal of ext4. The loop device goes with the mount."""
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Unmount it, waiting a little for the last process that has a file open."""
        for tries in range(UNMOUNT_TRIES, -1, -1):
            try:
                _run("umount", str(self.path))
                return
            except subprocess.CalledProcessError:
                if not tries:
                    raise
                time.sleep(0.1)

    def cut_power(self) -> None:
        """Stop every write to the disk at once."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("=I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        except OSError as error:
            raise Unable(f"needs ext4 with the ioctl FS_IOC_SHUTDOWN: {error.strerror}") from error
        finally:
            os.close(descriptor)


def _leave_the_mounts_of_others() -> None:
    """Have mounts of our own from now on, for this thread and what it starts.

    Among those of everyone, a file system outlives its unmounting while any process has a copy of them (`unshare`, a sandbox, a
    service of systemd). Mounted again, it is then the same one, whose power is still cut: all that we do there fails with EIO.
    """
    if ctypes.CDLL(None).unshare(CLONE_NEWNS):
        raise Unable("needs the right to have mounts of its own")
    _run("mount", "--make-rprivate", "/")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
