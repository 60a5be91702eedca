"""Raw connections: cheap, one request at a time on each, and they tell an answer that was cut from one that never began."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple, Self

import msgspec
from yarl import URL

from scoremean.process import loop_factory

JSON = "application/json"

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"\r\nContent-Length: "
_encode = msgspec.json.encode


class Cut(ConnectionError):
    """The connection ended before the whole answer had come.

    Attributes:
        begun: whether a part of the answer had come.
    """

    def __init__(self, begun: bool = False):
        super().__init__("the connection ended before the whole answer had come")
        self.begun = begun


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> Any:
        """Return what the body says."""
        return msgspec.json.decode(self.body)

    @property
    def replayed(self) -> bool:
        """Whether it is the first answer again, to a score with an id that was counted before."""
        return b"\r\nIdempotency-Replayed: true\r\n" in self.head


class Connection(asyncio.Protocol):
    """A connection to a server; `open` makes one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None
        self.lost = False

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to the server at `url`. Raises OSError."""
        parsed = URL(url)
        _, connection = await asyncio.get_running_loop().create_connection(cls, parsed.raw_host, parsed.port)
        return connection

    def ask(self, data: bytes) -> asyncio.Future[Answer]:
        """Send a request and return the future of its answer, which may raise Cut."""
        self._answer = asyncio.get_running_loop().create_future()
        if self.lost:
            self._answer.set_exception(Cut())
        else:
            self._transport.write(data)
        return self._answer

    def send(self, data: bytes) -> None:
        """Send bytes that are to get no answer."""
        if not self.lost:
            self._transport.write(data)

    def close(self, *, abort: bool = False) -> None:
        """Hang up; with `abort` by a reset."""
        if abort:
            self._transport.abort()
        else:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # of TCP

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            return
        end += len(_END_OF_HEAD)
        start = self._received.index(_LENGTH, 0, end) + len(_LENGTH)
        whole = end + int(self._received[start : self._received.index(b"\r\n", start)])
        if len(self._received) < whole:
            return
        answer = Answer(int(self._received[9:12]), self._received[:end], self._received[end:whole])
        self._received = self._received[whole:]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Cut(begun=bool(self._received)))


def request(method: str, path: str, body: bytes = b"", kind: str = JSON) -> bytes:
    """Return the bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def members(uuid: str, score: int, name: str | None = None) -> dict[str, str | int]:
    """Return a score as it is on the wire; `name` is its id."""
    return {"UUID": uuid, "score": score} | ({} if name is None else {"id": name})


def post(scores: Mapping[str, Any] | Iterable[Mapping[str, Any]], path: str = "/scores") -> bytes:
    """Return the request that posts a score, or a batch of them."""
    return request("POST", path, _encode(scores))


async def tallies(connection: Connection, uuids: list[str]) -> dict[str, tuple[int, int]]:
    """Return the sum and count of each UUID, as the server answers a query for all of them; (0, 0) for one without a score."""
    found: dict[str, tuple[int, int]] = {}
    for start in range(0, len(uuids), 10_000):
        some = uuids[start : start + 10_000]
        answer = await connection.ask(request("POST", "/means/query", _encode(some)))
        if answer.status != 200:
            raise RuntimeError(f"a query was answered {answer.status}: {answer.body[:200]!r}")
        for uuid, mean in zip(some, answer.json(), strict=True):
            found[uuid] = (mean["sum"], mean["count"]) if mean else (0, 0)
    return found


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` on the fastest event loop there is and return what it returns."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def seeded() -> tuple[random.Random, int]:
    """Return a generator of random numbers and its seed, to be printed when something is found."""
    seed = random.SystemRandom().randrange(1 << 32)
    return random.Random(seed), seed
