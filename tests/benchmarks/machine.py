"""What the figures were measured on: the machine, and the version of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import subjects
from tests.benchmarks.data import ROOT

OWN_PACKAGES = ("aiohttp", "uvloop", "lmdb", "msgpack", "msgspec")
PEER_PACKAGES = tuple("fastapi starlette pydantic uvicorn uvloop httptools redis hiredis asyncpg flask gunicorn".split())
PROGRAMS = (("wrk", "wrk", "wrk"), ("Redis", "redis-server", "redis-server"), ("PostgreSQL", "postgres", "postgresql"))


def hardware(work: Path) -> dict[str, str]:
    """Return the facts of the machine, and of the disk under `work`, by their name."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    return {
        "CPU": f"{model[1] if model else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "Memory": f"{int(memory[1]) / (1 << 20):.1f} GiB",
        "Kernel": f"{platform.system()} {platform.release()}",
        "File system": _file_system(work),
        "Disk": f"a write of 4 KiB and its sync take {_sync_ms(work):.2f} ms (median of 200)",
    }


def _file_system(path: Path) -> str:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    _, place, kind, options, *_ = max((mount for mount in mounts if path.is_relative_to(mount[1])), key=lambda one: len(one[1]))
    return f"{kind} on {place} ({options})"


def _sync_ms(path: Path) -> float:
    times = []
    with (path / "sync").open("wb") as file:
        for _ in range(200):
            start = time.perf_counter()
            os.pwrite(file.fileno(), bytes(4096), 0)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def versions() -> dict[str, str]:
    """Return the version of all that is installed, by its name."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    changed = ", with changes that are not committed" if _first(["git", "status", "--porcelain", "scoremean"]) else ""
    commit = _first(["git", "rev-parse", "--short=12", "HEAD"])
    yield "scoremean", f"{importlib.metadata.version('scoremean')}, commit {commit or 'unknown'}{changed}"
    yield "Python", platform.python_version()
    yield "scoremean and the no-op on", ", ".join(f"{name} {_installed(name)}" for name in OWN_PACKAGES)
    for name, program, package in PROGRAMS:
        try:
            found = re.search(r"\d+\.[\w.+-]+", _first([subjects.require(program, package), "--version"]))
            yield name, found[0] if found else "unknown"
        except subjects.Missing:
            yield name, "not installed"
    yield "SQLite", sqlite3.sqlite_version
    yield "the peers on", _peer_packages()


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _peer_packages() -> str:
    if not subjects.PEERS_PYTHON.exists():
        return "not installed"
    script = f"import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in {PEER_PACKAGES}))"
    return _first([str(subjects.PEERS_PYTHON), "-c", script])


def _first(command: list[str]) -> str:
    """Return the first line that a command prints; nothing if it is not there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.partition("\n")[0].strip()
