"""The log of a server process: one line an event on standard error, as text or as JSON, and how many of them a second.

What strangers can cause to be logged, they can cause as often as they like. So no message is begun in a second that has had
LINES_PER_SECOND; the next one that is written says how many were left out. The access log is not counted: it is off unless
somebody wants it, who says how often.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from scoremean.settings import Settings

LINES_PER_SECOND = 10

_access = logging.getLogger("scoremean.access_log")


def log_access(method: str, path: str, status: int, seconds: float, request_id: str) -> None:
    """Log a request that was answered; `path` as it was sent, and the seconds that it took."""
    duration = round(seconds, 6)
    fields = {"method": method, "path": path, "status": status, "duration_seconds": duration, "request_id": request_id}
    _access.info("%s %s %d in %.6f s", method, path, status, duration, extra={"fields": fields})


class LimitedHandler(logging.StreamHandler):
    """Writes LINES_PER_SECOND messages in a second of the clock; and critical ones, and the access log, always.

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
        if record.name == _access.name:
            super().emit(record)
            return
        if (second := int(self._clock())) != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_SECOND and record.levelno < logging.CRITICAL:
            self._left_out += 1
            return
        if self._left_out:
            text = "%d messages before the next one were left out: there were too many in a second"
            super().emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (self._left_out,), None))
            self._left_out = 0
        self._lines += 1
        super().emit(record)


class TextFormatter(logging.Formatter):
    """One line for a person: when, how bad, what; a traceback with ` | ` between its lines.

    Args:
        prefix: what stands in front of each message.
    """

    def __init__(self, prefix: str = ""):
        super().__init__(f"%(asctime)s %(levelname)s {prefix}%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        parts = [part.strip() for part in super().format(record).splitlines()]
        line = " | ".join(part for part in parts if part.strip("^~ "))  # without the marks beneath a traceback's lines
        request_id = _fields(record).get("request_id")
        return f"{line} request_id={request_id}" if request_id else line


class JsonFormatter(logging.Formatter):
    """One JSON object: time (RFC 3339), level, logger, process_id, message; where there is one, request_id, and of an error
    `exception`, its traceback; of the access log method, path, status and duration_seconds.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process_id": record.process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what is known of an event beside its message."""
    return getattr(record, "fields", {})


def log_to_stderr(settings: Settings, prefix: str = "") -> None:
    """Log what this process has to say to standard error; in text, `prefix` stands in front of each message."""
    handler = LimitedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter(prefix))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
