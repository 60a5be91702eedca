"""What a campaign is: a name, a goal, and a function that tries to break a promise and says how often it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Missing(Exception):
    """A campaign cannot run here; the message says what it needs."""


class Unable(Missing):
    """A campaign needs what no package brings, such as the right to mount a file system."""


class Finding(NamedTuple):
    """What a run found: the figure, as it stands in docs/reliability.md, and whether the goal was met."""

    figure: str
    met: bool


@dataclass(frozen=True)
class Trial:
    """One run of a campaign.

    Attributes:
        work: an empty directory on a real disk, removed after the run.
        short: run the form for CI, in well under a minute.
        broken: the name of a broken build in tests/reliability/broken.py to run against; None for scoremean as it is.
    """

    work: Path
    short: bool
    broken: str | None = None


@dataclass(frozen=True)
class Campaign:
    """A campaign of CAMPAIGNS.

    Attributes:
        goal: what docs/reliability.md says is to be reached.
        breaks: the broken builds that it must catch: with each of them `run` must not meet its goal.
        run: does it. Its docstring says in a few sentences how, for docs/reliability.md.
    """

    name: str
    goal: str
    breaks: tuple[str, ...]
    run: Callable[[Trial], Finding]


CAMPAIGNS: dict[str, Campaign] = {}


def campaign(name: str, goal: str, *breaks: str) -> Callable[[Callable[[Trial], Finding]], Callable[[Trial], Finding]]:
    """Put the function that is decorated into CAMPAIGNS."""

    def register(run: Callable[[Trial], Finding]) -> Callable[[Trial], Finding]:
        CAMPAIGNS[name] = Campaign(name, goal, breaks, run)
        return run

    return register
