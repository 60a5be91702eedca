"""A reader who follows a page of the docs: types its commands into bash, in order, and sees whether what comes is as printed.

It alone knows what may differ from what is printed: the port, the folder, sizes on disk, and that installing was done before.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Self

from tests.support import require_program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# The kinds of blocks that are run or compared.
FOLLOWED = ("sh", "text", "python")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INSTALL = re.compile(r"^(python3 -m venv \.venv && )?\.venv/bin/pip install [^&\n]*(&& )?", re.MULTILINE)
_PRINTED_BESIDE = re.compile(r"  # (\{.*\})$", re.MULTILINE)
_FOLDER = "/home/you/scoremean"


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]


class Reader:
    """Follows a page in `folder`, where `.venv` is the environment of the tests. A context manager: ends what it has started.

    A block that serves is left running, as in a terminal of its own. A `text` block right after it is what the service prints
    first; any other is what was printed since the last one. A Python example is run twice, with whatever the page serves going
    on, and must leave no file.
    """

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._printed = ""
        self._greeting = ""
        self._served: subprocess.Popen[str] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        (folder / ".venv").symlink_to(sys.prefix)

    def __enter__(self) -> Self:
        require_program("curl", "curl")
        return self

    def __exit__(self, *_: object) -> None:
        if self._served is not None:
            if self._served.poll() is None:
                os.killpg(self._served.pid, signal.SIGKILL)
            self.wait()

    def follow(self, page: Path) -> int:
        """Do all that the page says and return how many blocks were run or compared."""
        return sum(self._take(block) for block in blocks(page) if block.kind in FOLLOWED)

    def run(self, commands: str) -> None:
        """Run commands that must succeed, and of which the shell must not complain."""
        done = subprocess.run(**self._shell(commands), stderr=subprocess.PIPE, timeout=60, check=False)
        assert done.returncode == 0 and "bash: " not in done.stderr, f"{commands}\n{done.stdout}{done.stderr}"
        self._greeting = ""
        self._printed += done.stdout
        if beside := _PRINTED_BESIDE.findall(commands):
            self._compare(done.stdout, "\n".join(beside) + "\n")
            self._printed = ""

    def wait(self) -> int:
        """Wait until the service that the page has stopped is gone, and return its exit code."""
        code = self._served.wait(timeout=60)
        self._served.stdout.close()
        return code

    def _take(self, block: Block) -> bool:
        if block.kind == "text" and self._greeting:
            self._greeting += "".join(self._served.stdout.readline() for _ in block.text.splitlines()[1:])
            self._compare(self._greeting, block.text)
        elif block.kind == "text":
            self._compare(self._printed, block.text)
            self._printed = ""
        elif block.text.rstrip().endswith("/pytest"):
            return False  # the tests are run already
        elif block.kind == "python":
            before = sorted(self._folder.iterdir())
            for _ in range(2):
                self.run(f".venv/bin/python - <<'END'\n{block.text}END\n")
            assert sorted(self._folder.iterdir()) == before
        elif "scoremean serve" in block.text:
            self._serve(block.text)
        else:
            self.run(block.text)
        return True

    def _serve(self, commands: str) -> None:
        """Start a service, and return once it listens."""
        if self._served is not None:
            self.wait()
        self._served = subprocess.Popen(**self._shell(commands), start_new_session=True)  # pylint: disable=consider-using-with
        self._greeting = self._served.stdout.readline()
        assert self._greeting.startswith("listening on "), self._greeting

    def _shell(self, commands: str) -> dict:
        commands = _INSTALL.sub("", commands).replace(":8080", f":{self._port}")
        return {
            # Whoever ends it, `timeout` does, so that nothing here waits for ever for a line that is not printed.
            "args": ["timeout", "60", "bash", "-euo", "pipefail", "-c", commands],
            "cwd": self._folder,
            "env": os.environ | {"SCOREMEAN_PORT": str(self._port), "no_proxy": "*"},
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "text": True,
        }

    def _compare(self, came: str, printed: str) -> None:
        assert self._plain(came) == self._plain(printed), f"came:\n{came}\nis printed:\n{printed}"

    def _plain(self, text: str) -> str:
        text = text.replace(f":{self._port}", ":8080").replace(str(self._folder), _FOLDER)
        return re.sub(r'("store_size_bytes"):\d+', r"\1:0", text)
