"""The page: markdown with a table of goals first, then a section and a chart for each row."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from html import escape
from pathlib import Path

from tests.benchmarks.rows import ROWS
from tests.benchmarks.run import Figure, Result

# Tables of facts by their headings.
Facts = Mapping[str, Mapping[str, str]]

COMMAND = "python -m tests.benchmarks"
INTRO = """# Performance

Made by `{command}` on {date}{scale}; do not edit. Every section ends with the command that measures its figures again.

scoremean beside the no-op, which is aiohttp and uvloop with a handler that reads the body and answers a constant, and beside what
people would use instead. Subjects of a row are measured in turn, {rounds} rounds of {seconds} s each, every second round in the
reverse order, all on this machine over loopback. A figure is the median of its rounds, with the lowest and the highest behind it;
a ratio is the median of the ratios of each round. A request that fails or is refused fails the row.
"""
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.bar{fill:#8b949e}.own{fill:#0969da}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.own{fill:#4493f8}}"
)
LABEL_PIXELS, BAR_PIXELS, LINE_PIXELS = 240, 340, 30


def write(path: Path, facts: Facts, results: Mapping[str, Result], about: Mapping[str, object]) -> None:
    """Write the page to `path`, and its charts into a folder beside it with the page's name."""
    charts = path.with_suffix("")
    charts.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        if result.bars:
            (charts / f"{name}.svg").write_text(chart(name, result.bars), encoding="utf-8")
    path.write_text(text(facts, results, about, charts.name), encoding="utf-8")


def text(facts: Facts, results: Mapping[str, Result], about: Mapping[str, object], charts: str = "") -> str:
    """Return the page; without the name of a folder for `charts` it has none."""
    parts = [INTRO.format(command=COMMAND, **about), _goals(results, bool(about["judged"]))]
    for heading, table in facts.items():
        rows = [f"| {name} | {value} |" for name, value in table.items()]
        parts.append("\n".join([f"## {heading}\n", "| | |", "|---|---|", *rows, ""]))
    parts += [_section(name, result, charts) for name, result in results.items()]
    return "\n".join(parts)


def _goals(results: Mapping[str, Result], judged: bool) -> str:
    lines = ["## Goals\n", "| row | figure | measured | goal | |", "|---|---|---:|---:|---|"]
    for name, result in results.items():
        for figure in result.figures:
            if figure.met is not None:
                verdict = ("met" if figure.met else "**missed**") if judged else "not judged"
                lines.append(f"| [{name}](#{name}) | {figure.what} | {_value(figure)} | {_goal(figure)} | {verdict} |")
    return "\n".join([*lines, ""])


def _section(name: str, result: Result, charts: str) -> str:
    lines = [f"## {name}\n", inspect.cleandoc(ROWS[name].__doc__), ""]
    if result.figures:
        lines += ["| | median | lowest to highest |", "|---|---:|---:|"]
        lines += [f"| {figure.what} | {_value(figure)} | {_spread(figure)} |" for figure in result.figures]
    if charts and result.bars:
        lines += ["", f"![{name}: {'; '.join(f'{one.what} {_value(one)}' for one in result.bars)}]({charts}/{name}.svg)"]
    notes = ["", " ".join(result.notes)] if result.notes else []
    return "\n".join([*lines, *notes, "", f"Again: `{COMMAND} --rows {name}`", ""])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _value(figure: Figure) -> str:
    return f"{_number(figure.value)} {figure.unit}"


def _spread(figure: Figure) -> str:
    return f"{_number(min(figure.values))} to {_number(max(figure.values))}" if len(figure.values) > 1 else ""


def _goal(figure: Figure) -> str:
    return f"at least {figure.at_least:,}" if figure.at_least is not None else f"at most {figure.at_most:,}"


def chart(title: str, bars: list[Figure]) -> str:
    """Return bars of figures that have one unit, as an SVG that can be read on light and on dark."""
    longest = max(figure.value for figure in bars) or 1
    lines = []
    for index, figure in enumerate(bars):
        top, width = index * LINE_PIXELS, max(1, round(BAR_PIXELS * figure.value / longest))
        kind = "bar" if index and bars[0].what == "scoremean" else "own"
        lines += [
            f'<text x="{LABEL_PIXELS - 8}" y="{top + 19}" text-anchor="end">{escape(figure.what)}</text>',
            f'<rect class="{kind}" x="{LABEL_PIXELS}" y="{top + 4}" width="{width}" height="{LINE_PIXELS - 8}"/>',
            f'<text x="{LABEL_PIXELS + width + 8}" y="{top + 19}">{_value(figure)}</text>',
        ]
    size = f'width="{LABEL_PIXELS + BAR_PIXELS + 140}" height="{len(bars) * LINE_PIXELS}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
    return "\n".join([head, *lines, "</svg>", ""])
