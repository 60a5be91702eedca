"""The subjects: starts each server on a real disk and a free port, and ends it by the id of the process group it was given."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.data import CACHE, ROOT

PEERS = Path(__file__).with_name("peers")
PEERS_PYTHON = CACHE / "peers" / "bin" / "python"
PEERS_PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "redis[hiredis]", "asyncpg", "flask", "gunicorn")
START_SECONDS = 60

URL = re.compile(r"http://127\.0\.0\.1:\d+")
READY = re.compile(r"ready to accept connections", re.IGNORECASE)


class Missing(Exception):
    """A program that a row needs is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Server:
    """A server that runs: its process, and the address that it printed."""

    pid: int
    url: str


def require(name: str, package: str) -> str:
    """Return the path of a program. Raises Missing."""
    debian = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    found = debian[-1] if debian else shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed; `apt-get install -y --no-install-recommends {package}` installs it")
    return found


def require_peers(install: bool) -> None:
    """Make the peers' own environment if it is not there. Raises Missing if it is not to be made."""
    if PEERS_PYTHON.exists():
        return
    if not install:
        raise Missing("the peers' environment is not there; a run without --quick makes it")
    subprocess.run([sys.executable, "-m", "venv", CACHE / "peers"], check=True)
    subprocess.run([PEERS_PYTHON, "-m", "pip", "install", "--quiet", *PEERS_PACKAGES], check=True)


@contextmanager
def running(command: Sequence[str | Path], log: Path, ready: re.Pattern[str], **options: object) -> Iterator[Server]:
    """Run a server until the end of the block; it begins when the server has written what `ready` finds to its log."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # pylint: disable=consider-using-with  # ended below, with its children
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        found = _await(process, log, ready)
        if ready is URL:
            _await_answer(found)
        yield Server(process.pid, found)
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], log: Path, ready: re.Pattern[str]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while True:
        text = log.read_text(errors="replace")
        if found := ready.search(text):
            return found[0]
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args[0]} did not start:\n{text}")
        time.sleep(0.002)


def _await_answer(url: str) -> None:
    """Wait until a server that printed its address answers: uvicorn prints it before its workers listen."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS):
                return
        except urllib.error.HTTPError:  # a 404 is an answer
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        pass
    try:  # what is left of the group is of this server: a worker that outlived it
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def scoremean(work: Path, store: Path | str) -> AbstractContextManager[Server]:
    """Serve the store in a directory."""
    command = [sys.executable, "-m", "scoremean", "serve", "--store", store, "--port", "0"]
    return running(command, work / "scoremean.log", URL, cwd=ROOT)


def noop(work: Path) -> AbstractContextManager[Server]:
    """Serve constants."""
    return running([sys.executable, "-m", "tests.benchmarks.peers.noop"], work / "noop.log", URL, cwd=ROOT)


def import_scores(store: Path | str, scores: Path, *flags: str) -> float:
    """Import a file with `scoremean import` and return the seconds that the whole process took."""
    return seconds([sys.executable, "-m", "scoremean", "import", "--store", store, *flags, scores])


def seconds(command: Sequence[str | Path], **options: object) -> float:
    """Run a command to its end and return the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options
    )
    took = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout.decode(errors='replace')}")
    return took


@dataclass(frozen=True)
class Database:
    """A database that runs, or that needs no server: `load` counts a file of scores and returns the seconds it took."""

    name: str
    place: Path
    suffix: str
    load: Callable[[Path], float]
    clear: Callable[[], object]


@contextmanager
def redis(work: Path) -> Iterator[Database]:
    """Redis, durable at each answer, with nothing in it."""
    server, client = require("redis-server", "redis-server"), require("redis-cli", "redis-server")
    place = work / "redis"
    place.mkdir()
    socket = place / "redis.sock"
    options = f"--port 0 --unixsocket {socket} --dir {place} --appendonly yes --appendfsync always --save".split()
    with running([server, *options, ""], work / "redis.log", READY):
        command = [client, "-s", socket]

        def load(scores: Path) -> float:
            with scores.open("rb") as file:
                return seconds([*command, "--pipe"], stdin=file)

        yield Database("Redis, redis-cli --pipe", socket, ".resp", load, lambda: seconds([*command, "flushall"]))


TALLIES = "CREATE TABLE tallies (uuid text PRIMARY KEY, sum bigint NOT NULL, count bigint NOT NULL) WITH (fillfactor = 70)"
COPY = """
BEGIN;
CREATE TEMP TABLE scores (uuid text, score int) ON COMMIT DROP;
\\copy scores FROM '{}'
INSERT INTO tallies AS t SELECT uuid, sum(score), count(*) FROM scores GROUP BY uuid
ON CONFLICT (uuid) DO UPDATE SET sum = t.sum + EXCLUDED.sum, count = t.count + EXCLUDED.count;
COMMIT;
"""
POSTGRESQL_OPTIONS = {
    "listen_addresses": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "jit": "off",
}


@contextmanager
def postgresql(work: Path) -> Iterator[Database]:
    """PostgreSQL, durable at each answer, with an empty table."""
    initdb, server, client = (require(name, "postgresql") for name in ("initdb", "postgres", "psql"))
    place, user = work / "postgresql", {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    place.mkdir()
    if user:
        shutil.chown(place, "postgres", "postgres")
    seconds([initdb, "-D", place / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C"], **user)
    options = [part for name, value in POSTGRESQL_OPTIONS.items() for part in ("-c", f"{name}={value}")]
    with running([server, "-D", place / "data", "-k", place, *options], work / "postgresql.log", READY, cwd=place, **user):
        command = [client, "-h", place, "-U", "postgres", "-q", "-v", "ON_ERROR_STOP=1"]

        def load(scores: Path) -> float:
            return seconds(command, input=COPY.format(scores).encode())

        seconds([*command, "-c", TALLIES])
        clear = [*command, "-c", "TRUNCATE tallies"]
        yield Database("PostgreSQL, COPY and upsert", place, ".tsv", load, lambda: seconds(clear))


@contextmanager
def sqlite(work: Path) -> Iterator[Database]:
    """SQLite, durable at each commit, with no file yet."""
    place = work / "sqlite"
    place.mkdir()
    file = place / "tallies.db"

    def load(scores: Path) -> float:
        return seconds([sys.executable, PEERS / "sqlite_load.py", file, scores])

    def clear() -> None:
        for part in place.iterdir():
            part.unlink()

    yield Database("SQLite, executemany", file, ".tsv", load, clear)


UVICORN = ["-m", "uvicorn", "--port", "0", "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
GUNICORN = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--worker-class", "gthread", "--keep-alive", "60"]


@dataclass(frozen=True)
class Peer:
    """A web service over a database: its command, and the environment variables that tell it where the database is."""

    name: str
    database: Callable[[Path], AbstractContextManager[Database]]
    command: Sequence[str]
    variables: Callable[[Path], dict[str, str]]

    @contextmanager
    def serve(self, work: Path, preload: Callable[[str], Path]) -> Iterator[Server]:
        """Start the database, load the file that `preload` gives for its suffix, and serve."""
        with self.database(work) as database:
            database.load(preload(database.suffix))
            log = work / f"{self.name.replace(' ', '')}.log"
            variables = os.environ | self.variables(database.place)
            with running([PEERS_PYTHON, *self.command], log, URL, cwd=PEERS, env=variables) as server:
                yield server


def _socket(at: Path) -> dict[str, str]:
    return {"PEER_SOCKET": str(at), "PEER_POOL": "16"}


# Found by trying on 2 cores, each alone, in requests a second. PostgreSQL: 1 worker with a pool of 16, 32, 64: 4,900, 4,600,
# 4,300; 2 workers with 2, 4, 8, 16, 32 each: 3,000, 3,600, 4,700, 4,600, 4,200; commit_delay gave nothing. SQLite: 1 worker
# with 8 threads 1,200, with 64 1,000; 2 with 4 1,600; 4 with 2 or 16 1,700; 8 with 1 1,400; 4 of kind `sync` 1,500.
ALL_PEERS = (
    Peer("FastAPI + Redis", redis, [*UVICORN, "--workers", "2", "fastapi_redis:app"], _socket),
    Peer("FastAPI + Redis, one worker", redis, [*UVICORN, "--workers", "1", "fastapi_redis:app"], _socket),
    Peer("FastAPI + PostgreSQL", postgresql, [*UVICORN, "--workers", "2", "fastapi_postgresql:app"], _socket),
    Peer("FastAPI + PostgreSQL, one worker", postgresql, [*UVICORN, "--workers", "1", "fastapi_postgresql:app"], _socket),
    Peer(
        "Flask + SQLite",
        sqlite,
        [*GUNICORN, "--workers", "4", "--threads", "2", "flask_sqlite:app"],
        lambda at: {"PEER_DATABASE": str(at)},
    ),
)
