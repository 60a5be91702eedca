"""The docs as a site: mkdocs builds it without a warning, every page is in its place, and nothing comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import DOCS, ROOT
from tests.support import require_library

pytestmark = pytest.mark.ci

CONFIG = ROOT / ".ci" / "mkdocs.yml"

# What a page would show of Markdown that the site does not understand, though forges may: a list or a table that follows a
# line of text, a fence.
LEAK = re.compile(r"^(- |\* |\d+\. |\||```)", re.MULTILINE)
FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//|url\(["']?(?:https?:)?//|@import""")


@pytest.fixture(name="site", scope="module")
def fixture_site(tmp_path_factory) -> Path:
    """The site, built in strict mode: a link or an anchor that leads nowhere, or a page that is not in it, is an error."""
    require_library("mkdocs")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", CONFIG, "--site-dir", site]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return site


def test_every_page_has_its_place(site):
    """In the navigation of the site, once; and is built."""
    listed = re.findall(r"^ *- (?:Home: )?([\w/-]+\.md)$", CONFIG.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    for page in listed:
        assert (site / page).with_suffix(".html").exists(), page


def test_the_site_asks_other_hosts_for_nothing(site):
    """It reads the same without a network: no font, script, style or picture is from elsewhere."""
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css"):
            assert not FETCHED.search(path.read_text()), path


def test_pages_read_on_the_site_as_they_do_on_a_forge(site):
    """No list, table or fence is shown as text."""
    for path in site.rglob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", path.read_text(), re.DOTALL):
            assert not LEAK.search(paragraph), f"{path}: {paragraph}"
