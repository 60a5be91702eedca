"""One short function per route: read the request, call the Writer or the Store, shape the answer.

Every refusal is raised as a ScoremeanError; the server turns it into a problem.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest

from scoremean.errors import (
    InvalidId,
    InvalidScore,
    MalformedRequest,
    RequestError,
    Stopping,
    UnknownRoute,
    UnknownUUID,
)
from scoremean.model import Batch, Forget, Mean, Merge, Replay, Tally, Void, VoidScore, require_id, require_uuid
from scoremean.settings import Settings
from scoremean.store.base import Store
from scoremean.web.access import Right
from scoremean.web.answer import Response, Stream, describe, respond
from scoremean.web.assets import HEADERS as ASSET_HEADERS
from scoremean.web.assets import Asset, make_asset, page_files
from scoremean.web.events import Live
from scoremean.web.server import Route, decoded_path, read_body
from scoremean.web.wire import (
    JSON,
    MSGPACK,
    NDJSON,
    Item,
    ScoreDecoder,
    all_faults,
    decode_into,
    decode_min_count,
    decode_on_error,
    decode_page,
    decode_uuids,
    is_batch,
    media_type,
    with_key,
)
from scoremean.writer import Writer

# A body up to this size is decoded on the event loop in well under a millisecond; a larger one goes to a thread.
INLINE_MAX_BYTES = 32 << 10

SCORE_TYPES = (JSON, NDJSON, MSGPACK)
EVENTS = "text/event-stream"
REPLAYED = "Idempotency-Replayed"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:[0-9]+)?")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Handlers:
    """The routes over one Store, its Writer, and the events of both."""

    store: Store
    writer: Writer
    live: Live
    decoder: ScoreDecoder
    version: str
    settings: Settings

    def routes(self) -> list[Route]:
        """Return the route table, with the right that a token needs for each."""
        return [
            Route("POST", "/scores", self.post_scores, Right.WRITE),
            Route("DELETE", "/scores/{id}", self.void_score, Right.WRITE),
            Route("POST", "/voids", self.post_void, Right.WRITE),
            Route("GET", "/means", self.list_means, Right.READ),
            Route("POST", "/means/query", self.query_means, Right.READ),
            Route("GET", "/means/{UUID}", self.get_mean, Right.READ),
            Route("DELETE", "/means/{UUID}", self.forget_mean, Right.WRITE),
            Route("POST", "/means/{UUID}/merge", self.merge_mean, Right.WRITE),
            Route("GET", "/stats", self.get_stats, Right.READ),
            Route("GET", "/events", self.get_events, Right.READ),
            Route("GET", "/metrics", self.get_metrics, Right.READ),
            Route("GET", "/livez", self.get_livez, Right.NONE, vital=True),
            Route("GET", "/readyz", self.get_readyz, Right.NONE, vital=True),
            Route("GET", "/", self.get_page, Right.NONE),
            Route("GET", "/page/{file}", self.get_page_file, Right.NONE),
            Route("GET", "/docs", self.get_docs, Right.NONE),
            Route("GET", "/openapi.json", self.get_openapi, Right.NONE),
        ]

    async def post_scores(self, request: BaseRequest) -> Response:
        """Count one score, or a batch of them, and answer each mean right after it, once all are durable."""
        kind = media_type(request.headers, SCORE_TYPES)
        skip = decode_on_error(query) if (query := request.rel_url.raw_query_string) else False
        body = await read_body(request, self.settings.body_max_bytes, self.settings.body_timeout_seconds)
        if is_batch(body, kind):
            return await self._post_batch(request, kind, body, skip)
        decode = self.decoder.decode if kind == JSON else self.decoder.decode_msgpack
        score = decode(body) if len(body) <= INLINE_MAX_BYTES else await asyncio.to_thread(decode, body)
        if "Idempotency-Key" in request.headers:
            score = with_key(score, request.headers.getall("Idempotency-Key"))
        tally = await self.writer.post(score)
        response = respond(Mean(score.uuid, tally.mean), content_type=kind)
        if isinstance(tally, Replay):
            response.headers[REPLAYED] = "true"
        return response

    async def _post_batch(self, request: BaseRequest, kind: str, body: bytes, skip: bool) -> Response:
        if "Idempotency-Key" in request.headers:
            raise InvalidId("the header Idempotency-Key is for a single score; give each score of a batch a member id")
        items, batch = await _off_loop(self._decode_batch, body, kind, skip)
        outcomes = await self.writer.post(batch)
        # The answer is about as large as the body: where that goes to a thread, this does too.
        response = await _off_loop(_batch_response, body, items, outcomes, kind)
        if outcomes and all(isinstance(outcome, Replay) for outcome in outcomes):
            response.headers[REPLAYED] = "true"
        return response

    def _decode_batch(self, body: bytes, kind: str, skip: bool) -> tuple[list[Item], Batch]:
        items = self.decoder.decode_batch(body, kind)
        scores = [item for item in items if not isinstance(item, InvalidScore)]
        if len(scores) < len(items) and not skip:
            raise all_faults(items)
        return items, Batch(scores, skip)

    async def void_score(self, request: BaseRequest) -> Response:
        """Take the score with the id in the path out of its tally and answer what is left, once that is durable."""
        voided = await self.writer.post(Void(_text_in_path(request, require_id)))
        return respond(_mean(voided.uuid, voided.tally))

    async def post_void(self, request: BaseRequest) -> Response:
        """Take the score in the body out of the tally of its UUID and answer what is left, once that is durable."""
        kind = media_type(request.headers, (JSON, MSGPACK))
        body = await read_body(request, self.settings.body_max_bytes, self.settings.body_timeout_seconds)
        score = await _off_loop(self.decoder.decode if kind == JSON else self.decoder.decode_msgpack, body)
        score = with_key(score, request.headers.getall("Idempotency-Key", ()))
        left = await self.writer.post(VoidScore(score))
        response = respond(_mean(score.uuid, left), content_type=kind)
        if isinstance(left, Replay):
            response.headers[REPLAYED] = "true"
        return response

    async def get_mean(self, request: BaseRequest) -> Response:
        """Answer the mean of the UUID in the path, with its sum and count."""
        uuid = _text_in_path(request, require_uuid)
        [tally] = self.store.get([uuid])
        if tally is None:
            raise UnknownUUID(f"no score was counted for the UUID {uuid}")
        etag = f'"{tally.sum}-{tally.count}"'
        if _matches(etag, request.headers.get(hdrs.IF_NONE_MATCH)):
            return Response(None, status=304, headers={"ETag": etag})
        response = respond(_mean(uuid, tally))
        response.headers["ETag"] = etag
        return response

    async def forget_mean(self, request: BaseRequest) -> Response:
        """Forget the UUID in the path and answer what it had, once that is durable."""
        uuid = _text_in_path(request, require_uuid)
        return respond(_mean(uuid, await self.writer.post(Forget(uuid))))

    async def merge_mean(self, request: BaseRequest) -> Response:
        """Add the tally of the UUID in the path to that of the one in the body, forget it, and answer the sum, once durable."""
        uuid = _text_in_path(request, require_uuid, "/merge")
        media_type(request.headers, (JSON,))
        body = await read_body(request, self.settings.body_max_bytes, self.settings.body_timeout_seconds)
        into = await _off_loop(decode_into, body)
        return respond(_mean(into, await self.writer.post(Merge(uuid, into))))

    async def list_means(self, request: BaseRequest) -> Response:
        """Answer a page of means in the order of UUIDs, with a Link to the next one."""
        after, limit = decode_page(request.rel_url.raw_query_string)
        page = self.store.scan(after, limit)
        response = respond([_mean(uuid, tally) for uuid, tally in page.tallies])
        if page.after is not None:
            response.headers["Link"] = f'</means?after={quote(page.after, safe="")}&limit={limit}>; rel="next"'
        return response

    async def query_means(self, request: BaseRequest) -> Response:
        """Answer the means of the UUIDs in the body, in their order, null for one without a score."""
        media_type(request.headers, (JSON,))
        body = await read_body(request, self.settings.body_max_bytes, self.settings.body_timeout_seconds)
        uuids = await _off_loop(decode_uuids, body, self.settings.batch_max_scores)
        tallies = await asyncio.to_thread(self.store.get, uuids)
        return respond([tally and _mean(uuid, tally) for uuid, tally in zip(uuids, tallies)])

    async def get_stats(self, _: BaseRequest) -> Response:
        """Answer what the store holds."""
        return respond({"version": self.version, **msgspec.to_builtins(self.store.stats())})

    async def get_events(self, request: BaseRequest) -> Response:
        """Answer with what happens, as server-sent events, until the client goes or the service stops."""
        return Stream(self.live.stream(decode_min_count(request.rel_url.raw_query_string)), content_type=EVENTS)

    async def get_metrics(self, _: BaseRequest) -> Response:
        """Answer what Prometheus scrapes."""
        from scoremean import metrics  # pylint: disable=import-outside-toplevel  # a service that nobody scrapes needs it not

        routes = [(route.method, route.path) for route in self.routes()]
        text = metrics.Metrics(self.store.counts, self.store.stats(), routes, self.version).text()
        return Response(text, content_type=metrics.CONTENT_TYPE)

    async def get_page(self, request: BaseRequest) -> Response:
        """Answer the page for people."""
        return _asset(request, page_files()["index.html"])

    async def get_page_file(self, request: BaseRequest) -> Response:
        """Answer a file that the page refers to."""
        if (asset := page_files().get(_variable(request))) is None:
            raise UnknownRoute(f"there is no {request.rel_url.raw_path}")
        return _asset(request, asset)

    async def get_docs(self, request: BaseRequest) -> Response:
        """Answer the routes as a page for people."""
        from scoremean.web import docs_page as docs  # pylint: disable=import-outside-toplevel  # a service that nobody asks needs it not

        return _asset(request, make_asset("docs.html", docs.encoded(self.settings, self.version, _address(request))))

    async def get_openapi(self, request: BaseRequest) -> Response:
        """Answer the OpenAPI document."""
        from scoremean.web import openapi  # pylint: disable=import-outside-toplevel  # likewise

        return _asset(request, make_asset("openapi.json", openapi.encoded(self.settings, self.version)))

    async def get_livez(self, _: BaseRequest) -> Response:
        """Answer 200 as long as the process can answer at all."""
        return respond({"status": "live"})

    async def get_readyz(self, _: BaseRequest) -> Response:
        """Answer 200 while scores are taken, 503 from the moment they are not."""
        if not self.writer.accepting:
            raise Stopping("the service is stopping")
        return respond({"status": "ready"})


async def _off_loop(work: Callable[..., _Result], body: bytes, *rest: object) -> _Result:
    """Return `work(body, *rest)`, run in a thread if the body is large, so that other requests go on meanwhile."""
    if len(body) <= INLINE_MAX_BYTES:
        return work(body, *rest)
    return await asyncio.to_thread(work, body, *rest)


def _mean(uuid: str, tally: Tally) -> Mean:
    return Mean(uuid, tally.mean if tally.count else None, tally.sum, tally.count)


def _batch_response(
    _: bytes, items: Sequence[Item], outcomes: Sequence[Tally | RequestError], kind: str
) -> Response:
    left = iter(outcomes)
    results = []
    for index, item in enumerate(items):
        outcome = item if isinstance(item, InvalidScore) else next(left)
        if isinstance(outcome, Tally):
            results.append(Mean(item.uuid, outcome.sum / outcome.count))
        else:
            results.append(_result(outcome, index))
    return respond(results, content_type=kind)


def _result(error: RequestError, index: int) -> dict[str, Any]:
    """Return what the answer to a batch says of a score that is at fault: the problem that it is."""
    problem = describe(error)
    problem.setdefault("errors", [{"pointer": f"/{index}/id", "detail": problem["detail"]}])
    return problem


def _matches(etag: str, header: str | None) -> bool:
    """Return whether If-None-Match names `etag` (RFC 9110, 13.1.2, by weak comparison)."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _asset(request: BaseRequest, asset: Asset) -> Response:
    """Return a file of the page, or 304 to who has it."""
    headers = {**ASSET_HEADERS, "ETag": asset.etag}
    if _matches(asset.etag, request.headers.get("If-None-Match")):
        return Response(None, status=304, headers=headers)
    return Response(asset.body, content_type=asset.content_type, headers=headers)


def _address(request: BaseRequest) -> str:
    """Return the address that `request` was sent to; for a Host header with what a name does not have, HOST stands there."""
    host = request.headers.get(hdrs.HOST, "")
    scheme = "https" if "https" in (request.scheme, request.headers.get(hdrs.X_FORWARDED_PROTO)) else "http"
    return f"{scheme}://{host if _HOST.fullmatch(host) else 'HOST'}"


def _variable(request: BaseRequest) -> str:
    """Return what stands for the variable in the path of a route that has one: all behind the first segment, slashes too."""
    return decoded_path(request).split("/", 2)[2]


def _text_in_path(request: BaseRequest, require: Callable[[str], str], end: str = "") -> str:
    """Return what stands for the variable in the path, before `end`, once `require` takes it."""
    text = _variable(request).removesuffix(end)
    try:
        return require(text)
    except InvalidScore as error:
        if text.encode(errors="replace").decode() != text:
            raise MalformedRequest("the path is not percent-encoded UTF-8") from None
        raise type(error)(f"in the path, {error}") from None
