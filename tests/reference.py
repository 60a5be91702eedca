"""Makes docs/cli.md, the man page and the shell completions from the commands: `python -m tests.reference`.

A test holds them equal to the commands.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from unittest import mock

import shtab
from argparse_manpage.manpage import Manpage

from scoremean.cli import parser

DOCS = Path(__file__).parents[1] / "docs"

_HEAD = """# Command line

Made from `scoremean --help` by `python -m tests.reference`; change the help in scoremean/cli.py and
scoremean/settings.py. Data goes to standard output, messages go to standard error.
"""

# What a shell completes where the help says one of these.
_PATHS = {name: shtab.FILE for name in ("FILE", "TOKEN_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "UNIX_SOCKET")}
_PATHS |= {name: shtab.DIRECTORY for name in ("DIR", "STORE")}


def pages() -> dict[Path, str]:
    """Return each file that is made, as the code wants it, by its path."""
    with mock.patch.dict("os.environ", {"COLUMNS": "100", "NO_COLOR": "1"}):
        return {
            DOCS / "cli.md": _cli(parser()),
            DOCS / "deploy" / "scoremean.1": _man(parser()),
            DOCS / "deploy" / "scoremean.bash": shtab.complete(_with_paths(parser()), "bash"),
            DOCS / "deploy" / "_scoremean": shtab.complete(_with_paths(parser()), "zsh"),
            DOCS / "deploy" / "scoremean.fish": shtab.complete(_with_paths(parser()), "fish"),
        }


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its name."""
    [verbs] = [action for action in top._actions if action.choices and not action.option_strings]  # pylint: disable=protected-access
    return verbs.choices


def _cli(top: argparse.ArgumentParser) -> str:
    return "\n".join([_HEAD, *(f"## {p.prog}\n\n```text\n{p.format_help()}```\n" for p in (top, *commands(top).values()))])


def _man(top: argparse.ArgumentParser) -> str:
    man = Manpage(top, format="single-commands-section")
    summary = importlib.metadata.metadata("scoremean")["Summary"]
    man.description = summary[0].lower() + summary[1:]
    man.manual = "scoremean"
    man.date = ""  # or the page would change every day
    with mock.patch.dict("os.environ", {"COLUMNS": "10000"}):  # lines are filled when it is shown
        return str(man)


def _with_paths(top: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return `top` with what shtab is to complete."""
    for command in commands(top).values():
        for action in command._actions:  # pylint: disable=protected-access
            if action.metavar in _PATHS:
                action.complete = _PATHS[action.metavar]
    return top


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
