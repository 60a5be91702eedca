"""A store that another process owns: batches go to it over a socket, where it commits those of all processes together.

    Writer -> RemoteStore ═╗
    Writer -> RemoteStore ═╬═ sockets ═> SharedStore -> Store
    Writer -> RemoteStore ═╝

One side makes a RemoteStore, which is a Store like any other; the side that owns the store serves the other end of its
socket with a SharedStore. While one commit is under way, SharedStore gathers what comes in from all sockets, and submits it as
one batch: one sync to disk, shared by all. Reads do not cross the socket.

A frame is its length and the number of its request, 8 bytes each, and a body in msgpack. A body holds runs of items of one
kind, such as ["Score", [score, ...]], so that a list of scores is encoded and decoded without Python code for each.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from itertools import chain, groupby, islice
from struct import Struct as Layout
from typing import Any, NamedTuple, Union

import msgspec
from msgspec import Struct

from scoremean import errors
from scoremean.counts import Counts
from scoremean.errors import Fault, InvalidScore, OutcomeUnknown, RequestError, StoreError, StoreFull
from scoremean.model import Add, Batch, Forget, Merge, Page, Replay, Score, Stats, Tally, Text, Void, Voided, VoidScore
from scoremean.store.base import Change, Outcome, Store, tell_failure

_HEADER = Layout("=QQ")


def _run_of(kind: Any, tag: str) -> type[Struct]:
    """Return the Struct in which items of one kind travel."""
    return msgspec.defstruct(f"{tag}Run", [("items", list[kind])], tag=tag, array_like=True)


class _Refusal(Struct, array_like=True):
    """A RequestError: the name of its class, its sentence, its faults."""

    kind: str
    detail: str
    faults: tuple[Fault, ...]


_CHANGES = {kind: _run_of(kind, kind.__name__) for kind in (Score, Add, Void, VoidScore, Forget, Merge, Batch)}
_OUTCOMES = {kind: _run_of(kind, kind.__name__) for kind in (Tally, Replay, Voided)}
_Refusals = _run_of(_Refusal, "Refusal")
_Lists = _run_of(list[Union[*_OUTCOMES.values(), _Refusals]], "list")  # of a Batch, which holds no Batch


class _Answer(Struct, array_like=True):
    """What became of a batch: its outcomes; or the error of its commit, which is a StoreFull or leaves them unknown."""

    runs: list[Union[*_OUTCOMES.values(), _Refusals, _Lists]]
    error: str | None = None
    full: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode_changes = msgspec.msgpack.Decoder(list[Union[*_CHANGES.values()]]).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


def pack_changes(changes: Sequence[Change]) -> bytes:
    """Return the body that `changes` travel in."""
    return _encode([_CHANGES.get(kind, _CHANGES[Score])(list(run)) for kind, run in groupby(changes, type)])


def unpack_changes(body: bytes | bytearray) -> list[Change]:
    """Return what `pack_changes` was given, validated as what a client sends is. Raises msgspec.ValidationError."""
    return list(chain.from_iterable(run.items for run in _decode_changes(body)))


def pack_answer(answer: Sequence[Outcome] | BaseException) -> bytes:
    """Return the body that the outcomes of a batch travel in, or the error of its commit."""
    if isinstance(answer, StoreFull):
        return _encode(_Answer([], answer.detail, full=True))
    if isinstance(answer, BaseException):
        return _encode(_Answer([], f"the commit failed in the process that owns the store: {answer!r}"))
    return _encode(_Answer(_pack_outcomes(answer)))


def unpack_answer(body: bytes | bytearray) -> list[Outcome]:
    """Return the outcomes of a batch. Raises StoreFull, or OutcomeUnknown for any other error of its commit."""
    answer = _decode_answer(body)
    if answer.error is not None:
        raise StoreFull(answer.error) if answer.full else OutcomeUnknown(answer.error)
    return _unpack_outcomes(answer.runs)


def _pack_outcomes(outcomes: Iterable[Outcome]) -> list[Struct]:
    runs = []
    for kind, items in groupby(outcomes, type):
        if kind in _OUTCOMES:
            runs.append(_OUTCOMES[kind](list(items)))
        elif kind is list:
            runs.append(_Lists([_pack_outcomes(item) for item in items]))
        else:
            runs.append(_Refusals([_Refusal(kind.__name__, item.detail, getattr(item, "faults", ())) for item in items]))
    return runs


def _unpack_outcomes(runs: Iterable[Any]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for run in runs:
        if run.__class__ is _Lists:
            outcomes += map(_unpack_outcomes, run.items)
        elif run.__class__ is _Refusals:
            outcomes += map(_refusal, run.items)
        else:
            outcomes += run.items
    return outcomes


def _refusal(refusal: _Refusal) -> RequestError:
    kind = getattr(errors, refusal.kind)
    return kind(refusal.detail, refusal.faults) if issubclass(kind, InvalidScore) else kind(refusal.detail)


class _Link(asyncio.Protocol):
    """One end of a socket: frames out and in."""

    def __init__(self, receive: Callable[[_Link, int, bytearray], None], lose: Callable[[], None] = lambda: None):
        self._receive = receive
        self._lose = lose
        self._buffer = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while (body := start + _HEADER.size) <= len(self._buffer):
            size_bytes, number = _HEADER.unpack_from(self._buffer, start)
            if body + size_bytes > len(self._buffer):
                break
            start = body + size_bytes
            self._receive(self, number, self._buffer[body:start])
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose()

    def send(self, number: int, body: bytes) -> None:
        """Send a frame without waiting; to an end that has gone it is dropped."""
        if not self._transport.is_closing():
            self._transport.write(_HEADER.pack(len(body), number) + body)

    def close(self) -> None:
        """Close the socket once all frames are sent."""
        self._transport.close()


class RemoteStore(Store):
    """A Store whose batches another process commits. It is made on an event loop, which carries its connection.

    `submit` writes to the socket and never waits, so it may be called on that loop as well as from any other thread.

    Args:
        reader: where reads go; the RemoteStore closes it. Whatever was answered must be there: the same files, read only.
        counts: where this process counts; the other side counts what is committed.

    Attributes:
        lost: resolves when the other side has ended the connection. Every batch under way has failed then.
    """

    batches_max = 64  # the other side gathers

    def __init__(self, reader: Store, counts: Counts):
        self._reader = reader
        self.counts = counts
        self.failed: Future[BaseException] = Future()  # never: `lost` tells it
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._link = _Link(self._receive, self._lose)
        self._number = 0
        self._under_way: dict[int, Future[list[Outcome]]] = {}
        self._closed = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    async def connect(self, connection: socket.socket) -> None:
        """Take over `connection`, of which a SharedStore serves the other end. Called once, before anything else."""
        await self._loop.create_unix_connection(lambda: self._link, sock=connection)

    def submit(self, batch: Sequence[Change]) -> Future[list[Outcome]]:
        """Send `batch` and return at once; see Store.submit. The future raises OutcomeUnknown when the connection breaks."""
        if self._closed:
            raise StoreError("the connection to the store is closed")
        future: Future[list[Outcome]] = Future()
        future.set_running_or_notify_cancel()  # from now on it cannot be cancelled: the batch is on its way
        self._on_loop(self._send, future, pack_changes(batch))
        return future

    def get(self, uuids: Iterable[Text]) -> list[Tally | None]:
        """Return the durable tally of each UUID; see Store.get."""
        return self._reader.get(uuids)

    def scan(self, after: Text | None, limit: int) -> Page:
        """Return a page of tallies; see Store.scan."""
        return self._reader.scan(after, limit)

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally; see Store.tallies."""
        return self._reader.tallies()

    def stats(self) -> Stats:
        """Return what the store holds; see Store.stats."""
        return self._reader.stats()

    def check(self) -> list[str]:
        """Return a sentence for each damage found; see Store.check."""
        return self._reader.check()

    def close(self) -> None:
        """Wait for the batches under way, and let go of the connection and the reader.

        On the loop of the connection, which could not receive while it waits, batches under way fail instead.
        """
        if self._closed:
            return
        self._closed = True
        if threading.get_ident() != self._thread:
            sent: Future[None] = Future()
            self._on_loop(sent.set_result, None)  # behind every batch that was submitted
            sent.result()
            wait(list(self._under_way.values()))
        self._on_loop(self._link.close)
        self._reader.close()

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        if threading.get_ident() == self._thread:
            call(*arguments)
        else:
            self._loop.call_soon_threadsafe(call, *arguments)

    def _send(self, future: Future[list[Outcome]], body: bytes) -> None:
        if self.lost.done():
            future.set_exception(_broken())
            return
        self._number += 1
        self._under_way[self._number] = future
        self._link.send(self._number, body)

    def _receive(self, _: _Link, number: int, body: bytearray) -> None:
        future = self._under_way.pop(number)
        try:
            future.set_result(unpack_answer(body))
        except (StoreFull, OutcomeUnknown) as error:
            future.set_exception(error)

    def _lose(self) -> None:
        while self._under_way:
            self._under_way.popitem()[1].set_exception(_broken())
        if not self._closed:
            self.lost.set_result(None)


def _broken() -> OutcomeUnknown:
    return OutcomeUnknown("the connection to the process that owns the store broke")


class _Request(NamedTuple):
    """A batch of one RemoteStore, and where its answer goes."""

    link: _Link
    number: int
    changes: list[Change]

    def answer(self, answer: Sequence[Outcome] | BaseException) -> None:
        """Send its outcomes, or the error of its commit."""
        self.link.send(self.number, pack_answer(answer))


class SharedStore:
    """The owner's side: commits what many RemoteStores send, one commit under way at a time. Made on an event loop.

    Batches of one connection are counted in the order in which they were sent. A batch that was received is counted, also
    when its connection breaks meanwhile.

    Args:
        store: where the batches go. The SharedStore does not close it.

    Attributes:
        failed: resolves, to the error, when a commit fails; from then on every batch is answered with that error.
    """

    def __init__(self, store: Store):
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._gathering: list[_Request] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        store.failed.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._fail, [], done.result()))

    async def connect(self, connection: socket.socket) -> None:
        """Serve the RemoteStore at the other end of `connection` from now on, until one side closes it."""
        await self._loop.create_unix_connection(lambda: _Link(self._take), sock=connection)

    async def close(self) -> None:
        """Return when every batch that was received is counted."""
        await self._idle.wait()

    def _take(self, link: _Link, number: int, body: bytearray) -> None:
        request = _Request(link, number, unpack_changes(body))
        if self.failed.done():
            request.answer(self.failed.result())
            return
        self._gathering.append(request)
        if self._idle.is_set():
            # A turn of the loop later, so that batches which arrived together are committed together.
            self._idle.clear()
            self._loop.call_soon(self._commit_gathered)

    def _commit_gathered(self) -> None:
        requests, self._gathering = self._gathering, []
        if not requests:
            self._idle.set()
            return
        try:
            future = self._store.submit([change for request in requests for change in request.changes])
        except Exception as error:  # pylint: disable=broad-exception-caught  # whatever a store raises, none may hang
            self._fail(requests, error)
            return
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._answer, requests, done))

    def _answer(self, requests: list[_Request], done: Future[list[Outcome]]) -> None:
        """Hand each request its part of the outcomes, and start the next commit."""
        error = done.exception()
        if error is not None and not isinstance(error, StoreFull):
            self._fail(requests, error)
            return
        outcomes = iter(() if error is not None else done.result())
        for request in requests:
            request.answer(error or list(islice(outcomes, len(request.changes))))
        self._commit_gathered()

    def _fail(self, requests: list[_Request], error: BaseException) -> None:
        tell_failure(self.failed, error)
        for request in requests + self._gathering:
            request.answer(error)
        self._gathering = []
        self._idle.set()
