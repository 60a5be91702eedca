"""Makes docs/cli.md from the help of the commands: `python -m tests.reference`. A test holds the two equal."""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

from scoremean.cli import parser

CLI_PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

_HEAD = """# Command line

Made from `scoremean --help` by `python -m tests.reference`; change the help in scoremean/cli.py and
scoremean/settings.py. Data goes to standard output, messages go to standard error.
"""


def cli_page() -> str:
    """Return docs/cli.md as the code wants it."""
    with mock.patch.dict("os.environ", {"COLUMNS": "100", "NO_COLOR": "1"}):
        top = parser()
        return "\n".join([_HEAD, *(f"## {p.prog}\n\n```text\n{p.format_help()}```\n" for p in (top, *commands(top).values()))])


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its name."""
    [verbs] = [action for action in top._actions if action.choices and not action.option_strings]  # pylint: disable=protected-access
    return verbs.choices


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page())
