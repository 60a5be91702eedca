"""Runs one campaign in a directory of its own, and keeps what came of each for the page."""

from __future__ import annotations

import datetime
import importlib
import pkgutil
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct, field

from tests import reliability
from tests.benchmarks import machine
from tests.benchmarks.data import CACHE, ROOT
from tests.reliability.broken import BROKEN, Broken
from tests.reliability.campaign import CAMPAIGNS, Campaign, Missing, Trial

RESULTS = CACHE / "reliability.json"

# Modules in the order in which their campaigns run and stand on the page; those of others come last.
ORDER = ("kills", "disk", "disk_states", "history", "slow", "overload", "abuse", "clock", "fuzz", "files", "soak")


class Result(Struct):
    """What came of a campaign.

    Attributes:
        met: whether the goal was met; None if it could not run here.
        failed: whether it ended by an error of its own, which shows nothing.
        broken: the figure with each broken build that it had to catch; None for one that it did not catch.
        commit: of scoremean, with a `+` if there were changes that are not committed.
    """

    figure: str
    met: bool | None
    seconds: int = 0
    failed: bool = False
    broken: dict[str, str | None] = field(default_factory=dict)
    date: str = ""
    commit: str = ""
    machine: dict[str, str] = field(default_factory=dict)


def load() -> None:
    """Import every module of the package, so that CAMPAIGNS has all campaigns, in order, and BROKEN all broken builds."""
    for found in pkgutil.iter_modules(reliability.__path__):
        if not found.name.startswith("__"):
            module = importlib.import_module(f"{__package__}.{found.name}")
            BROKEN.update({build: Broken(*parts) for build, parts in getattr(module, "BROKEN_HERE", {}).items()})
    campaigns = sorted(CAMPAIGNS.values(), key=_place)
    CAMPAIGNS.clear()
    CAMPAIGNS.update({one.name: one for one in campaigns})


def _place(one: Campaign) -> int:
    module = one.run.__module__.rpartition(".")[2]
    return ORDER.index(module) if module in ORDER else len(ORDER)


@contextmanager
def workspace() -> Iterator[Path]:
    """Give an empty directory on the disk of the repository, and remove it."""
    CACHE.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="reliability-", dir=CACHE))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(one: Campaign, *, short: bool, broken: str | None = None) -> Result:
    """Run a campaign and return what came of it, whatever that is."""
    start = time.monotonic()
    with workspace() as work:
        facts = {} if short else machine.hardware(work)
        try:
            figure, met = one.run(Trial(work, short, broken))
            result = Result(figure, met)
        except Missing as missing:
            result = Result(f"not run: {missing}", None)
        except Exception as error:  # pylint: disable=broad-exception-caught  # one that fails must not end the others
            traceback.print_exc()
            result = Result(f"failed: {str(error).partition(chr(10))[0] or type(error).__name__}", False, failed=True)
    result.seconds = round(time.monotonic() - start)
    result.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    result.commit, result.machine = _commit(), facts
    return result


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "scoremean") else "")


def keep(path: Path, results: Mapping[str, Result]) -> None:
    """Put `results` among those that are kept at `path`.

    What could not be run leaves what is kept as it is, and so do broken builds that were not run.
    """
    every = kept(path)
    for name, result in results.items():
        if result.met is None and name in every:
            continue
        if not result.broken and name in every:
            result.broken = every[name].broken
        every[name] = result
    path.write_bytes(msgspec.json.format(msgspec.json.encode(every)))


def kept(path: Path) -> dict[str, Result]:
    """Return the results that are kept at `path`."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Result]) if path.exists() else {}
