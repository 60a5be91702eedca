"""One line an event, not too many a second, and what of a request is in them."""

from __future__ import annotations

import io
import json
import logging

import pytest
from aiohttp import ClientSession
from msgspec.structs import replace

from scoremean.app import Service
from scoremean.logs import LINES_PER_SECOND, JsonFormatter, LimitedHandler, TextFormatter, log_access
from tests.support import Server


@pytest.fixture(name="stream")
def fixture_stream():
    """What a log is written to."""
    return io.StringIO()


def logger_to(stream, form: logging.Formatter | None = None, clock=lambda: 1.0, name: str = "test") -> logging.Logger:
    """Return a logger that writes to `stream`."""
    logger = logging.Logger(name)
    handler = LimitedHandler(stream, clock=clock)
    handler.setFormatter(form)
    logger.addHandler(handler)
    return logger


def fail(logger: logging.Logger, **extra: object) -> None:
    """Log an error with its traceback."""
    try:
        raise ValueError("oops\nmore")
    except ValueError:
        logger.exception("a bug\nhere", extra=extra)


def test_the_log_of_a_flood_is_short(stream):
    """Ten lines a second, and then how many were left out; what is critical is always written."""
    seconds = iter([1.0] * 50 + [1.9, 2.0])
    logger = logger_to(stream, clock=lambda: next(seconds))
    for n in range(50):
        logger.warning("bad %d", n)
    logger.critical("worse")
    lines = stream.getvalue().splitlines()
    assert lines[:LINES_PER_SECOND] == [f"bad {n}" for n in range(LINES_PER_SECOND)]
    assert lines[LINES_PER_SECOND:] == [
        "40 messages before the next one were left out: there were too many in a second",
        "worse",
    ]
    logger.warning("good")
    assert stream.getvalue().endswith("\nworse\ngood\n")


def test_an_event_is_one_line_of_text(stream):
    """With its traceback, and the id of the request that it belongs to."""
    fail(logger_to(stream, TextFormatter("worker 7: ")), fields={"request_id": "r-1"})
    [line] = stream.getvalue().splitlines()
    assert " ERROR worker 7: a bug | here | Traceback (most recent call last): | File " in line
    assert line.endswith(" | ValueError: oops | more request_id=r-1")


def test_an_event_is_one_json_object(stream):
    """With members of their own for what programs look for."""
    logger = logger_to(stream, JsonFormatter())
    fail(logger, fields={"request_id": "r-1"})
    logger.info('said "%s"', "\x00\u2028é")
    first, second = map(json.loads, stream.getvalue().rstrip("\n").split("\n"))
    assert first | {"time": "", "process_id": 0, "exception": ""} == {
        "time": "",
        "level": "error",
        "logger": "test",
        "process_id": 0,
        "message": "a bug\nhere",
        "request_id": "r-1",
        "exception": "",
    }
    assert first["exception"].endswith("ValueError: oops\nmore")
    assert second["message"] == 'said "\x00\u2028é"'
    assert "exception" not in second and "request_id" not in second


def test_the_access_log_is_not_limited(stream, monkeypatch):
    """Whoever turned it on said how often."""
    logger = logger_to(stream, JsonFormatter(), name="scoremean.access_log")
    monkeypatch.setattr("scoremean.logs._access", logger)
    for _ in range(LINES_PER_SECOND + 1):
        log_access("GET", "/means/a%20b?x=1", 404, 0.00123456, "r-2")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == LINES_PER_SECOND + 1
    assert lines[0]["message"] == "GET /means/a%20b?x=1 404 in 0.001235 s"
    assert (lines[0]["method"], lines[0]["path"], lines[0]["status"]) == ("GET", "/means/a%20b?x=1", 404)
    assert (lines[0]["duration_seconds"], lines[0]["request_id"]) == (0.001235, "r-2")


@pytest.mark.parametrize(("every", "logged"), [(0, 0), (1, 6), (3, 2)])
async def test_one_of_so_many_requests_is_logged(settings, store, every, logged, caplog):
    """None by default."""
    caplog.set_level(logging.INFO)
    service = Service(replace(settings, access_log_every=every), store, "1.2.3")
    await service.start()
    async with ClientSession(service.url) as client:
        for _ in range(6):
            async with client.get("/livez", headers={"X-Request-Id": "mine"}) as response:
                assert response.status == 200
    await service.stop()
    lines = [record for record in caplog.records if record.name == "scoremean.access_log"]
    assert len(lines) == logged
    assert all(line.fields["request_id"] == "mine" and line.fields["path"] == "/livez" for line in lines)


async def test_an_answer_has_the_id_of_its_request(client):
    """The client's own, if it can stand in a header and a log; else one that no other request has."""
    given = []
    for sent in (None, "", "a b", "x" * 129, "é"):
        headers = {} if sent is None else {"X-Request-Id": sent}
        async with client.get("/livez", headers=headers) as response:
            given.append(response.headers["X-Request-Id"])
            assert given[-1] != sent
    async with client.get("/nowhere") as response:
        given.append(response.headers["X-Request-Id"])
    assert len(set(given)) == len(given)
    for sent in ("r-1", "!~", "x" * 128):
        async with client.get("/means/nobody", headers={"X-Request-Id": sent}) as response:
            assert (response.status, response.headers["X-Request-Id"]) == (404, sent)


def test_what_a_server_says_has_the_format_asked_for(tmp_path):
    """And no less than the level."""
    with Server(tmp_path, "--log-format", "json") as server:
        server.terminate()
        _, messages = server.wait()
    assert [json.loads(line)["message"] for line in messages.splitlines()] == ["stopping: answering what is under way"]
    with Server(tmp_path, "--log-level", "warning") as server:
        server.terminate()
        assert server.wait() == (0, "")
