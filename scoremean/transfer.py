"""Import and export: files of scores, or of tallies, into a store and out of it.

A file is read in chunks, so memory does not grow with its size, and every line of it gets an id from the hash of the file and
its line number, unless it has one of its own. So an import that was cut off is simply run again: what was counted is
replayed, and counts nothing. Without ids the scores of each UUID are added up first, which is several times faster, but a
second run would count twice.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import msgspec

from scoremean.errors import ImportStopped, InvalidScore, RequestError, StoreError
from scoremean.model import Add, Replay, Score, Tally
from scoremean.store.base import Store
from scoremean.store.lmdb import LmdbStore
from scoremean.validation import NDJSON, Item, ScoreDecoder

CHUNK_BYTES = 1 << 20
COMMIT_MAX_SCORES = 10_000
SUMMED_MAX_UUIDS = 1 << 17
SHOWN_MAX_FAULTS = 20

_GZIP_MAGIC = b"\x1f\x8b"

# A line of a file: its number, and what it holds; what is at fault is an error.
Line = tuple[int, Score | Add | RequestError]


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
        with_ids: give every line an id, so that the import can be run again.
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
        tallies: bool = False,
        skip: bool = False,
        progress: Callable[[int, int], None] = lambda *_: None,
    ):
        self._store = store
        self._decoder = decoder
        self._columns = columns
        self._with_ids = with_ids
        self._tallies = tallies
        self._skip = skip
        self._progress = progress
        self._sums: dict[str, list[int]] = {}
        self._summed = 0
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
            prefix = _hash(raw) if self._with_ids else ""
            if self._with_ids and not self._skip:
                self._refuse(name, [bad for lines, _ in self._read(raw) for bad in _bad(lines)])
            lines_read = 0
            for lines, bytes_read in self._read(raw):
                self._count(name, lines, prefix)
                lines_read += len(lines)
                self._progress(bytes_read, lines_read)
        self._add_sums()

    def _read(self, raw: IO[bytes]) -> Iterator[tuple[list[Line], int]]:
        """Yield the lines of a file from its start, some thousands at a time, and the bytes of it read so far."""
        packed = _peek(raw, 2) == _GZIP_MAGIC
        text = _Counted(raw)
        for lines in self._chunks(gzip.GzipFile(fileobj=text) if packed else text):
            yield lines, text.bytes_read

    def _chunks(self, file: Any) -> Iterator[list[Line]]:
        """Yield the lines of a file, some thousands at a time."""
        chunks = _text_chunks(file)
        first = next(chunks, b"")
        chunks = itertools.chain([first], chunks)
        if first.lstrip()[:1] not in (b"{", b""):
            yield from self._csv(chunks)
            return
        number = 1
        for chunk in chunks:
            texts = chunk.split(b"\n")
            numbers = [number + index for index, text in enumerate(texts) if text.strip()]
            number += len(texts) - 1
            yield list(zip(numbers, self._json_items(chunk, texts), strict=True))

    def _json_items(self, chunk: bytes, texts: Sequence[bytes]) -> list[Item | Add]:
        if not self._tallies and self._columns == Columns():
            return self._decoder.decode_batch(chunk, NDJSON)
        return [self._item(_json_object(text)) for text in texts if text.strip()]

    def _csv(self, chunks: Iterator[bytes]) -> Iterator[list[Line]]:
        rows = csv.DictReader(_decoded_lines(chunks))
        missing = self._required() - set(rows.fieldnames or ())
        if missing:
            raise ImportStopped(f"the header of the CSV file lacks the column {sorted(missing)[0]}; it has {rows.fieldnames}")
        lines = ((rows.line_num, self._item({name: _number(text) for name, text in row.items()})) for row in rows)
        while some := list(itertools.islice(lines, COMMIT_MAX_SCORES)):
            yield some

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

    def _count(self, name: str, lines: Sequence[Line], prefix: str) -> None:
        self._refuse(name, _bad(lines))
        good = [line for line in lines if not isinstance(line[1], RequestError)]
        if not self._with_ids:
            self._sum(item for _, item in good)
            return
        for start in range(0, len(good), COMMIT_MAX_SCORES):
            part = good[start : start + COMMIT_MAX_SCORES]
            outcomes = self._store.commit([_with_id(item, f"{prefix}:{number}") for number, item in part])
            refused = [(number, one) for (number, _), one in zip(part, outcomes) if isinstance(one, RequestError)]
            replayed = sum(isinstance(outcome, Replay) for outcome in outcomes)
            self.report.replayed += replayed
            self.report.counted += len(part) - replayed - len(refused)
            self._refuse(name, refused)

    def _refuse(self, name: str, bad: Sequence[tuple[int, RequestError]]) -> None:
        if not bad:
            return
        self.report.skipped += len(bad)
        room = SHOWN_MAX_FAULTS - len(self.report.faults)
        self.report.faults += [f"{name}:{number}: {_sentence(error)}" for number, error in bad[: max(room, 0)]]
        if not self._skip:
            raise ImportStopped(f"stopped at line {bad[0][0]} of {name}; mend it, or skip bad lines with --on-error skip")

    def _sum(self, items: Iterator[Score | Add]) -> None:
        """Add to the sums, and commit them when they are many."""
        sums, counted = self._sums, 0
        for item in items:
            change, count = (item.score, 1) if item.__class__ is not Add else (item.tally.sum, item.tally.count)
            entry = sums.get(item.uuid)
            if entry is None:
                sums[item.uuid] = [change, count]
            else:
                entry[0] += change
                entry[1] += count
            counted += 1
        self._summed += counted
        if len(sums) >= SUMMED_MAX_UUIDS:
            self._add_sums()

    def _add_sums(self) -> None:
        if self._sums:
            self._store.commit([Add(uuid, Tally(*pair)) for uuid, pair in self._sums.items()])
            self.report.counted += self._summed
            self._sums, self._summed = {}, 0


def export(store: LmdbStore, file: IO[bytes], kind: str) -> int:
    """Write every UUID with its sum, count and mean to `file`, in order, all as of one commit. Return how many.

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
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
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
