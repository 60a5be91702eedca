"""The configurations of docs/how-to/proxy.md, in a real nginx and a real Caddy."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import trustme
from aiohttp import ClientSession, web
from aiohttp.test_utils import unused_port

from tests.pages import DOCS, blocks
from tests.support import Server, require_program

pytestmark = pytest.mark.ci

NAME = "scores.example"
TOKEN = "0123456789abcdef"
_NGINX = """
user root;
worker_processes 1;
pid {work}/pid;
error_log {work}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
{site}
}}
"""
_CADDY = """
{{
    admin unix/{work}/admin
    auto_https disable_redirects
}}
{site}
"""


class Setup(NamedTuple):
    """A proxy under test: the folder it works in, its port, that of the service, and the files of its certificate."""

    work: Path
    port: int
    upstream: int
    cert: Path
    key: Path


def printed(kind: str) -> str:
    """Return the configuration of this kind as the page has it."""
    [text] = (block.text for block in blocks(DOCS / "how-to" / "proxy.md") if block.kind == kind)
    return text


def nginx(setup: Setup) -> list[str]:
    """Return the command that starts nginx with the page's configuration, and ends once it listens."""
    site = printed("nginx").replace("127.0.0.1:8080", f"127.0.0.1:{setup.upstream}")
    site = site.replace("listen 443", f"listen 127.0.0.1:{setup.port}")
    site = re.sub("/etc/ssl/.*/fullchain.pem", str(setup.cert), re.sub("/etc/ssl/.*/key.pem", str(setup.key), site))
    config = setup.work / "nginx.conf"
    config.write_text(_NGINX.format(work=setup.work, site=site))
    return ["nginx", "-c", str(config), "-e", str(setup.work / "errors")]


def caddy(setup: Setup) -> list[str]:
    """Return the command that starts Caddy with the page's configuration, and ends once it listens."""
    site = printed("caddy").replace("127.0.0.1:8080", f"127.0.0.1:{setup.upstream}")
    site = site.replace(f"{NAME} {{", f"https://{NAME}:{setup.port} {{\n    tls {setup.cert} {setup.key}")
    config = setup.work / "Caddyfile"
    config.write_text(_CADDY.format(work=setup.work, site=site))
    return ["caddy", "start", "--config", str(config), "--adapter", "caddyfile", "--pidfile", str(setup.work / "pid")]


@pytest.fixture(name="proxied", params=[nginx, caddy], ids=["nginx", "caddy"])
async def fixture_proxied(request, tmp_path) -> AsyncIterator[Callable[[int], ClientSession]]:
    """What puts the proxy in front of a port and returns a client of it, which trusts its certificate."""
    program = request.param.__name__
    require_program(program, {"nginx": "nginx-light"}.get(program, program))
    authority, sessions = trustme.CA(), []
    issued = authority.issue_cert(NAME)
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)

    def start(upstream: int) -> ClientSession:
        setup = Setup(tmp_path, unused_port(), upstream, tmp_path / "cert.pem", tmp_path / "key.pem")
        home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
        with (tmp_path / "messages").open("w") as messages:  # no pipe: the proxy would keep it open
            run = {"stdout": messages, "stderr": messages, "env": os.environ | home}
            done = subprocess.run(request.param(setup), timeout=60, check=False, **run)
        assert done.returncode == 0, (tmp_path / "messages").read_text()
        context = ssl.create_default_context()
        authority.configure_trust(context)
        connector = aiohttp.TCPConnector(ssl=context, resolver=Here())
        sessions.append(ClientSession(f"https://{NAME}:{setup.port}", connector=connector))
        return sessions[0]

    yield start
    for session in sessions:
        await session.close()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)


class Here(aiohttp.abc.AbstractResolver):
    """Finds every name on this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict]:
        """Return 127.0.0.1."""
        found = {"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}
        return [found]

    async def close(self) -> None:
        """There is nothing to close."""


async def test_scores_come_through(proxied, tmp_path):
    """With the name and the token of the client, and with an id of the request that the proxy gives."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"write {TOKEN}")
    tokens.chmod(0o600)
    with Server(tmp_path / "store", "--allowed-hosts", NAME, "--token-file", str(tokens)) as server:
        client = proxied(int(server.url.rpartition(":")[2]))
        async with client.post("/scores", json={"UUID": "a1-b1", "score": 5}) as response:
            assert response.status == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with client.post("/scores", json={"UUID": "a1-b1", "score": 5}, headers=headers) as response:
            assert (response.status, await response.json()) == (200, {"UUID": "a1-b1", "mean": 5.0})
            assert re.fullmatch("[0-9a-f-]{32,36}", response.headers["X-Request-Id"])
        # More than nginx lets through unless it is told to.
        batch = BytesIO(b"\n".join([b'{"UUID": "%s", "score": 5}' % (b"a" * 200)] * 8000))
        async with client.post("/scores", data=batch, headers=headers | {"Content-Type": "application/x-ndjson"}) as response:
            assert response.status == 200


async def test_events_are_not_held_back_and_connections_are_kept(proxied):
    """The second event is only sent once the first was received; and both requests come over one connection."""
    received, peers, names = asyncio.Event(), set(), set()

    async def answer(request: web.Request) -> web.StreamResponse:
        peers.add(request.transport.get_extra_info("peername"))
        names.add(request.headers["Host"].partition(":")[0])
        if request.path != "/events":
            return web.Response(text="here")
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b"event: now\ndata: 1\n\n")
        await received.wait()
        await stream.write(b"event: now\ndata: 2\n\n")
        return stream

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        client = proxied(runner.addresses[0][1])
        async with client.get("/") as response:
            assert await response.text() == "here"
        async with asyncio.timeout(30), client.get("/events") as response:
            assert await response.content.readuntil(b"\n\n") == b"event: now\ndata: 1\n\n"
            received.set()
            assert await response.content.read() == b"event: now\ndata: 2\n\n"
    finally:
        await runner.cleanup()
    assert len(peers) == 1
    assert names == {NAME}
