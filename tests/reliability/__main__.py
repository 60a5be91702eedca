"""Runs the campaigns, each followed by the broken builds that it must catch, and writes docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.reliability import harness, page
from tests.reliability.campaign import CAMPAIGNS, Campaign
from tests.reliability.harness import RESULTS, Result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the forms for CI, in minutes; no page unless --output names one")
    parser.add_argument("--list", action="store_true", help="say which campaigns there are")
    text = "run only this one, and others if it is given again; the page keeps what it has of the rest"
    parser.add_argument("--only", metavar="NAME", action="append", help=text)
    parser.add_argument("--no-broken", action="store_true", help="leave the broken builds out")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"where the page goes [{page.PAGE.name} in docs]")
    options = parser.parse_args()
    options.only = options.only or list(CAMPAIGNS)
    if unknown := set(options.only) - set(CAMPAIGNS):
        parser.error(f"there is no campaign {sorted(unknown)[0]!r}; --list says which there are")
    return options


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(one: Campaign, options: argparse.Namespace) -> Result:
    """Run a campaign and its broken builds, print its figure, and return what came of it."""
    _tell(one.name)
    result = harness.run(one, short=options.short)
    print(f"{one.name}: {result.figure}", flush=True)
    if result.met is False:
        _tell(f"  missed: {one.goal}")
    broken: dict[str, str | None] = {}
    for name in () if options.no_broken or result.met is None else one.breaks:
        caught = harness.run(one, short=options.short, broken=name)
        if caught.met is None:
            continue  # what the campaign itself had, its broken build lacks: said by run
        is_caught = caught.met is False and not caught.failed
        broken[name] = caught.figure if is_caught else None
        _tell(f"  {name}: {'caught' if is_caught else 'NOT CAUGHT'}, {caught.figure}, {caught.seconds} s")
    result.broken = broken
    _tell(f"  {one.name} took {result.seconds} s")
    return result


def _good(result: Result) -> bool:
    if result.met is None:
        return not os.environ.get("CI")
    return result.met and all(result.broken.values())


def _main() -> int:
    harness.load()
    options = _options()
    if options.list:
        width = max(map(len, CAMPAIGNS))
        print("\n".join(f"{one.name:{width}}  {one.goal}" for one in CAMPAIGNS.values()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    results = {}
    for name in options.only:
        results[name] = _run(CAMPAIGNS[name], options)
        if not options.short:
            harness.keep(RESULTS, {name: results[name]})
    if options.output or not options.short:
        kept = harness.kept(RESULTS) if not options.short else results
        page.write(options.output or page.PAGE, kept)
    return 0 if all(map(_good, results.values())) else 1


if __name__ == "__main__":
    sys.exit(_main())
