"""Import and export: formats, faults, memory of what was counted, and byte-identical round trips."""

from __future__ import annotations

import asyncio
import csv
import gzip
import importlib
import io
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading

import pytest
from aiohttp import ClientSession
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scoremean import Tally, cli, open_store
from scoremean.errors import ImportStopped
from scoremean.model import Add
from scoremean.ops import transfer
from scoremean.store.embedded.store import LmdbStore
from scoremean.web.wire import ScoreDecoder
from tests.support import Server, assert_sound, post, require_library

LINES = b'{"UUID":"a","score":5}\n\n{"UUID":"b","score":1,"id":"own"}\r\n{"UUID":"a","score":3}'
TABLE = "UUID,score,id,comment\na,5,,x\n\"b\",1,own,\"y\n,z\"\na,3,,\n"
EXPECTED = [("a", Tally(8, 2)), ("b", Tally(1, 1))]


@pytest.fixture(name="run")
def fixture_run(tmp_path, capsys):
    """Run a verb on the store `tmp_path/store`; return the exit code, the JSON on standard output, and standard error."""

    def run(verb: str, *arguments: object, store: str = "store"):
        code = cli.main([verb, *map(str, arguments), "--store", str(tmp_path / store)])
        output = capsys.readouterr()
        return code, json.loads(output.out) if output.out else None, output.err

    yield run
    for path in tmp_path.glob("store*"):
        assert_sound(path)


def contents(path) -> list[tuple[str, Tally]]:
    """Return everything that a store holds."""
    with open_store(path, readonly=True) as store:
        return list(store.tallies())


@pytest.mark.parametrize("options", [[], ["--no-ids"]])
@pytest.mark.parametrize("data", [LINES, TABLE.encode(), gzip.compress(LINES), b"\xef\xbb\xbf" + TABLE.encode()])
def test_a_file_is_ndjson_or_csv_plain_or_gzip(run, tmp_path, data, options):
    """By its content, whatever it is called."""
    (tmp_path / "file").write_bytes(data)
    assert run("import", tmp_path / "file", *options)[:2] == (0, {"counted": 3, "replayed": 0, "skipped": 0})
    assert contents(tmp_path / "store") == EXPECTED


@pytest.mark.parametrize("data", [LINES, TABLE.encode(), gzip.compress(LINES)])
def test_a_second_run_counts_nothing(run, tmp_path, data):
    """Every line has an id of its own or one from the file and its line."""
    (tmp_path / "file").write_bytes(data)
    run("import", tmp_path / "file")
    os.rename(tmp_path / "file", tmp_path / "renamed")
    assert run("import", tmp_path / "renamed")[1] == {"counted": 0, "replayed": 3, "skipped": 0}
    assert contents(tmp_path / "store") == EXPECTED


def test_a_file_goes_through_a_running_service(run, tmp_path):
    """Twice, and it counts once; what the service refuses is a bad line."""
    (tmp_path / "file").write_bytes(LINES + b'\n{"UUID":"a","score":2,"id":"own"}')
    with Server(tmp_path / "served") as server:
        for _ in range(2):
            code, report, messages = run("import", tmp_path / "file", "--url", server.url, "--on-error", "skip")
            assert (code, report) == (0, {"counted": 3, "replayed": 0, "skipped": 1})
            assert "file:5: the id own was used before" in messages
        assert contents(tmp_path / "served") == EXPECTED
    code, _, messages = run("import", tmp_path / "file", "--url", server.url, "--tallies")
    assert (code, "--url takes scores with ids" in messages) == (2, True)


@pytest.mark.parametrize("limit", [["--batch-max-scores", "3"], ["--body-max-bytes", "300"]])
def test_a_service_may_take_small_batches(run, tmp_path, limit):
    """Each score counts once, also those that were under way beside a batch that was too large."""
    (tmp_path / "file").write_bytes(b"".join(b'{"UUID":"u%d","score":5}\n' % (number % 7) for number in range(500)))
    with Server(tmp_path / "served", *limit) as server:
        for _ in range(2):
            report = run("import", tmp_path / "file", "--url", server.url)[1]
            assert report == {"counted": 500, "replayed": 0, "skipped": 0}
        assert sum(tally.count for _, tally in contents(tmp_path / "served")) == 500


def test_a_score_that_is_too_large_for_a_service_is_a_bad_line(run, tmp_path):
    """And the only one."""
    lines = [b'{"UUID":"a","score":5}', b'{"UUID":"%s","score":5}' % (b"b" * 256), b'{"UUID":"a","score":3}']
    (tmp_path / "file").write_bytes(b"\n".join(lines))
    with Server(tmp_path / "served", "--body-max-bytes", "120") as server:
        code, report, messages = run("import", tmp_path / "file", "--url", server.url, "--on-error", "skip")
        assert (code, report) == (0, {"counted": 2, "replayed": 0, "skipped": 1})
        assert messages == f"{tmp_path}/file:2: the body is longer than body_max_bytes, 120 bytes\n"
        assert contents(tmp_path / "served") == [("a", Tally(8, 2))]


def test_a_service_that_is_not_there_is_not_waited_for(run, tmp_path, unused_tcp_port):
    """Nothing is tried ten times, and nothing is read before."""
    for address in (f"127.0.0.1:{unused_tcp_port}", f"{'a' * 70}.example"):
        code, report, messages = run("import", tmp_path / "none", "--url", f"http://{address}")
        assert (code, report) == (1, None)
        assert messages.startswith(f"scoremean: nothing answers at http://{address}: ") and messages.count("\n") == 1
    for url in ("127.0.0.1:8080", "http://127.0.0.1:99999", "localhost", "ftp://127.0.0.1", "http://", "http://local host", ""):
        assert run("import", tmp_path / "none", "--url", url)[::2] == (
            2,
            f"scoremean: {url!r} is not the URL of a service, such as http://127.0.0.1:8080\n",
        )


def test_a_second_run_with_other_settings_is_refused(run, tmp_path):
    """When its sums would differ: nothing is counted twice, and the UUID is named."""
    (tmp_path / "file").write_text("UUID,score,other\na,5,3\na,5,4\nb,1,1\n")
    assert run("import", tmp_path / "file", "--on-error", "skip")[1] == {"counted": 3, "replayed": 0, "skipped": 0}
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip", "--score-column", "other")
    assert (code, report) == (0, {"counted": 0, "replayed": 1, "skipped": 2})
    assert "file:the scores of a: the id " in messages
    assert contents(tmp_path / "store") == [("a", Tally(10, 2)), ("b", Tally(1, 1))]


@pytest.mark.parametrize("options", [[], ["--no-ids"]])
def test_lines_are_added_up_exactly(run, tmp_path, monkeypatch, options):
    """Over chunks and parts, with negative scores, with chunks that have to be looked at line by line in between."""
    monkeypatch.setattr("scoremean.ops.transfer.SUMMED_MAX_UUIDS", 7)
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 150)
    scores = [(f"u{n * 5 % 11}", n % 9 - 4) for n in range(300)]
    lines = [b'{"UUID":"%s","score":%d}' % (uuid.encode(), score) for uuid, score in scores]
    lines[100:100] = [b'{"UUID":"u1","score":1,"id":"own"}', b"", b'{"UUID":"u1","score":9}', b'{"UUID":"","score":1}']
    (tmp_path / "file").write_bytes(b"\n".join(lines))
    flags = ["--score-min", -4, "--score-max", 4, "--on-error", "skip", *options]
    assert run("import", tmp_path / "file", *flags)[1] == {"counted": 301, "replayed": 0, "skipped": 2}
    truth: dict[str, Tally] = {}
    for uuid, score in [*scores, ("u1", 1)]:
        truth[uuid] = truth.get(uuid, Tally(0, 0)) + Tally(score, 1)
    assert dict(contents(tmp_path / "store")) == truth
    if not options:
        assert run("import", tmp_path / "file", *flags)[1] == {"counted": 0, "replayed": 301, "skipped": 2}
        assert dict(contents(tmp_path / "store")) == truth


def test_standard_input(tmp_path):
    """As a file named -."""
    command = [sys.executable, "-m", "scoremean", "import", "-", "--store", str(tmp_path)]
    done = subprocess.run(command, input=LINES, capture_output=True, check=True)
    assert json.loads(done.stdout)["counted"] == 3
    assert contents(tmp_path) == EXPECTED


@pytest.mark.parametrize("data", [b'{"inspector":"7","points":5,"x":1}\n', b"x,points,inspector\n1,5,7\n"])
def test_columns_may_have_other_names(run, tmp_path, data):
    """Others are ignored then; a UUID that looks like a number is text."""
    (tmp_path / "file").write_bytes(data)
    assert run("import", tmp_path / "file", "--uuid-column", "inspector", "--score-column", "points")[0] == 0
    assert contents(tmp_path / "store") == [("7", Tally(5, 1))]


def test_bad_lines_stop_or_are_skipped(run, tmp_path):
    """Each is named by file and line, at most 20 in full; nothing of the file is counted when they stop."""
    file = tmp_path / "file"
    bad = [b"{", b'{"UUID":"a","score":6}', b"[]"] * 10
    file.write_bytes(b"\n".join([b'{"UUID":"a","score":5}', *bad, b'{"UUID":"a","score":4}']))
    code, report, messages = run("import", file)
    assert (code, report) == (1, {"counted": 0, "replayed": 0, "skipped": 30})
    assert f"stopped at {file}:2;" in messages
    code, report, messages = run("import", file, "--on-error", "skip")
    assert (code, report) == (0, {"counted": 2, "replayed": 0, "skipped": 30})
    lines = messages.splitlines()
    assert lines[1] == f"{file}:3: score must be an integer from 0 to 5, not 6"
    assert len(lines) == 21 and lines[-1] == "... and 10 more bad lines"


@pytest.mark.parametrize("options", [[], ["--no-ids"]])
def test_a_bad_line_far_behind_stops_the_whole_file(run, tmp_path, monkeypatch, options):
    """So it can be mended and imported again, though its lines then have other ids."""
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 100)
    (tmp_path / "file").write_bytes(b'{"UUID":"a","score":5}\n' * 100 + b"{")
    code, report, messages = run("import", tmp_path / "file", *options)
    assert (code, report) == (1, {"counted": 0, "replayed": 0, "skipped": 1})
    assert "file:101;" in messages
    assert not contents(tmp_path / "store")


def test_an_id_that_is_used_for_another_score_is_a_bad_line(run, tmp_path):
    """The store finds it."""
    (tmp_path / "file").write_bytes(b'{"UUID":"a","score":5,"id":"x"}\n{"UUID":"a","score":4,"id":"x"}\n')
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip")
    assert (code, report) == (0, {"counted": 1, "replayed": 0, "skipped": 1})
    assert "file:2: the id x was used before" in messages


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n", "lacks the column UUID; it has ['a', 'b']"),
        (b"UUID,score\n\xff,1\n", "not UTF-8"),
        (b"UUID,score\na\n", "file:2: the line has 1 cells, and the header 2"),
        (b"UUID,score\na,%s\n" % (b"9" * 5000), "score must be an integer"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_refused(run, tmp_path, data, message):
    """With what is wrong."""
    (tmp_path / "file").write_bytes(data)
    code, _, messages = run("import", tmp_path / "file")
    assert code == 1 and message in messages


def test_a_missing_file_is_refused(run, tmp_path):
    """By name, in a sentence."""
    code, _, messages = run("import", tmp_path / "none")
    assert (code, messages) == (1, f"scoremean: cannot read {tmp_path / 'none'}: No such file or directory\n")


def test_an_export_is_read_by_other_programs(run, tmp_path):
    """NDJSON and CSV hold the same rows."""
    (tmp_path / "file").write_bytes(LINES.replace(b'"b"', '"é,\\""'.encode()))
    run("import", tmp_path / "file")
    for kind in ("ndjson", "csv"):
        assert run("export", "--format", kind, "--output", tmp_path / kind)[0] == 0
    rows = [
        {"UUID": "a", "sum": 8, "count": 2, "mean": 4.0},
        {"UUID": 'é,"', "sum": 1, "count": 1, "mean": 1.0},
    ]
    assert [json.loads(line) for line in (tmp_path / "ndjson").read_text().splitlines()] == rows
    table = csv.DictReader(io.StringIO((tmp_path / "csv").read_text()))
    assert list(table) == [{name: str(value) for name, value in row.items()} for row in rows]


@pytest.mark.ci
def test_an_export_to_parquet_is_read_by_pyarrow(run, tmp_path):
    """The same rows, of the same types."""
    require_library("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    assert run("export", "--format", "parquet", "--output", tmp_path / "parquet")[0] == 0
    assert parquet.read_table(tmp_path / "parquet").to_pylist() == [
        {"UUID": "a", "sum": 8, "count": 2, "mean": 4.0},
        {"UUID": "b", "sum": 1, "count": 1, "mean": 1.0},
    ]


def test_parquet_without_pyarrow_says_what_to_install(run, tmp_path, monkeypatch):
    """It is an extra."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, messages = run("export", "--format", "parquet", "--output", tmp_path / "out")
    assert code == 3 and "pip install 'scoremean[parquet]'" in messages


def test_an_export_to_a_place_that_is_not_there(run, tmp_path):
    """It says so."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    code, _, messages = run("export", "--output", tmp_path / "none" / "out")
    assert code == 1 and "cannot write" in messages


@pytest.mark.parametrize("kind", ["ndjson", "csv"])
def test_exports_are_merged_exactly_and_once(run, tmp_path, kind):
    """Two stores into a third, each export imported twice."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file", store="store-1")
    (tmp_path / "more").write_bytes(b'{"UUID":"b","score":4}\n{"UUID":"c","score":0}')
    run("import", tmp_path / "more", store="store-2")
    for number in (1, 2):
        assert run("export", "--format", kind, "--output", tmp_path / f"out-{number}", store=f"store-{number}")[0] == 0
    for replayed in (0, 4):
        report = run("import", "--tallies", tmp_path / "out-1", tmp_path / "out-2", store="store-3")[1]
        assert report == {"counted": 4 - replayed, "replayed": replayed, "skipped": 0}
    assert contents(tmp_path / "store-3") == [("a", Tally(8, 2)), ("b", Tally(5, 2)), ("c", Tally(0, 1))]


@pytest.mark.parametrize(
    "line",
    [
        b'{"UUID":"a","sum":1}',
        b'{"UUID":"","sum":1,"count":1}',
        b'{"UUID":"a","sum":1,"count":0}',
        b"{",
        b'{"UUID":"a","sum":true,"count":true}',
        b'{"UUID":"a","sum":0,"count":false}',
        b'{"UUID":"a","sum":1.0,"count":1}',
        b'{"UUID":"a","sum":"1","count":1}',
        b'{"UUID":7,"sum":1,"count":1}',
        b'{"UUID":"a","sum":6,"count":1}',
        b'{"UUID":"a","sum":-1,"count":1}',
        b'{"UUID":"a","sum":1,"count":-1}',
        b'{"UUID":"a","sum":0,"count":2000000000000}',
        b'{"UUID":"a","sum":1,"count":1,"count":2}',
        b'{"UUID":"a","sum":5,"count":1}\n[1,2]',
        b"UUID,sum,count\na,1.0,1",
        b"UUID,sum,count\na,True,1",
        b"UUID,sum,count\na,1,+1",
        b"UUID,sum,count\na,1,",
    ],
)
def test_what_is_no_tally_is_a_bad_line(run, tmp_path, line):
    """Missing members, an invalid UUID, what is no integer, no scores, and what scores in the range cannot add up to."""
    (tmp_path / "file").write_bytes(line)
    code, report, messages = run("import", "--tallies", tmp_path / "file")
    assert (code, report["counted"], "Traceback" in messages) == (1, 0, False)
    assert f"file:{1 + line.count(10)}: " in messages
    assert not contents(tmp_path / "store")


def test_a_bad_tally_far_behind_stops_the_whole_file(run, tmp_path, monkeypatch):
    """Without ids too, for it is mended and imported again."""
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 100)
    (tmp_path / "file").write_bytes(b'{"UUID":"a","sum":5,"count":1}\n' * 100 + b"{")
    assert run("import", "--tallies", "--no-ids", tmp_path / "file")[1] == {"counted": 0, "replayed": 0, "skipped": 1}
    assert not contents(tmp_path / "store")


def test_many_uuids_are_committed_in_between(run, tmp_path, monkeypatch):
    """Without ids sums are kept only up to a limit, so memory does not grow with the file."""
    monkeypatch.setattr("scoremean.ops.transfer.SUMMED_MAX_UUIDS", 10)
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 100)
    (tmp_path / "file").write_bytes(b"".join(b'{"UUID":"u%d","score":1}\n' % (n % 50) for n in range(500)))
    assert run("import", "--no-ids", tmp_path / "file")[1]["counted"] == 500
    assert contents(tmp_path / "store") == sorted((f"u{n}", Tally(10, 10)) for n in range(50))


def test_an_export_goes_on_while_the_store_is_written(tmp_path):
    """It is of one moment: what is counted after it began is not in it."""

    async def post_all(server: Server, *uuids: str) -> None:
        async with ClientSession(server.url) as client:
            for uuid in uuids:
                await post(client, uuid, 5)

    with Server(tmp_path) as server:
        asyncio.run(post_all(server, "a", "b"))
        with LmdbStore(tmp_path, readonly=True) as store:
            tallies = store.tallies()
            found = [next(tallies)]
            asyncio.run(post_all(server, "b", "c"))
            found += tallies
            assert found == [("a", Tally(5, 1)), ("b", Tally(5, 1))]
            assert store.get(["b", "c"]) == [Tally(10, 2), Tally(5, 1)]


def test_a_terminal_gets_a_progress_bar(tmp_path):
    """And nothing else does."""
    (tmp_path / "file").write_bytes(LINES)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "scoremean", "import", str(tmp_path / "file"), "--store", str(tmp_path / "store")]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=follower, check=True)
    os.close(follower)
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    assert "[####################] 100%  3 lines, " in shown and "s left" in shown


def test_a_large_file_imported_twice_and_killed_in_between(run, many_scores, tmp_path, monkeypatch):
    """Exactly 73,421 scores; exported, merged into an empty store and exported again it is the same to the byte."""
    small_parts = {"CHUNK_BYTES": 1 << 12, "SUMMED_MAX_UUIDS": 50}
    for name, value in small_parts.items():
        monkeypatch.setattr(f"scoremean.ops.transfer.{name}", value)
    code = (
        "import sys; from scoremean import cli; from scoremean.ops import transfer;"
        f" vars(transfer).update({small_parts}); sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", code, "import", str(many_scores), "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                with open_store(tmp_path / "store", readonly=True) as store:
                    if store.stats().scores > 30_000:
                        process.kill()
            except Exception:  # pylint: disable=broad-exception-caught  # the store is not there yet
                continue
    before = sum(tally.count for _, tally in contents(tmp_path / "store"))
    assert process.returncode == -9 and 30_000 < before < 73_421
    report = run("import", many_scores)[1]
    assert report == {"counted": 73_421 - before, "replayed": before, "skipped": 0}
    truth: dict[str, Tally] = {}
    for score in map(json.loads, many_scores.read_bytes().splitlines()):
        truth[score["UUID"]] = truth.get(score["UUID"], Tally(0, 0)) + Tally(score["score"], 1)
    assert dict(contents(tmp_path / "store")) == truth
    run("export", "--output", tmp_path / "first")
    run("import", "--tallies", tmp_path / "first", store="store-2")
    run("export", "--output", tmp_path / "second", store="store-2")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


# What is text stays text.


NUMBERLIKE = ["7", "007", "-0", "+5", "5.0", " 5", "5 ", "٥", "1e3", "1_000", "NaN"]


@pytest.mark.parametrize("uuid", [*NUMBERLIKE, "a\u2028b", "\ufeffa", 'a"b', "=1+1"])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_uuid_and_an_id_are_text(run, tmp_path, uuid, quoted):
    """Byte for byte, also where a spreadsheet would see a number, or another program the end of a line."""
    doubled = uuid.replace('"', '""')
    cell = f'"{doubled}"' if quoted else uuid
    (tmp_path / "file").write_text(f"id,UUID,score\n{cell},{cell},5\n{cell},{cell},5\nx{cell[1:-1]},x,1\n", newline="")
    assert run("import", tmp_path / "file")[:2] == (0, {"counted": 2, "replayed": 1, "skipped": 0})
    assert contents(tmp_path / "store") == sorted([(uuid, Tally(5, 1)), ("x", Tally(1, 1))])


@pytest.mark.parametrize("score", ["+5", "5.0", " 5", "5 ", "٥", "1e0", "1_0", "", "0x1", "true", "9" * 5000, "−1", '"5\n"'])
def test_a_score_in_a_cell_is_an_integer_in_ascii(run, tmp_path, score):
    """Nothing else that Python would parse as one."""
    (tmp_path / "file").write_text(f"UUID,score\nb,-0\na,{score}\n", newline="")
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip")
    assert (code, report) == (0, {"counted": 1, "replayed": 0, "skipped": 1})
    assert f"{tmp_path}/file:3: score must be an integer from 0 to 5, not" in messages
    assert contents(tmp_path / "store") == [("b", Tally(0, 1))]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"UUID":7,"score":5}',
        b'{"UUID":"a","score":5,"id":12}',
        b'{"UUID":"a","score":4,"score":5}',
        b'{"UUID":"a","UUID":"b","score":5,"id":"i"}',
        b'{"UUID":"a","score":5}{"UUID":"b","score":5}',
        b'{"UUID":"a","score":5} {"UUID":"b","score":5,"id":"i"}',
        b'{"UUID":"a","score":5}\r{"UUID":"b","score":5}',
        b'\xef\xbb\xbf{"UUID":"a","score":5}',
        b'{"UUID":"\xff","score":5}',
        b"\x0b",
        b"NaN",
        b"[" * 5000,
        b'{"UUID":"a","score":%s}' % (b"9" * 5000),
        b'["UUID"]',
    ],
)
@pytest.mark.parametrize("other_names", [False, True])
def test_a_line_of_ndjson_is_one_object(run, tmp_path, bad, other_names):
    """With each member once; a text is a string. One that is at fault costs itself alone, and the next has the right number."""
    data = b'{"UUID":"z","score":1}\n%s\n{"UUID":"z","score":2}\n[]\n' % bad
    flags = []
    if other_names:
        data, flags = data.replace(b'"UUID"', b'"user"'), ["--uuid-column", "user", "--id-column", "id"]
    (tmp_path / "file").write_bytes(data)
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip", *flags)
    assert (code, report) == (0, {"counted": 2, "replayed": 0, "skipped": 2})
    assert [line.partition(": ")[0] for line in messages.splitlines()] == [f"{tmp_path}/file:2", f"{tmp_path}/file:4"]
    assert contents(tmp_path / "store") == [("z", Tally(3, 2))]


def test_an_object_over_lines_is_none(run, tmp_path):
    """Though it could be read; so what a line is does not depend on the lines around it."""
    (tmp_path / "file").write_bytes(b'{"UUID":"a",\n"score":5}\n{"UUID":"a","score":5}\n')
    assert run("import", tmp_path / "file", "--on-error", "skip")[1] == {"counted": 1, "replayed": 0, "skipped": 2}


@pytest.mark.parametrize("line", [b'a,5,"x\ny\n"', b"a,5,", b'"a",5,x', b"a,5,\xe2\x80\xa8", b"a,5,x\r"])
@pytest.mark.parametrize(
    "bad", [b"a,4,5,6", b"a,5", b"a", b'"a"b,5,', b'a,5,"b"c', b"a,5,\xff", b"\xff,5,", b"a\rb,5,", b"\0,5,", b",5,"]
)
def test_a_line_of_csv_has_the_cells_of_its_header(run, tmp_path, line, bad):
    """Not more and not fewer; and the number in a message is that of the line where the row begins."""
    (tmp_path / "file").write_bytes(b"UUID,score,comment\n%s\n\n%s\nb,1,c\n" % (line, bad))
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip")
    assert (code, report) == (0, {"counted": 2, "replayed": 0, "skipped": 1})
    assert messages.startswith(f"{tmp_path}/file:{4 + line.count(10)}: ") and messages.count("\n") == 1
    assert contents(tmp_path / "store") == [("a", Tally(5, 1)), ("b", Tally(1, 1))]
    assert run("import", tmp_path / "file")[0] == 1


def test_an_empty_cell_is_no_id_and_no_uuid(run, tmp_path):
    """Two scores without an id are two."""
    (tmp_path / "file").write_bytes(b"UUID,score,id\na,5,\na,5,\n,5,\n")
    assert run("import", tmp_path / "file", "--on-error", "skip")[1] == {"counted": 2, "replayed": 0, "skipped": 1}


@pytest.mark.parametrize(
    ("header", "flags", "score"),
    [
        ("id,score", ["--uuid-column", "id"], "score"),
        ("UUID,id", ["--score-column", "id"], "id"),
        ("user,score,id", ["--uuid-column", "user"], "score"),
        ("UUID,score,id", ["--uuid-column", "UUID", "--score-column", "score"], "score"),
    ],
)
def test_a_column_is_an_id_only_where_it_is_named_as_one(run, tmp_path, header, flags, score):
    """Neither one that is the UUID or the score, nor one beside columns that are named; in NDJSON likewise."""
    row = {name: "a" for name in header.split(",")} | {score: 5}
    (tmp_path / "csv").write_text(header + f"\n{','.join(map(str, row.values()))}" * 3)
    (tmp_path / "ndjson").write_text((json.dumps(row) + "\n") * 3)
    for name in ("csv", "ndjson"):
        assert run("import", tmp_path / name, *flags)[1] == {"counted": 3, "replayed": 0, "skipped": 0}


def test_a_column_that_is_named_as_the_id_is_one(run, tmp_path):
    """Beside others that are named or not, in a file of either kind."""
    (tmp_path / "csv").write_text("user,score,key\na,5,1\na,5,1\n")
    (tmp_path / "ndjson").write_text('{"UUID":"a","score":5,"key":"2","x":1}\n' * 2)
    assert run("import", tmp_path / "csv", "--uuid-column", "user", "--id-column", "key")[1]["counted"] == 1
    assert run("import", tmp_path / "ndjson", "--id-column", "key")[1]["counted"] == 1
    (tmp_path / "unnamed").write_text("UUID,score,\na,5,3\na,5,3\n")
    assert run("import", tmp_path / "unnamed", "--id-column", "")[1]["counted"] == 1
    assert run("import", tmp_path / "csv", "--uuid-column", "user", "--id-column", "")[::2] == (
        1,
        f"scoremean: {tmp_path}/csv:1: the header lacks the column ; it has ['user', 'score', 'key']\n",
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--uuid-column", "score"], 2, "two of them were given one name"),
        (["--id-column", "UUID"], 2, "two of them were given one name"),
        (["--tallies", "--uuid-column", "x"], 2, "with --tallies no column can be named"),
        (["--id-column", "id"], 1, "lacks the column id; it has ['UUID', 'score', 'x', 'x']"),
        (["--uuid-column", "x"], 1, "file:1: the header has more than one column x"),
        ([], 0, ""),
    ],
)
def test_columns_that_do_not_fit(run, tmp_path, flags, code, message):
    """Two with one name are a fault of the header, if they are read."""
    (tmp_path / "file").write_bytes(b"UUID,score,x,x\na,5,b,c\n")
    found = run("import", tmp_path / "file", *flags)
    assert (found[0], message in found[2]) == (code, True)


@pytest.mark.parametrize(
    "data", [b"", b"\n\n \r\n", b"UUID,score", b"\xef\xbb\xbf", b"\n\r\nUUID,score\n\n", gzip.compress(b"")]
)
def test_a_file_without_scores(run, tmp_path, data):
    """Is no fault."""
    (tmp_path / "file").write_bytes(data)
    assert run("import", tmp_path / "file")[:2] == (0, {"counted": 0, "replayed": 0, "skipped": 0})


@pytest.mark.parametrize("data", [b'"UUID",score\na,5', b'{"UUID":"a","score":5}', b'\n{"UUID":"a","score":5}'])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_counts_at_the_start_alone(run, tmp_path, data, pack):
    """In NDJSON too; a second one is text."""
    (tmp_path / "file").write_bytes(pack(b"\xef\xbb\xbf" + data))
    assert run("import", tmp_path / "file")[1] == {"counted": 1, "replayed": 0, "skipped": 0}
    (tmp_path / "file").write_bytes(pack(b"\xef\xbb\xbf\xef\xbb\xbf" + data))
    assert run("import", tmp_path / "file")[:1] == (1,)


# What is at fault as a whole: nothing of it is counted, and that is said in a sentence.

PACKED = gzip.compress(b"UUID,score\na,5\nb,4\n" * 2)


@pytest.mark.parametrize("flags", [[], ["--on-error", "skip"], ["--no-ids", "--on-error", "skip"]])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PACKED[:-1], "is gzip that is damaged or cut off"),
        (PACKED[:12], "is gzip that is damaged or cut off"),
        (PACKED[:2], "is gzip that is damaged or cut off"),
        (PACKED + b"garbage", "is gzip that is damaged or cut off"),
        (PACKED[:-5] + b"x" + PACKED[-4:], "is gzip that is damaged or cut off"),
        (PACKED[:10] + b"\xff" + PACKED[11:], "is gzip that is damaged or cut off"),
        (gzip.compress(PACKED), "is neither NDJSON nor CSV"),
        (b"UUID,score\ra,5\rb,4\r", "a carriage return stands alone"),
        (b'[{"UUID":"a","score":5},\n{"UUID":"a","score":5}]', "is a JSON array"),
        (b"\n [%s]" % b",".join([b'{"UUID":"a","score":5}'] * 60_000), "is a JSON array"),
        (b"UUID,score\na,5\n" + b"x" * (3 << 20), "file:3: the line is longer than 1,048,576 bytes"),
        (b'{"UUID":"a","score":5}\n\n' + b" " * (3 << 20), "file:3: the line is longer than 1,048,576 bytes"),
        (b"\0" * (3 << 20), "file:1: the line is longer than 1,048,576 bytes"),
        (b'UUID,score\na,5\nb,"5\n\nc,5\n', "file:3: a quote that opens here is not closed well"),
        (b'UUID,score,x\na,5,"%s"\nc,5,\n' % (b"y\n" * 100_000), "file:2: a quote that opens here is not closed well"),
        (b'"UUID,score\na,5\n', "file:1: a quote that opens here is not closed well"),
        (b"x,%s\n" % (b"y" * 100_000), "lacks the column UUID; it has ['x', 'yyy"),
        (b"PAR1\xff\xfe\n", "is neither NDJSON nor CSV with a header"),
        ("UUID,score\na,5\n".encode("utf-16"), "is neither NDJSON nor CSV with a header"),
    ],
)
def test_a_file_that_is_at_fault_as_a_whole(run, tmp_path, data, message, flags):
    """Is not counted at all, however lines are treated: the mended file would be counted again."""
    (tmp_path / "file").write_bytes(data)
    code, report, messages = run("import", tmp_path / "file", *flags)
    assert (code, report) == (1, {"counted": 0, "replayed": 0, "skipped": 0})
    assert message in messages and len(messages) < 500 + 3 * len(str(tmp_path)) and messages.count("\n") == 1
    assert not contents(tmp_path / "store")


@pytest.mark.parametrize("flags", [[], ["--no-ids"]])
def test_nothing_of_a_damaged_gzip_is_counted_however_large(run, tmp_path, monkeypatch, flags):
    """Also where parts of it would be counted before its end; mended, it counts once."""
    monkeypatch.setattr("scoremean.ops.transfer.SUMMED_MAX_UUIDS", 10)
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 100)
    data = gzip.compress(b"".join(b'{"UUID":"u%d","score":1}\n' % n for n in range(500)))
    for damaged in (data[:-1], data[:-9], data + b"x"):
        (tmp_path / "file").write_bytes(damaged)
        assert run("import", tmp_path / "file", "--on-error", "skip", *flags)[:2] == (
            1,
            {"counted": 0, "replayed": 0, "skipped": 0},
        )
    (tmp_path / "file").write_bytes(data)
    assert run("import", tmp_path / "file", "--on-error", "skip", *flags)[1]["counted"] == 500
    assert len(contents(tmp_path / "store")) == 500


def test_gzip_of_several_members_is_one_file(run, tmp_path):
    """As `cat` makes it, and zeros behind it, as a tape has them."""
    (tmp_path / "file").write_bytes(gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]) + bytes(100))
    assert run("import", tmp_path / "file")[1]["counted"] == 3


def test_a_cell_that_is_too_long_is_a_bad_line(run, tmp_path):
    """Of which the message shows a little, and the others are counted."""
    (tmp_path / "file").write_bytes(b"UUID,score,x\na,5,%s\n%s,5,\nb,1,\n" % (b"x" * 140_000, b"y" * 1000))
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip")
    assert (code, report) == (0, {"counted": 1, "replayed": 0, "skipped": 2})
    assert "file:2: the line is not CSV: field larger than field limit" in messages and len(messages) < 1000


def test_a_message_shows_little_of_a_line(run, tmp_path):
    """Of one with a thousand members of thousand characters too."""
    members = {f"{number}{'m' * 1000}": "v" * 1000 for number in range(900)}
    (tmp_path / "file").write_text("\n".join([json.dumps(members), json.dumps("v" * 10**6), '{"' + "n" * 10**6]))
    code, _, messages = run("import", tmp_path / "file")
    assert code == 1 and len(messages) < 1200 + 4 * len(str(tmp_path))


def test_a_line_with_many_members_takes_no_square_of_their_number():
    """It would be minutes: a hundred thousand names, and the last one twice."""
    line = b'{"UUID":"a","score":5,%s,"x":1,"x":2}' % b",".join(b'"%d":0' % number for number in range(100_000))
    with pytest.raises(ImportStopped, match="stopped at .*:1;"):
        imported(line, columns=transfer.Columns(id="id"))


def test_a_line_without_an_end_is_given_up():
    """After so much of it, and not when memory is full, or after the square of its length."""
    reads = iter([b"x" * 100_000] * 1000)
    with pytest.raises(ImportStopped, match="file:1: the line is longer"):
        list(transfer._pieces("file", reads))  # pylint: disable=protected-access
    assert len(list(reads)) == 1000 - 11


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("end", [b"", b"\n", b"\n{}"])
def test_how_long_a_line_may_be_does_not_depend_on_where_it_stands(monkeypatch, before, end):
    """In which chunk, and how its file goes on."""
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 40)
    monkeypatch.setattr("scoremean.ops.transfer.LINE_MAX_BYTES", 44)
    line = b'{"UUID":"a","score":5%s}'
    blank = b"\n" * before
    assert imported(blank + line % (b" " * 22) + end, skip=True) == {"a": Tally(5, 1)}
    with pytest.raises(ImportStopped, match=f":{before + 1}: the line is longer than 44 bytes"):
        imported(blank + line % (b" " * 23) + end, skip=True)


@pytest.mark.parametrize("data", [LINES, gzip.compress(LINES)])
def test_a_pipe_is_a_file(run, tmp_path, data):
    """A named one, and what a shell makes of <(...): it is read to its end before it is counted."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    assert run("import", tmp_path / "pipe")[1]["counted"] == 3
    writer.join()
    reader, descriptor = os.pipe()
    os.write(descriptor, data)
    os.close(descriptor)
    assert run("import", f"/dev/fd/{reader}")[1]["replayed"] == 3
    os.close(reader)
    assert contents(tmp_path / "store") == EXPECTED


@pytest.mark.usefixtures("uncovered")
def test_a_pipe_that_no_copy_can_be_kept_of(tmp_path):
    """It is not what cannot be read."""
    verb = [sys.executable, "-m", "scoremean", "import", "-", "--store", str(tmp_path / "store")]
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *verb]
    done = subprocess.run(limited, input=LINES + b"\n" * 100_000, capture_output=True, check=False)
    told = f"cannot keep a copy of - in {tempfile.gettempdir()}: File too large; make room, or set TMPDIR to another directory"
    assert (done.returncode, done.stderr.decode()) == (1, f"scoremean: {told}\n")


def append(path) -> None:
    """Write the rest of a line, and another."""
    with path.open("ab") as file:
        file.write(b"0\nb,5")


@pytest.mark.parametrize("flags", [[], ["--no-ids"], ["--on-error", "skip"]])
@pytest.mark.parametrize("change", [append, lambda path: os.truncate(path, 20)])
def test_a_file_that_is_written_while_it_is_read_is_not_counted(run, tmp_path, monkeypatch, change, flags):
    """Its last line may be the half of one: 1 of 10. Once nobody writes it, all of it counts once."""
    (tmp_path / "file").write_bytes(b"UUID,score\na,3\nb,1")
    os.utime(tmp_path / "file", (1, 1))
    read = transfer._Source.read  # pylint: disable=protected-access

    def read_and_change(self, size):
        data = read(self, size)
        if not changed:
            changed.append(change(tmp_path / "file"))
        return data

    changed: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(transfer._Source, "read", read_and_change)  # pylint: disable=protected-access
        code, report, messages = run("import", tmp_path / "file", *flags)
    assert (code, report["counted"], "file was changed while it was read" in messages) == (1, 0, True)
    assert not contents(tmp_path / "store")


def importer(store, **options) -> transfer.Importer:
    """Return what imports scores from 0 to 5 into `store`."""
    return transfer.Importer(store, ScoreDecoder(0, 5, sys.maxsize), **options)


def test_what_is_appended_while_a_file_is_counted_is_left_out(tmp_path, store):
    """What is counted is what was looked through, and hashed, before."""
    path = tmp_path / "file"
    path.write_bytes(b'{"UUID":"a","score":5}\n')
    before = path.read_bytes()
    with path.open("ab", buffering=0) as more:
        importer(store, progress=lambda *_: more.write(before)).run(str(path))
    assert store.get(["a"]) == [Tally(5, 1)] and path.read_bytes() == before * 2
    path.write_bytes(before)
    again = importer(store)
    again.run(str(path))
    assert again.report.replayed == 1 and store.get(["a"]) == [Tally(5, 1)]


def test_a_file_that_is_another_when_it_is_counted_is_not(tmp_path, store, monkeypatch):
    """Its sums, at least, would have the ids of the first one."""
    monkeypatch.setattr("scoremean.ops.transfer.CHUNK_BYTES", 10_000)
    path = tmp_path / "file"
    path.write_bytes(b'{"UUID":"a","score":5}\n' * 5000)
    changing = importer(store, progress=lambda *_: path.write_bytes(b'{"UUID":"a","score":4}\n' * 5000))
    with pytest.raises(ImportStopped, match="was changed while it was read"):
        changing.run(str(path))
    assert store.get(["a"]) == [None]


def test_an_interrupt_while_scores_are_counted_waits_until_they_are_reported(run, tmp_path, monkeypatch):
    """So that the report says what is in the store."""
    monkeypatch.setattr("scoremean.ops.transfer.COMMIT_MAX_SCORES", 2)
    submit, numbers = LmdbStore.submit, itertools.count()

    def submit_and_interrupt(self, batch):
        if next(numbers) == 1:
            signal.raise_signal(signal.SIGINT)
        return submit(self, batch)

    (tmp_path / "file").write_bytes(b"".join(b'{"UUID":"u%d","score":1}\n' % number for number in range(9)))
    monkeypatch.setattr(LmdbStore, "submit", submit_and_interrupt)
    assert run("import", tmp_path / "file") == (130, {"counted": 4, "replayed": 0, "skipped": 0}, "")
    assert len(contents(tmp_path / "store")) == 4
    assert run("import", tmp_path / "file")[1] == {"counted": 5, "replayed": 4, "skipped": 0}


# Every file that an export writes is whole or as it was.


def test_an_export_that_fails_leaves_the_file_as_it_was(run, tmp_path, monkeypatch):
    """With its content and its mode, and nothing beside it."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    out = tmp_path / "exports" / "out.csv"
    out.parent.mkdir()
    out.write_text("of yesterday\n")
    out.chmod(0o640)
    for error, code in ((OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", fail)
            assert run("export", "--output", out)[0] == code
        assert (out.read_text(), os.listdir(out.parent)) == ("of yesterday\n", ["out.csv"])
    assert run("export", "--format", "csv", "--output", out)[0] == 0
    assert out.read_text() == "UUID,sum,count,mean\na,8,2,4.0\nb,1,1,1.0\n"
    assert (out.stat().st_mode & 0o777, os.listdir(out.parent)) == (0o640, ["out.csv"])


def test_an_export_goes_through_links_and_into_pipes(run, tmp_path):
    """A link stays one, also to a file that is not there yet; what is no file is written as it stands."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    (tmp_path / "link").symlink_to("target")
    text = '{"UUID":"a","sum":8,"count":2,"mean":4.0}\n{"UUID":"b","sum":1,"count":1,"mean":1.0}\n'
    for _ in range(2):
        assert run("export", "--output", tmp_path / "link")[0] == 0
        assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == text
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    assert run("export", "--output", tmp_path / "pipe")[0] == 0
    assert os.read(descriptor, 1000).decode() == text
    os.close(descriptor)
    code, _, messages = run("export", "--output", tmp_path)
    assert code == 1 and messages.endswith("Is a directory\n")
    (tmp_path / "loop").symlink_to("loop")
    code, _, messages = run("export", "--output", tmp_path / "loop" / "file")
    assert code == 1 and messages.endswith("Too many levels of symbolic links\n")
    assert run("export", "--output", "/dev/full")[::2] == (1, "scoremean: cannot write /dev/full: No space left on device\n")


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "scoremean.lock"])
def test_an_export_takes_the_place_of_no_file_of_its_store(run, tmp_path, name):
    """Nor through a link; a file beside them it does."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    (tmp_path / "link").symlink_to("store")
    assert run("export", "--output", tmp_path / "link" / name)[0] == 2
    assert run("export", "--output", tmp_path / "store" / "means.ndjson")[0] == 0
    assert contents(tmp_path / "store") == EXPECTED


def test_an_export_to_dev_stdout_is_appended_where_a_shell_appends(run, tmp_path):
    """To the file that it leads to, too."""
    (tmp_path / "file").write_bytes(LINES)
    run("import", tmp_path / "file")
    with (tmp_path / "log").open("ab") as log:
        log.write(b"before\n")
        log.flush()
        command = [sys.executable, "-m", "scoremean", "export", "--store", tmp_path / "store", "--output", "/dev/stdout"]
        subprocess.run(command, stdout=log, check=True)
    assert (tmp_path / "log").read_text().startswith('before\n{"UUID":"a"')


# Round trips of any text, against a store of plain Python.


class PlainStore:
    """A dict of tallies, and the ids that were counted."""

    def __init__(self, tallies: dict[str, Tally] | None = None):
        self.kept = tallies or {}
        self.ids: set[str] = set()

    def commit(self, items) -> list[Tally]:
        """Count scores and tallies."""
        for item in items:
            assert item.id not in self.ids
            self.ids |= {item.id} - {None}
            tally = item.tally if isinstance(item, Add) else Tally(item.score, 1)
            self.kept[item.uuid] = self.kept.get(item.uuid, Tally(0, 0)) + tally
        return [self.kept[item.uuid] for item in items]

    def tallies(self):
        """Yield all of it in order."""
        return iter(sorted(self.kept.items()))


def imported(data: bytes, **options) -> dict[str, Tally]:
    """Return what a file of these bytes counts."""
    store = PlainStore()
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        importer(store, **options).run(file.name)
    return store.kept


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=64) | st.sampled_from(
    ["7", "007", "-0", "\ufeff", "\ufeffUUID", "a\u2028", '"', '""', ",", " ", "=1+1", "'", "{", "[", "\\", "\\n", "#"]
)
TALLIES = st.tuples(st.integers(1, 1 << 40), st.integers(0, 5)).map(lambda pair: Tally(pair[0] * pair[1], pair[0]))


PACKS = st.sampled_from([bytes, gzip.compress])


@settings(deadline=None)
@given(st.dictionaries(TEXTS, TALLIES), st.sampled_from(["ndjson", "csv"]), PACKS, st.booleans())
@example({"\ufeffa": Tally(1, 1), "a": Tally(2, 1)}, "csv", bytes, False)
def test_an_export_is_imported_as_it_was(tallies, kind, pack, with_ids):
    """Any UUID, as NDJSON and as CSV, packed or not."""
    file = io.BytesIO()
    transfer.export(PlainStore(tallies), file, kind)
    assert imported(pack(file.getvalue()), tallies=True, with_ids=with_ids) == tallies


@settings(deadline=None)
@given(
    st.lists(st.tuples(TEXTS, st.integers(0, 5), st.none() | TEXTS), max_size=20, unique_by=lambda row: row[2] or object()),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.permutations(["UUID", "score", "id", "x"]),
)
def test_scores_that_another_program_writes_are_read_as_they_are(rows, quoting, end, names):
    """As CSV in each of its styles, and as NDJSON, escaped or not."""
    truth: dict[str, Tally] = {}
    for uuid, score, _ in rows:
        truth[uuid] = truth.get(uuid, Tally(0, 0)) + Tally(score, 1)
    objects = [{"UUID": uuid, "score": score, "id": name} for uuid, score, name in rows]
    table = io.StringIO()
    writer = csv.DictWriter(table, names, quoting=quoting, lineterminator=end)
    writer.writeheader()
    writer.writerows({**row, "x": 'of any "kind",\nalso\r\nover lines'} for row in objects)
    assert imported(table.getvalue().encode()) == truth
    lines = [{name: row[name] for name in names if row.get(name) is not None} for row in objects]
    for ascii_only in (True, False):
        assert imported(end.join(json.dumps(line, ensure_ascii=ascii_only) for line in lines).encode()) == truth


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]":,\\\n\r\0 UIDscoreid015abe', max_size=100).map(str.encode), st.booleans())
def test_any_bytes_are_counted_or_refused_in_a_sentence(data, skip):
    """Nothing else comes out."""
    for prefix in (b"", b"UUID,score\n", b'{"UUID":"a","score":5}\n', gzip.compress(b"")[:10]):
        for with_ids in (True, False):
            try:
                imported(prefix + data, skip=skip, with_ids=with_ids)
            except ImportStopped as error:
                assert 0 < len(str(error)) < 600
