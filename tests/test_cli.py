"""The verbs, as a shell sees them: output, messages, exit codes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

import scoremean
from scoremean import Score, cli, open_store, workers
from tests.support import Server, require_program, scores_of


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
    path = tmp_path / "socket"
    with Server(tmp_path / "store", "--unix-socket", str(path), "--token-file", str(tmp_path / "tokens")) as server:
        assert [line.split()[0] for line in server.greeting] == ["listening", "store", "post"]
        command = server.greeting[-1].removeprefix("post ").replace("TOKEN", "w" * 20)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == '{"UUID":"a1-b1","mean":5.0}\n'


def test_serve_works_without_uvloop(tmp_path, monkeypatch, capsys):
    """It is optional."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert workers.loop_factory() is None
    monkeypatch.setattr("scoremean.app.serve", lambda *_: asyncio.sleep(0, result=False))
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
