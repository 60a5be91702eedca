"""The campaigns in their short forms: scoremean meets every goal, and with each broken build a goal is missed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from tests.benchmarks.data import ROOT
from tests.reliability import harness, page
from tests.reliability.broken import BROKEN
from tests.reliability.campaign import CAMPAIGNS, Finding, Missing, Trial, Unable
from tests.reliability.disk_mount import Ext4
from tests.reliability.harness import Result
from tests.reliability.history import SEED_SCORES, SEED_SUM, History, Read
from tests.reliability.ledger import Ledger, Request, explain, torn

pytestmark = pytest.mark.ci

harness.load()

BREAKS = [(name, broken) for name, one in CAMPAIGNS.items() for broken in one.breaks]


@contextmanager
def skipping() -> Iterator[None]:
    """Skip what cannot run here. In CI that is a failure, if a package could help."""
    try:
        yield
    except Missing as missing:
        if isinstance(missing, Unable) or not os.environ.get("CI"):
            pytest.skip(str(missing))
        raise


def run(name: str, broken: str | None = None) -> Finding:
    """Run the short form."""
    with harness.workspace() as work, skipping():
        return CAMPAIGNS[name].run(Trial(work, True, broken))


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_campaign_meets_its_goal(name):
    """Nothing is lost, and so on: docs/reliability.md has the goals."""
    finding = run(name)
    assert finding.met, finding.figure


@pytest.mark.parametrize(("name", "broken"), BREAKS)
def test_a_campaign_catches_its_broken_builds(name, broken):
    """The same campaign misses its goal with each of them."""
    finding = run(name, broken)
    assert not finding.met, finding.figure


def test_the_power_is_back_when_the_disk_is_mounted_again(tmp_path):
    """Also where a process has taken a copy of the mounts meanwhile, as sandboxes do, and so keeps what was unmounted alive."""
    copy = ["sh", "-c", "read _ && exec unshare --mount sh -c 'echo && read _'"]
    with subprocess.Popen(copy, stdin=PIPE, stdout=PIPE) as other, skipping(), Ext4(tmp_path, 16) as disk:
        other.stdin.write(b"\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"\n"
        disk.cut_power()
        with pytest.raises(OSError):
            (disk.path / "file").write_bytes(b"")
        disk.unmount()
        disk.mount()
        (disk.path / "file").write_bytes(b"")
        other.communicate(b"\n")


def test_every_broken_build_is_for_some_campaign():
    """And each that a campaign names is there."""
    assert {broken for _, broken in BREAKS} == set(BROKEN)


def test_the_command_lists_every_campaign_and_refuses_others():
    """By their names, with their goals."""
    command = [sys.executable, "-m", "tests.reliability"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.partition("  ")[0] for line in listed.splitlines()] == list(CAMPAIGNS)
    done = subprocess.run([*command, "--only", "soak", "--only", "soka"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no campaign 'soka'" in done.stderr


def test_the_page_shows_goals_figures_and_what_was_caught(tmp_path):
    """Also of campaigns that could not run; results are kept from run to run."""
    path = tmp_path / "kept.json"
    caught = {"leak": "memory grew"}
    harness.keep(path, {"kill -9": Result("1 lost", False, broken={"answer-before-commit": None}, date="2026-11-24")})
    harness.keep(path, {"soak": Result("none", True, broken=caught, date="2026-11-23", machine={"CPU": "a|b"})})
    text = page.text(harness.kept(path))
    assert f"| [kill -9](#kill--9) | {CAMPAIGNS['kill -9'].goal} | 1 lost | **missed** |" in text
    assert f"| [soak](#soak) | {CAMPAIGNS['soak'].goal} | none | met |" in text
    assert "| [broken builds](#broken-builds) caught | all | 1 of 2 | **missed** |" in text
    assert "| [soak](#soak) | memory grew |" in text and "| [kill -9](#kill--9) | **not caught** |" in text
    assert "Again: `python -m tests.reliability --only 'kill -9'`" in text


def test_what_is_not_run_again_is_kept(tmp_path):
    """A campaign that cannot run here, and broken builds that are left out."""
    path, caught = tmp_path / "kept.json", {"leak": "memory grew"}
    harness.keep(path, {"soak": Result("none", True, broken=caught)})
    harness.keep(path, {"soak": Result("not run: needs root", None)})
    assert harness.kept(path)["soak"].figure == "none"
    harness.keep(path, {"soak": Result("some", False)})
    assert (harness.kept(path)["soak"].figure, harness.kept(path)["soak"].broken) == ("some", caught)


def test_a_ledger_tells_lost_double_and_torn():
    """From the tallies alone: two requests without an answer, one of which is counted for one of its UUIDs."""
    ledger = Ledger(random.Random(1))
    ledger.known["a"] = (10, 2)
    one, both = Request(b"", {"a": (7, 1)}, []), Request(b"", {"a": (30, 1), "b": (5, 1)}, [])
    whole = {"a": (40, 3), "b": (5, 1)}
    assert explain(ledger, whole, [one, both]) == (Counter(), {both: {"a", "b"}})
    off, counted = explain(ledger, {"a": (40, 3), "b": (0, 0)}, [one, both])
    assert (off, torn(counted, off, whole)) == (Counter(), 1)
    assert explain(ledger, {"a": (3, 1)}, [one, both])[0] == {"a": -1}
    assert explain(ledger, {"a": (24, 4)}, [one, both])[0] == {"a": 2}


def test_a_history_tells_what_is_against_real_time():
    """Whole as long as the read that found less ended before the score, or overlaps it."""
    history = History("a", SEED_SCORES + 1)
    history.post((SEED_SUM + 5) / (SEED_SCORES + 1), 5, start=1.0, end=2.0)
    history.reads.append(Read(SEED_SCORES, SEED_SUM, start=1.5, end=3.0))
    assert not history.check()
    history.reads.append(Read(SEED_SCORES, SEED_SUM, start=2.5, end=3.0))
    assert history.check() == {"against real time": 1}


def test_an_error_of_a_campaign_is_neither_met_nor_caught(monkeypatch):
    """It ends that campaign only."""

    def fail(_: Trial) -> Finding:
        raise RuntimeError("no server")

    one = CAMPAIGNS["soak"]
    monkeypatch.setattr(harness.traceback, "print_exc", lambda: None)
    result = harness.run(type(one)(one.name, one.goal, (), fail), short=True)
    assert (result.figure, result.met, result.failed) == ("failed: no server", False, True)
