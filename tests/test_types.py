"""What a program with strict types sees of scoremean: mypy finds nothing in its examples, nor in a use of every public name."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import scoremean
from scoremean.client import Client, SyncClient
from tests.pages import DOCS, ROOT, blocks
from tests.support import require_library

TYPED = ROOT / "tests" / "typed.py"
PAGES = (ROOT / "README.md", DOCS / "tutorial.md", DOCS / "library.md", DOCS / "client.md")


def public(kind: type) -> set[str]:
    """Return the public methods and attributes of a class."""
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_public_name_is_used_with_its_type():
    """In the file that mypy reads below; what only the service uses of a store is none."""
    names = {*scoremean.__all__} | public(Client) | public(SyncClient) | public(scoremean.Store)
    internal = {"batches_max", "counts", "failed"}
    assert names - internal - set(re.findall(r"\w+", TYPED.read_text())) == set()


@pytest.mark.ci
def test_strict_types_find_no_fault(tmp_path):
    """As of one who has installed scoremean: what stands in scoremean itself is not told."""
    require_library("mypy")
    files = [TYPED]
    for page in PAGES:
        for number, block in enumerate(block for block in blocks(page) if block.kind == "python"):
            files.append(tmp_path / f"{page.stem}_{number}.py")
            files[-1].write_text(block.text)
    assert len(files) >= 7
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
