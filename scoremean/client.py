"""The client: the same nouns and errors as the service, over HTTP, with retries that count once.

It alone knows when a request may be sent again. Every score gets an id before it is first sent, and each retry carries the
same id, so a score whose answer was lost on the way is counted once all the same.

    async with Client("http://127.0.0.1:8080") as client:
        mean = await client.post(Score("a1-b1", 5))

    with SyncClient("http://127.0.0.1:8080") as client:
        mean = client.post(Score("a1-b1", 5))
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import re
import socket
import ssl
from asyncio import sleep
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from threading import Thread
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import msgspec
from yarl import URL

from scoremean.errors import (
    BodyTooLarge,
    Fault,
    InvalidScore,
    RequestError,
    RequestTimeout,
    ScoremeanError,
    SettingError,
    Unavailable,
    UnknownUUID,
)
from scoremean.model import Mean, Score, Text, require_id, require_uuid, require_uuids, shown
from scoremean.web.wire import JSON, MSGPACK

CONNECTIONS_MAX = 64
BACKOFF_MAX_SECONDS = 10.0
REACH_MAX_SECONDS = 10.0
QUERY_MAX_UUIDS = 10_000
_REASON_MAX_CHARACTERS = 300

# After these it is unknown whether the request was carried out, or known that it was not: it is sent again.
_RETRIED = (aiohttp.ClientError, TimeoutError, RequestTimeout, Unavailable)
# What is given is at fault, or what listens there is not what it is taken for: a certificate that is not trusted or is another
# host's, no TLS, no HTTP, a host or a token that cannot be one. A name that is not known is not among them: a service that is
# restarted may be without its name meanwhile.
_HOPELESS = (ValueError, aiohttp.ClientSSLError, aiohttp.ClientResponseError)
_PROBLEM_PREFIX = "urn:scoremean:"
_NEXT_PAGE = re.compile(r'<(/[^>]*)>; *rel="next"')

_Value = TypeVar("_Value")
_Options = ParamSpec("_Options")


class _Answer(NamedTuple):
    body: bytes
    link: str


class Client:
    """A scoremean service at `url`. An async context manager; any number of tasks may share one.

    Args:
        url: where the service listens, as in `http://127.0.0.1:8080`. A path in it is put in front of every route.
        attempts_max: how often a request is sent at most.
        backoff_seconds: the longest wait before the second attempt; it doubles with each, up to BACKOFF_MAX_SECONDS, and the
            wait is a random part of it. A Retry-After is waited for at least, but no longer than BACKOFF_MAX_SECONDS.
        timeout_seconds: how long one attempt may take.
        with_ids: give every score without an id one. Without ids, a score may count twice when its answer is lost.
        batch_scores: the scores in one request of post_many; at most the service's batch_max_scores.
        concurrency: the requests that post_many has under way at once.
        token: the bearer token that is sent with each request, if the service wants one.
        tls: how an https service is verified, and with which certificate this client shows itself; the default is that of
            `ssl.create_default_context()`.

    Attributes:
        batch_scores: as given; it may be changed.

    Every method raises Unavailable when the last attempt got no answer, SettingError at once where sending again cannot help,
    as with a certificate that is not trusted, and otherwise the error that the service answered.

    Raises:
        SettingError: `url` is not an http URL, or an option has a value that it cannot have.
    """

    def __init__(  # pylint: disable=too-many-arguments  # each is a choice of the user's
        self,
        url: str,
        *,
        attempts_max: int = 10,
        backoff_seconds: float = 0.1,
        timeout_seconds: float = 30,
        with_ids: bool = True,
        batch_scores: int = 1000,
        concurrency: int = 4,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ):
        try:
            self._url = str(URL(url)).rstrip("/")
        except (ValueError, TypeError):
            self._url = ""
        if not re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", self._url):
            raise SettingError(f"{shown(url)} is not the URL of a service, such as http://127.0.0.1:8080")
        for name, value in {"attempts_max": attempts_max, "batch_scores": batch_scores, "concurrency": concurrency}.items():
            if value < 1:
                raise SettingError(f"{name} must be at least 1, not {value}")
        self._attempts_max = attempts_max
        self._backoff_seconds = backoff_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._with_ids = with_ids
        self.batch_scores = batch_scores
        self._concurrency = concurrency
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._tls = tls
        # aiohttp's timeout would run while a request waits for a free connection; here it waits before its time starts.
        self._free = asyncio.Semaphore(CONNECTIONS_MAX)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=self._tls or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.close()

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise ScoremeanError("use a Client inside of `async with Client(...) as client:`, or use a SyncClient")
        return self._session

    async def post(self, score: Score) -> Mean:
        """Count `score` and return the mean right after it, once it is durable."""
        answer = await self._request("POST", "/scores", msgspec.json.encode(self._members(score)))
        return _decoded(answer.body, Mean)

    @overload
    def post_many(
        self, scores: Iterable[Score] | AsyncIterable[Score], *, skip: Literal[False] = False
    ) -> AsyncIterator[Mean]: ...
    @overload
    def post_many(
        self, scores: Iterable[Score] | AsyncIterable[Score], *, skip: bool
    ) -> AsyncIterator[Mean | RequestError]: ...
    async def post_many(
        self, scores: Iterable[Score] | AsyncIterable[Score], *, skip: bool = False
    ) -> AsyncIterator[Mean | RequestError]:
        """Count many scores, a batch at a time, and yield one result a score, in order, once it is durable.

        No more than `concurrency` batches are held in memory. They are counted in any order, so a mean may be without scores
        that were given before it, in another batch.

        Args:
            scores: read as results are taken.
            skip: count the valid scores and yield the error of each other one in its place.

        Raises:
            InvalidBatch: without `skip`, for the first batch with a score at fault; its faults point into `scores`. None of
                that batch was counted; batches before it were, and those that were under way with it may be.
        """
        under_way: deque[asyncio.Task[list[Mean | RequestError]]] = deque()
        starts = itertools.count(0, self.batch_scores)
        try:
            async for batch in _batches(scores, self.batch_scores):
                if len(under_way) == self._concurrency:
                    for result in await under_way.popleft():
                        yield result
                under_way.append(asyncio.create_task(self._post_batch(batch, next(starts), skip)))
            while under_way:
                for result in await under_way.popleft():
                    yield result
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def get(self, uuid: Text) -> Mean | None:
        """Return the mean of `uuid` with its sum and count, None if it has no score."""
        try:
            return _decoded((await self._request("GET", _path("/means/", require_uuid(uuid)))).body, Mean)
        except UnknownUUID:
            return None

    async def get_many(self, uuids: Iterable[Text]) -> list[Mean | None]:
        """Return the mean of each UUID, in order, None for one without a score. QUERY_MAX_UUIDS are read at one moment."""
        means: list[Mean | None] = []
        for some in _chunks(require_uuids(uuids), QUERY_MAX_UUIDS):
            answer = await self._request("POST", "/means/query", msgspec.json.encode(some))
            means += _decoded(answer.body, list[Mean | None])
        return means

    async def iterate(self, limit: int = 1000) -> AsyncIterator[Mean]:
        """Yield every mean in the order of UUIDs, read in pages of `limit`, each of one moment.

        Raises:
            InvalidQuery: `limit` is not from 1 to 1000.
        """
        path = f"/means?limit={limit}"
        while path:
            means, path = await self._page(path)
            for mean in means:
                yield mean

    async def void(self, name: Text) -> Mean:
        """Take the score with the id `name` out of its tally and return what is left, once that is durable.

        Raises:
            UnknownId: no score carried it, or its record has expired.
        """
        return _decoded((await self._request("DELETE", _path("/scores/", require_id(name)))).body, Mean)

    async def void_score(self, score: Score) -> Mean:
        """Take one score of this UUID and value out of the tally, whatever it was counted with, and return what is left.

        Once for the id of `score`, which is the void's own; without one it gets one for this call.

        Raises:
            UnknownUUID: the UUID has no score.
            NoSuchScore: its tally cannot hold this one.
        """
        members = {"id": uuid4().hex, **self._members(score)}
        return _decoded((await self._request("POST", "/voids", msgspec.json.encode(members))).body, Mean)

    async def merge(self, uuid: Text, *, into: Text) -> Mean:
        """Add the tally of `uuid` to that of `into`, forget `uuid`, and return the mean of `into`, once that is durable.

        Raises:
            UnknownUUID: `uuid` has no score; also when an earlier attempt merged it and the answer was lost.
        """
        path, body = _path("/means/", require_uuid(uuid)) + "/merge", msgspec.json.encode({"into": require_uuid(into)})
        return _decoded((await self._request("POST", path, body)).body, Mean)

    async def forget(self, uuid: Text) -> Mean:
        """Forget `uuid` and return what it had, once that is durable.

        Raises:
            UnknownUUID: it has no score; also when an earlier attempt forgot it and the answer was lost.
        """
        return _decoded((await self._request("DELETE", _path("/means/", require_uuid(uuid)))).body, Mean)

    async def _page(self, path: str) -> tuple[list[Mean], str]:
        """Return the means of a page of the listing, and the path of the next one, empty behind the last."""
        answer = await self._request("GET", path)
        found = _NEXT_PAGE.search(answer.link)
        return _decoded(answer.body, list[Mean]), found[1] if found else ""

    def _members(self, score: Score) -> dict[str, str | int]:
        """Return a score as it is sent. What is sent again is this, so an id is given only once."""
        if not isinstance(score, Score):
            raise InvalidScore(f"a client posts a Score, such as Score('a1-b1', 5), not {shown(score)}")
        members: dict[str, str | int] = {"UUID": score.uuid, "score": score.score}
        if score.id is not None:
            members["id"] = score.id
        elif self._with_ids:
            members["id"] = uuid4().hex
        return members

    async def _post_batch(self, scores: Sequence[Score], start: int, skip: bool) -> list[Mean | RequestError]:
        path = "/scores?on_error=skip" if skip else "/scores"
        body = msgspec.msgpack.encode([self._members(score) for score in scores])
        try:
            answer = await self._request("POST", path, body, MSGPACK)
        except InvalidScore as error:
            raise _moved(error, start) from None
        try:
            results = msgspec.msgpack.decode(answer.body, type=list[dict[str, Any]])
            return [_result(result, start) for result, _ in zip(results, scores, strict=True)]
        except (ValueError, LookupError) as error:
            raise _not_understood(answer.body) from error

    async def _request(self, method: str, path: str, body: bytes | None = None, kind: str = JSON) -> _Answer:
        """Send a request until it is answered; the one place that sends it again."""
        attempt = 1
        while True:
            try:
                return await self._attempt(method, path, body, kind)
            except _RETRIED as error:
                told = isinstance(error, Unavailable)
                if attempt == self._attempts_max:
                    if told:
                        raise
                    raise Unavailable(f"no answer from {self._url} in {attempt} attempts: {_reason(error)}") from error
                least = error.retry_after_seconds if told else 0
            await sleep(min(BACKOFF_MAX_SECONDS, max(least, self._backoff(attempt))))
            attempt += 1

    def _backoff(self, attempt: int) -> float:
        """Return how long to wait after the attempt of this number: exponential, with full jitter."""
        return random.uniform(0, min(BACKOFF_MAX_SECONDS, self._backoff_seconds * 2.0 ** min(attempt - 1, 64)))

    async def _attempt(self, method: str, path: str, body: bytes | None, kind: str) -> _Answer:
        url = URL(self._url + path, encoded=True)
        headers = {} if body is None else {"Content-Type": kind}
        try:
            async with (
                self._free,
                self._open.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                answer = _Answer(await response.read(), response.headers.get("Link", ""))
        except _HOPELESS as error:
            raise SettingError(f"no answer from {self._url}, and sending again would not help: {_reason(error)}") from error
        if response.status == 200:
            return answer
        error = _refusal(response.status, answer.body)
        if isinstance(error, Unavailable):
            after = response.headers.get("Retry-After", "")
            error.retry_after_seconds = int(after) if re.fullmatch("[0-9]{1,9}", after, re.ASCII) else 0
        raise error


# pylint: disable=protected-access  # a SyncClient and its Client are one


def _waited(
    method: Callable[Concatenate[Client, _Options], Coroutine[Any, Any, _Value]],
) -> Callable[Concatenate[SyncClient, _Options], _Value]:
    """Return the method of SyncClient that waits for what this one of Client returns."""

    @functools.wraps(method)
    def wait(self: SyncClient, /, *args: _Options.args, **options: _Options.kwargs) -> _Value:
        return self._wait(self._begin(method(self._client, *args, **options)))

    return wait


def _made_as(
    make: Callable[_Options, _Value],
) -> Callable[[Callable[[Any, _Value], None]], Callable[Concatenate[Any, _Options], None]]:
    """Return a decorator that has an `__init__` take the arguments of `make`, and gives it what that makes of them."""

    def decorate(init: Callable[[Any, _Value], None]) -> Callable[Concatenate[Any, _Options], None]:
        @functools.wraps(make.__init__)
        def made(self: Any, /, *args: _Options.args, **options: _Options.kwargs) -> None:
            init(self, make(*args, **options))

        return made

    return decorate


class SyncClient:
    """A Client for notebooks and scripts: the same arguments, methods and errors, and each method waits for its answer.

    It runs an event loop of its own in a thread, so it also works where one runs already, as in a notebook. Any number of
    threads may share one. It is open from the start until `close`, or until the end of a `with`.
    """

    @_made_as(Client)
    def __init__(self, client: Client):
        self._client = client
        self._closing = asyncio.Event()
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = Thread(target=asyncio.run, args=[self._live(started)], name="scoremean-client", daemon=True)
        self._thread.start()
        self._loop = started.result()

    async def _live(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async with self._client:
            started.set_result(asyncio.get_running_loop())
            await self._closing.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections and end its thread. Closing twice does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    post = _waited(Client.post)
    get = _waited(Client.get)
    get_many = _waited(Client.get_many)
    void = _waited(Client.void)
    void_score = _waited(Client.void_score)
    merge = _waited(Client.merge)
    forget = _waited(Client.forget)

    @overload
    def post_many(self, scores: Iterable[Score], *, skip: Literal[False] = False) -> Iterator[Mean]: ...
    @overload
    def post_many(self, scores: Iterable[Score], *, skip: bool) -> Iterator[Mean | RequestError]: ...
    def post_many(self, scores: Iterable[Score], *, skip: bool = False) -> Iterator[Mean | RequestError]:
        """Count many scores as Client.post_many does. `scores` is read by the thread that takes the results."""
        under_way: deque[Future[list[Mean | RequestError]]] = deque()
        starts = itertools.count(0, self._client.batch_scores)
        try:
            for batch in _chunks(scores, self._client.batch_scores):
                if len(under_way) == self._client._concurrency:
                    yield from self._wait(under_way.popleft())
                under_way.append(self._begin(self._client._post_batch(batch, next(starts), skip)))
            while under_way:
                yield from self._wait(under_way.popleft())
        finally:
            for future in under_way:
                future.cancel()

    def iterate(self, limit: int = 1000) -> Iterator[Mean]:
        """Yield every mean as Client.iterate does."""
        path = f"/means?limit={limit}"
        while path:
            means, path = self._wait(self._begin(self._client._page(path)))
            yield from means

    def _begin(self, call: Coroutine[Any, Any, _Value]) -> Future[_Value]:
        if not self._thread.is_alive():  # in a child after a fork it is not, either
            call.close()
            raise ScoremeanError("the client is closed, or of the process that this one was forked from; make another one")
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def _wait(self, future: Future[_Value]) -> _Value:
        try:
            return future.result()
        except CancelledError:
            raise ScoremeanError("the client was closed before there was an answer") from None
        finally:
            future.cancel()  # for who does not wait any more, by Ctrl-C


class Served(SyncClient):
    """A running service, as far as an Importer needs a Store. A score that was counted before looks like any other here."""

    def __init__(self, url: str, token: str | None = None):
        _require_answer(url)
        super().__init__(url, token=token)  # pylint: disable=unexpected-keyword-arg  # it does not read types

    def commit(self, scores: Sequence[Score]) -> list[Mean | RequestError]:
        """Return one result a score, once all are durable; sent again, with the same ids, until they are answered."""
        results: list[Mean | RequestError] = []
        while len(results) < len(scores):
            try:
                # With their ids, those that were under way when a batch was refused are counted once all the same.
                for result in self.post_many(scores[len(results) :], skip=True):
                    results.append(result)
            except BodyTooLarge as error:
                if self._client.batch_scores == 1:
                    results.append(error)  # that of the first one without a result
                self._client.batch_scores = -(-self._client.batch_scores // 2)
        return results


def _require_answer(url: str) -> None:
    """Raise Unavailable where nothing listens: only what was there once is waited for. Raises SettingError for no URL."""
    Client(url)
    try:
        address = URL(url)
        socket.create_connection((address.host, address.port), REACH_MAX_SECONDS).close()
    except (OSError, ValueError) as error:  # what is no name or port is a ValueError
        raise Unavailable(f"nothing answers at {url}: {error}") from error


def _kinds(base: type[ScoremeanError]) -> Iterator[tuple[str, type[ScoremeanError]]]:
    """Yield every error with a slug of its own, by its slug."""
    if "slug" in vars(base):
        yield base.slug, base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


_KINDS = dict(_kinds(ScoremeanError))
_BY_STATUS: dict[int, type[ScoremeanError]] = {408: RequestTimeout, 413: BodyTooLarge, 503: Unavailable}


class _Problem(msgspec.Struct):
    """A problem of RFC 9457; `errors` is ours."""

    type: str = ""
    detail: str = ""
    errors: list[dict[str, str]] = []


def _refusal(status: int, body: bytes) -> ScoremeanError:
    """Return the error that an answer other than 200 is; a proxy in front may answer with no problem of ours."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except ValueError:
        problem = _Problem()
    slug = problem.type.removeprefix(_PROBLEM_PREFIX)
    if problem.type == slug or slug not in _KINDS:
        kind = _BY_STATUS.get(status, ScoremeanError)
        return kind(problem.detail or f"the answer was {status}, and not from scoremean: {ascii(body[:80])}")
    return _error(_KINDS[slug], problem, 0)


def _error(kind: type[ScoremeanError], problem: _Problem, start: int) -> ScoremeanError:
    if not issubclass(kind, InvalidScore):
        return kind(problem.detail)
    faults = tuple(Fault(fault.get("pointer", ""), fault.get("detail", "")) for fault in problem.errors)
    return _moved(kind(problem.detail, faults), start)


def _moved(error: InvalidScore, start: int) -> InvalidScore:
    """Return `error` with its pointers moved from the batch that starts there to all scores: /17/score is /1017/score."""
    move = re.compile("^/([0-9]+)", re.ASCII)
    faults = [(move.sub(lambda at: f"/{int(at[1]) + start}", fault.pointer), fault.detail) for fault in error.faults]
    return type(error)(error.detail, tuple(itertools.starmap(Fault, faults)))


def _result(result: dict[str, Any], start: int) -> Mean | RequestError:
    """Return what the answer to a batch says of one score. Raises LookupError or ValueError if it is neither."""
    if "type" not in result:
        return Mean(result["UUID"], result["mean"])
    problem = msgspec.convert(result, _Problem)
    error = _error(_KINDS[problem.type.removeprefix(_PROBLEM_PREFIX)], problem, start)
    if not isinstance(error, RequestError):
        raise ValueError("a score can only be refused for what it is")
    return error


def _reason(error: BaseException) -> str:
    """Return the sentence of an error of aiohttp's, whose sentences may have many lines."""
    return " ".join(str(error).split())[:_REASON_MAX_CHARACTERS] or type(error).__name__


def _decoded(body: bytes, kind: type[_Value]) -> _Value:
    try:
        return msgspec.json.decode(body, type=kind)
    except ValueError as error:
        raise _not_understood(body) from error


def _not_understood(body: bytes) -> ScoremeanError:
    return ScoremeanError(f"the answer is not one of scoremean's: {ascii(body[:80])}")


def _path(route: str, text: str) -> str:
    return route + quote(text, safe="")


def _chunks(items: Iterable[_Value], size: int) -> Iterator[list[_Value]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some


async def _batches(scores: Iterable[Score] | AsyncIterable[Score], size: int) -> AsyncIterator[list[Score]]:
    if not isinstance(scores, AsyncIterable):
        for batch in _chunks(scores, size):
            yield batch
        return
    batch = []
    async for score in scores:
        batch.append(score)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
