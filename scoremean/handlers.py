"""One short function per route: read the request, call the Writer or the Store, shape the answer.

Every refusal is raised as a ScoremeanError; app turns it into a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from scoremean.errors import InvalidScore, MalformedRequest, RequestError, RequestTimeout, Stopping, UnknownUUID
from scoremean.model import Mean, Replay, Tally, Void, Voided, require_id, require_uuid
from scoremean.store.base import Outcome, Store
from scoremean.validation import JSON, ScoreDecoder, require_media_type, with_key
from scoremean.writer import Writer

MEANS_PATH = "/means/"
SCORES_PATH = "/scores/"

_encode = msgspec.json.Encoder().encode


def respond(value: object, *, status: int = 200, content_type: str = JSON) -> web.Response:
    """Return a response with `value` as JSON. The Server header names the program, not its version."""
    return web.Response(
        status=status, body=_encode(value), headers={"Content-Type": content_type, "Server": "scoremean"}
    )


@dataclass(frozen=True)
class Handlers:
    """The routes over one Store and its Writer."""

    store: Store
    writer: Writer
    decoder: ScoreDecoder
    version: str
    body_timeout_seconds: int

    def routes(self) -> list[web.RouteDef]:
        """Return the route table."""
        return [
            web.post("/scores", self.post_score),
            web.delete(SCORES_PATH + "{id:(?s:.*)}", self.void_score),
            web.get(MEANS_PATH + "{UUID:(?s:.*)}", self.get_mean),
            web.get("/stats", self.get_stats),
            web.get("/livez", self.get_livez),
            web.get("/readyz", self.get_readyz),
        ]

    async def post_score(self, request: web.Request) -> web.Response:
        """Count one score and answer the mean after it, once it is durable; for an id seen before, answer as then."""
        require_media_type(request.headers)
        score = with_key(self.decoder.decode(await self._read_body(request)), request.headers.get("Idempotency-Key"))
        [outcome] = await self.writer.post([score])
        response = respond(Mean(score.uuid, _counted(outcome).mean))
        if isinstance(outcome, Replay):
            response.headers["Idempotency-Replayed"] = "true"
        return response

    async def void_score(self, request: web.Request) -> web.Response:
        """Take the score with the id in the path out of its tally and answer what is left, once that is durable."""
        [outcome] = await self.writer.post([Void(_text_in_path(request, SCORES_PATH, require_id))])
        uuid, tally = (voided := _counted(outcome)).uuid, voided.tally
        return respond(Mean(uuid, tally.mean if tally.count else None, tally.sum, tally.count))

    async def get_mean(self, request: web.Request) -> web.Response:
        """Answer the mean of the UUID in the path, with its sum and count."""
        uuid = _text_in_path(request, MEANS_PATH, require_uuid)
        [tally] = self.store.get([uuid])
        if tally is None:
            raise UnknownUUID(f"no score was counted for the UUID {uuid}")
        return respond(Mean(uuid, tally.mean, tally.sum, tally.count))

    async def get_stats(self, _: web.Request) -> web.Response:
        """Answer what the store holds."""
        return respond({"version": self.version, **msgspec.to_builtins(self.store.stats())})

    async def get_livez(self, _: web.Request) -> web.Response:
        """Answer 200 as long as the process can answer at all."""
        return respond({"status": "live"})

    async def get_readyz(self, _: web.Request) -> web.Response:
        """Answer 200 while scores are taken, 503 from the moment they are not."""
        if not self.writer.accepting:
            raise Stopping("the service is stopping")
        return respond({"status": "ready"})

    async def _read_body(self, request: web.Request) -> bytes:
        if request.content.is_eof():  # it came with the headers, as nearly all do: no timer needed
            return await request.read()
        try:
            async with asyncio.timeout(self.body_timeout_seconds):
                return await request.read()
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {self.body_timeout_seconds} seconds") from None


def _counted(outcome: Outcome) -> Tally | Voided:
    """Return `outcome`, or raise it if the store refused."""
    if isinstance(outcome, RequestError):
        raise outcome
    return outcome


def _text_in_path(request: web.Request, prefix: str, require: Callable[[str], str]) -> str:
    """Return the text after `prefix`. From the raw path: only there a slash and its %2F, or a dot, are as they were sent."""
    raw = request.raw_path.partition("?")[0].removeprefix(prefix)
    try:
        return require(unquote_to_bytes(raw.encode(errors="surrogateescape")).decode())
    except UnicodeDecodeError:
        raise MalformedRequest("the path is not percent-encoded UTF-8") from None
    except InvalidScore as error:
        raise type(error)(f"in the path, {error}") from None
