"""The log of a server process: lines on standard error, and how many of them a second.

What strangers can cause to be logged, they can cause as often as they like. So no message is begun in a second that has had
LINES_PER_SECOND; the next one that is written says how many were left out.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

LINES_PER_SECOND = 10


class LimitedHandler(logging.StreamHandler):
    """Writes LINES_PER_SECOND lines in a second of the clock, the last message to its end; and critical ones always.

    Args:
        stream: where to.
        clock: tells the time in seconds; never goes back.
    """

    def __init__(self, stream, clock: Callable[[], float] = time.monotonic):
        super().__init__(stream)
        self._clock = clock
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record`, unless there were enough in this second."""
        if (second := int(self._clock())) != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_SECOND and record.levelno < logging.CRITICAL:
            self._left_out += 1
        else:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return what is written for `record`, and count its lines."""
        text = super().format(record)
        if self._left_out:
            text += f"\n({self._left_out} messages before this one were left out: there were too many in a second)"
            self._left_out = 0
        self._lines += text.count("\n") + 1
        return text


def log_to_stderr(name: str = "") -> None:
    """Log what this process has to say to standard error; `name` stands in front of each message."""
    form = f"%(asctime)s %(levelname)s {name}%(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[LimitedHandler(sys.stderr)])
