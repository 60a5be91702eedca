"""One short function per route: read the request, call the Writer or the Store, shape the answer.

Every refusal is raised as a ScoremeanError; app turns it into a problem.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from scoremean.errors import InvalidUUID, MalformedRequest, RequestTimeout, Stopping, UnknownUUID
from scoremean.model import Mean, require_uuid
from scoremean.store.base import Store
from scoremean.validation import JSON, ScoreDecoder, require_media_type
from scoremean.writer import Writer

MEANS_PATH = "/means/"

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
            web.get(MEANS_PATH + "{UUID:(?s:.*)}", self.get_mean),
            web.get("/stats", self.get_stats),
            web.get("/livez", self.get_livez),
            web.get("/readyz", self.get_readyz),
        ]

    async def post_score(self, request: web.Request) -> web.Response:
        """Count one score and answer the mean after it, once it is durable."""
        require_media_type(request.headers)
        score = self.decoder.decode(await self._read_body(request))
        [tally] = await self.writer.post([score])
        return respond(Mean(score.uuid, tally.mean))

    async def get_mean(self, request: web.Request) -> web.Response:
        """Answer the mean of the UUID in the path, with its sum and count."""
        uuid = _uuid_in_path(request)
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


def _uuid_in_path(request: web.Request) -> str:
    """Return the UUID after MEANS_PATH. From the raw path: only there a slash and its %2F, or a dot, are as they were sent."""
    raw = request.raw_path.partition("?")[0].removeprefix(MEANS_PATH)
    try:
        return require_uuid(unquote_to_bytes(raw.encode(errors="surrogateescape")).decode())
    except UnicodeDecodeError:
        raise MalformedRequest("the UUID in the path is not percent-encoded UTF-8") from None
    except InvalidUUID as error:
        raise InvalidUUID(f"in the path, {error}") from None
