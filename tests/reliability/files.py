"""A campaign that imports, exports and merges files of hostile text, and compares each with a model in plain Python.

    python -m tests.reliability.files SEED COUNT DIRECTORY       what the campaign runs, in processes of its own

A walk is a pair of stores, and a hundred files that are imported into one of them: scores and tallies, as NDJSON and CSV,
packed or not, nearly right, and then some of them changed in a few bytes. Now and then a file is imported again, and the first
store is exported and merged into the second. The model reads each file by itself, as a whole: it says what becomes of each
line, what the command prints and ends with, and what the store holds then.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from scoremean import cli, open_store, transfer
from tests.benchmarks.data import ROOT
from tests.reliability.campaign import Finding, Trial, campaign

FILES_A_WALK = 100
SHOWN_MAX_FINDINGS = 10
LINE_MAX_BYTES = 16_384
TEXT_MAX_BYTES = 256

BROKEN_HERE = {
    "cells-are-parsed": (
        "An import takes a UUID of digits for the number that it looks like.",
        "from scoremean import transfer\n"
        "item = transfer.Importer._item\n"
        "def parsed(self, value):\n"
        "    if isinstance(value, dict) and str(value.get('UUID')).isdecimal():\n"
        "        value = value | {'UUID': str(int(value['UUID']))}\n"
        "    return item(self, value)\n"
        "transfer.Importer._item = parsed\n",
    ),
    "last-member-wins": (
        "An import leaves it to the decoder what stands on a line, and how often.",
        "from scoremean import transfer\ntransfer._is_plain = lambda text: True\n",
    ),
    "cut-gzip-ends": (
        "An import takes the place where gzip is cut off for its end.",
        "from scoremean import transfer\n"
        "unpack = transfer._Source._unpack\n"
        "def lenient(self, file):\n"
        "    try:\n"
        "        return unpack(self, file)\n"
        "    except transfer.ImportStopped:\n"
        "        return b''\n"
        "transfer._Source._unpack = lenient\n",
    ),
}


# The model: how a file is read.


class AtFault(Exception):
    """A file, or a line of it, is not what it should be."""


class Ambiguous(Exception):
    """What becomes of a file depends on more than the model knows: it is not tried."""


class Line(NamedTuple):
    """What a line says: a score, or a tally."""

    uuid: str
    total: int
    count: int
    id: str | None = None


@dataclass(frozen=True)
class Options:
    """What an import is told, by its flags and by the limits that it runs with."""

    uuid: str = "UUID"
    score: str = "score"
    id: str | None = None
    with_ids: bool = True
    skip: bool = False
    tallies: bool = False
    chunk_bytes: int = LINE_MAX_BYTES
    summed_max_uuids: int = 1 << 17

    @property
    def usual(self) -> bool:
        """Whether the members have their usual names."""
        return (self.uuid, self.score, self.id) == ("UUID", "score", None) and not self.tallies

    @property
    def flags(self) -> list[str]:
        """The flags of `scoremean import`."""
        flags = {"--uuid-column": self.uuid, "--score-column": self.score, "--id-column": self.id}
        # Not the usual ones: a column is an id only where it is named as one, or where none is named.
        usual = {"--uuid-column": "UUID", "--score-column": "score", "--id-column": None}
        given = [f"{flag}={name}" for flag, name in flags.items() if name != usual[flag]]
        switches = {"--no-ids": not self.with_ids, "--tallies": self.tallies, "--on-error=skip": self.skip}
        return ([] if self.tallies else given) + [flag for flag, is_set in switches.items() if is_set]

    @property
    def limits(self) -> dict[str, int]:
        """Those of scoremean.transfer."""
        limits = {"CHUNK_BYTES": self.chunk_bytes, "SUMMED_MAX_UUIDS": self.summed_max_uuids}
        return limits | {"LINE_MAX_BYTES": LINE_MAX_BYTES, "COMMIT_MAX_SCORES": 7}


def text_of(data: bytes) -> bytes:
    """Return the text in a file, without its byte order mark. Raises AtFault."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise AtFault from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    require(max(map(len, data.split(b"\n"))) <= LINE_MAX_BYTES)
    return data


def read(data: bytes, options: Options, low: int, high: int) -> dict[int, Line | None]:
    """Return what the lines of a file say, by their numbers; None for a bad one. Raises AtFault for a bad file."""
    text = text_of(data)
    # Which of the two it is is seen in its first chunk.
    start = re.sub(rb"^[ \t\r\n\x0b\x0c]+", b"", text[: options.chunk_bytes])[:1]
    if start == b"[":
        raise AtFault
    lines: dict[int, Line | None] = {}
    for number, members in objects(text, options) if start in (b"", b"{") else rows(text, options):
        try:
            lines[number] = tally_of(members, low, high) if options.tallies else score_of(members, low, high)
        except AtFault:
            lines[number] = None
    return lines


def score_of(members: Any, low: int, high: int) -> Line:
    """Return what the members of a score say. Raises AtFault."""
    require(isinstance(members, dict) and members.keys() - {"id"} == {"UUID", "score"})
    require(is_text(members["UUID"]) and is_integer(members["score"]) and low <= members["score"] <= high)
    require("id" not in members or is_text(members["id"]))
    return Line(members["UUID"], members["score"], 1, members.get("id"))


def tally_of(members: Any, low: int, high: int) -> Line:
    """Return what the members of a tally say. Raises AtFault."""
    require(isinstance(members, dict) and members.keys() >= {"UUID", "sum", "count"})
    uuid, total, count = members["UUID"], members["sum"], members["count"]
    require(is_text(uuid) and is_integer(total) and is_integer(count) and 1 <= count <= 1 << 40)
    require(low * count <= total <= high * count)
    return Line(uuid, total, count)


def require(is_right: bool) -> None:
    """Raise AtFault unless it is."""
    if not is_right:
        raise AtFault


def is_integer(value: Any) -> bool:
    """Whether it is one, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether it may be a UUID or an id: 1 to 256 bytes of UTF-8 without control characters."""
    if not isinstance(value, str):
        return False
    codes = [ord(character) for character in value]
    if any(code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 for code in codes):
        return False
    return 0 < sum(1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF) for code in codes) <= TEXT_MAX_BYTES


def objects(text: bytes, options: Options) -> Iterator[tuple[int, Any]]:
    """Yield what stands on each line of NDJSON, by the usual names; None in place of what is no JSON."""
    names = {"UUID": options.uuid, "score": options.score} | ({} if options.id is None else {"id": options.id})
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip(b" \t\r"):
            continue
        try:
            members = json.loads(line.decode(), object_pairs_hook=once, parse_int=lambda digits: int(digits[:50]))
        except (ValueError, RecursionError, AtFault):
            members = None
        if isinstance(members, dict) and not options.usual and not options.tallies:
            members = {name: members[own] for name, own in names.items() if members.get(own) is not None}
        yield number, members


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object in which none stands twice. Raises AtFault."""
    names = [name for name, _ in pairs]
    require(len(names) == len(set(names)))
    return dict(pairs)


def rows(text: bytes, options: Options) -> Iterator[tuple[int, Any]]:
    """Yield the members of each row of a CSV file; None in place of one that is none. Raises AtFault for a bad file."""
    table = ((number, cells) for number, cells in cells_of(text) if cells != [])
    _, header = next(table, (1, None))
    require(header is not None and all(is_utf8(cell) for cell in header))
    if options.tallies:
        names = {"UUID": b"UUID", "sum": b"sum", "count": b"count"}
    else:
        names = {"UUID": options.uuid.encode(), "score": options.score.encode()}
        if options.id is not None or options.usual and b"id" in header:
            names["id"] = ("id" if options.id is None else options.id).encode()
    require(all(header.count(name) == 1 for name in names.values()))
    for number, cells in table:
        if cells is None or len(cells) != len(header) or not all(map(is_utf8, cells)):
            yield number, None
            continue
        found = {name: cells[header.index(column)].decode() for name, column in names.items()}
        if not found.get("id", "x"):
            del found["id"]
        yield number, {name: cell if name in ("UUID", "id") else integer(cell) for name, cell in found.items()}


def integer(cell: str) -> int | str:
    """Return the integer that a cell is, or the cell."""
    digits = cell.removeprefix("-")
    return int(cell) if 0 < len(digits) < 20 and all(digit in "0123456789" for digit in digits) else cell


def is_utf8(data: bytes) -> bool:
    """Whether it is."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def cells_of(text: bytes) -> Iterator[tuple[int, list[bytes] | None]]:
    """Yield the cells of each row, with the number of its first line; None where a line is no row.

    A quote at the start of a cell opens it, and only a comma or the end of a line may stand behind the one that closes it.
    Raises AtFault where a cell that goes on behind its line is not closed so.
    """
    number, place = 1, 0
    while place < len(text):
        try:
            cells, end = row_at(text, place)
        except AtFault as fault:
            cells, end = None, fault.args[0]
            if text.count(b"\n", place, end - 1):
                raise
        yield number, cells
        number += text.count(b"\n", place, end)
        place = end


def row_at(text: bytes, place: int) -> tuple[list[bytes], int]:
    """Return the cells of the row there, and where the next one starts. Raises AtFault with the end of the line at fault."""

    def line_end(at: int) -> int:
        return text.index(b"\n", at) + 1 if b"\n" in text[at:] else len(text)

    if blank := re.compile(rb"\r*(\n|\Z)").match(text, place):
        return [], blank.end()
    cells: list[bytes] = []
    while True:
        if text[place : place + 1] == b'"':
            closed = re.compile(rb'"((?:[^"]|"")*)"(?!")').match(text, place)
            if closed is None:
                raise AtFault(len(text))
            cell, place = closed[1].replace(b'""', b'"'), closed.end()
        else:
            plain = re.compile(rb"[^,\r\n]*").match(text, place)
            cell, place = plain[0], plain.end()
        cells.append(cell)
        if text[place : place + 1] == b",":
            place += 1
            continue
        ended = re.compile(rb"\r*(\n|\Z)").match(text, place)
        if ended is None:
            raise AtFault(line_end(place))
        return cells, ended.end()


# The model: what a store holds, and what an import does to it.


@dataclass
class Expected:
    """What an import should end with: its exit code and report, and the bad lines that it names. None is anything."""

    code: int
    counted: int = 0
    replayed: int = 0
    skipped: int | None = None
    bad: list[int] = field(default_factory=list)


class Model:
    """A store in plain Python: tallies, ids of scores, and files that were imported with ids."""

    def __init__(self, low: int, high: int):
        self.low = low
        self.high = high
        self.tallies: dict[str, tuple[int, int]] = {}
        self._ids: dict[str, tuple[str, int]] = {}
        self._files: dict[bytes, Options] = {}

    def count(self, data: bytes, options: Options) -> Expected:
        """Import a file, and return what the command should say. Raises Ambiguous, with nothing changed."""
        looked_through = options.with_ids or options.tallies or data.startswith(b"\x1f\x8b")
        try:
            lines = read(data, options, self.low, self.high)
        except AtFault:
            return Expected(1, skipped=0 if options.skip and looked_through else None)
        bad = [number for number, line in lines.items() if line is None]
        if bad and not options.skip:
            return Expected(1, skipped=len(bad) if looked_through else None, bad=bad[:1])
        good = {number: line for number, line in lines.items() if line is not None}
        if options.with_ids and (self._files.get(data, options) != options or not options.skip and self._conflicts(good)):
            raise Ambiguous
        expected, seen = Expected(0, bad=bad), options.with_ids and data in self._files
        for number, line in good.items():
            self._count(number, line, options.with_ids, seen, expected)
        if options.with_ids:
            self._files[data] = options
        expected.skipped = len(expected.bad)
        return expected

    def _conflicts(self, lines: dict[int, Line]) -> bool:
        """Whether an id is used for different scores: how much is counted before that is found is not for the model."""
        ids = dict(self._ids)
        said = [(line.id, (line.uuid, line.total)) for line in lines.values() if line.id is not None]
        return any(ids.setdefault(name, score) != score for name, score in said)

    def _count(self, number: int, line: Line, with_ids: bool, seen: bool, expected: Expected) -> None:
        score = (line.uuid, line.total)
        if with_ids and line.id is not None:
            seen = line.id in self._ids
            if self._ids.setdefault(line.id, score) != score:
                expected.bad.append(number)
                return
        if seen:
            expected.replayed += 1
            return
        expected.counted += 1
        total, count = self.tallies.get(line.uuid, (0, 0))
        self.tallies[line.uuid] = (total + line.total, count + line.count)


# Files.

_TEXTS = [
    *("a", "b", "c", "7", "007", "-0", "+5", "5.0", " 5", "5 ", "٥", "1e3", "1_0", "NaN", "null", "true", "0x1", "=1+1"),
    *("\ufeff", "\ufeffa", "a\u2028b", "a\u2029", "a\u00a0", "\u200b", "\ufffd", "é", "e\u0301", "😀", "\U0010ffff"),
    *('a"b', '"', '""', ",", "a,b", ";", "\\", "\\n", "\\u0041", "{", "}", "[", "]", "#", "'", " ", "  ", "UUID", "id"),
    *("score", "x" * 256, "é" * 128, "😀" * 64),
]
_NO_TEXTS = ["", "x" * 257, "é" * 129, "\0", "a\tb", "a\nb", "a\r\nb", "\x7f", "a\x85", "\x1e", "\ud800", "\udfffb"]
_NO_SCORES = [
    *("5.0", "5e0", "1E400", "NaN", "null", "true", "[]", "{}", '{"a":[1,{"b":2}]}', "9" * 40, "-" + "9" * 5000),
    *('"5"', '"a"', "-0", "00", "+1", ".5", "1"),
]
_NO_CELLS = ["+1", "1.0", " 1", "1 ", "٥", "1e0", "1_0", "", "NaN", "true", "0x1", "9" * 30, "0" * 25, "−1", "1\n", '"1"']
_NAMES = ["id", "user", "é,x", 'a"b', "", " ", "UUID", "stars", "a\u2028"]
_PIECES = [
    *(b'"', b'""', b",", b"\n", b"\n\n", b"\r", b"\r\n", b"\0", b" ", b"\t", b"\x0b", b"\x1e", b"\\", b"'"),
    *(b"{", b"}", b"[", b"]", b":", b"0", b"1", b"-", b"x", b'{"UUID":"a","score":1}', b"UUID", b"a,1\n", b'a,"1\n'),
    *(b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1f\x8b"),
]


class Files:
    """Makes files that are nearly right, and options to import them with."""

    def __init__(self, random: Random, low: int, high: int):
        self._random = random
        self._low = low
        self._high = high

    def make(self) -> tuple[bytes, Options]:
        """Return a file, and how to import it."""
        options = self._options()
        data = self._csv(options) if self._is(0.5) else self._ndjson(options)
        if self._is(0.15):
            data = b"\xef\xbb\xbf" + data
        if self._is(0.4):
            data = self._changed(data)
        return self._packed(data), options

    def _is(self, chance: float) -> bool:
        return self._random.random() < chance

    def _options(self) -> Options:
        random, names = self._random, ("UUID", "score", None)
        if tallies := self._is(0.15):
            pass
        elif self._is(0.3):
            first, second, third = random.sample(_NAMES, 3)
            names = (first, random.choice((second, "score")), random.choice((None, None, third)))
        return Options(
            *names,
            with_ids=self._is(0.85),
            skip=self._is(0.6),
            tallies=tallies,
            chunk_bytes=random.choice((40, 300, LINE_MAX_BYTES)),
            summed_max_uuids=random.choice((3, 1 << 17)),
        )

    def _members(self, options: Options) -> dict[str, Any]:
        """Return a score or a tally, or nearly one, by the names in the file: texts as they are, other values in JSON."""
        random = self._random
        uuid = random.choice(_NO_TEXTS if self._is(0.04) else _TEXTS[:3] if self._is(0.4) else _TEXTS)
        score = random.randint(self._low, self._high) + (random.choice((-1, 1)) * 10**6 if self._is(0.03) else 0)
        if options.tallies:
            count = random.choice((1, 2, 3, 1 << 30)) if self._is(0.97) else random.choice((0, -1, (1 << 40) + 1))
            return {"UUID": [uuid], "sum": str(score * count), "count": str(count), "mean": str(score)}
        members = {options.uuid: [uuid], options.score: str(score)}
        if self._is(0.3):
            name = random.choice(_NO_TEXTS) if self._is(0.1) else random.choice((*_TEXTS, *(f"i{n}" for n in range(40))))
            members["id" if options.id is None else options.id] = [name]
        if not options.usual and self._is(0.3):
            members.setdefault("other", ["x"])
        return members

    def _ndjson(self, options: Options) -> bytes:
        random = self._random
        ends = random.choice(([b"\n"], [b"\n"], [b"\r\n"], [b"\n", b"\n\n", b" \n", b"\r\n", b"\n \t\n", b"\n\x0b\n"]))
        lines = [self._object(self._members(options)) for _ in range(random.choice((0, 1, 2, 5, 12, 30)))]
        return b"".join(line + random.choice(ends) for line in lines)[: None if self._is(0.7) else -1]

    def _object(self, members: dict[str, Any]) -> bytes:
        random = self._random
        values = [self._json(value[0]) if isinstance(value, list) else value for value in members.values()]
        pairs = list(zip(map(self._json, members), values))
        if self._is(0.03):
            place = random.randrange(len(pairs))
            pairs[place] = (pairs[place][0], random.choice(_NO_SCORES))
        if self._is(0.03):
            pairs.append((self._json(random.choice((*members, "x"))), random.choice(("1", '"a"', "null"))))
        if self._is(0.02):
            pairs.pop()
        random.shuffle(pairs)
        space = random.choice(("", "", " ", "\t"))
        text = "{" + f",{space}".join(f"{name}{space}:{space}{value}" for name, value in pairs) + space + "}"
        line = text.encode(errors="surrogatepass")
        if self._is(0.04):
            twice = line + random.choice((b"", b" ", b"\r", b",", b"\x0b", b"\xe2\x80\xa8")) + line
            return random.choice((twice, line.replace(b",", b",\n", 1), b"[" + line + b"]", b"[" * 5000, line[:-1]))
        return line

    def _json(self, text: str) -> str:
        text = json.dumps(text, ensure_ascii=self._is(0.5))
        return text.replace("a", "\\u0061", 1) if self._is(0.05) else text

    def _csv(self, options: Options) -> bytes:
        random = self._random
        rows_made = [self._members(options) for _ in range(random.choice((0, 1, 2, 5, 12, 30)))]
        names = list(dict.fromkeys(name for members in rows_made for name in members)) or [options.uuid, options.score]
        names += [random.choice((*names, "x", "x", "")) for _ in range(random.choice((0, 0, 0, 1, 2)))] if self._is(0.3) else []
        random.shuffle(names)
        table = [names]
        for members in rows_made:
            row = [members.get(name, [random.choice(("", "", "x", "a\n,\"b\"\r\n", "\n\n"))]) for name in names]
            cells = [value[0] if isinstance(value, list) else value for value in row]
            if self._is(0.04):
                cells[names.index(options.score if options.score in names else names[0])] = random.choice(_NO_CELLS)
            if self._is(0.03):
                cells = random.choice((cells[:-1], [*cells, ""], [*cells, "5"], cells[:1], [""]))
            table.append(cells)
        end = random.choice(("\n", "\n", "\r\n"))
        quoting = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        file = io.StringIO()
        csv.writer(file, quoting=quoting, lineterminator=end).writerows(table)
        text = random.choice(("", "", "", "\n", "\r\n")) + file.getvalue()
        return text.encode(errors="surrogatepass")[: None if self._is(0.7) else -1]

    def _changed(self, data: bytes) -> bytes:
        random, changed = self._random, bytearray(data)
        for _ in range(random.choice((1, 1, 2, 4))):
            place = random.randrange(len(changed) + 1)
            match random.randrange(6):
                case 0 if place < len(changed):
                    changed[place] ^= 1 << random.randrange(8)
                case 1:
                    del changed[place : place + random.choice((1, 1, 3, 40, 10_000))]
                case 2:
                    changed[place:place] = changed[place : place + random.randrange(1, 40)] * random.choice((1, 2, 5))
                case 3 if self._is(0.05):
                    changed[place:place] = random.choice((b"x", b" ", b'"', b"a,1\r")) * random.choice((4000, LINE_MAX_BYTES))
                case _:
                    changed[place : place + random.choice((0, 0, 1))] = random.choice(_PIECES)
        return bytes(changed)

    def _packed(self, data: bytes) -> bytes:
        random = self._random
        if self._is(0.65):
            return data
        place = random.randrange(len(data) + 1)
        packed = gzip.compress(data[:place], mtime=0) + gzip.compress(data[place:], mtime=0)
        if self._is(0.5):
            packed = gzip.compress(data, mtime=0)
        if self._is(0.6):
            return packed
        place = random.randrange(len(packed))
        damaged = packed[:place] + bytes([packed[place] ^ 1 << random.randrange(8)]) + packed[place + 1 :]
        twice = gzip.compress(packed, mtime=0)
        return random.choice((packed[:place], packed[:-1], packed + b"x", packed + bytes(9), twice, damaged))


# The walk.


class Difference(Exception):
    """A command did another thing than the model: what it is about, and more."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: bytes
    messages: str


def command(arguments: Sequence[str], limits: dict[str, int], real: bool) -> Ended:
    """Run `scoremean` with these limits of the import, in this process or in one of its own."""
    if real:
        code = f"import sys; from scoremean import cli, transfer; vars(transfer).update({limits}); sys.exit(cli.main())"
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr.decode())
    vars(transfer).update(limits)
    output, messages = io.BytesIO(), io.StringIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(output, "utf-8")), contextlib.redirect_stderr(messages):
        code = cli.main(arguments)
        return Ended(code, output.getvalue(), messages.getvalue())


class Walk:
    """Two stores, what they should hold, and the files that were imported into the first.

    Args:
        work: an empty directory.
    """

    def __init__(self, random: Random, work: Path):
        self._random = random
        self._work = work
        low, high = random.choice(((0, 5), (0, 5), (-3, 3), (1, 1_000_000)))
        self._range = [f"--score-min={low}", f"--score-max={high}"]
        self._files = Files(random, low, high)
        self._stores = {work / "first": Model(low, high), work / "second": Model(low, high)}
        self._imported: list[tuple[bytes, Options]] = []

    def step(self, real: bool) -> Expected:
        """Import a file, one as before, or what the first store exports into the second. Raises Ambiguous or Difference."""
        first, second = self._stores
        chance = self._random.random()
        if chance < 0.1:
            return self._import(second, *self._exported(first, real), real)
        if chance < 0.2 and self._imported:
            return self._import(first, *self._random.choice(self._imported), real)
        made = self._files.make()
        expected = self._import(first, *made, real)
        self._imported.append(made)
        return expected

    def _import(self, store: Path, data: bytes, options: Options, real: bool) -> Expected:
        model = self._stores[store]
        expected = model.count(data, options)
        if expected.code:  # without ids, nothing is counted only of what fits into one part
            options = Options(**{**vars(options), "summed_max_uuids": 1 << 17})
        (self._work / "file").write_bytes(data)
        arguments = ["import", str(self._work / "file"), "--store", str(store), *self._range, *options.flags]
        ended = command(arguments, options.limits, real)
        report = json.loads(ended.output)
        wanted = {"counted": expected.counted, "replayed": expected.replayed}
        if expected.skipped is not None:
            wanted["skipped"] = expected.skipped
        same("exit code", ended.code, expected.code)
        same("report", {name: report[name] for name in wanted}, wanted)
        self._compare_messages(ended.messages, expected)
        with open_store(store, readonly=True) as opened:
            found = {uuid: (tally.sum, tally.count) for uuid, tally in opened.tallies()}
        same("store", found, model.tallies)
        return expected

    def _compare_messages(self, messages: str, expected: Expected) -> None:
        if "Traceback" in messages or len(messages) > 21 * (len(str(self._work)) + 300):
            raise Difference("messages", messages[:300])
        named = [int(number) for number in re.findall(r"^[^\n]*/file:([0-9]+): ", messages, re.MULTILINE)]
        if expected.code == 0 and len(expected.bad) <= transfer.SHOWN_MAX_FAULTS:
            same("bad lines", sorted(named), sorted(expected.bad))
        if expected.code and expected.bad:
            same("first bad line", re.findall("stopped at .*/file:([0-9]+);", messages), [str(expected.bad[0])])

    def _exported(self, store: Path, real: bool) -> tuple[bytes, Options]:
        """Return an export, perhaps packed, and how to merge it. Raises Ambiguous while there is no store."""
        model, random = self._stores[store], self._random
        if not store.exists():
            raise Ambiguous
        arguments = ["export", "--store", str(store), "--format", random.choice(("ndjson", "csv"))]
        if random.random() < 0.5:
            ended = command([*arguments, "--output", str(self._work / "exported")], {}, real)
            data = (self._work / "exported").read_bytes()
        else:
            ended = command(arguments, {}, real)
            data = ended.output
        same("export", (ended.code, ended.messages), (0, ""))
        options = Options(tallies=True, with_ids=random.random() < 0.8, chunk_bytes=random.choice((40, LINE_MAX_BYTES)))
        lines = read(data, options, model.low, model.high)
        wanted = [Line(uuid, *tally) for uuid, tally in sorted(model.tallies.items())]
        same("exported", list(lines.values()), wanted)
        return data if random.random() < 0.5 else gzip.compress(data, mtime=0), options


def same(what: str, found: object, wanted: object) -> None:
    """Raise Difference unless they are."""
    if found != wanted:
        raise Difference(what, f"{ascii(found)[:300]} for {ascii(wanted)[:300]}")


def walk(name: str, work: Path, count: dict[str, int], real_every: int) -> str | None:
    """Import FILES_A_WALK files and count them; return what is different in the last one, if anything is."""
    one = Walk(Random(name), work)
    for number in range(FILES_A_WALK):
        real = (count["files"] + 1) % real_every == 0
        try:
            expected = one.step(real)
        except Ambiguous:
            continue
        except Difference as difference:
            what, more = difference.args
            return f"{what}: walk {name}, step {number}: {more}"
        except BaseException as error:  # pylint: disable=broad-exception-caught  # this is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} in {place.name}: walk {name}, step {number}: {ascii(str(error))[:300]}"
        count["files"] += 1
        count["commands"] += real
        count["refused"] += expected.code
        count["lines"] += expected.counted
        count["bad"] += expected.skipped or 0
    return None


def main(seed: str, number: str, directory: str, real_every: str) -> None:
    """Import so many files, and print how many, and what was found, as JSON."""
    count = dict.fromkeys(("files", "commands", "refused", "lines", "bad"), 0)
    findings: list[str] = []
    walks = 0
    while count["files"] < int(number) and len(findings) < SHOWN_MAX_FINDINGS:
        walks += 1
        with tempfile.TemporaryDirectory(dir=directory) as work:
            if (finding := walk(f"{seed}/{walks}", Path(work), count, int(real_every))) is not None:
                findings.append(finding)
    print(json.dumps({**count, "findings": findings}))


@campaign("files", "0 differences in at least 100,000 files", *BROKEN_HERE)
def files(trial: Trial) -> Finding:
    """100,000 files (500) with fixed seeds are imported into stores, a hundred into each, by `scoremean import` with its
    options, in processes that run many of them; each five-hundredth by the command itself. They are scores and tallies with
    hostile texts, as NDJSON and CSV in every style, plain and gzip, whole and damaged, and two fifths of them are changed in a
    few bytes. A file may come again, and the first store of two is exported and merged into the second. A model in plain Python
    reads each file by itself, and says what is printed, which lines are bad, the exit code, and what the store then holds: all
    of it must be the same, and nothing may end in a traceback.
    """
    source = (BROKEN_HERE[trial.broken][1] if trial.broken else "") + (
        "import sys\nfrom tests.reliability import files\nfiles.main(*sys.argv[1:])\n"
    )
    numbers = (500,) if trial.short else (50_000, 50_000)
    processes = [
        subprocess.Popen(  # pylint: disable=consider-using-with  # communicate waits for them
            [sys.executable, "-c", source, str(seed), str(number), str(trial.work), "500"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, number in enumerate(numbers, 1)
    ]
    founds = [json.loads(process.communicate()[0]) for process in processes]
    total = {name: sum(found[name] for found in founds) for name in founds[0] if name != "findings"}
    findings = [finding for found in founds for finding in found["findings"]]
    figure = (
        f"{len(findings)} differences in {total['files']:,} files, {total['refused']:,} of them refused as a whole,"
        f" with {total['lines']:,} lines counted and {total['bad']:,} bad ones; {total['commands']:,} by the command itself"
    )
    return Finding("; ".join([figure, *findings[:SHOWN_MAX_FINDINGS]]), not findings)


if __name__ == "__main__":
    main(*sys.argv[1:])
