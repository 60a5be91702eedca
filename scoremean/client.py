"""The client: the same nouns and errors as the service, over HTTP, with retries that count once.

It alone knows when a request may be sent again. Every score gets an id before it is first sent, and each retry carries the
same id, so a score whose answer was lost on the way is counted once all the same.

    async with Client("http://127.0.0.1:8080") as client:
        mean = await client.post(Score("a1-b1", 5))
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import socket
import ssl
from asyncio import sleep
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeVar
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
from scoremean.model import Mean, Score, require_id, require_uuid
from scoremean.validation import JSON, MSGPACK

CONNECTIONS_MAX = 64
BACKOFF_MAX_SECONDS = 10.0
REACH_MAX_SECONDS = 10.0
QUERY_MAX_UUIDS = 10_000

# After these it is unknown whether the request was carried out, or known that it was not: it is sent again.
_RETRIED = (aiohttp.ClientError, TimeoutError, RequestTimeout, Unavailable)
_PROBLEM_PREFIX = "urn:scoremean:"
_NEXT_PAGE = re.compile(r'<(/[^>]*)>; *rel="next"')

_Value = TypeVar("_Value")


class _Answer(NamedTuple):
    body: bytes
    link: str


class Client:
    """A scoremean service at `url`. An async context manager; any number of tasks may share one.

    Args:
        url: where the service listens, as in `http://127.0.0.1:8080`. A path in it is put in front of every route.
        attempts_max: how often a request is sent at most.
        backoff_seconds: the longest wait before the second attempt; it doubles with each, up to BACKOFF_MAX_SECONDS, and the
            wait is a random part of it. A Retry-After is waited for at least.
        timeout_seconds: how long one attempt may take.
        with_ids: give every score without an id one. Without ids, a score may count twice when its answer is lost.
        batch_scores: the scores in one request of post_many; at most the service's batch_max_scores.
        concurrency: the requests that post_many has under way at once.
        token: the bearer token that is sent with each request, if the service wants one.
        tls: how an https service is verified, and with which certificate this client shows itself; the default is that of
            `ssl.create_default_context()`.

    Attributes:
        batch_scores: as given; it may be changed.

    Every method raises Unavailable when the last attempt got no answer, and otherwise the error that the service answered.

    Raises:
        SettingError: `url` is not an http URL.
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
        if not re.match(r"https?://[^/?#]+[^?#]*$", url):
            raise SettingError(f"{url!r} is not the URL of a service, such as http://127.0.0.1:8080")
        for name, value in {"attempts_max": attempts_max, "batch_scores": batch_scores, "concurrency": concurrency}.items():
            if value < 1:
                raise SettingError(f"{name} must be at least 1, not {value}")
        self._url = url.rstrip("/")
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
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=self._tls or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, score: Score) -> Mean:
        """Count `score` and return the mean right after it, once it is durable."""
        answer = await self._request("POST", "/scores", msgspec.json.encode(self._members(score)))
        return _decoded(answer.body, Mean)

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

    async def get(self, uuid: str) -> Mean | None:
        """Return the mean of `uuid` with its sum and count, None if it has no score."""
        try:
            return _decoded((await self._request("GET", _path("/means/", require_uuid(uuid)))).body, Mean)
        except UnknownUUID:
            return None

    async def get_many(self, uuids: Iterable[str]) -> list[Mean | None]:
        """Return the mean of each UUID, in order, None for one without a score. QUERY_MAX_UUIDS are read at one moment."""
        means: list[Mean | None] = []
        for some in _chunks(map(require_uuid, uuids), QUERY_MAX_UUIDS):
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
            answer = await self._request("GET", path)
            for mean in _decoded(answer.body, list[Mean]):
                yield mean
            found = _NEXT_PAGE.search(answer.link)
            path = found[1] if found else ""

    async def void(self, name: str) -> Mean:
        """Take the score with the id `name` out of its tally and return what is left, once that is durable.

        Raises:
            UnknownId: no score carried it, or its record has expired.
        """
        return _decoded((await self._request("DELETE", _path("/scores/", require_id(name)))).body, Mean)

    async def forget(self, uuid: str) -> Mean:
        """Forget `uuid` and return what it had, once that is durable.

        Raises:
            UnknownUUID: it has no score; also when an earlier attempt forgot it and the answer was lost.
        """
        return _decoded((await self._request("DELETE", _path("/means/", require_uuid(uuid)))).body, Mean)

    def _members(self, score: Score) -> dict[str, str | int]:
        """Return a score as it is sent. What is sent again is this, so an id is given only once."""
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
        for attempt in range(1, self._attempts_max):
            try:
                return await self._attempt(method, path, body, kind)
            except _RETRIED as error:
                least = error.retry_after_seconds if isinstance(error, Unavailable) else 0
                await sleep(max(least, self._backoff(attempt)))
        try:
            return await self._attempt(method, path, body, kind)
        except _RETRIED as error:
            if isinstance(error, Unavailable):
                raise
            reason = str(error) or type(error).__name__
            raise Unavailable(f"no answer from {self._url} in {self._attempts_max} attempts: {reason}") from error

    def _backoff(self, attempt: int) -> float:
        """Return how long to wait after the attempt of this number: exponential, with full jitter."""
        return random.uniform(0, min(BACKOFF_MAX_SECONDS, self._backoff_seconds * 2.0 ** min(attempt - 1, 64)))

    async def _attempt(self, method: str, path: str, body: bytes | None, kind: str) -> _Answer:
        url = URL(self._url + path, encoded=True)
        headers = {} if body is None else {"Content-Type": kind}
        async with (
            self._free,
            self._session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            answer = _Answer(await response.read(), response.headers.get("Link", ""))
            if response.status == 200:
                return answer
            error = _refusal(response.status, answer.body)
        if isinstance(error, Unavailable):
            after = response.headers.get("Retry-After", "")
            error.retry_after_seconds = int(after) if re.fullmatch("[0-9]{1,9}", after, re.ASCII) else 0
        raise error


class Served:
    """A running service, as far as an Importer needs a Store. A score that was counted before looks like any other here."""

    def __init__(self, url: str, token: str | None = None):
        self._client = Client(url, token=token)
        self._url = url
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        """Raises Unavailable where nothing listens: only what was there once is waited for."""
        try:
            address = URL(self._url)
            socket.create_connection((address.host, address.port), REACH_MAX_SECONDS).close()
        except (OSError, ValueError) as error:  # what is no name or port is a ValueError
            raise Unavailable(f"nothing answers at {self._url}: {error}") from error
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.__aexit__())
        self._runner.close()

    def commit(self, scores: Sequence[Score]) -> list[Mean | RequestError]:
        """Return one result a score, once all are durable; sent again, with the same ids, until they are answered."""
        return self._runner.run(self._post(scores))

    async def _post(self, scores: Sequence[Score]) -> list[Mean | RequestError]:
        results: list[Mean | RequestError] = []
        while len(results) < len(scores):
            try:
                # With their ids, those that were under way when a batch was refused are counted once all the same.
                async for result in self._client.post_many(scores[len(results) :], skip=True):
                    results.append(result)
            except BodyTooLarge as error:
                if self._client.batch_scores == 1:
                    results.append(error)  # that of the first one without a result
                self._client.batch_scores = -(-self._client.batch_scores // 2)
        return results


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
