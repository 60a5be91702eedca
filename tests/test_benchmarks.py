"""The benchmark command, at a scale that says nothing of speed: it measures real servers and writes its page."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.benchmarks.data import ROOT, uuid_at
from tests.benchmarks.page import chart
from tests.benchmarks.rows import ROWS
from tests.benchmarks.run import Figure, ratio
from tests.support import require_program

pytestmark = pytest.mark.ci


def command(*flags: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    arguments = [sys.executable, "-m", "tests.benchmarks", *map(str, flags)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_quick_run_writes_a_page_with_the_rows_that_were_asked_for(tmp_path):
    """With figures, goals, the machine, a chart, and the command that measures it again; and leaves nothing behind."""
    require_program("wrk", "wrk")
    done = command("--quick", "--rows", "single,import", "--output", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Goals", "Machine", "Versions", "single", "import"]
    for figure in (r"scoremean to the no-op \| [\d.]+ times", r"no-op \| [\d,]+ requests/s", r"ids on \| [\d,]+ scores/s"):
        assert re.search(rf"^\| {figure} \|", text, re.MULTILINE), text
    assert "Again: `python -m tests.benchmarks --rows single`" in text
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"single.svg", "import.svg"}
    assert not re.search(r"met|missed", text)


def test_the_list_names_every_row():
    """Each with the first line of what the page says of it."""
    lines = command("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(ROWS)
    assert all(len(line.split()) > 3 for line in lines)


def test_an_unknown_row_is_refused():
    """With the name, and where to find the right ones."""
    done = command("--rows", "single,doubel")
    assert done.returncode == 2
    assert "there is no row doubel; --list says" in done.stderr


def test_a_figure_is_the_median_and_a_ratio_that_of_each_round():
    """The second is not the ratio of the medians: the rounds 1/1, 2/8, 9/3 have the ratio 1."""
    figure = ratio("a to b", [1, 2, 9], [1, 8, 3], at_least=0.9)
    assert (figure.value, figure.met) == (1, True)
    assert Figure("p99", [4, 7, 6], "ms", at_most=5).met is False
    assert Figure("p99", [4, 7, 6], "ms").met is None


def test_uuids_ascend_and_differ():
    """So a store can be written in order, and the many need not be kept."""
    uuids = [uuid_at(index, 1000) for index in range(1000)]
    assert uuids == sorted(set(uuids))
    assert {len(uuid) for uuid in uuids} == {36}


def test_a_chart_draws_in_proportion():
    """The longest bar has the full width, and names are escaped."""
    drawn = chart("a & b", [Figure("a <1>", [50.0], "ms"), Figure("b", [100.0], "ms")])
    assert re.findall(r'<rect[^>]* width="(\d+)"', drawn) == ["170", "340"]
    assert "a &lt;1&gt;" in drawn and "a &amp; b" in drawn
