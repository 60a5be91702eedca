"""Measures scoremean and its peers, and writes docs/performance.md with charts; the full run takes about half an hour."""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import machine, page
from tests.benchmarks.data import CACHE, ROOT
from tests.benchmarks.rows import ROWS
from tests.benchmarks.run import FULL, QUICK, Result, Run
from tests.benchmarks.subjects import Missing

PAGE = ROOT / "docs" / "performance.md"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rows", metavar="NAME,...", help="measure only these; without --output their page is printed")
    parser.add_argument("--quick", action="store_true", help="little data, short rounds, no verdicts; skip missing peers")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes; its charts go to a folder beside it")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    options = parser.parse_args()
    options.rows = options.rows.split(",") if options.rows else list(ROWS)
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"there is no row {sorted(unknown)[0]}; --list says which there are")
    if options.output is None and not options.quick and options.rows == list(ROWS):
        options.output = PAGE
    return options


def _measure(run: Run, name: str) -> tuple[Result, bool]:
    """Return what a row measured, and whether it did not fail."""
    print(name, file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        return ROWS[name](run), True
    except Missing as error:
        return Result(notes=[f"Not measured: {error}."]), run.quick
    except (RuntimeError, OSError) as error:
        print(f"{name} failed: {error}", file=sys.stderr)
        return Result(notes=[f"Failed: {str(error).partition(chr(10))[0]}"]), False
    finally:
        print(f"  {name} took {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        run.clear()


def _main() -> int:
    options = _options()
    if options.list:
        print("\n".join(f"{name:12}{function.__doc__.partition(chr(10))[0]}" for name, function in ROWS.items()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    CACHE.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    work.chmod(0o755)  # PostgreSQL runs as a user of its own
    scale = QUICK if options.quick else FULL
    try:
        run = Run(scale, work, options.quick)
        results, good = {}, True
        for name in options.rows:
            results[name], fine = _measure(run, name)
            good = good and fine
        facts = {"Machine": machine.hardware(work), "Versions": machine.versions()}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    about = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "scale": " with --quick, so its figures say only that they can be measured" if options.quick else "",
        "rounds": scale.rounds,
        "seconds": scale.seconds,
        "judged": not options.quick,
    }
    if options.output:
        page.write(options.output, facts, results, about)
    else:
        print(page.text(facts, results, about))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(_main())
