"""Clients that send or read so slowly that a service which waits for them has no room for others.

Whether the server has let go of a connection is read in /proc/net/tcp, where a client cannot be misled by what the kernel still
has in its buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.data import ROOT
from tests.reliability import wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.guests import Served, ask_once, timeout_flags

CUT_MAX_SECONDS = 15.0


class Held:
    """Which connections the server holds, as the kernel has it, looked up four times a second."""

    def __init__(self, port: int):
        self._port = port
        self._seen: set[int] = set()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def now(self) -> set[int]:
        """Return the clients' ports of the connections that a process holds; one in the backlog or orphaned has no inode."""
        ports = set()
        suffix = f":{self._port:04X}"
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(suffix) and fields[9] != "0":
                ports.add(int(fields[2].rpartition(":")[2], 16))
        return ports

    async def watch(self) -> None:
        """Tell those who wait in `gone`, until this is cancelled."""
        while True:
            now = self.now()
            for port, waiting in list(self._waiting.items()):
                if port in now:
                    self._seen.add(port)
                elif port in self._seen:
                    self._seen.discard(port)
                    del self._waiting[port]
                    waiting.set_result(None)
            await asyncio.sleep(0.25)

    def gone(self, port: int) -> asyncio.Future[None]:
        """Return a future that resolves when the server has let go of the connection from `port`."""
        self._waiting[port] = asyncio.get_running_loop().create_future()
        return self._waiting[port]


_BODY = b'{"UUID":"slow","score":5}' + b" " * 200
_POST = wire.request("POST", "/scores", _BODY)
_HEAD_BYTES = len(_POST) - len(_BODY)
# Far more than the kernel takes of what is not read.
_GETS = wire.request("GET", "/means?limit=1000") * 2

Sender = Callable[[socket.socket], Awaitable[None]]


async def _drip(sock: socket.socket, data: bytes) -> None:
    """Send a byte a second."""
    for place in range(len(data)):
        await asyncio.get_running_loop().sock_sendall(sock, data[place : place + 1])
        await asyncio.sleep(1)


async def _send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _drip_header(sock: socket.socket) -> None:
    await _drip(sock, _POST)


async def _stop_in_header(sock: socket.socket) -> None:
    await _send(sock, _POST[: _HEAD_BYTES // 2])


async def _drip_body(sock: socket.socket) -> None:
    await _send(sock, _POST[:_HEAD_BYTES])
    await _drip(sock, _POST[_HEAD_BYTES:])


async def _stop_in_body(sock: socket.socket) -> None:
    await _send(sock, _POST[: _HEAD_BYTES + 20])


async def _read_slowly(sock: socket.socket) -> None:
    await _send(sock, _GETS)
    while await asyncio.get_running_loop().sock_recv(sock, 1):
        await asyncio.sleep(1)


async def _read_nothing(sock: socket.socket) -> None:
    await _send(sock, _GETS)


SLOW: dict[str, Sender] = {
    "a header a byte at a time": _drip_header,
    "half a header": _stop_in_header,
    "a body a byte at a time": _drip_body,
    "half a body": _stop_in_body,
    "reads a byte at a time": _read_slowly,
    "reads nothing": _read_nothing,
}


@dataclass
class Slow:
    """What became of slow clients: how long each lived, by what it did; one that was not cut has lived for ever."""

    lives: dict[str, list[float]] = field(default_factory=dict)
    stopping: bool = False

    def longest(self) -> float:
        """Return the longest life."""
        return max(max(lives) for lives in self.lives.values())

    async def client(self, name: str, port: int, held: Held, delay: float) -> None:
        """After `delay` seconds, be a slow client, and another one as soon as that was cut."""
        await asyncio.sleep(delay)
        while not self.stopping:
            with _small_socket() as sock:
                life = await self._life(sock, name, port, held)
            self.lives.setdefault(name, []).append(life)

    async def _life(self, sock: socket.socket, name: str, port: int, held: Held) -> float:
        """Return how many seconds a client lived."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        started = loop.time()
        gone = held.gone(sock.getsockname()[1])
        sending = asyncio.create_task(SLOW[name](sock))
        try:
            async with asyncio.timeout(3 * CUT_MAX_SECONDS):
                await gone
            return loop.time() - started
        except TimeoutError:
            return float("inf")
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def _small_socket() -> socket.socket:
    """Return a socket of which the kernel on either side takes only little that is not read."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # the sender's buffer is a few segments, of 64 KiB on loopback
    return sock


async def _p99(url: str, file: Path, seconds: int) -> float:
    """Return the p99 in milliseconds of a light steady load, from a process of its own: 200 posts a second."""
    command = [sys.executable, "-m", "tests.benchmarks.paced", url, str(file), "200", str(seconds), "8"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return json.loads(output)["p99"]


async def _slow_round(server: Served, file: Path, seconds: int, delays: Sequence[float], slow: Slow) -> tuple[float, float]:
    """Return the p99 of others without and with slow clients."""
    without = await _p99(server.url, file, seconds)
    held = Held(server.port)
    watching = asyncio.create_task(held.watch())
    slow.stopping = False
    names = list(SLOW)
    tasks = [
        asyncio.create_task(slow.client(names[number % len(names)], server.port, held, delay))
        for number, delay in enumerate(delays)
    ]
    await asyncio.sleep(delays[-1])
    meanwhile = await _p99(server.url, file, seconds)
    slow.stopping = True
    await asyncio.gather(*tasks)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    return without, meanwhile


async def _prepare(url: str, work: Path) -> Path:
    """Give the store a long page of means; return a file of posts."""
    lines = [b'{"UUID":"%0200d","score":1}' % number for number in range(1000)]
    await ask_once(url, wire.request("POST", "/scores", b"\n".join(lines), "application/x-ndjson"))
    file = work / "posts"
    file.write_text("".join(f'{{"UUID":"user-{n}","score":{n % 6}}}\n' for n in range(1000)), encoding="ascii")
    return file


@campaign("slow clients", "500 of them: each cut within 15 s, the p99 of other clients at most doubled")
def slow_clients(trial: Trial) -> Finding:
    """500 clients, which come within 10 s, send a header or a body a byte a second, or stop half way in it, or ask for two long
    answers and read them a byte a second or not at all; one that is cut comes again. A connection is cut when the server holds
    it no more (/proc/net/tcp). Another process posts 200 scores a second and takes the p99 of their latency, without the slow
    clients and with them in turn; the median of the rounds counts. The short form has 50 clients and timeouts of 2 s, and
    leaves the p99 5 ms of room.
    """
    slow = Slow()
    with Served(trial, *(timeout_flags(2) if trial.short else [])) as server:
        pairs = wire.run(_slow_rounds(server, trial, slow))
        alive = server.alive
    without, meanwhile = (statistics.median(values) for values in zip(*pairs))
    lives = ", ".join(f"{name} {max(lives):.1f} s" for name, lives in slow.lives.items())
    figure = f"{sum(map(len, slow.lives.values())):,} slow clients, the longest life of each kind: {lives};"
    figure += f" p99 of others {without:.1f} ms without, {meanwhile:.1f} ms with"
    room_ms = 5.0 if trial.short else 0.0
    return Finding(figure, alive and slow.longest() <= CUT_MAX_SECONDS and meanwhile <= 2 * without + room_ms)


async def _slow_rounds(server: Served, trial: Trial, slow: Slow) -> list[tuple[float, float]]:
    clients, rounds, seconds, ramp_seconds = (50, 1, 3, 2.0) if trial.short else (500, 5, 20, 10.0)
    file = await _prepare(server.url, trial.work)
    await _p99(server.url, file, 1)  # warm
    return [await _slow_round(server, file, seconds, _delays(clients, ramp_seconds), slow) for _ in range(rounds)]


def _delays(clients: int, ramp_seconds: float) -> list[float]:
    return [ramp_seconds * number / clients for number in range(clients)]
