"""Makes docs/cli.md from the commands: `python -m tests.reference`. A test holds it equal to them."""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

from scoremean.cli import parser

DOCS = Path(__file__).parents[1] / "docs"

_HEAD = """# Command line

Made from `scoremean --help` by `python -m tests.reference`; change the help in scoremean/cli.py and
scoremean/settings.py. Data goes to standard output, messages go to standard error.
"""


def pages() -> dict[Path, str]:
    """Return each file that is made, as the code wants it, by its path."""
    with mock.patch.dict("os.environ", {"COLUMNS": "100", "NO_COLOR": "1"}):
        return {DOCS / "cli.md": _cli(parser())}


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its name."""
    [verbs] = [action for action in top._actions if action.choices and not action.option_strings]  # pylint: disable=protected-access
    return verbs.choices


def _cli(top: argparse.ArgumentParser) -> str:
    return "\n".join([_HEAD, *(f"## {p.prog}\n\n```text\n{p.format_help()}```\n" for p in (top, *commands(top).values()))])


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
