"""The ceiling: aiohttp and uvloop with handlers that read the body and answer a constant of the size of scoremean's answer."""

from __future__ import annotations

import asyncio

from aiohttp import web

try:
    from uvloop import run
except ImportError:  # scoremean runs without it too
    from asyncio import run

MEAN = b'{"UUID":"5f0e7d7c-0b1c-4a52-9f3e-3f0a4d1f6a10","mean":2.6666666666666665}'
TALLY = b'{"UUID":"5f0e7d7c-0b1c-4a52-9f3e-3f0a4d1f6a10","mean":2.6666666666666665,"sum":8,"count":3}'


async def _post(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=MEAN, content_type="application/json")


async def _get(_: web.Request) -> web.Response:
    return web.Response(body=TALLY, content_type="application/json")


async def _serve() -> None:
    app = web.Application()
    app.add_routes([web.post("/scores", _post), web.get("/means/{UUID}", _get)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(_serve())
