"""Import and export: files of scores, or of tallies, into a store and out of it.

A file is read in chunks, so memory does not grow with its size. The scores of each UUID are added up over a part of the file,
and what is counted is one tally a UUID. It gets an id from the hash of the file, the number of the part and the UUID's place in
it, so an import that was cut off is simply run again: what was counted is replayed, and counts nothing. A line with an id of
its own is counted by itself.

What is read is text, byte for byte, and only score, sum and count are numbers. A fault is either that of a line, which can be
skipped, or that of the file, which ends its import; and a file is read to its end before any of it is counted.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import stat
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import IO, Any, NamedTuple, Protocol, Self

import msgspec

from scoremean.errors import ImportStopped, InvalidScore, RequestError, SettingError, StoreError
from scoremean.model import Add, Replay, Score, Tally
from scoremean.store.base import Outcome, Store, is_failure
from scoremean.web.wire import ONE_SCORE, Item, ScoreDecoder, unpack_sum

# These two decide where a part of a file ends, and so what its ids name: whoever changes one makes a second run count again.
CHUNK_BYTES = 1 << 20
SUMMED_MAX_UUIDS = 1 << 17

COMMIT_MAX_SCORES = 10_000
LINE_MAX_BYTES = 1 << 20  # not less than CHUNK_BYTES
SHOWN_MAX_FAULTS = 20
SHOWN_MAX_CHARACTERS = 200

_GZIP_MAGIC = b"\x1f\x8b"
_INTEGER = re.compile("-?[0-9]{1,19}", re.ASCII)
_NUMBERS = {"score", "sum", "count"}

# A line of a file: its number, and what it holds; what is at fault is an error.
Line = tuple[int, Score | Add | RequestError]
# Some lines of a file, each piece with the number of its first one.
_Pieces = Iterator[tuple[int, bytes]]


class Tallies(Protocol):
    """A store that can be exported."""

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally."""


class _Chunk(NamedTuple):
    """Some lines of a file.

    Attributes:
        body: their bytes, if each is one object of UUID and score, or else at fault; empty where that is not known.
        lines: decodes each of them.
    """

    body: bytes
    lines: Callable[[], list[Line]]


@dataclass(frozen=True)
class Columns:
    """What the members of an object, or the columns of a CSV file, are called.

    None is the usual name; but without one for the id, an `id` is one only where the others are not named either.

    Raises:
        SettingError: two of them have one name.
    """

    uuid: str | None = None
    score: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.members.values())) < len(self.members):
            raise SettingError("UUID, score and id are three columns, and two of them were given one name")

    @property
    def members(self) -> dict[str, str]:
        """The name of each, by what it is called here."""
        named = {"UUID": self.uuid, "score": self.score, "id": self.id}
        if self.id is None and (self.uuid, self.score) != (None, None):
            del named["id"]
        return {member: member if name is None else name for member, name in named.items()}


@dataclass
class Report:
    """What an import has done so far.

    Attributes:
        counted: lines that were counted by this run.
        replayed: lines that an earlier run had counted.
        skipped: lines that were at fault.
        faults: the first SHOWN_MAX_FAULTS of these, as `file:line: sentence`.
    """

    counted: int = 0
    replayed: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)


class Importer:
    """Reads files and counts their lines in a store.

    Args:
        store: where to; the caller closes it.
        decoder: what judges a score.
        columns: the names of the members or columns; others in a file are ignored if these are not the default.
        with_ids: give what is counted an id, so that the import can be run again.
        summed: add up the scores of a UUID. If not, and for tallies, each line is counted by itself.
        tallies: the files hold tallies, as an export writes them, and not scores.
        skip: go on after bad lines.
        progress: called with the bytes and the lines read of the file, after each chunk.
        whole: entered around each commit and the report of it, so that a caller can keep them together.
    """

    def __init__(  # pylint: disable=too-many-arguments  # each is a choice of the user's
        self,
        store: Store,
        decoder: ScoreDecoder,
        *,
        columns: Columns = Columns(),
        with_ids: bool = True,
        summed: bool = True,
        tallies: bool = False,
        skip: bool = False,
        progress: Callable[[int, int], None] = lambda *_: None,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._store = store
        self._decoder = decoder
        self._with_ids = with_ids
        self._summed = summed and not tallies
        self._tallies = tallies
        self._members = {name: name for name in ("UUID", "sum", "count")} if tallies else columns.members
        # Of objects with the usual members only these are taken; of others, and of a CSV file, the rest is ignored.
        self._strict = columns == Columns() and not tallies
        self._skip = skip
        self._progress = progress
        self._whole = whole
        self.report = Report()

    def run(self, name: str) -> None:
        """Import one file, NDJSON or CSV, plain or gzip by its content; `-` is standard input.

        When it returns, every line of the file is durable or in `report.faults`.

        Raises:
            ImportStopped: the file is at fault as a whole, or was changed meanwhile; or there are bad lines, and they are not
                to be skipped. It is looked through before anything is counted, so nothing of it is, unless the store refuses
                an id. Scores without ids, not packed, are read once: nothing is counted up to SUMMED_MAX_UUIDS UUIDs.
            OSError: the file cannot be read.
        """
        with _Source(name) as source:
            if self._with_ids or self._tallies or source.packed:
                self._look_through(source)
            part = _Part(source.hash if self._with_ids else "")
            for chunk in self._chunks(source):
                self._count(name, chunk, part)
                self._progress(source.bytes_read, part.lines)
                if len(part.sums) >= SUMMED_MAX_UUIDS:
                    self._count_part(name, part)
            source.require_same()
            self._count_part(name, part)

    def _look_through(self, source: _Source) -> None:
        """Read a file to its end. Raises ImportStopped if there is a fault for which nothing of it is to be counted."""
        first: ImportStopped | None = None
        sums: dict[str, int] = {}
        for chunk in self._chunks(source):
            if not self._skip and (not chunk.body or self._decoder.add_up(chunk.body, sums) is None):
                bad = _bad(chunk.lines())
                self._note(source.name, bad)
                first = first or (_stopped(source.name, bad[0][0]) if bad else None)
            if len(sums) >= SUMMED_MAX_UUIDS:
                sums.clear()
        source.require_same()
        if first:
            raise first

    def _chunks(self, source: _Source) -> Iterator[_Chunk]:
        """Yield a file from its start, some thousands of lines at a time."""
        read = source.begin()
        first = read().removeprefix(codecs.BOM_UTF8)
        start = first.lstrip()[:1]
        if start == b"[":
            raise ImportStopped(f"{source.name} is a JSON array, not an object a line (NDJSON): `jq -c '.[]'` makes that of it")
        pieces = _pieces(source.name, itertools.chain([first], iter(read, b"")))
        if start in (b"{", b""):
            return (self._json(number, text) for number, text in pieces)
        return self._csv(source.name, pieces)

    def _json(self, number: int, text: bytes) -> _Chunk:
        return _Chunk(text if self._strict and _is_plain(text) else b"", partial(self._json_lines, number, text))

    def _json_lines(self, number: int, text: bytes) -> list[Line]:
        lines = enumerate(text.split(b"\n"), number)
        return [(number, self._json_item(line)) for number, line in lines if line.strip(b" \t\r")]

    def _json_item(self, line: bytes) -> Item | Add:
        if self._strict:
            with suppress(RequestError):
                score = self._decoder.decode(line)
                # The quotes of its names and texts; with more of them, a member may stand twice.
                if line.count(b'"') == (6 if score.id is None else 10):
                    return score
        value = _object(line)
        if isinstance(value, dict) and not self._strict:
            value = {name: value[column] for name, column in self._members.items() if value.get(column) is not None}
        return self._item(value)

    def _csv(self, name: str, pieces: _Pieces) -> Iterator[_Chunk]:
        rows = _rows(name, pieces)
        number, header = next(rows, (1, []))
        if isinstance(header, InvalidScore):
            raise ImportStopped(f"{name} is neither NDJSON nor CSV with a header: in line {number}, {header}")
        places = self._places(f"{name}:{number}: the header", header)
        lines = ((number, self._row(row, places, len(header))) for number, row in rows)
        while some := list(itertools.islice(lines, COMMIT_MAX_SCORES)):
            yield _Chunk(b"", partial(list, some))

    def _places(self, what: str, header: Sequence[str]) -> dict[str, int]:
        """Return where the header of a CSV file has each column that is read. Only that of an id may be missing."""
        places = {}
        for member, column in self._members.items():
            if header.count(column) > 1:
                raise ImportStopped(f"{what} has more than one column {cut(column)}")
            if column in header:
                places[member] = header.index(column)
            elif member != "id" or not self._strict:
                raise ImportStopped(f"{what} lacks the column {cut(column)}; it has {cut(repr(header))}")
        return places

    def _row(self, row: list[str] | InvalidScore, places: dict[str, int], width: int) -> Item | Add:
        """Return what a row holds. An empty cell is no id."""
        if isinstance(row, InvalidScore):
            return row
        if len(row) != width:
            return InvalidScore(f"the line has {len(row)} cells, and the header {width}")
        cells = {name: row[place] for name, place in places.items() if name != "id" or row[place]}
        return self._item({name: _number(cell) if name in _NUMBERS else cell for name, cell in cells.items()})

    def _item(self, value: Any) -> Item | Add:
        if isinstance(value, InvalidScore):
            return value
        return self._tally(value) if self._tallies else self._decoder.item(value)

    def _tally(self, value: Any) -> Add | InvalidScore:
        uuid, total, count = map(value.get, self._members) if isinstance(value, dict) else (None, None, None)
        if not isinstance(uuid, str) or total.__class__ is not int or count.__class__ is not int:
            return InvalidScore("a tally has the members UUID, sum and count: a string and two integers")
        low, high = self._decoder.score_min, self._decoder.score_max
        if not count * low <= total <= count * high:
            return InvalidScore(f"{total} is not the sum of {count} scores from {low} to {high}")
        try:
            return Add(uuid, Tally(total, count))
        except InvalidScore as error:
            return error

    def _count(self, name: str, chunk: _Chunk, part: _Part) -> None:
        """Count the lines of a chunk that are counted by themselves, and add the others to `part`."""
        if chunk.body and self._summed:
            added = self._decoder.add_up(chunk.body, part.sums)
            if added is not None:
                part.lines += added
                return
        lines = chunk.lines()
        self._refuse(name, _bad(lines))
        good = [line for line in lines if not isinstance(line[1], RequestError)]
        part.lines += len(good)
        if self._summed:
            part.add(item for _, item in good if not self._with_ids or item.id is None)
            good = [line for line in good if self._with_ids and line[1].id is not None]
        elif self._with_ids:
            good = [(number, _with_id(item, f"{part.source}:{number}")) for number, item in good]
        self._commit(name, good)

    def _count_part(self, name: str, part: _Part) -> None:
        """Count what was added up, and begin the next part."""
        adds = [Add(uuid, tally, self._id(part, place)) for place, (uuid, tally) in enumerate(part.tallies())]
        if self._with_ids:
            self._commit(name, [(f"the scores of {add.uuid}", add) for add in adds])
        elif adds:
            # In one commit, so that the whole of a file that is not too long is counted or nothing of it.
            with self._whole():
                self._outcomes(adds)
                self.report.counted += sum(add.tally.count for add in adds)
        part.begin()

    def _id(self, part: _Part, place: int) -> str | None:
        return f"{part.source}:{part.number}:{place}" if self._with_ids else None

    def _commit(self, name: str, lines: Sequence[tuple[int | str, Score | Add]]) -> None:
        """Count `lines`, some thousands at a time, and report what became of them; each with its number, or what it is."""
        for start in range(0, len(lines), COMMIT_MAX_SCORES):
            some = lines[start : start + COMMIT_MAX_SCORES]
            with self._whole():
                refused = self._counted(some)
            self._refuse(name, refused)

    def _counted(self, lines: Sequence[tuple[int | str, Score | Add]]) -> list[tuple[int | str, RequestError]]:
        """Count `lines` in one commit and return those that the store refuses."""
        refused = []
        for (number, item), outcome in zip(lines, self._outcomes([item for _, item in lines]), strict=True):
            count = item.tally.count if isinstance(item, Add) and self._summed else 1
            if isinstance(outcome, RequestError):
                refused.append((number, outcome))
                self.report.skipped += count - 1
            elif isinstance(outcome, Replay):
                self.report.replayed += count
            else:
                self.report.counted += count
        return refused

    def _outcomes(self, items: Sequence[Score | Add]) -> Sequence[Outcome]:
        """Count `items` and return their outcomes. Raises Unavailable where a store of several nodes has not confirmed one."""
        outcomes = self._store.commit(items)
        if (failure := next(filter(is_failure, outcomes), None)) is not None:
            raise failure
        return outcomes

    def _note(self, name: str, bad: Sequence[tuple[int | str, RequestError]]) -> None:
        self.report.skipped += len(bad)
        room = SHOWN_MAX_FAULTS - len(self.report.faults)
        self.report.faults += [f"{name}:{number}: {cut(_sentence(error))}" for number, error in bad[: max(room, 0)]]

    def _refuse(self, name: str, bad: Sequence[tuple[int | str, RequestError]]) -> None:
        self._note(name, bad)
        if bad and not self._skip:
            raise _stopped(name, bad[0][0])


class _Part:
    """A part of a file, of which the scores of each UUID are added up.

    Attributes:
        source: the hash of the file; empty for an import without ids.
        number: the number of the part, from 1.
        sums: the tally of each UUID so far, in units of ONE_SCORE, in the order of their first lines.
        lines: lines of the file that were read, in this part and those before.
    """

    def __init__(self, source: str):
        self.source = source
        self.number = 1
        self.sums: dict[str, int] = {}
        self.lines = 0

    def add(self, scores: Iterable[Score]) -> None:
        """Add scores to the sums."""
        for score in scores:
            self.sums[score.uuid] = self.sums.get(score.uuid, 0) + ONE_SCORE + score.score

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield what was added up. A UUID of which only lines at fault were seen has no tally."""
        return ((uuid, unpack_sum(packed)) for uuid, packed in self.sums.items() if packed)

    def begin(self) -> None:
        """Begin the next part."""
        self.number += 1
        self.sums = {}


def export(store: Tallies, file: IO[bytes], kind: str) -> int:
    """Write every UUID with its sum, count and mean to `file`; return how many.

    In order, and all as of one commit.

    Args:
        kind: `ndjson`, `csv`, or `parquet`, which needs the extra of that name.

    Raises:
        StoreError: `parquet`, and pyarrow is not installed.
    """
    rows = ((uuid, tally.sum, tally.count, tally.mean) for uuid, tally in store.tallies())
    return {"ndjson": _write_ndjson, "csv": _write_csv, "parquet": _write_parquet}[kind](file, rows)


_NAMES = ("UUID", "sum", "count", "mean")
_Rows = Iterator[tuple[str, int, int, float]]


def _write_ndjson(file: IO[bytes], rows: _Rows) -> int:
    encode, written = msgspec.json.Encoder().encode_lines, 0
    while some := list(itertools.islice(rows, COMMIT_MAX_SCORES)):
        file.write(encode([dict(zip(_NAMES, row)) for row in some]))
        written += len(some)
    return written


def _write_csv(file: IO[bytes], rows: _Rows) -> int:
    file.write(",".join(_NAMES).encode() + b"\n")
    written = 0
    while some := list(itertools.islice(rows, COMMIT_MAX_SCORES)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(some)
        file.write(text.getvalue().encode())
        written += len(some)
    return written


def _write_parquet(file: IO[bytes], rows: _Rows) -> int:
    try:
        import pyarrow  # pylint: disable=import-outside-toplevel  # optional: the extra `parquet`
        from pyarrow import parquet  # pylint: disable=import-outside-toplevel
    except ImportError:
        raise StoreError("parquet needs pyarrow: pip install 'scoremean[parquet]'") from None
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.int64(), pyarrow.float64())
    schema, written = pyarrow.schema(list(zip(_NAMES, types))), 0
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(itertools.islice(rows, 10 * COMMIT_MAX_SCORES)):
            writer.write_table(pyarrow.table([list(column) for column in zip(*some)], schema=schema))
            written += len(some)
    return written


def cut(text: str, max_characters: int = SHOWN_MAX_CHARACTERS) -> str:
    """Return `text` cut to a length that a message can bear."""
    return text if len(text) <= max_characters else text[:max_characters] + "..."


class _Source:
    """A file to import, which must hold the same bytes each time that it is read.

    Args:
        name: where it is, and what it is called in messages; `-` is standard input.

    Attributes:
        packed: whether it is gzip.
        bytes_read: how much of it was read since `begin`.
        hash: of all its bytes, once they were read to the end; empty before.
    """

    def __init__(self, name: str):
        self.name = name
        self._file = _opened(name)
        self._size_bytes, _ = self._found = self._state()
        self.packed = self._file.read(2) == _GZIP_MAGIC
        self.bytes_read = 0
        self.hash = ""
        self._digest = blake2b(digest_size=16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self) -> Callable[[], bytes]:
        """Go to the start, and return what reads the next CHUNK_BYTES of the text in the file, none at its end.

        It raises ImportStopped where gzip is damaged.
        """
        self._file.seek(0)
        self.bytes_read = 0
        self._digest = blake2b(digest_size=16)
        return partial(self._unpack, gzip.GzipFile(fileobj=self)) if self.packed else partial(self.read, CHUNK_BYTES)

    def _unpack(self, file: gzip.GzipFile) -> bytes:
        try:
            return file.read(CHUNK_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ImportStopped(f"{self.name} is gzip that is damaged or cut off: {error}") from None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of the file itself, and none that were appended since it was opened."""
        data = self._file.read(min(size, self._size_bytes - self.bytes_read))
        self.bytes_read += len(data)
        self._digest.update(data)
        return data

    def require_same(self) -> None:
        """Take the hash of what was read to the end.

        Raises:
            ImportStopped: it is not what was read before; or, the first time, somebody writes the file, whose last line may
                be a half one.
        """
        digest = self._digest.hexdigest()
        if self.hash != digest and (self.hash or self._state() != self._found):
            raise ImportStopped(f"{self.name} was changed while it was read; import it again when nobody writes it")
        self.hash = digest

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


def _opened(name: str) -> IO[bytes]:
    """Return a file that can be read twice: standard input, and any pipe, is copied to a temporary one.

    Raises:
        ImportStopped: there is no room for the copy.
    """
    piped = name == "-"
    file = open(0 if piped else name, "rb", closefd=not piped)  # pylint: disable=consider-using-with  # the caller closes it
    if not piped and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        copy = tempfile.TemporaryFile()  # pylint: disable=consider-using-with  # likewise
        for data in iter(partial(file.read, CHUNK_BYTES), b""):
            try:
                copy.write(data)
                copy.flush()
            except OSError as error:
                reason = f"{error.strerror}; make room, or set TMPDIR to another directory"
                raise ImportStopped(f"cannot keep a copy of {name} in {tempfile.gettempdir()}: {reason}") from error
    copy.seek(0)
    return copy


def _pieces(name: str, reads: Iterable[bytes]) -> _Pieces:
    """Yield what is read in pieces that end with a line; the last one may lack its newline.

    Raises:
        ImportStopped: a line is too long to be held in memory.
    """
    number, rest = 1, b""
    for data in reads:
        text = rest + data
        if (len(text) if b"\n" not in text else text.index(b"\n")) > LINE_MAX_BYTES:  # the others fit into what is read at once
            raise ImportStopped(f"{name}:{number}: the line is longer than {LINE_MAX_BYTES:,} bytes; a line ends at a newline")
        head, newline, rest = text.rpartition(b"\n")
        if newline:
            yield number, head + newline
            number += head.count(b"\n") + 1
    if rest:
        yield number, rest


def _is_plain(text: bytes) -> bool:
    """Return whether each line can be but one object of UUID and score, each once, if msgspec takes the text for such objects.

    It takes two on a line as well, or one on two, and of a member that stands twice the last. But each object has six quotes or
    more; so if every line ends with one, and there are six a line, there is no room for anything else.
    """
    last = text[-1:] == b"}"
    lines = text.count(b"\n") + last
    return text.count(b"}\n") + last == lines and text.count(b'"') == 6 * lines


def _object(line: bytes) -> Any:
    """Return the value in a line of NDJSON, or the InvalidScore that it is."""
    try:
        # Python parses no more than 4,300 digits; the first 400 are as much out of range.
        return json.loads(line.decode(), object_pairs_hook=_members, parse_int=lambda digits: int(digits[:400]))
    except UnicodeDecodeError as error:
        return InvalidScore(f"the line is not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return InvalidScore(f"the line is not one object of JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return InvalidScore("the line is nested too deeply")
    except InvalidScore as error:
        return error


def _members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidScore(f"the member {name!r} stands twice")
    return members


def _rows(name: str, pieces: _Pieces) -> Iterator[tuple[int, list[str] | InvalidScore]]:
    """Yield each row of a CSV file with the number of its first line; in place of one that is at fault, the error.

    Raises:
        ImportStopped: a quote opens a cell that runs over lines and does not end well, so that it is not known where rows are.
    """
    lines = (line for _, text in pieces for line in io.StringIO(text.decode(errors="surrogateescape"), "\n"))
    rows = csv.reader(lines, strict=True)
    while True:
        number = rows.line_num + 1
        try:
            if (row := next(rows, None)) is None:
                return
        except csv.Error as error:
            reason = re.sub("^new-line.*", "a carriage return stands alone", str(error))
            if rows.line_num > number:
                raise ImportStopped(f"{name}:{number}: a quote that opens here is not closed well: {reason}") from None
            yield number, InvalidScore(f"the line is not CSV: {reason}")
            continue
        if row:
            yield number, row if _is_text(row) else InvalidScore("the line is not UTF-8")


def _is_text(row: Sequence[str]) -> bool:
    """Return whether no cell has a byte that was not UTF-8."""
    text = "".join(row)
    return text.isascii() or not re.search("[\udc80-\udcff]", text)


def _number(cell: str) -> int | str:
    """Return a cell as the integer that it is, or as it stands."""
    return int(cell) if _INTEGER.fullmatch(cell) else cell


def _bad(lines: Sequence[Line]) -> list[tuple[int, RequestError]]:
    return [(number, item) for number, item in lines if isinstance(item, RequestError)]


def _stopped(name: str, number: int | str) -> ImportStopped:
    return ImportStopped(f"stopped at {name}:{number}; mend it, or skip bad lines with --on-error skip")


def _with_id(item: Score | Add, name: str) -> Score | Add:
    return item if item.id is not None else msgspec.structs.replace(item, id=name)


def _sentence(error: RequestError) -> str:
    faults = getattr(error, "faults", ())
    return "; ".join(fault.detail for fault in faults) or error.detail
