"""The verbs, as a shell sees them: output, messages, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import scoremean
from scoremean import Add, Score, Tally, cli, open_store
from scoremean.process import loop_factory
from tests.support import Server, assert_sound, require_program, scores_of


@pytest.fixture(name="filled")
def fixture_filled(store):
    """A store with the README's scores, open for writing as if it were served by another process."""
    store.commit(scores_of([("a1-b1", 5), ("a1-b1", 3), ("a1-b1", 4)]))
    store.close()
    return store.path


def test_version(capsys):
    """That of the package."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"scoremean {scoremean.__version__}\n"


def test_get_prints_the_mean(filled, capsys):
    """As GET /means does, one line of JSON."""
    assert cli.main(["get", "a1-b1", "--store", str(filled)]) == 0
    assert capsys.readouterr().out == '{"UUID":"a1-b1","mean":4.0,"sum":12,"count":3}\n'


def mend(capsys, place: list[str], *arguments: str) -> dict:
    """Run a verb on a store or through a service, which must do, and return what it prints."""
    assert cli.main([*arguments, *place]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return json.loads(output.out)


@pytest.mark.parametrize("served", [False, True])
def test_mistakes_are_mended(tmp_path, capsys, served):
    """Voids by id, by value with an id and without, merges: in a store that is not served, and through a service."""
    store, tokens = tmp_path / "store", tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"read {'r' * 20}\nwrite {'w' * 20}\n")
    with open_store(store) as opened:
        opened.commit([*scores_of([("a", 5), ("a", 4), ("-3", 2)]), Add("a", Tally(6, 2)), Score("a", 1, "vote-1")])
    with Server(store, "--token-file", str(tokens)) if served else nullcontext() as server:
        place = ["--url", server.url, "--token-file", str(tokens)] if served else ["--store", str(store)]
        assert mend(capsys, place, "void", "vote-1") == {"UUID": "a", "mean": 3.75, "sum": 15, "count": 4}
        for _ in range(2):
            left = mend(capsys, place, "void", "a", "4", "--id", "mistake-1")
            assert left == {"UUID": "a", "mean": 11 / 3, "sum": 11, "count": 3}
        for left in ({"UUID": "a", "mean": 4.0, "sum": 8, "count": 2}, {"UUID": "a", "mean": 5.0, "sum": 5, "count": 1}):
            assert mend(capsys, place, "void", "a", "3") == left
        assert mend(capsys, place, "merge", "a", "--into", "b/c") == {"UUID": "b/c", "mean": 5.0, "sum": 5, "count": 1}
        assert cli.main(["merge", "a", "--into", "b/c", *place]) == 1
        assert capsys.readouterr().err == "scoremean: no score was counted for the UUID a\n"
        assert mend(capsys, place, "void", "b/c", "5") == {"UUID": "b/c", "mean": None, "sum": 0, "count": 0}
        if served:
            assert cli.main(["void", "-3", "2", "--store", str(store)]) == 3
            assert "is in use by process" in capsys.readouterr().err
    assert_sound(store)


def test_a_score_of_an_import_is_voided(tmp_path, capsys):
    """Which has counted it in a sum; the same file again does not bring it back."""
    store, file = ["--store", str(tmp_path / "store")], tmp_path / "scores.csv"
    file.write_text("UUID,score\na,5\na,4\na,0\n")
    assert mend(capsys, store, "import", str(file))["counted"] == 3
    left = {"UUID": "a", "mean": 4.5, "sum": 9, "count": 2}
    assert mend(capsys, store, "void", "a", "0", "--id", "line 4") == left
    assert mend(capsys, store, "import", str(file))["counted"] == 0
    assert mend(capsys, store, "get", "a") == mend(capsys, store, "void", "a", "0", "--id", "line 4") == left
    assert_sound(tmp_path / "store")


def test_a_store_of_another_range_is_mended_with_the_flags_that_its_refusal_names(tmp_path, capsys):
    """Every verb that writes a store has them."""
    place = ["--store", str(tmp_path / "store")]
    with open_store(tmp_path / "store", score_min=-5, score_max=10) as store:
        store.commit(scores_of([("a", 7), ("a", -5)]))
    for verb in (["void", "a", "7"], ["merge", "a", "--into", "b"]):
        assert cli.main([*verb, *place]) == 3
        flags = capsys.readouterr().err.partition(": give ")[2].partition(". ")[0].split()
        assert flags == ["--score-min", "-5", "--score-max", "10"]
        assert mend(capsys, place, *verb, *flags)["sum"] == -5


@pytest.mark.parametrize("score", ["5.0", "", "x", "true", "\u0665", "1_0", "+5", "0x5"])
def test_a_score_on_the_command_line_is_an_integer_as_in_a_post(filled, capsys, score):
    """Digits of ASCII alone."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["void", "a1-b1", score, "--store", str(filled)])
    assert caught.value.code == 2
    assert "argument SCORE: invalid integer value" in capsys.readouterr().err


def test_stats_prints_what_the_store_holds(filled, capsys, monkeypatch):
    """The store may come from the environment."""
    monkeypatch.setenv("SCOREMEAN_STORE", str(filled))
    assert cli.main(["stats"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert (stats["uuids"], stats["scores"]) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["get", "nobody", "--store", "{filled}"], 1, "no score was counted for the UUID nobody"),
        (["get", "", "--store", "{filled}"], 1, "UUID must be 1 to 256 bytes of UTF-8; it has 0"),
        (["get", "a", "--store", "{filled}/none"], 3, "there is no store at"),
        (["void", "a1-b1", "5", "--store", "{filled}/none"], 3, "there is no store at"),
        (["void", "nobody", "--store", "{filled}"], 1, "no score carried the id nobody"),
        (["void", "nobody", "5", "--store", "{filled}"], 1, "no score was counted for the UUID nobody"),
        (["void", "", "5", "--store", "{filled}"], 1, "UUID must be 1 to 256 bytes of UTF-8; it has 0"),
        (["void", "a1-b1", "--id", "k", "--store", "{filled}"], 2, "--id is for a void by UUID and SCORE"),
        (["void", "a1-b1", "1000001", "--store", "{filled}"], 1, "score must be an integer from -1000000 to"),
        (["void", "k", "--url", "localhost"], 2, "'localhost' is not the URL of a service"),
        (["merge", "nobody", "--into", "a", "--store", "{filled}"], 1, "no score was counted for the UUID nobody"),
        (["merge", "a1-b1", "--into", "a1-b1", "--store", "{filled}"], 1, "a UUID is not merged into itself"),
        (["merge", "a1-b1", "--into", "a", "--store", "{filled}/none"], 3, "there is no store at"),
        (["serve", "--store", "{filled}", "--host", "0.0.0.0"], 2, "host '0.0.0.0' is not a loopback address"),
        (["serve", "--store", "{filled}", "--port", "x"], 2, "--port must be an integer from 0 to 65535; it is 'x'"),
        (["serve", "--store", "/proc/none"], 3, "cannot open the store /proc/none: No such file or directory"),
    ],
)
def test_a_failure_is_one_sentence_and_its_exit_code(filled, capsys, arguments, code, message):
    """On standard error; nothing on standard output."""
    assert cli.main([argument.format(filled=filled) for argument in arguments]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("scoremean: ") and output.err.count("\n") == 1
    assert message in output.err


@pytest.mark.parametrize("verb", ["get a1-b1", "stats", "export", "check", "openapi", "import {scores}", "restore none"])
def test_every_verb_tells_of_a_variable_that_is_no_setting(filled, tmp_path, capsys, monkeypatch, verb):
    """And does what it would have done without it."""
    (tmp_path / "scores").write_text('{"UUID": "a1-b1", "score": 5, "id": "once"}\n')
    monkeypatch.setenv("SCOREMEAN_STORE", str(filled))
    arguments = verb.format(scores=tmp_path / "scores").split()
    cli.main(arguments)  # an import counts the first time
    capsys.readouterr()
    code, plain = cli.main(arguments), capsys.readouterr()
    monkeypatch.setenv("SCOREMEAN_STROE", "elsewhere")
    assert cli.main(arguments) == code
    told = capsys.readouterr()
    assert told.out == plain.out
    assert set(told.err.splitlines()) - set(plain.err.splitlines()) == {
        "scoremean: the variable 'SCOREMEAN_STROE' is no setting and does nothing; the nearest that is one is SCOREMEAN_STORE"
    }


def test_serve_and_the_readers_beside_it(tmp_path, capsys):
    """get and stats while it is served; a second serve is refused; SIGTERM ends it with 0."""
    with Server(tmp_path / "store") as server:
        assert server.url.startswith("http://127.0.0.1:")
        with pytest.raises(scoremean.ScoremeanError):
            open_store(server.store)
        assert cli.main(["serve", "--store", str(server.store)]) == 3
        assert f"is in use by process {server.pid}" in capsys.readouterr().err
        assert cli.main(["stats", "--store", str(server.store)]) == 0
        server.terminate()
        code, messages = server.wait()
    assert code == 0
    assert "Traceback" not in messages


def test_serve_says_how_to_go_on(tmp_path):
    """Where the page and the store are, and a command that posts a score as it is printed."""
    require_program("curl", "curl")
    store = tmp_path / "store"
    with Server(store, "--score-max", "7") as server:
        post = server.greeting.pop()
        assert server.greeting == [
            f"listening on {server.url}\n",
            f"page   {server.url}/\n",
            f"store  {store}: 0 UUIDs, 0 scores\n",
        ]
        done = subprocess.run(["bash", "-c", post.removeprefix("post ")], capture_output=True, text=True, check=True)
        assert done.stdout == '{"UUID":"a1-b1","mean":7.0}\n'


def test_serve_says_it_for_a_socket_with_tokens_too(tmp_path):
    """There is no page on a Unix socket, and curl must be told of both."""
    require_program("curl", "curl")
    (tmp_path / "tokens").touch(0o600)
    (tmp_path / "tokens").write_text(f"write {'w' * 20}\n")
    path = tmp_path / "the socket"
    with Server(tmp_path / "store", "--unix-socket", str(path), "--token-file", str(tmp_path / "tokens")) as server:
        assert [line.split()[0] for line in server.greeting] == ["listening", "store", "post"]
        command = server.greeting[-1].removeprefix("post ").replace("TOKEN", "w" * 20)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == '{"UUID":"a1-b1","mean":5.0}\n'


def test_serve_works_without_uvloop(tmp_path, monkeypatch, capsys):
    """It is optional."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
    monkeypatch.setattr("scoremean.app.serve", lambda *_: asyncio.sleep(0, result=False))
    monkeypatch.setattr("scoremean.app.ignore_signals", lambda _: None)  # for this process goes on
    assert cli.main(["serve", "--store", str(tmp_path)]) == 1
    assert capsys.readouterr().out == ""


def test_python_dash_m(filled):
    """`python -m scoremean` is the same program."""
    command = [sys.executable, "-m", "scoremean", "get", "a1-b1", "--store", str(filled)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["count"] == 3


def test_the_library_alone_needs_no_server(tmp_path):
    """A program of one's own opens the store, and imports no HTTP for it."""
    code = "import sys, scoremean; scoremean.open_store(sys.argv[1]).close(); print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with open_store(tmp_path) as store:
        assert store.commit([Score("a", 5)])[0].mean == 5.0


# However a command ends, it ends without a traceback.

FILE = '{"UUID":"b","score":1}\n'
PRINTING = ["get a1-b1", "stats", "check", "export", "export --format csv", "import {file}", "openapi", "--version", "get -h"]


def run(filled: Path, verb: str, shell: str = "", *, unbuffered: bool = False) -> tuple[int, str, str]:
    """Run a verb on the store in a shell, with what `shell` puts behind it; return its exit code and what was printed."""
    (filled.parent / "file").write_text(FILE)
    words = verb.format(file=filled.parent / "file")
    store = "" if words.startswith("-") or words.startswith("openapi") else f"--store {filled}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m scoremean {words} {store} {shell}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {}),
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("verb", PRINTING)
def test_a_full_standard_output_is_said(filled, verb):
    """Nothing that was to be printed is lost without a word."""
    assert run(filled, verb, ">/dev/full") == (1, "", "scoremean: standard output: No space left on device\n")


@pytest.mark.parametrize("verb", PRINTING)
def test_a_reader_that_goes_away_is_no_error(filled, verb):
    """The command ends as others do by SIGPIPE."""
    assert run(filled, verb, "| exec 0<&-") == (141, "", "")


FULL = (1, "", "scoremean: standard output: No space left on device\n")


@pytest.mark.parametrize("verb", PRINTING)
@pytest.mark.parametrize(("shell", "expected"), [(">/dev/full", FULL), ("| exec 0<&-", (141, "", ""))])
def test_output_that_is_not_gathered_ends_no_other_way(filled, verb, shell, expected):
    """PYTHONUNBUFFERED is set in many containers."""
    assert run(filled, verb, shell, unbuffered=True) == expected


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.usefixtures("uncovered")
def test_an_export_that_has_room_for_a_part_fails(filled, unbuffered):
    """The system takes the part, and says how much it was; only what is written next is an error."""
    with open_store(filled) as store:
        store.commit(scores_of((f"uuid-{number}", 5) for number in range(1000)))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 4; {sys.executable} -m scoremean export --store {filled} >{filled.parent}/copy"],
        capture_output=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"scoremean: standard output: File too large\n")


@pytest.mark.parametrize(
    ("verb", "shell", "expected"),
    [
        ("import -", "<&-", (1, '{"counted":0,"replayed":0,"skipped":0}\n', "scoremean: cannot read -: Bad file descriptor\n")),
        ("import {file}", ">&-", (1, "", "scoremean: standard output: Bad file descriptor\n")),
        ("get a1-b1", ">&-", (1, "", "scoremean: standard output: Bad file descriptor\n")),
        ("export", ">&- 2>&-", (1, "", "")),
        ("get nobody", "2>&-", (1, "", "")),
        ("get nobody", "2>/dev/full", (1, "", "")),
        ("get", "2>/dev/full", (2, "", "")),
        ("import {file}", "<&- 2>&-", (0, '{"counted":1,"replayed":0,"skipped":0}\n', "")),
        ("stats", "<&- 2>&- | wc -l", (0, "1\n", "")),
    ],
)
def test_standard_streams_that_are_closed(filled, verb, shell, expected):
    """Messages without a reader stop nothing; data that cannot be read or written is an error."""
    assert run(filled, verb, shell) == expected


@pytest.mark.parametrize("shell", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_serve_needs_no_streams(tmp_path, shell):
    """It serves, and stops as it should."""
    unix = tmp_path / "socket"
    code = (
        "import os, signal, sys, threading\nfrom scoremean import cli\n"
        "cli.notify = lambda _: threading.Timer(0, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        f"sys.exit(cli.main(['serve', '--store', '{tmp_path}/store', '--unix-socket', '{unix}']))"
    )
    done = subprocess.run(["bash", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code], check=False, timeout=60)
    assert done.returncode == 0
    assert scoremean.open_store(tmp_path / "store", readonly=True).close() is None


def test_an_interrupt_says_what_was_counted(tmp_path):
    """Also while the file is read; exit code 130, and no traceback."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text(FILE)
    command = [sys.executable, "-m", "scoremean", "import", tmp_path / "file", tmp_path / "pipe", "--store", tmp_path / "store"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with (tmp_path / "pipe").open("w") as pipe:  # once it is read
            pipe.write(FILE)
            pipe.flush()
            process.send_signal(signal.SIGINT)
        # Only now: a signal right before a read is seen after it.
        output = process.communicate(timeout=60)
    assert (process.returncode, *output) == (130, '{"counted":1,"replayed":0,"skipped":0}\n', "")


@pytest.mark.parametrize("arguments", [["get", "a"], ["stats", "--store"], ["serve", "--port"], ["openapi", "--score-max"]])
def test_a_message_is_less_than_a_screen(capsys, arguments):
    """Also when a shell made arguments of the words of a file."""
    try:
        code = cli.main([*arguments, "x" * 10_000])
    except SystemExit as error:
        code = error.code
    assert code in (2, 3) and len(capsys.readouterr().err) < 1500


def test_data_is_utf_8_whatever_the_locale(tmp_path):
    """And a name that is not UTF-8 is no reason for a traceback."""
    with open_store(tmp_path) as store:
        store.commit([Score("é\u2028", 5)])
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}

    def ended(*arguments: object) -> tuple[int, bytes, bytes]:
        command = [sys.executable, "-m", "scoremean", *arguments]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        return done.returncode, done.stdout, done.stderr

    assert ended("get", "é\u2028", "--store", tmp_path)[1].startswith('{"UUID":"é\u2028","mean":5.0'.encode())
    missing = b"scoremean: cannot read \\udcff: No such file or directory\n"
    assert ended("import", b"\xff", "--store", tmp_path)[::2] == (1, missing)
    assert ended("stats", "--store", b"\xff")[::2] == (2, b"scoremean: --store must not be empty, and must be UTF-8\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.usefixtures("uncovered")
def test_a_signal_leaves_nothing_half_done(tmp_path, number):
    """Of a restore, whose backup does not end: no directory, no file; and the exit code tells which signal it was."""
    with open_store(tmp_path / "store") as store:
        store.commit([Score("a", 5)])
    assert cli.main(["backup", "--store", str(tmp_path / "store"), "--output", str(tmp_path / "copy")]) == 0
    command = [sys.executable, "-m", "scoremean", "restore", "-", "--store", str(tmp_path / "new")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write((tmp_path / "copy").read_bytes()[:8192])
        process.stdin.flush()
        while not (tmp_path / "new" / "data.mdb.part").exists():
            os.sched_yield()
        process.send_signal(number)
        messages = process.communicate()[1]
    assert process.returncode == 128 + number and b"Traceback" not in messages
    assert not (tmp_path / "new").exists()


def test_a_verb_heeds_only_the_variables_of_its_own_settings(tmp_path, monkeypatch, capsys):
    """Those of a service that is to be reached by others are no reason to refuse to read its store."""
    with open_store(tmp_path) as store:
        store.commit([Score("a", 5)])
    monkeypatch.setenv("SCOREMEAN_HOST", "0.0.0.0")
    monkeypatch.setenv("SCOREMEAN_PORT", "none")
    monkeypatch.setenv("SCOREMEAN_STORE", str(tmp_path))
    assert cli.main(["get", "a"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == 5.0
    assert cli.main(["serve"]) == 2
