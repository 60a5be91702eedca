"""What happens now, as server-sent events for those who watch: what is counted, and the overview of all UUIDs.

The overview is read from the store in short slices while somebody watches, and not at all otherwise. After each slice others
have the event loop for as long again; while scores are being counted, 99 times as long. So a reading of a large store
takes its time, and what it costs has a bound that does not depend on how many UUIDs there are: 1% of a core.

Format of the stream: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

import msgspec
from msgspec import Struct

from scoremean.counts import COMMIT_DURATION, DISK_FREE_BYTES, NANOSECONDS, QUEUE_SCORES, REPLAYS, SCORES, VOIDS
from scoremean.errors import ScoremeanError, TooManyStreams
from scoremean.model import Stats
from scoremean.store.base import Store
from scoremean.web.overview import Reading

STREAMS_MAX = 64
EVENT_SECONDS = 1.0
SLICE_UUIDS = 200
REST_WHEN_QUIET, REST_WHEN_BUSY = 1, 99

_log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


class CommitDurations(Struct, frozen=True):
    """How long commits took: `counts` of those up to each bound and, last, of those above; not cumulative."""

    bounds_seconds: list[float]
    counts: list[int]
    sum_seconds: float


class Now(Stats, frozen=True, kw_only=True):
    """What the store holds at a `time` in Unix seconds, and what was counted since the service started, so that the difference
    of two of these is a rate. `counted` are scores; one that is voided later stays counted.
    """

    time: float
    version: str
    disk_free_bytes: int
    queue_scores: int
    counted: int
    replays: int
    voids: int
    commits: int
    commit_duration: CommitDurations


class Live:
    """The events of a service. Made on its event loop.

    Args:
        store: what it reads. Live does not close it.
        version: of the service.
        score_min, score_max: what the distribution of means goes from and to.
    """

    def __init__(self, store: Store, version: str, score_min: int, score_max: int):
        self._store = store
        self._version = version
        self._range = score_min, score_max
        self._shown = Reading(score_min, score_max)
        self._shown_at = -1  # how many commits there were when it was begun
        self._reader: asyncio.Task[None] | None = None
        self._streams = 0
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()

    def close(self) -> None:
        """End all streams."""
        if not self._closed.done():
            self._closed.set_result(None)

    def now(self) -> Now:
        """Return what is so at this moment."""
        total, stats = self._store.counts.total, self._store.stats()
        *durations, sum_nanoseconds = self._store.counts.totals(COMMIT_DURATION.start, COMMIT_DURATION.end)
        bounds = [bound / NANOSECONDS for bound in COMMIT_DURATION.bounds]
        return Now(
            *msgspec.structs.astuple(stats),
            time=time.time(),
            version=self._version,
            disk_free_bytes=total(DISK_FREE_BYTES),
            queue_scores=total(QUEUE_SCORES),
            counted=total(SCORES),
            replays=total(REPLAYS),
            voids=total(VOIDS),
            commits=sum(durations),
            commit_duration=CommitDurations(bounds, durations, sum_nanoseconds / NANOSECONDS),
        )

    def stream(self, min_count: int) -> AsyncGenerator[bytes]:
        """Return the events `now` and `overview` for one who watches, until `close`: at once, and then each second.

        An overview is sent only if it is news.

        Args:
            min_count: one of overview.MIN_COUNTS.

        Raises:
            TooManyStreams: STREAMS_MAX are open.
        """
        if self._streams >= STREAMS_MAX:
            raise TooManyStreams(f"{STREAMS_MAX} streams of events are open, and no more may be")
        return self._stream(min_count)

    async def _stream(self, min_count: int) -> AsyncGenerator[bytes]:
        self._streams += 1
        try:
            sent = None
            while not self._closed.done():
                now = self.now()
                if self._reader is None and (at := now.commits) != self._shown_at:
                    self._reader = asyncio.ensure_future(self._read(at))
                    await asyncio.sleep(0)  # for its first slice, which is all of a small store
                events = _event("now", now)
                if (news := (self._shown, self._shown.read_uuids, self._shown.complete)) != sent:
                    sent = news
                    events += _event("overview", self._shown.view(min_count))
                yield events
                await asyncio.wait([self._closed], timeout=EVENT_SECONDS)
        except ScoremeanError as error:
            _log.info("a stream of events ends, for the store cannot be read: %s", error)
        finally:
            self._streams -= 1

    async def _read(self, at: int) -> None:
        """Read the whole store once, unless nobody watches any more; `at` is how many commits there were."""
        reading, after, counted = Reading(*self._range), None, -1
        if not self._shown.complete:
            self._shown = reading
        try:
            while self._streams:
                began = self._loop.time()
                page = self._store.scan(after, SLICE_UUIDS)
                reading.add(page.tallies)
                if page.after is None:
                    reading.end()
                    self._shown, self._shown_at = reading, at
                    return
                after = page.after
                rest = REST_WHEN_QUIET if counted == (counted := self._store.counts.total(SCORES)) else REST_WHEN_BUSY
                await asyncio.sleep((self._loop.time() - began) * rest)
        except ScoremeanError as error:
            _log.info("the overview was not read to its end: %s", error)
        finally:
            self._reader = None


def _event(name: str, data: Struct) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode(data))
