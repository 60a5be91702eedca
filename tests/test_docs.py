"""The docs say what the code does: every setting, route, command, error and bad input, and examples that run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scoremean import errors
from scoremean.settings import SETTINGS
from scoremean.web.handlers import Handlers
from tests import reference
from tests.test_http import BAD_INPUT, BAD_REQUESTS
from tests.test_layers import LINE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """Return a page of the docs."""
    return (DOCS / name).read_text()


def headings(text: str) -> set[str]:
    """Return the text of all `###` headings."""
    return set(re.findall(r"^### (.*)$", text, re.MULTILINE))


def section(text: str, heading: str) -> str:
    """Return what stands under one `###` heading."""
    return text.partition(f"\n### {heading}\n")[2].partition("\n#")[0]


def error_classes() -> list[type[errors.ScoremeanError]]:
    """Return every error of the package."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ScoremeanError)]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_documented(name):
    """With its flag, its variable, its default and its bounds."""
    setting = SETTINGS[name]
    text = section(page("settings.md"), name)
    for part in (setting.flag, setting.variable, setting.default, setting.minimum, setting.maximum):
        assert part in (None, "") or f"`{part}`" in text, part
    assert ("default none" in text) == (setting.default == "")


def test_no_setting_is_documented_that_is_not_there():
    """A heading for each, and no more."""
    assert headings(page("settings.md")) == set(SETTINGS)


def test_the_routes_documented_are_the_routes():
    """A heading for each, and no more."""
    routes = Handlers(*[None] * 6).routes()
    assert headings(page("http.md")) == {f"{route.method} {route.path}" for route in routes}


def test_every_error_is_documented():
    """In the tree of errors.py; and what reaches a client also in docs/http.md, with its status."""
    for kind in error_classes():
        assert re.search(rf"\b{kind.__name__}\b", errors.__doc__), kind
    for kind in error_classes():
        if kind.status != 500 and kind not in (errors.RequestError, errors.Unavailable):  # bases, never raised themselves
            assert re.search(rf"\|.*`urn:scoremean:{kind.slug}`.*\| *{kind.status} *\|", page("http.md")), kind


def test_the_table_of_bad_input_is_the_one_that_is_tested():
    """The same rows with the same status, type and pointer."""
    rows = re.findall(r"^\| (.+?) \| (\d+) \| `(.+?)` \| (.*?) \|$", page("http.md").partition("## Bad input")[2], re.MULTILINE)
    documented = {name: (int(status), slug, pointer.strip("`")) for name, status, slug, pointer in rows}
    shown = {None: "", "": '""'}
    tested = {name: (status, slug, shown.get(at, at)) for name, (_, status, slug, at) in BAD_INPUT.items()}
    tested |= {name: (status, slug, "") for name, (_, status, slug) in BAD_REQUESTS.items()}
    assert {name: row for name, row in documented.items() if name in tested} == tested
    assert set(documented) - set(tested) == {"body that stops, connection open", "invalid UUID in the path", "path not UTF-8"}


def test_the_reference_is_the_help():
    """The page of the command line. Made again by `python -m tests.reference`."""
    for path, text in reference.pages().items():
        assert path.read_text() == text, path


def test_the_module_line_is_documented():
    """The architecture page names every module, in order."""
    text = re.sub(r"\s+", " ", page("architecture.md"))
    assert " < ".join(LINE) in text


def test_the_readme_is_short_and_its_commands_are_those_of_ci():
    """At most 150 lines; .ci/run takes the test command from it."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert sum(line.startswith("python3 -m venv .venv && .venv/bin/pip install") for line in lines) == 2
    assert sum(line.endswith(".venv/bin/pytest") for line in lines) == 1


def test_every_figure_of_the_readme_was_measured():
    """A number of its prose stands with its unit in a table of docs/performance.md, or here, where it measures nothing. So none
    is in words, "five times" or "half"."""
    prose = re.sub(r"(?ms)^```.*?^```|`[^`]*`|\]\(.*?\)", " ", (ROOT / "README.md").read_text())
    words, measured = [word.strip("*(.,;:)") for word in prose.split()], page("performance.md")
    of_no_measure = {"3.11", "0", "5", "73,421", "1,128", "200", "4xx", "507", "503"}
    for number, unit in zip(words, words[1:]):
        if re.fullmatch(r"\d.*|\S+ (times|tenths|percent)|(half|twice|double) (the|that|of|as)", f"{number} {unit}"):
            assert number in of_no_measure or f"| {number} {unit} |" in measured, f"{number} {unit}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Every relative link names a file that exists."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_page_is_in_the_index():
    """And nothing is only there by accident."""
    for path in DOCS.rglob("*.md"):
        assert path.name == "index.md" or f"({path.relative_to(DOCS)})" in page("index.md"), path
