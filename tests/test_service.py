"""Starting, draining and failing: what the process does around its requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from concurrent.futures import Future

import pytest
from aiohttp import ClientSession

from scoremean.app import Service, listen, serve
from scoremean.errors import ListenError, SettingError
from scoremean.model import Tally
from scoremean.settings import Settings
from tests.support import post
from tests.test_http import raw_post, read_response


async def test_stop_answers_what_was_taken_and_takes_no_more(service, store, monkeypatch):
    """A post whose commit is under way gets its answer; the connection is closed after it, and not before."""
    commit, held = Future(), asyncio.Event()
    monkeypatch.setattr(store, "submit", lambda batch: held.set() or commit)
    async with ClientSession(service.url) as client:
        request = asyncio.ensure_future(post(client, "a", 5))
        await held.wait()
        stopping = asyncio.ensure_future(service.stop())
        with pytest.raises(OSError):
            while True:  # until the socket no longer listens
                _, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
                writer.close()
        assert not stopping.done()
        commit.set_result([Tally(5, 1)])
        assert await request == 5.0
        await stopping


@pytest.mark.parametrize(("asked", "version"), [("x", b"1.1"), ("keep-alive", b"1.1"), ("keep-alive", b"1.0")])
async def test_an_answer_during_a_stop_says_that_it_is_the_last(service, store, monkeypatch, asked, version):
    """Whatever the client asked for, so that it does not send its next request in vain."""
    commit, held = Future(), asyncio.Event()
    monkeypatch.setattr(store, "submit", lambda batch: held.set() or commit)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"))
    writer.write(raw_post(f"Connection: {asked}").replace(b"HTTP/1.1", b"HTTP/" + version))
    await held.wait()
    stopping = asyncio.ensure_future(service.stop())
    while service._server.connections[0]._close is False:  # pylint: disable=protected-access
        await asyncio.sleep(0)
    commit.set_result([Tally(5, 1)])
    status, headers, _ = await read_response(reader)
    assert (status, headers["connection"]) == (200, "close")
    assert await reader.read() == b""
    writer.close()
    await stopping


async def test_ready_ends_when_a_commit_fails(client, service, store, monkeypatch, caplog):
    """The batch is told that its outcome is unknown; from then on posts and /readyz are 503, reads and /livez go on."""
    assert await post(client, "a", 4) == 4.0
    failed: Future[list[Tally]] = Future()
    failed.set_exception(OSError(5, "Input/output error"))
    monkeypatch.setattr(store, "submit", lambda batch: failed)
    for slug in ("outcome-unknown", "stopping"):
        async with client.post("/scores", json={"UUID": "a", "score": 1}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["type"] == f"urn:scoremean:{slug}"
    assert service.failed.done()
    for path, status in (("/readyz", 503), ("/livez", 200), ("/means/a", 200)):
        async with client.get(path) as response:
            assert response.status == status
    assert "Input/output error" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_well_on_a_signal(store, settings, number):
    """It announces its address, serves, and returns True."""
    announced = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(serve(settings, store, "1.2.3", announced.set_result))
    async with ClientSession(await announced) as client:
        assert await post(client, "a", 5) == 5.0
    os.kill(os.getpid(), number)
    assert await serving is True


async def test_serve_ends_badly_when_a_commit_fails(store, settings, monkeypatch, caplog):
    """By itself, so that whoever supervises it restarts it."""

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store, "submit", fail)
    announced = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(serve(settings, store, "1.2.3", announced.set_result))
    async with ClientSession(await announced) as client:
        async with client.post("/scores", json={"UUID": "a", "score": 1}) as response:
            assert response.status == 503
    assert await serving is False
    assert "a commit failed" in caplog.text


async def test_an_address_in_use_is_refused(store, settings, service):
    """With the address in the message, and nothing left open."""
    port = int(service.url.rsplit(":", 1)[1])
    other = Service(Settings(port=port), store, "1.2.3")
    with pytest.raises(ListenError, match=f"on 127.0.0.1 port {port}: Address already in use; .* give --port another one"):
        await other.start()
    assert settings.port == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "192.0.2.1"}, "192.0.2.1 port 0: Cannot assign requested address; give --host an address of this machine"),
        ({"host": "nowhere.invalid"}, "nowhere.invalid port 0: .+; give --host a name or address of this machine"),
        ({"unix_socket": "/proc/none"}, "/proc/none: "),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused(tmp_path, settings, message):
    """With what to do about it."""
    with pytest.raises(ListenError, match=f"cannot listen on {message}"):
        listen(Settings(port=0, token_file=str(tmp_path), **settings))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
async def test_only_loopback_is_listened_on(host):
    """Unless there are tokens."""
    with pytest.raises(SettingError, match="not a loopback address"):
        Settings(host=host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1"])
async def test_any_loopback_address_is_listened_on(store, host):
    """IPv6 in brackets."""
    if host == "::1":
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                pytest.skip("the loopback interface has no IPv6; set net.ipv6.conf.lo.disable_ipv6=0")
    service = Service(Settings(host=host, port=0), store, "1.2.3")
    await service.start()
    async with ClientSession(service.url) as client:
        assert await post(client, host, 5) == 5.0
    await service.stop()
