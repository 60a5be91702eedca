"""Import and export: files of scores, or of tallies, into a store and out of it.

A file is read in chunks, so memory does not grow with its size. The scores of each UUID are added up over a part of the file,
and what is counted is one tally a UUID. It gets an id from the hash of the file, the number of the part and the UUID's place in
it, so an import that was cut off is simply run again: what was counted is replayed, and counts nothing. A line with an id of
its own is counted by itself.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import msgspec

from scoremean.errors import ImportStopped, InvalidScore, RequestError, StoreError
from scoremean.model import Add, Replay, Score, Tally
from scoremean.store.base import Outcome, Store, is_failure
from scoremean.validation import NDJSON, ONE_SCORE, Item, ScoreDecoder, unpack_sum

# These two decide where a part of a file ends, and so what its ids name: whoever changes one makes a second run count again.
CHUNK_BYTES = 1 << 20
SUMMED_MAX_UUIDS = 1 << 17

COMMIT_MAX_SCORES = 10_000
SHOWN_MAX_FAULTS = 20

_GZIP_MAGIC = b"\x1f\x8b"

# A line of a file: its number, and what it holds; what is at fault is an error.
Line = tuple[int, Score | Add | RequestError]


class Tallies(Protocol):
    """A store that can be exported."""

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """Yield every UUID with its tally."""


class _Chunk(NamedTuple):
    """Some lines of a file.

    Attributes:
        number: the number of the first one.
        body: their bytes, when they may be scores in NDJSON with the usual members; else empty.
        lines: decodes each of them.
    """

    number: int
    body: bytes
    lines: Callable[[], list[Line]]


@dataclass(frozen=True)
class Columns:
    """What the members of an object, or the columns of a CSV file, are called."""

    uuid: str = "UUID"
    score: str = "score"
    id: str = "id"


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
    ):
        self._store = store
        self._decoder = decoder
        self._columns = columns
        self._with_ids = with_ids
        self._summed = summed and not tallies
        self._tallies = tallies
        self._skip = skip
        self._progress = progress
        self.report = Report()

    def run(self, name: str) -> None:
        """Import one file, NDJSON or CSV, plain or gzip by its content; `-` is standard input.

        When it returns, every line of the file is durable or in `report.faults`.

        Raises:
            ImportStopped: there are bad lines, and they are not to be skipped. With ids the whole file is looked through before
                anything is counted, so nothing of it is, unless the store refuses an id. Without ids nothing is counted
                unless the file has more than SUMMED_MAX_UUIDS UUIDs.
            OSError: the file cannot be read.
        """
        with _opened(name) as raw:
            if self._with_ids and not self._skip:
                self._look_through(name, raw)
            part = _Part(_hash(raw) if self._with_ids else "")
            for chunk, bytes_read in self._chunks(raw):
                self._count(name, chunk, part)
                self._progress(bytes_read, part.lines)
                if len(part.sums) >= SUMMED_MAX_UUIDS:
                    self._count_part(name, part)
            self._count_part(name, part)

    def _look_through(self, name: str, raw: IO[bytes]) -> None:
        bad: list[tuple[int, RequestError]] = []
        sums: dict[str, int] = {}
        for chunk, _ in self._chunks(raw):
            if self._decoder.add_up(chunk.body, sums) is None or not chunk.body:
                bad += _bad(chunk.lines())
            if len(sums) >= SUMMED_MAX_UUIDS:
                sums.clear()
        self._refuse(name, bad)

    def _chunks(self, raw: IO[bytes]) -> Iterator[tuple[_Chunk, int]]:
        """Yield a file from its start, some thousands of lines at a time, and the bytes of it read so far."""
        packed = _peek(raw, 2) == _GZIP_MAGIC
        counted = _Counted(raw)
        texts = _text_chunks(gzip.GzipFile(fileobj=counted) if packed else counted)
        first = next(texts, b"")
        texts = itertools.chain([first], texts)
        for chunk in (self._json if first.lstrip()[:1] in (b"{", b"") else self._csv)(texts):
            yield chunk, counted.bytes_read

    def _json(self, texts: Iterator[bytes]) -> Iterator[_Chunk]:
        plain = not self._tallies and self._columns == Columns()
        number = 1
        for text in texts:
            yield _Chunk(number, text if plain else b"", functools.partial(self._json_lines, number, text, plain))
            number += text.count(b"\n")

    def _json_lines(self, number: int, text: bytes, plain: bool) -> list[Line]:
        lines = text.split(b"\n")
        numbers = [number + index for index, line in enumerate(lines) if line.strip()]
        if plain:
            items = self._decoder.decode_batch(text, NDJSON)
        else:
            items = [self._item(_json_object(line)) for line in lines if line.strip()]
        return list(zip(numbers, items, strict=True))

    def _csv(self, texts: Iterator[bytes]) -> Iterator[_Chunk]:
        rows = csv.DictReader(_decoded_lines(texts))
        missing = self._required() - set(rows.fieldnames or ())
        if missing:
            raise ImportStopped(f"the header of the CSV file lacks the column {sorted(missing)[0]}; it has {rows.fieldnames}")
        lines = ((rows.line_num, self._item({name: _number(text) for name, text in row.items()})) for row in rows)
        while some := list(itertools.islice(lines, COMMIT_MAX_SCORES)):
            yield _Chunk(some[0][0], b"", functools.partial(list, some))

    def _required(self) -> set[str]:
        return {"UUID", "sum", "count"} if self._tallies else {self._columns.uuid, self._columns.score}

    def _item(self, value: Any) -> Item | Add:
        """Return what a row or an object holds; a UUID that looks like a number is text all the same."""
        if not isinstance(value, dict):
            return self._decoder.item(value)
        if self._tallies:
            return _tally(value)
        columns = self._columns
        score = {"UUID": value.get(columns.uuid), "score": value.get(columns.score), "id": value.get(columns.id)}
        for name in ("UUID", "id"):
            if isinstance(score[name], int):
                score[name] = str(score[name])
        return self._decoder.item({name: member for name, member in score.items() if member not in (None, "")})

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
            self._outcomes(adds)
            self.report.counted += sum(add.tally.count for add in adds)
        part.begin()

    def _id(self, part: _Part, place: int) -> str | None:
        return f"{part.source}:{part.number}:{place}" if self._with_ids else None

    def _commit(self, name: str, lines: Sequence[tuple[int | str, Score | Add]]) -> None:
        """Count `lines`, some thousands at a time, and report what became of them; each with its number, or what it is."""
        for start in range(0, len(lines), COMMIT_MAX_SCORES):
            some = lines[start : start + COMMIT_MAX_SCORES]
            refused = []
            for (number, item), outcome in zip(some, self._outcomes([item for _, item in some]), strict=True):
                count = item.tally.count if isinstance(item, Add) and self._summed else 1
                if isinstance(outcome, RequestError):
                    refused.append((number, outcome))
                    self.report.skipped += count - 1
                elif isinstance(outcome, Replay):
                    self.report.replayed += count
                else:
                    self.report.counted += count
            self._refuse(name, refused)

    def _outcomes(self, items: Sequence[Score | Add]) -> Sequence[Outcome]:
        """Count `items` and return their outcomes. Raises Unavailable where a store of several nodes has not confirmed one."""
        outcomes = self._store.commit(items)
        if (failure := next(filter(is_failure, outcomes), None)) is not None:
            raise failure
        return outcomes

    def _refuse(self, name: str, bad: Sequence[tuple[int | str, RequestError]]) -> None:
        if not bad:
            return
        self.report.skipped += len(bad)
        room = SHOWN_MAX_FAULTS - len(self.report.faults)
        self.report.faults += [f"{name}:{number}: {_sentence(error)}" for number, error in bad[: max(room, 0)]]
        if not self._skip:
            raise ImportStopped(f"stopped at {name}:{bad[0][0]}; mend it, or skip bad lines with --on-error skip")


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
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer, written = csv.writer(text, lineterminator="\n"), 0
    writer.writerow(_NAMES)
    for row in rows:
        writer.writerow(row)
        written += 1
    text.detach()
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


class _Counted:
    """A file that knows how many bytes of it were read; gzip reads ahead in it."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        data = self._file.read(size)
        self.bytes_read += len(data)
        return data


def _opened(name: str) -> IO[bytes]:
    """Return a file that can be read twice: standard input is copied to a temporary one."""
    if name != "-":
        return Path(name).open("rb")
    copy = tempfile.TemporaryFile()  # pylint: disable=consider-using-with  # the caller closes it
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.seek(0)
    return copy


def _bad(lines: Sequence[Line]) -> list[tuple[int, RequestError]]:
    return [(number, item) for number, item in lines if isinstance(item, RequestError)]


def _peek(file: IO[bytes], size: int) -> bytes:
    file.seek(0)
    data = file.read(size)
    file.seek(0)
    return data


def _hash(file: IO[bytes]) -> str:
    digest = blake2b(digest_size=16)
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _text_chunks(file: Any) -> Iterator[bytes]:
    """Yield a file in pieces that end with a line; the last one may lack its newline."""
    rest = b""
    while data := file.read(CHUNK_BYTES):
        head, newline, tail = (rest + data).rpartition(b"\n")
        if head or newline:
            yield head + newline
        rest = tail
    if rest:
        yield rest


def _decoded_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    for chunk in chunks:
        try:
            yield from chunk.decode("utf-8-sig").splitlines(keepends=True)
        except UnicodeDecodeError as error:
            raise ImportStopped(f"the CSV file is not UTF-8: {error.reason}") from None


def _json_object(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"


def _number(text: Any) -> Any:
    """Return a cell as the integer that it is, or as it stands."""
    try:
        return int(text) if text.removeprefix("-").isdecimal() else text
    except (AttributeError, ValueError):  # a row with too few cells, or with more digits than Python parses
        return text


def _tally(value: dict[str, Any]) -> Add | InvalidScore:
    uuid, total, count = (value.get(name) for name in ("UUID", "sum", "count"))
    if not isinstance(total, int) or not isinstance(count, int) or uuid is None:
        return InvalidScore("a tally has the members UUID, sum and count, the latter two integers")
    try:
        return Add(str(uuid), Tally(total, count))
    except InvalidScore as error:
        return error


def _with_id(item: Score | Add, name: str) -> Score | Add:
    return item if item.id is not None else msgspec.structs.replace(item, id=name)


def _sentence(error: RequestError) -> str:
    faults = getattr(error, "faults", ())
    return "; ".join(fault.detail for fault in faults) or error.detail
