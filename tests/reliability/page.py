"""docs/reliability.md: the goals and figures first, then the broken builds, and a section for each campaign."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.data import ROOT
from tests.reliability.broken import BROKEN
from tests.reliability.campaign import CAMPAIGNS, Campaign
from tests.reliability.harness import Result

PAGE = ROOT / "docs" / "reliability.md"
COMMAND = "python -m tests.reliability"

INTRO = f"""# Reliability

Made by `{COMMAND}`; do not edit. Campaigns that try to break what
the README promises: they kill, cut, flood and starve real servers, and compare what is left with
what clients were told. And they are run against builds of scoremean that are broken on purpose, which they must catch, or their
zeros would mean nothing.

`.ci/run` runs short forms of all of them. The figures here are of the long forms.
"""

NOT_COVERED = """## What is not covered

- **A second machine.** The store is in one process with one disk. There are no replicas, so when the disk is
  lost, so is what was counted since the last backup.
- **Bytes that change at rest.** LMDB's pages have no checksums. A flipped bit in a page is found by `scoremean check` if it
  breaks the tree or an invariant, and not if it only makes one number another.
- **Real power cuts on real hardware.** Power cuts are played on loop devices and on recorded writes, and everything runs on a
  virtual machine's disk. A disk that says "synced" before it is breaks every promise here, and none of this can see it.
- **Years.** The longest run is minutes.
- **Memory that lies.** Nothing here flips bits in memory or makes allocations fail.
"""


def write(path: Path, results: Mapping[str, Result]) -> None:
    """Write the page of `results` to `path`."""
    path.write_text(text(results), encoding="utf-8")


def text(results: Mapping[str, Result]) -> str:
    """Return the page of `results`, in the order of CAMPAIGNS."""
    shown = [(one, results[name]) for name, one in CAMPAIGNS.items() if name in results]
    parts = [INTRO, _goals(shown), _broken(shown), NOT_COVERED, _machines(shown), "## The campaigns\n"]
    parts += [_section(one, result) for one, result in shown]
    return "\n".join(parts)


def _goals(shown: list[tuple[Campaign, Result]]) -> str:
    lines = ["## Goals\n", "| campaign | goal | figure | |", "|---|---|---|---|"]
    for one, result in shown:
        verdict = {True: "met", False: "**missed**", None: "not run"}[result.met]
        lines.append(f"| [{one.name}](#{_anchor(one.name)}) | {_cell(one.goal)} | {_cell(result.figure)} | {verdict} |")
    wanted = sum(len(result.broken) for _, result in shown)
    caught = sum(figure is not None for _, result in shown for figure in result.broken.values())
    verdict = "met" if caught == wanted else "**missed**"
    lines.append(f"| [broken builds](#broken-builds) caught | all | {caught} of {wanted} | {verdict} |")
    return "\n".join([*lines, ""])


def _broken(shown: list[tuple[Campaign, Result]]) -> str:
    lines = ["## Broken builds\n", "| build | what is broken | campaign | what it found |", "|---|---|---|---|"]
    for name, build in BROKEN.items():
        for one, result in shown:
            if name in result.broken:
                figure = result.broken[name]
                verdict = "**not caught**" if figure is None else _cell(figure)
                lines.append(f"| `{name}` | {_cell(build.what)} | [{one.name}](#{_anchor(one.name)}) | {verdict} |")
    return "\n".join([*lines, "", "Each is a few lines of Python in `tests/reliability/broken.py`.", ""])


def _machines(shown: list[tuple[Campaign, Result]]) -> str:
    """Return the machine of the newest result; all are of one, unless its section says otherwise."""
    newest = max((result for _, result in shown), key=lambda result: result.date, default=None)
    rows = [f"| {name} | {_cell(value)} |" for name, value in newest.machine.items()] if newest else []
    return "\n".join(["## Machine\n", "| | |", "|---|---|", *rows, ""])


def _section(one: Campaign, result: Result) -> str:
    run = f"{result.date}, commit {result.commit}, {result.seconds:,} s. Again: `{COMMAND} --only {_quoted(one.name)}`"
    return "\n".join([f"### {one.name}\n", inspect.cleandoc(one.run.__doc__ or ""), "", f"**{result.figure}.** {run}", ""])


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
