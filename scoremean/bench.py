"""A measurement of the user's own machine: single posts and reads, each beside a handler that does nothing.

It alone knows how load is made: raw connections in this process, each of which sends its next request when the last one is
answered. That is cheap for Python and dear beside C, and it shares the CPUs with the server, so what it finds is a lower bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pkgutil
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from random import random
from time import perf_counter

import msgspec
from aiohttp import web
from yarl import URL

from scoremean import children
from scoremean.client import Client
from scoremean.errors import ListenError, ScoremeanError, SettingError, StoreError, Unavailable
from scoremean.model import Score

ROUNDS = 5
ANSWER_MAX_SECONDS = 30

POST, GET = "POST /scores", "GET /means/{UUID}"
PREFIX = "bench-"

# In thousandths, as integers, so that no rank is off by one from rounding.
_PERCENTILES = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
_LIMITS = {"duration_seconds": 3600, "connections": 10_000, "uuids": 10**9}

# Status and length of an answer; no line in it is empty, so it cannot reach into the body.
_HEAD = re.compile(
    rb"HTTP/1\.[01] (\d{3})[^\r]*(?:\r\n[^\r]+)*?\r\ncontent-length: *(\d+)(?:\r\n[^\r]+)*\r\n\r\n", re.IGNORECASE
)
_NOOP_POST = b'{"UUID":"bench-000000000","mean":2.3333333333333335}'
_NOOP_GET = b'{"UUID":"bench-000000000","mean":2.3333333333333335,"sum":7,"count":3}'

_NOTE = """\
The no-op is an aiohttp application whose handler answers a constant and keeps nothing.
The load comes from one Python process on these CPUs, so each rate is a lower bound; wrk gets higher ones."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure.

    Attributes:
        url: the service to measure; None starts one.
        directory: where a service that is started gets a temporary store; its disk is the one measured.
        duration_seconds: how long each row of the table is measured, over all rounds.
        score_min: the score that each UUID gets before anything is measured; the measured posts carry `score_max`.

    Raises:
        SettingError: a number is out of its bounds, or `url` is not an http URL.
    """

    url: str | None = None
    directory: str = "."
    duration_seconds: float = 5.0
    connections: int = 64
    uuids: int = 100_000
    score_min: int = 0
    score_max: int = 5

    def __post_init__(self) -> None:
        for name, most in _LIMITS.items():
            if not 0 < (value := getattr(self, name)) <= most:
                raise SettingError(f"--{name.replace('_', '-')} must be above 0 and at most {most}; it is {value}")
        if self.url is not None:
            _parsed(self.url)


class Row(msgspec.Struct):
    """What one kind of request came to: the median rate of the rounds, and the latencies of all of them.

    Attributes:
        to_noop: the median over the rounds of its rate by that of the no-op.
        answered: requests answered with 2xx; only these are in the rates and the latencies.
        errors: requests with any other answer, or none.
    """

    request: str
    requests_per_second: float
    to_noop: float
    answered: int
    errors: int
    latency_milliseconds: dict[str, float]


class Report(msgspec.Struct):
    """What was measured. `scores_counted` is every score that the service answered with 2xx, also before the first round."""

    machine: str
    connections: int
    uuids: int
    rounds: int
    round_seconds: float
    scores_counted: int
    rows: list[Row]
    errors: int
    first_error: str | None


class Round:
    """What one round of one kind of request came to."""

    def __init__(self) -> None:
        self.latencies_seconds = array("d")
        self.elapsed_seconds = 0.0
        self.errors = 0
        self.first_error: str | None = None

    @property
    def rate(self) -> float:
        """Answered requests a second."""
        return len(self.latencies_seconds) / self.elapsed_seconds

    def fail(self, reason: str) -> None:
        """Count a request that was not answered with 2xx."""
        self.errors += 1
        self.first_error = self.first_error or reason


class _Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer, and sends the next one until the deadline."""

    def __init__(self, requests: Iterator[bytes], result: Round):
        self.done = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self._requests = requests
        self._result = result
        self._sent = self._deadline = 0.0
        self._begun = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def start(self, now: float, deadline: float) -> None:
        """Send the first request."""
        self._sent, self._deadline = now, deadline
        self.transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self._begun:
            data = self._begun + data
        head = _HEAD.match(data)
        if head is None or len(data) < head.end() + int(head[2]):
            self._begun = data
            return
        self._begun = b""
        if head[1][0] == 0x32:  # 2xx
            self._result.latencies_seconds.append(now - self._sent)
        else:
            self._result.fail(f"{head[1].decode()} {ascii(data[head.end() :].decode(errors='replace'))}")
        if now < self._deadline:
            self._sent = now
            self.transport.write(next(self._requests))
        else:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._result.fail("the connection was cut before the answer")
            self.done.set_result(None)


async def load(url: URL, requests: Iterator[bytes], connections: int, seconds: float) -> Round:
    """Send `requests` to `url` for so long, one at a time on each connection; return when each that was sent is answered.

    Raises:
        Unavailable: it cannot be connected to, or it leaves a request without an answer for ANSWER_MAX_SECONDS.
    """
    loop, result = asyncio.get_running_loop(), Round()
    opened: list[_Connection] = []
    try:
        for _ in range(connections):  # one after the other, since a burst of them would overflow the server's backlog
            opened.append((await loop.create_connection(lambda: _Connection(requests, result), url.raw_host, url.port))[1])
        started = perf_counter()
        for connection in opened:
            connection.start(started, started + seconds)
        async with asyncio.timeout(seconds + ANSWER_MAX_SECONDS):
            await asyncio.gather(*(connection.done for connection in opened))
        result.elapsed_seconds = perf_counter() - started
    except TimeoutError:
        raise Unavailable(f"{url} left a request without an answer for {ANSWER_MAX_SECONDS} seconds") from None
    except OSError as error:
        raise Unavailable(f"cannot connect to {url}: {error.strerror or error}") from error
    finally:
        for connection in opened:
            connection.transport.abort()
    return result


def percentiles(latencies_seconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles in milliseconds, each a latency that occurred (nearest rank)."""
    ordered = sorted(latencies_seconds)
    return {name: round(ordered[-(-len(ordered) * part // 1000) - 1] * 1000, 3) for name, part in _PERCENTILES.items()}


def measure(plan: Plan, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> Report:
    """Carry out `plan` and return what was measured; whatever was started is ended and removed by then, also on an error.

    Raises:
        StoreError: the temporary store cannot be made.
        ListenError: a server did not start.
        ScoremeanError: the service refused the first scores, is away, or SIGINT or SIGTERM came.
    """
    factory = loop_factory or asyncio.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(_measure(plan, f"{factory.__module__}:{factory.__name__}"))
    except asyncio.CancelledError:
        raise ScoremeanError("stopped before everything was measured") from None


async def _measure(plan: Plan, loop_name: str) -> Report:
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not cut the ending of the servers short
        asyncio.get_running_loop().add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    rounds: dict[str, list[tuple[Round, Round]]] = {POST: [], GET: []}
    async with _service(plan) as url, _started("scoremean.bench", loop_name) as noop_url:
        _progress("a score for each UUID")
        await _prime(plan, url)
        for number in range(1, ROUNDS + 1):
            for request, results in rounds.items():
                _progress(f"round {number} of {ROUNDS}: {request}")
                results.append((await _round(plan, url, request), await _round(plan, noop_url, request)))
    _progress("")
    return _report(plan, rounds)


async def _round(plan: Plan, url: str, request: str) -> Round:
    result = await load(_parsed(url), _requests(plan, url, request), plan.connections, plan.duration_seconds / ROUNDS)
    if not result.latencies_seconds:
        raise ScoremeanError(f"each {request} failed, {result.errors} of them; the first: {result.first_error}")
    return result


def _requests(plan: Plan, url: str, request: str) -> Iterator[bytes]:
    """Yield requests for UUIDs at random, endlessly."""
    method, path = request.split()
    parsed, body = _parsed(url), b""
    route, head = parsed.raw_path.rstrip("/") + path, f"Host: {parsed.host_port_subcomponent}\r\n"
    if request == POST:
        body = b'{"UUID":"%s%%09d","score":%d}' % (PREFIX.encode(), plan.score_max)
        head += f"Content-Type: application/json\r\nContent-Length: {len(body % 0)}\r\n"
    line = f"{method} {route} HTTP/1.1\r\n".replace("%", "%%").replace("{UUID}", f"{PREFIX}%09d")
    template = line.encode() + head.encode() + b"\r\n" + body
    while True:
        yield template % int(random() * plan.uuids)


async def _prime(plan: Plan, url: str) -> None:
    """Give every UUID a score, so that each post meets one that is there and each read finds one."""
    scores = (Score(f"{PREFIX}{number:09}", plan.score_min) for number in range(plan.uuids))
    # Ids would leave a record of each in the store; and without them nothing may be sent twice.
    async with Client(url, with_ids=False, attempts_max=1) as client:
        async for _ in client.post_many(scores):
            pass


@contextlib.asynccontextmanager
async def _service(plan: Plan) -> AsyncIterator[str]:
    """Yield the address of the service to measure; one that is started has its store in a directory that is removed."""
    if plan.url is not None:
        yield plan.url
        return
    try:
        directory = tempfile.TemporaryDirectory(prefix="scoremean-bench-", dir=plan.directory)
    except OSError as error:
        raise StoreError(f"cannot make a temporary store in {plan.directory}: {error.strerror}") from error
    with directory as path:
        scores = f"--score-min={plan.score_min}", f"--score-max={plan.score_max}"
        async with _started("scoremean", "serve", f"--store={path}/store", "--host=127.0.0.1", "--port=0", *scores) as url:
            yield url


@contextlib.asynccontextmanager
async def _started(*arguments: str) -> AsyncIterator[str]:
    """Run the module with its arguments in a process and yield the address that it prints; then end it and wait for that."""
    with tempfile.TemporaryFile() as messages:
        process = await asyncio.create_subprocess_exec(
            *children.command(*arguments),
            env=children.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
        )
        try:
            line = (await process.stdout.readline()).decode()
            if not line.startswith("listening on "):
                messages.seek(0)
                last = messages.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise ListenError(f"{arguments[0]} did not start: {last.removeprefix('scoremean: ')}")
            yield line.split()[-1]
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                process.terminate()
            await process.wait()


def serve_noop(loop_name: str) -> None:
    """Answer a post and a read with a constant as long as scoremean's answer, until SIGTERM or SIGINT."""

    async def post_scores(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=_NOOP_POST, content_type="application/json")

    async def get_mean(_: web.Request) -> web.Response:
        return web.Response(body=_NOOP_GET, content_type="application/json")

    app = web.Application()
    app.add_routes([web.post("/scores", post_scores), web.get("/means/{UUID}", get_mean)])
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    web.run_app(app, sock=listener, access_log=None, print=None, loop=pkgutil.resolve_name(loop_name)())


def _report(plan: Plan, rounds: dict[str, list[tuple[Round, Round]]]) -> Report:
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    every = [result for pairs in rounds.values() for pair in pairs for result in pair]
    rows = []
    for request, pairs in rounds.items():
        to_noop = statistics.median(service.rate / noop.rate for service, noop in pairs)
        rows.append(_row(request, to_noop, [service for service, _ in pairs]))
        rows.append(_row(f"{request}, no-op", 1.0, [noop for _, noop in pairs]))
    return Report(
        machine=f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {loop}",
        connections=plan.connections,
        uuids=plan.uuids,
        rounds=ROUNDS,
        round_seconds=plan.duration_seconds / ROUNDS,
        scores_counted=plan.uuids + rows[0].answered,
        rows=rows,
        errors=sum(row.errors for row in rows),
        first_error=next((result.first_error for result in every if result.errors), None),
    )


def _row(request: str, to_noop: float, rounds: Sequence[Round]) -> Row:
    latencies_seconds = [latency for result in rounds for latency in result.latencies_seconds]
    rate = statistics.median(result.rate for result in rounds)
    errors = sum(result.errors for result in rounds)
    return Row(request, round(rate, 1), round(to_noop, 3), len(latencies_seconds), errors, percentiles(latencies_seconds))


def table(report: Report) -> str:
    """Return `report` as text for people."""
    title = f"{report.machine}; {report.connections} connections, {report.uuids:,} UUIDs, "
    title += f"{report.rounds} rounds of {report.round_seconds:g} s\n"
    lines = [title, f"{'':24}requests/s  to no-op" + "".join(f"{name + ' ms':>10}" for name in _PERCENTILES)]
    for row in report.rows:
        cells = "".join(f"{value:10.2f}" for value in row.latency_milliseconds.values())
        lines.append(f"{row.request:24}{row.requests_per_second:10,.0f}{row.to_noop:10.2f}{cells}")
    return "\n".join([*lines, "", _NOTE])


def _progress(text: str) -> None:
    """Draw one line again on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def _parsed(url: str) -> URL:
    """Return `url` as one that `load` can send to. Raises SettingError."""
    with contextlib.suppress(ValueError):
        if re.fullmatch("http://[^/?#@]+(/[^?#]*)?", url):
            return URL(url)
    raise SettingError(f"--url must be an http URL such as http://127.0.0.1:8080; it is {url!r}")


if __name__ == "__main__":
    serve_noop(sys.argv[1])
