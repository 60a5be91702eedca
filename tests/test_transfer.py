"""Import and export: formats, faults, memory of what was counted, and byte-identical round trips."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import os
import pty
import subprocess
import sys

import pytest
from aiohttp import ClientSession

from scoremean import Tally, cli, open_store
from scoremean.store.lmdb import LmdbStore
from tests.support import INSTEVAL, Server, assert_sound, post

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
    for address in (f"127.0.0.1:{unused_tcp_port}", "127.0.0.1:99999", f"{'a' * 70}.example"):
        code, report, messages = run("import", tmp_path / "none", "--url", f"http://{address}")
        assert (code, report) == (1, None)
        assert messages.startswith(f"scoremean: nothing answers at http://{address}: ") and messages.count("\n") == 1


def test_a_second_run_with_other_settings_is_refused(run, tmp_path):
    """When its sums would differ: nothing is counted twice, and the UUID is named."""
    (tmp_path / "file").write_bytes(b'{"UUID":"a","score":5}\n{"UUID":"a","score":6}\n{"UUID":"b","score":1}\n')
    assert run("import", tmp_path / "file", "--on-error", "skip")[1] == {"counted": 2, "replayed": 0, "skipped": 1}
    code, report, messages = run("import", tmp_path / "file", "--on-error", "skip", "--score-max", "6")
    assert (code, report) == (0, {"counted": 0, "replayed": 1, "skipped": 2})
    assert "file:the scores of a: the id " in messages
    assert contents(tmp_path / "store") == [("a", Tally(5, 1)), ("b", Tally(1, 1))]


@pytest.mark.parametrize("options", [[], ["--no-ids"]])
def test_lines_are_added_up_exactly(run, tmp_path, monkeypatch, options):
    """Over chunks and parts, with negative scores, with chunks that have to be looked at line by line in between."""
    monkeypatch.setattr("scoremean.transfer.SUMMED_MAX_UUIDS", 7)
    monkeypatch.setattr("scoremean.transfer.CHUNK_BYTES", 150)
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


@pytest.mark.parametrize("data", [b'{"inspector":7,"points":5,"x":1}\n', b"x,points,inspector\n1,5,7\n"])
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
    monkeypatch.setattr("scoremean.transfer.CHUNK_BYTES", 100)
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
        (b"UUID,score\na\n", "the member score is missing"),
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
    """NDJSON, CSV and Parquet hold the same rows."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    (tmp_path / "file").write_bytes(LINES.replace(b'"b"', '"é,\\""'.encode()))
    run("import", tmp_path / "file")
    for kind in ("ndjson", "csv", "parquet"):
        assert run("export", "--format", kind, "--output", tmp_path / kind)[0] == 0
    rows = [
        {"UUID": "a", "sum": 8, "count": 2, "mean": 4.0},
        {"UUID": 'é,"', "sum": 1, "count": 1, "mean": 1.0},
    ]
    assert [json.loads(line) for line in (tmp_path / "ndjson").read_text().splitlines()] == rows
    table = csv.DictReader(io.StringIO((tmp_path / "csv").read_text()))
    assert list(table) == [{name: str(value) for name, value in row.items()} for row in rows]
    assert parquet.read_table(tmp_path / "parquet").to_pylist() == rows


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
    "line", [b'{"UUID":"a","sum":1}', b'{"UUID":"","sum":1,"count":1}', b'{"UUID":"a","sum":1,"count":0}', b"{"]
)
def test_what_is_no_tally_is_a_bad_line(run, tmp_path, line):
    """Missing members, an invalid UUID, no scores."""
    (tmp_path / "file").write_bytes(line)
    assert run("import", "--tallies", tmp_path / "file")[:2] == (1, {"counted": 0, "replayed": 0, "skipped": 1})


def test_many_uuids_are_committed_in_between(run, tmp_path, monkeypatch):
    """Without ids sums are kept only up to a limit, so memory does not grow with the file."""
    monkeypatch.setattr("scoremean.transfer.SUMMED_MAX_UUIDS", 10)
    monkeypatch.setattr("scoremean.transfer.CHUNK_BYTES", 100)
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


@pytest.mark.skipif(not INSTEVAL.exists(), reason=f"there is no {INSTEVAL}; docs/contributing.md says where it is from")
def test_the_real_data_set_imported_twice_and_killed_in_between(run, tmp_path, monkeypatch):
    """Exactly 73,421 scores; exported, merged into an empty store and exported again it is the same to the byte."""
    small_parts = {"CHUNK_BYTES": 1 << 12, "SUMMED_MAX_UUIDS": 50}
    for name, value in small_parts.items():
        monkeypatch.setattr(f"scoremean.transfer.{name}", value)
    code = f"import sys; from scoremean import cli, transfer; vars(transfer).update({small_parts}); sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "import", str(INSTEVAL), "--store", str(tmp_path / "store")]
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
    report = run("import", INSTEVAL)[1]
    assert report == {"counted": 73_421 - before, "replayed": before, "skipped": 0}
    truth: dict[str, Tally] = {}
    for score in map(json.loads, INSTEVAL.read_bytes().splitlines()):
        truth[score["UUID"]] = truth.get(score["UUID"], Tally(0, 0)) + Tally(score["score"], 1)
    assert dict(contents(tmp_path / "store")) == truth
    run("export", "--output", tmp_path / "first")
    run("import", "--tallies", tmp_path / "first", store="store-2")
    run("export", "--output", tmp_path / "second", store="store-2")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
