"""What a service manager is told by the process that it started: sd_notify(3), in the few lines that it takes."""

from __future__ import annotations

import logging
import os
import socket

READY, STOPPING = "READY=1", "STOPPING=1"

_log = logging.getLogger(__name__)


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
