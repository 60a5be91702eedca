"""What this process and its children need of the system: descriptors, a loop, the service manager, and how a child is started.

A module of scoremean is run in a process of its own by Python, or by the single binary, beside which there is no Python; this
module alone knows how the two differ. The binary runs itself, with a flag in front that `scoremean.__main__` looks for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable

from msgspec.structs import replace

from scoremean.settings import Settings

CHILD_FLAG = "--child-module"
# What the binary runs besides the command line.
CHILD_MODULES = ("scoremean.workers", "scoremean.ops.backup")
# Descriptors for all but connections: the store's files, sockets that listen, workers, threads' wake-ups.
DESCRIPTORS_KEPT = 128

READY, STOPPING = "READY=1", "STOPPING=1"

_log = logging.getLogger(__name__)


def hold_standard_descriptors() -> None:
    """Open those of the descriptors 0 to 2 that are closed, on nothing: else the next file that is opened gets one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def is_frozen() -> bool:
    """Whether this is the binary: PyInstaller says so."""
    return getattr(sys, "frozen", False)


def child_command(module: str, *arguments: str) -> list[str]:
    """Return what runs `module`, one of CHILD_MODULES, as `python -m` does."""
    if is_frozen():
        return [sys.executable, CHILD_FLAG, module, *arguments]
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """Return what a child is started with: this process's variables, but for those that are for this process alone.

    With -P, it imports from where this process did, and from nowhere else.
    """
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def with_descriptors(settings: Settings) -> Settings:
    """Let this process open as many files as it may, and return `settings` with a connections_max that this allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or settings.connections_max + DESCRIPTORS_KEPT <= hard:
        return settings
    connections_max = max(hard - DESCRIPTORS_KEPT, 1)
    _log.warning("connections_max is %d: this process may open no more than %d files", connections_max, hard)
    return replace(settings, connections_max=connections_max)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's when it is installed: the same loop, faster."""
    try:
        import uvloop  # pylint: disable=import-outside-toplevel  # optional: the extra `speed`
    except ImportError:
        return None
    return uvloop.new_event_loop


def notify(state: str) -> None:
    """Send `state`, READY or STOPPING, to the socket that NOTIFY_SOCKET names; without it, do nothing.

    If nobody takes it that is logged: the service is no worse for it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name without a file
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("cannot tell the service manager %s: %s", state, error)
