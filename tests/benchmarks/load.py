"""Load: wrk for the most that a server can take, and a generator of our own for a constant rate, which wrk has not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from socket import SHUT_RD
from threading import Thread
from urllib.parse import urlsplit

from tests.benchmarks.data import ROOT
from tests.benchmarks.subjects import Server, require

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True)
class Load:
    """What is sent: requests made of `lines` lines each of a file, for some seconds over some connections."""

    file: Path
    seconds: int
    connections: int = 64
    method: str = "POST"
    lines: int = 1


class Wrk:
    """Runs wrk, and remembers how busy it was: at 1.0 it would be what is measured."""

    def __init__(self) -> None:
        self.busiest = 0.0

    def rate(self, server: Server, load: Load) -> float:
        """Return the requests a second that were answered.

        Raises:
            RuntimeError: a request failed or was refused.
        """
        # A slow answer is no error: without a timeout of its own wrk counts what takes more than 2 s.
        flags = f"-t1 -c{load.connections} -d{load.seconds}s --timeout 60s -s".split()
        arguments = [str(WRK_SCRIPT), server.url, "--", load.method, str(load.file), str(load.lines)]
        output = _output([require("wrk", "wrk"), *flags, *arguments])
        figures = json.loads(output.partition("\nfigures ")[2])
        if figures["bad"] or not figures["requests"]:
            raise RuntimeError(f"{figures['bad']} requests failed:\n{output}")
        self.busiest = max(self.busiest, figures["busy"])
        return figures["requests"] / figures["seconds"]


@contextmanager
def watch(server: Server) -> Iterator[Callable[[], int]]:
    """Read the events of a server, as an open page does, until the end of the block; give the count of overviews so far."""
    overviews = 0
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", "/events?min_count=2")
    sock = connection.sock  # the connection forgets it with the answer, which only its shutdown ends

    def read() -> None:
        nonlocal overviews
        for line in events:
            overviews += line == b"event: overview\n"

    with connection.getresponse() as events:
        thread = Thread(target=read)
        thread.start()
        try:
            yield lambda: overviews
        finally:
            sock.shutdown(SHUT_RD)
            thread.join()


def paced(server: Server, load: Load, rate: float) -> dict[str, float]:
    """Send single posts at a constant rate; return latencies in milliseconds from the moment each was due, and `rate`."""
    arguments = [server.url, load.file, rate, load.seconds, load.connections]
    return json.loads(_output([sys.executable, "-m", "tests.benchmarks.paced", *map(str, arguments)]))


def commits(store: Path, uuids: int, count: int, *flags: str) -> dict[str, float]:
    """Commit batches of random scores in a process of its own; see tests/benchmarks/commits.py."""
    return json.loads(_output(_commits(store, uuids, count, *flags)))


def commits_killed(store: Path, uuids: int, count: int, *flags: str) -> None:
    """Commit likewise, in a process that ends by SIGKILL and so leaves its journal as it is."""
    _output([*_commits(store, uuids, count, *flags), "--kill"], expected=-signal.SIGKILL)


def _commits(store: Path, uuids: int, count: int, *flags: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.commits", str(store), str(uuids), str(count), *flags]


def _output(command: list[str], expected: int = 0) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
