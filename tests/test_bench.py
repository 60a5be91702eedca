"""The bench: what it counts is what the store has, what fails is reported, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from unittest import mock

import pytest
from yarl import URL

from scoremean import bench, cli
from scoremean.bench import GET, POST, Plan, Report, Row
from scoremean.errors import ListenError, Unavailable
from tests.support import Server, assert_sound

SMALL = ["--duration-seconds", "0.2", "--connections", "4", "--uuids", "100"]
OK = b'HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\nDate: y\r\n\r\n{}'
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length:4\r\n\r\nbusy"


@contextlib.asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[URL]:
    """Serve connections that answer each request with the next of `answers`; an empty one hangs up."""
    script = itertools.cycle(answers)
    opened = []

    class Scripted(asyncio.Protocol):
        """One connection."""

        def connection_made(self, transport):
            opened.append(transport)
            self.transport = transport  # pylint: disable=attribute-defined-outside-init

        def data_received(self, data):
            if answer := next(script):
                self.transport.write(answer)
            else:
                self.transport.close()

    async with await asyncio.get_running_loop().create_server(Scripted, "127.0.0.1", 0) as server:
        yield URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for transport in opened:
            transport.abort()
        await asyncio.sleep(0)


def requests() -> Iterator[bytes]:
    """Return any requests."""
    return itertools.repeat(b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("uvloop", [True, False])
def test_it_starts_a_service_and_leaves_nothing(tmp_path, capsys, monkeypatch, uvloop):
    """One JSON object; every row answered without an error; the store is gone, and no progress is shown off a terminal."""
    if not uvloop:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    assert cli.main(["bench", "--store", str(tmp_path), "--json", *SMALL]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert output.err == ""
    assert report["machine"].endswith(", uvloop" if uvloop else ", asyncio")
    assert (report["connections"], report["uuids"], report["errors"], report["first_error"]) == (4, 100, 0, None)
    assert [row["request"] for row in report["rows"]] == [POST, f"{POST}, no-op", GET, f"{GET}, no-op"]
    for row in report["rows"]:
        assert row["answered"] >= 4 * bench.ROUNDS and row["errors"] == 0
        assert row["requests_per_second"] > 0 and row["to_noop"] > 0
        assert list(row["latency_milliseconds"].values()) == sorted(row["latency_milliseconds"].values())
    assert not list(tmp_path.iterdir())


def test_what_was_answered_is_in_the_store(tmp_path, capsys):
    """Each score, once, under the UUIDs that it says; and the service goes on."""
    with Server(tmp_path / "store", "--score-min", "-7", "--score-max", "9") as server:
        flags = ["--score-min=-7", "--score-max=9", "--store", str(tmp_path / "none")]
        assert cli.main(["bench", "--url", server.url, "--json", *SMALL, *flags]) == 0
        output = capsys.readouterr()
        server.terminate()
        assert server.wait()[0] == 0
    report = json.loads(output.out)
    assert output.err == f"scoremean: counting real scores at {server.url}; docs/bench.md says how to remove them\n"
    assert cli.main(["stats", "--store", str(server.store)]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert (stats["uuids"], stats["scores"], stats["ids"]) == (100, report["scores_counted"], 0)
    assert report["scores_counted"] == 100 + report["rows"][0]["answered"]
    assert cli.main(["get", "bench-000000099", "--store", str(server.store)]) == 0
    mean = json.loads(capsys.readouterr().out)
    assert mean["sum"] == 9 * (mean["count"] - 1) - 7
    assert_sound(server.store)


def test_failed_requests_are_reported(tmp_path, capsys, monkeypatch):
    """Every second one is for a route that is not there: the table is printed, and the exit code is 1."""
    paths = [b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in (b"means/bench-000000000", b"none")]
    monkeypatch.setattr(bench, "_requests", lambda *_: itertools.cycle(paths))
    assert cli.main(["bench", "--store", str(tmp_path), *SMALL]) == 1
    output = capsys.readouterr()
    assert output.out.startswith(f"{os.cpu_count()} CPUs, Python ")
    assert re.match("scoremean: [0-9]+ requests failed; the first: 404 '.*unknown-route.*'\n$", output.err)


def test_a_round_in_which_everything_fails_ends_it(tmp_path, capsys, monkeypatch):
    """There is nothing to put into a table."""
    monkeypatch.setattr(bench, "_requests", lambda *_: itertools.repeat(b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert cli.main(["bench", "--store", str(tmp_path), *SMALL]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.match("scoremean: each POST /scores failed, [0-9]+ of them; the first: 404 '.*unknown-route.*'\n$", output.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--connections", "0"], 2, "--connections must be above 0 and at most 10000; it is 0"),
        (["--uuids", "-1"], 2, "--uuids must be above 0 and at most 1000000000; it is -1"),
        (["--duration-seconds", "0"], 2, "--duration-seconds must be above 0 and at most 3600; it is 0.0"),
        (["--duration-seconds", "nan"], 2, "it is nan"),
        (["--duration-seconds", "inf"], 2, "it is inf"),
        (["--url", "localhost:8080"], 2, "--url must be an http URL such as http://127.0.0.1:8080; it is 'localhost:8080'"),
        (["--url", "https://localhost"], 2, "--url must be"),
        (["--url", "http://me@localhost"], 2, "--url must be"),
        (["--url", "http://localhost:x"], 2, "--url must be"),
        (["--url", "http://localhost/?a"], 2, "--url must be"),
        (["--store", "/proc/none"], 3, "cannot make a temporary store in /proc/none: No such file or directory"),
        (["--url", "http://127.0.0.1:1"], 1, "no answer from http://127.0.0.1:1 in 1 attempts"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_and_its_exit_code(capsys, flags, code, message):
    """On standard error; nothing on standard output."""
    assert cli.main(["bench", *flags]) == code
    output = capsys.readouterr()
    assert output.out == "" and message in output.err.splitlines()[-1]


def test_what_is_no_number_is_refused():
    """As argparse does it."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "--uuids", "many"])


async def test_a_service_that_does_not_start():
    """Its own reason is given; cli makes it exit code 3."""
    with pytest.raises(ListenError, match="^scoremean did not start: cannot open the store /proc/none: No such file"):
        async with bench._started("scoremean", "serve", "--store=/proc/none"):  # pylint: disable=protected-access
            pass


def test_an_interrupt_ends_everything(tmp_path):
    """SIGINT in the first round, seen by the progress that a terminal gets: no process and no file is left."""
    terminal, standard_error = pty.openpty()
    command = [sys.executable, "-m", "scoremean", "bench", "--store", str(tmp_path), "--duration-seconds", "3600"]
    process = subprocess.Popen(  # pylint: disable=consider-using-with  # waited for below
        command, stdout=subprocess.PIPE, stderr=standard_error, start_new_session=True
    )
    os.close(standard_error)
    shown = b""
    while b"round 1 of 5: POST /scores" not in shown:
        shown += os.read(terminal, 1000)
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == b"" and process.returncode == 1
    assert os.read(terminal, 1000).endswith(b"scoremean: stopped before everything was measured\r\n")
    os.close(terminal)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


async def test_other_answers_are_errors_and_not_in_the_figures():
    """Every second one is a 503; each request sent is one or the other."""
    async with scripted(OK, BUSY) as url:
        result = await bench.load(url, requests(), 1, 0.1)
    assert 0 <= len(result.latencies_seconds) - result.errors <= 1
    assert result.errors and result.first_error == "503 'busy'"


@pytest.mark.parametrize("size", [1, 7, len(OK) - 1, len(OK)])
async def test_an_answer_in_parts_is_one_answer(size):
    """However it is cut; it is not counted before its last byte, and then the next request is sent."""
    result, transport = bench.Round(), mock.Mock()
    connection = bench._Connection(iter([b"first", b"second"]), result)  # pylint: disable=protected-access
    connection.connection_made(transport)
    connection.start(0.0, math.inf)
    for start in range(0, len(OK), size):
        assert transport.write.call_args_list == [mock.call(b"first")] and not result.latencies_seconds
        connection.data_received(OK[start : start + size])
    assert transport.write.call_args_list == [mock.call(b"first"), mock.call(b"second")]
    assert len(result.latencies_seconds) == 1 and result.errors == 0


async def test_a_cut_connection_is_an_error_and_ends():
    """It is not opened again."""
    async with scripted(b"") as url:
        result = await bench.load(url, requests(), 3, 0)
    assert (len(result.latencies_seconds), result.errors) == (0, 3)
    assert result.first_error == "the connection was cut before the answer"


async def test_no_answer_and_no_service(monkeypatch):
    """Neither is waited for without end."""
    monkeypatch.setattr(bench, "ANSWER_MAX_SECONDS", 0)
    async with scripted(OK[:-1]) as url:
        with pytest.raises(Unavailable, match="left a request without an answer for 0 seconds"):
            await bench.load(url, requests(), 2, 0)
    with pytest.raises(Unavailable, match=f"cannot connect to {url}"):
        await bench.load(url, requests(), 1, 0)


def test_requests():
    """Whole requests of HTTP/1.1, also behind a path and an IPv6 address."""
    url, plan = "http://[::1]:80/a%20b/", Plan(uuids=1, score_max=10)
    post = next(bench._requests(plan, url, POST))  # pylint: disable=protected-access
    head, _, body = post.partition(b"\r\n\r\n")
    assert body == b'{"UUID":"bench-000000000","score":10}'
    assert head.split(b"\r\n") == [
        b"POST /a%20b/scores HTTP/1.1", b"Host: [::1]", b"Content-Type: application/json", b"Content-Length: 37"
    ]  # fmt: skip
    get = next(bench._requests(plan, url, GET))  # pylint: disable=protected-access
    assert get == b"GET /a%20b/means/bench-000000000 HTTP/1.1\r\nHost: [::1]\r\n\r\n"


def test_percentiles_are_nearest_ranks():
    """In milliseconds, in any order of the latencies."""
    thousand = [number / 1000 for number in range(1000, 0, -1)]
    assert bench.percentiles(thousand) == {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}
    assert bench.percentiles([0.002, 0.001, 0.003]) == {"p50": 2, "p90": 3, "p99": 3, "p99.9": 3, "max": 3}
    assert set(bench.percentiles([0.0015]).values()) == {1.5}


def test_the_table():
    """One line a row under a heading, and what the figures are worth."""
    latencies = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 40.0, "max": 500.25}
    rows = [Row(POST, 12345.6, 0.756, 9, 0, latencies), Row(f"{GET}, no-op", 9.0, 1.0, 9, 0, latencies)]
    lines = bench.table(Report("1 CPU", 64, 100_000, 5, 0.2, 9, rows, 0, None)).splitlines()
    assert lines[0] == "1 CPU; 64 connections, 100,000 UUIDs, 5 rounds of 0.2 s"
    assert lines[2].split() == "requests/s to no-op p50 ms p90 ms p99 ms p99.9 ms max ms".split()
    assert lines[3].split() == "POST /scores 12,346 0.76 1.00 2.00 3.00 40.00 500.25".split()
    assert len({len(line) for line in lines[2:5]}) == 1
    assert "lower bound" in lines[-1] and "wrk" in lines[-1]
