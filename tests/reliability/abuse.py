"""Strangers: floods of connections, and of requests that are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import msgspec

from tests.reliability import wire
from tests.reliability.campaign import Finding, Trial, campaign
from tests.reliability.guests import (
    LOG_LINES_MAX,
    REGULARS,
    Regulars,
    Served,
    ask_once,
    descriptors_again,
    regulars,
    scores_counted,
    timeout_flags,
)


@dataclass
class Flood:
    """Connections that were opened and do nothing, or nothing more."""

    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    opened: list[wire.Connection] = field(default_factory=list)

    async def open(self, url: str, number: int, asking: bool) -> None:
        """Open one; `asking` makes a request first and sees what comes. It stays open unless it is refused."""
        try:
            async with asyncio.timeout(5):
                connection = await wire.Connection.open(url)
                self.opened.append(connection)
                if not asking:
                    return
                answer = await connection.ask(wire.request("GET", f"/means/flood-{number}"))
        except TimeoutError:
            self.hung += 1
        except OSError as error:  # without an answer, or with a reset
            self.refused["closed" if isinstance(error, wire.Cut) else type(error).__name__] += 1
        else:
            if answer.status == 404:
                self.answered += 1
            else:
                self.refused[f"{answer.status}{' with Retry-After' * (b'Retry-After: ' in answer.head)}"] += 1

    async def open_all(self, url: str, number: int, *, asking: bool | None = None) -> None:
        """Open so many, 50 at a time; every other one asks, if not told otherwise."""
        places = asyncio.Semaphore(50)

        async def one(index: int) -> None:
            async with places:
                await self.open(url, index, bool(index % 2) if asking is None else asking)

        await asyncio.gather(*map(one, range(number)))

    def close(self) -> None:
        """Hang up on all of them."""
        for connection in self.opened:
            connection.close(abort=True)
        self.opened.clear()


@dataclass
class Flooded:
    """What a flood did."""

    flood: Flood
    others: Regulars
    before: int
    most: int = 0
    after: int = 0
    well: bool = False

    def finding(self, server: Served, number: int) -> Finding:
        """Return the figure, and whether all went as it must."""
        lines, flood = server.log_lines_a_second(), self.flood
        kinds = ", ".join(f"{kind} {times:,}" for kind, times in flood.refused.items()) or "none"
        figure = f"{number:,} connections: {flood.answered:,} answered, refused: {kinds}, {flood.hung} hung;"
        figure += f" {self.others.text()}; descriptors {self.before} before, {self.most} at most, {self.after} after;"
        figure += f" at most {lines} lines of log in a second"
        met = self.well and not flood.hung and bool(flood.refused) and not self.others.failed and lines <= LOG_LINES_MAX
        return Finding(figure, met and self.after <= self.before and server.alive)


async def _flood(server: Served, number: int, seconds: float) -> Flooded:
    """Open `number` connections, hold them so long, try new ones meanwhile, hang up, and see whether all is as before."""
    async with regulars(server.url) as others:
        result = Flooded(Flood(), others, server.descriptors())
        await result.flood.open_all(server.url, number)
        result.most = server.descriptors()
        await asyncio.sleep(seconds)
        await result.flood.open_all(server.url, 20, asking=True)
        result.flood.close()
        result.after = await descriptors_again(server, result.before)
        async with asyncio.timeout(5):
            result.well = (await ask_once(server.url, wire.post(wire.members("after", 1)))).status == 200
    return result


@campaign("connection flood", "others go on, what is past connections_max is refused, and after it all is as before")
def connection_flood(trial: Trial) -> Finding:
    """5,000 connections (300) to a server with `--connections-max 3000` (200): half of them send nothing, half a request and
    then nothing more. 4 clients that were there before go on posting, new ones are tried while the flood is held, then all of
    the flood hangs up, a new client posts, and the descriptors are counted. No connection may be left hanging: each is
    answered, or refused by a 503 or by being closed.
    """
    most, number, seconds = (200, 300, 1.0) if trial.short else (3000, 5000, 5.0)
    with Served(trial, f"--connections-max={most}") as server:
        return wire.run(_flood(server, number, seconds)).finding(server, number)


@campaign("descriptor flood", "others go on, new clients are refused, and after it all is as before")
def descriptor_flood(trial: Trial) -> Finding:
    """As the flood of connections, to a server that may have only 256 descriptors, which it cannot raise (RLIMIT_NOFILE, soft
    and hard): 2,000 connections (400). At most 10 lines of log a second may come of it.
    """
    number, seconds = (400, 1.0) if trial.short else (2000, 5.0)
    source = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
    with Served(trial, source=source) as server:
        return wire.run(_flood(server, number, seconds)).finding(server, number)


def bad_requests(seed: int) -> Iterator[bytes]:
    """Yield, endlessly, what no service should choke on: the rows of docs/http.md, what comes of mutating them, and noise."""
    from tests.test_http import BAD_INPUT, BAD_REQUESTS  # pylint: disable=import-outside-toplevel  # it needs pytest

    rows = [raw for raw, *_ in BAD_REQUESTS.values()] + [_post(body) for body, *_ in BAD_INPUT.values()]
    rows += [_post(bytes(5000)), _post(b"[" * 990), wire.request("POST", "/means/query", b"[" * 990)]
    rows += [wire.request("GET", "/" + "x" * 9000), b"", b"\r\n" * 40, b"\0" * 2000]
    # What has the wrong Host is refused for that alone; the tests of HTTP may send one.
    rows = [raw.replace(b"Host: x\r\n", b"Host: localhost\r\n") for raw in rows]
    random = Random(seed)
    while True:
        match random.randrange(4):
            case 0:
                yield random.choice(rows)
            case 1:
                yield random.randbytes(random.randrange(1, 3000))
            case _:
                yield _mutated(random, random.choice(rows), random.choice(rows))


def _post(body: bytes) -> bytes:
    return wire.request("POST", "/scores", body)


def _mutated(random: Random, raw: bytes, other: bytes) -> bytes:
    """Return `raw` with some bytes changed, cut off, or with a piece of another one in it."""
    changed = bytearray(raw[: 4000])
    for _ in range(random.randrange(1, 5)):
        place = random.randrange(len(changed) + 1)
        match random.randrange(4):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random.randrange(8)
            case 1:
                del changed[place : place + random.randrange(1, 60)]
            case 2:
                start = random.randrange(len(other) + 1)
                changed[place:place] = other[start : start + random.randrange(200)]
            case _:
                changed[place:place] = random.choice((b"\r\n", b"\r\n\r\n", b"\0", b":", b" ", b"HTTP/1.1", b"\xff", b"%"))
    return bytes(changed)


@dataclass
class Bad:
    """What became of bad requests."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    counted: int = 0
    hung: int = 0
    first_500: bytes = b""

    async def client(self, port: int, requests: Iterator[bytes], random: Random, deadline: float) -> None:
        """Send one after the other, each on a connection of its own and in one of eight ways, until the deadline."""
        while time.perf_counter() < deadline:
            self.sent += 1
            raw, way = next(requests), random.randrange(8)
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    answers = await _exchange(reader, writer, raw, way)
                except TimeoutError:
                    self.hung += 1
                    continue
                finally:
                    writer.transport.abort()
                self._take(raw, answers)

    def _take(self, raw: bytes, answers: bytes) -> None:
        for answer in _parsed(answers):
            self.statuses[answer.status] += 1
            self.counted += _counted(answer)
            if answer.status == 500:
                self.first_500 = self.first_500 or raw


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, way: int) -> bytes:
    """Send `raw`; return all that came until the end. Raises TimeoutError when there is no end."""
    writer.write(raw if way else raw[: len(raw) // 2])
    await writer.drain()
    if way == 0:  # hang up rudely, with a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return b""
    if way > 1:  # otherwise it waits as one that has more to send, until the server has had enough
        writer.write_eof()
    received = bytearray()
    async with asyncio.timeout(10):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                received += data
    return bytes(received)


def _parsed(received: bytes) -> Iterator[wire.Answer]:
    """Yield the whole answers in what was received."""
    while head := re.match(rb"HTTP/1\.1 (\d{3}) .*?\r\n\r\n", received, re.DOTALL):
        length = re.search(rb"\r\nContent-Length: (\d+)", head[0])
        end = head.end() + (int(length[1]) if length else 0)
        if end > len(received):
            return
        yield wire.Answer(int(head[1]), head[0], received[head.end() : end])
        received = received[end:]


def _counted(answer: wire.Answer) -> int:
    """Return how many scores an answer says were counted."""
    if answer.status != 200 or answer.replayed:
        return 0
    kind = re.search(rb"\r\nContent-Type: ([^\r]+)", answer.head)[1]
    decode = {
        b"application/json": msgspec.json.decode,
        b"application/msgpack": msgspec.msgpack.decode,
        b"application/x-ndjson": msgspec.json.Decoder().decode_lines,
    }
    if kind not in decode:  # the page, say, where a mutation has led to it
        return 0
    value = decode[kind](answer.body)
    items = value if isinstance(value, list) else [value]
    return sum(isinstance(item, dict) and "mean" in item and "sum" not in item for item in items)


@campaign("bad requests", "never a 500, nothing counted, at most 10 lines of log a second, others go on")
def bad_requests_flood(trial: Trial) -> Finding:
    """64 clients send bad requests as fast as they can: every row of the table of bad input in docs/http.md, these with bytes
    flipped, cut out and spliced, and noise; each on a connection of its own. One in 8 sends half of it and hangs up with a
    reset, one in 8 goes on waiting as if it had more to send, the others half close. Where a mutation has made a request good
    again, its answer says how many scores were counted, and the service must hold these and no others. 4 clients go on posting
    meanwhile.
    """
    bad = Bad()
    with Served(trial, "--batch-max-scores=10", "--body-max-bytes=1000", *timeout_flags(1)) as server:
        others, held, more = wire.run(_bad_flood(server, bad, 5.0 if trial.short else 60.0))
        lines, alive = server.log_lines_a_second(), server.alive
        bug = "a bug" in server.log() or "Traceback" in server.log()
    expected = others.answered + bad.counted
    statuses = ", ".join(f"{status}: {times:,}" for status, times in sorted(bad.statuses.items()))
    figure = f"{bad.sent:,} bad requests ({statuses}; {bad.hung} hung), {held:,} scores held of {expected:,} answered;"
    figure += f" {others.text()}; {more} descriptors more after it; at most {lines} lines of log in a second"
    figure += f"; a 500 for {bad.first_500!r}" if bad.first_500 else ""
    # A regular's last post may be counted and not answered any more, when it is told to stop.
    exact = expected <= held <= expected + REGULARS
    well = alive and not bug and not bad.statuses[500] and not bad.hung and not others.failed
    return Finding(figure, well and exact and lines <= LOG_LINES_MAX and more <= 0)


async def _bad_flood(server: Served, bad: Bad, seconds: float) -> tuple[Regulars, int, int]:
    """Return what became of others, how many scores are held, and how many descriptors are open that were not before."""
    before, random, requests = server.descriptors(), Random(7), bad_requests(7)
    async with regulars(server.url) as others:
        deadline = time.perf_counter() + seconds
        await asyncio.gather(*(bad.client(server.port, requests, random, deadline) for _ in range(64)))
    held = await scores_counted(server.url)
    return others, held, await descriptors_again(server, before) - before
