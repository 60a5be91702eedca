"""Floods and slow clients: what each connection may hold, in number and in time. The clock is told, not waited for."""

from __future__ import annotations

import asyncio
import math
import resource
from concurrent.futures import Future

import pytest
from aiohttp import ClientSession

from scoremean.app import Service, log_loop_error
from scoremean.model import Score, Tally
from scoremean.process import with_descriptors
from scoremean.settings import Settings
from scoremean.web.connection import REFUSED_MAX, Server
from tests.support import post
from tests.test_http import OK_BODY, raw_post, raw_request, read_response


@pytest.fixture(name="server")
def fixture_server(service: Service) -> Server:
    """The server of the service under test."""
    return service._server  # pylint: disable=protected-access


async def connect(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a new connection, which the service knows of."""
    server = service._server  # pylint: disable=protected-access
    before = len(server.connections)
    reader, writer = await asyncio.open_connection(*service.url.removeprefix("http://").split(":"), limit=1 << 12)
    while len(server.connections) == before:
        await asyncio.sleep(0)
    return reader, writer


async def closed(*connections: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Return once the service has closed these connections, without another word."""
    for reader, writer in connections:
        assert await reader.read() == b""
        writer.close()


def later(seconds: float) -> float:
    """Return the time of the event loop in so many seconds."""
    return asyncio.get_running_loop().time() + seconds


async def test_a_connection_on_which_nothing_is_asked_is_closed(service, server):
    """After header_timeout_seconds, and not before."""
    connection = await connect(service)
    server.sweep(later(9))
    assert not connection[0].at_eof()
    server.sweep(later(10))
    await closed(connection)


async def test_half_a_head_is_closed_however_it_drips(service, server):
    """The clock runs from the opening, or from the first byte of a later request; bytes that come in do not stop it."""
    first, second = await connect(service), await connect(service)
    second[1].write(raw_request("GET /livez"))
    assert (await read_response(second[0]))[0] == 200
    server.sweep(later(1000))  # idle between two requests is not this clock's
    await closed(first)
    [connection] = server.connections
    started = later(0)
    second[1].write(b"GET /live")
    while connection.header_due == math.inf:
        await asyncio.sleep(0)
    due = connection.header_due
    connection.data_received(b"z HTTP/1.1\r\n")
    assert connection.header_due == due >= started + 10
    server.sweep(due)
    await closed(second)


async def test_half_a_head_behind_a_request_is_closed(service, server):
    """Sent with it, or while the event loop turns back from its answer."""
    first, second = await connect(service), await connect(service)
    raw = raw_request("GET /livez")
    for (_, writer), connection in zip((first, second), server.connections):
        connection.data_received(raw + raw[:5])
        assert (await read_response((first, second)[server.connections.index(connection)][0]))[0] == 200
        writer.write(raw[5:9])
    while any(connection.header_due == math.inf for connection in server.connections):
        await asyncio.sleep(0)
    server.sweep(later(11))
    await closed(first, second)


async def test_a_body_does_not_start_the_clock_of_a_head(service, server, store, monkeypatch):
    """Nor does the time that a commit takes count."""
    commit, held = Future(), asyncio.Event()
    monkeypatch.setattr(store, "submit", lambda batch: held.set() or commit)
    reader, writer = await connect(service)
    [connection] = server.connections
    raw = raw_post()
    for part in (raw[:-20], raw[-20:-10], raw[-10:]):
        connection.data_received(part)
        assert connection.header_due == math.inf or not connection.payload
        await asyncio.sleep(0)
    await held.wait()
    server.sweep(later(1000))
    commit.set_result([Tally(5, 1)])
    assert (await read_response(reader))[0] == 200
    server.sweep(later(1000))
    writer.write(raw_request("GET /livez"))
    assert (await read_response(reader))[0] == 200
    writer.close()


async def test_a_head_in_time_stops_the_clock(service, server):
    """However it is cut."""
    reader, writer = await connect(service)
    [connection] = server.connections
    raw = raw_request("GET /livez")
    for part in (raw[:13], raw[13:-10], raw[-10:] + raw[:7], raw[7:]):
        connection.data_received(part)
    for _ in range(2):
        assert (await read_response(reader))[0] == 200
    server.sweep(later(1000))
    writer.write(raw_post())
    assert (await read_response(reader))[0] == 200
    writer.close()


async def test_an_idle_connection_is_closed(store):
    """By aiohttp's clock, after keepalive_timeout_seconds."""
    service = Service(Settings(port=0, keepalive_timeout_seconds=1), store, "1")
    await service.start()
    reader, writer = await connect(service)
    writer.write(raw_post())
    assert (await read_response(reader))[0] == 200
    await closed((reader, writer))
    await service.stop()


async def test_a_client_that_does_not_read_its_answers_is_cut_off(store, service, server):
    """After body_timeout_seconds, and more for a long answer; others are answered meanwhile."""
    store.commit([Score(f"{n:0200}", 1) for n in range(1000)])
    reader, writer = await connect(service)
    [connection] = server.connections
    writer.write(raw_request("GET /means?limit=1000") * 60)  # more than the kernel takes at once
    while not connection.writing_paused:
        await asyncio.sleep(0)
    size_bytes = connection.transport.get_write_buffer_size()
    server.sweep(later(1))
    assert server.connections == [connection]
    server.sweep(later(1 + size_bytes / (64 << 10)))
    while server.connections:
        await asyncio.sleep(0)
    async with ClientSession(service.url) as client:
        assert await post(client, "a", 5) == 5.0
    writer.close()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        while True:
            await reader.readexactly(1 << 12)


async def test_a_closed_connection_does_not_wait_for_its_client_for_ever(store, service, server):
    """What was written before may never be read."""
    store.commit([Score(f"{n:0200}", 1) for n in range(1000)])
    _, writer = await connect(service)
    [connection], [transport] = server.connections, server._connections.values()  # pylint: disable=protected-access
    writer.write(raw_request("GET /means?limit=1000") * 60)
    while not connection.writing_paused:
        await asyncio.sleep(0)
    connection.force_close()
    connection._answer_due = math.inf  # pylint: disable=protected-access
    server.sweep(later(0))
    assert transport.get_write_buffer_size()
    server.sweep(later(1))
    while server.connections:
        await asyncio.sleep(0)
    writer.close()


@pytest.fixture(name="small")
async def fixture_small(store):
    """A service that takes four connections."""
    service = Service(Settings(port=0, connections_max=4), store, "1")
    await service.start()
    yield service
    await service.stop()


async def test_connections_past_the_maximum_get_503(small, store):
    """With Retry-After, once; the routes of probes are answered; those that were there go on; a free place is taken again."""
    there = [await connect(small) for _ in range(4)]
    for raw, expected in ((raw_post(), 503), (raw_request("GET /nothing"), 503), (raw_request("GET /readyz"), 200)):
        reader, writer = await connect(small)
        writer.write(raw)
        status, headers, problem = await read_response(reader)
        assert (status, headers["connection"]) == (expected, "close")
        if status == 503:
            assert (problem["type"], headers["retry-after"]) == ("urn:scoremean:too-many-connections", "1")
        await closed((reader, writer))
    assert store.stats().scores == 0
    for reader, writer in there:
        writer.write(raw_post())
        assert (await read_response(reader))[0] == 200
        writer.close()
    while small._server.connections:  # pylint: disable=protected-access
        await asyncio.sleep(0)
    reader, writer = await connect(small)
    writer.write(raw_post())
    assert (await read_response(reader))[0] == 200
    writer.close()


async def test_a_flood_of_connections_is_closed_without_a_word(small, caplog):
    """Past those that get a 503, and nothing is logged."""
    address = small.url.removeprefix("http://").split(":")
    there = [await connect(small) for _ in range(4 + REFUSED_MAX)]
    for _ in range(10):
        await closed(await asyncio.open_connection(*address))
    for _, writer in there:
        writer.close()
    assert not caplog.records


async def test_where_it_is_crowded_idle_connections_make_room(small):
    """After a second; not one that has not asked yet."""
    server = small._server  # pylint: disable=protected-access
    idle = [await connect(small) for _ in range(3)]
    for reader, writer in idle:
        writer.write(raw_post())
        assert (await read_response(reader))[0] == 200
    server.sweep(later(5))
    assert len(server.connections) == 3
    new = await connect(small)
    server.sweep(later(0))
    server.sweep(later(5))
    await closed(*idle)
    new[1].write(raw_post())
    assert (await read_response(new[0]))[0] == 200
    new[1].close()


async def test_a_body_that_comes_during_a_stop_is_answered(service, server, store):
    """It was begun before; aiohttp would drop the rest of it."""
    reader, writer = await connect(service)
    writer.write(raw_post(body=OK_BODY[:5], length=len(OK_BODY)))
    [connection] = server.connections
    while connection.payload is None:
        await asyncio.sleep(0)
    stopping = asyncio.ensure_future(service.stop())
    for _ in range(10):
        await asyncio.sleep(0)
    assert connection._force_close is False  # pylint: disable=protected-access
    writer.write(OK_BODY[5:])
    assert (await read_response(reader))[0] == 200
    await stopping
    await closed((reader, writer))
    assert store.stats().scores == 1


async def test_a_body_that_never_comes_delays_a_stop_until_its_time_is_over(service, server):
    """And is told so."""
    reader, writer = await connect(service)
    writer.write(raw_post(body=OK_BODY[:5], length=len(OK_BODY)))
    [connection] = server.connections
    while connection.payload is None:
        await asyncio.sleep(0)
    await service.stop()
    assert (await read_response(reader))[0] == 408
    await closed((reader, writer))


async def test_a_fault_of_the_outside_world_is_one_line(caplog):
    """Such as no more descriptors, which asyncio tells again and again; a bug is told with all there is."""
    loop = asyncio.get_running_loop()
    log_loop_error(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many files")})
    assert caplog.messages == ["socket.accept() out of system resource: [Errno 24] Too many files"]
    assert caplog.records[0].exc_info is None
    log_loop_error(loop, {"message": "a bug", "exception": ValueError("oops")})
    assert caplog.records[1].exc_info is not None


@pytest.fixture(name="limits")
def fixture_limits(monkeypatch):
    """The limits of open files of this process, which are not really changed."""
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    return limits


def test_as_many_files_may_be_opened_as_can_be(limits, caplog):
    """And no more connections are taken than that allows, which is logged."""
    assert with_descriptors(Settings(connections_max=3000)).connections_max == 3000
    assert limits == [4096, 4096] and not caplog.records
    assert with_descriptors(Settings(connections_max=4000)).connections_max == 4096 - 128
    assert "connections_max is 3968: this process may open no more than 4096 files" in caplog.text
    limits[:] = [100, resource.RLIM_INFINITY]
    assert with_descriptors(Settings(connections_max=1 << 20)).connections_max == 1 << 20
    limits[:] = [100, 100]
    assert with_descriptors(Settings()).connections_max == 1


async def test_a_client_that_goes_away_does_not_cancel_its_request(server):
    """A score that is being counted has no way back."""
    assert server.handler_cancellation is False
