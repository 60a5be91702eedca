"""What each signal does to `serve`, as real processes: one, and a parent with its workers; serving, stopping, starting."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from scoremean import Tally, open_store
from tests.support import Server, fetch
from tests.test_http import OK_BODY, raw_post, read_response
from tests.test_workers import workers_of

DOCS = Path(__file__).parents[1] / "docs"
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Those that cannot be caught, or are a fault of the process; and those that stop a process, and let it go on.
LEFT_ALONE = {getattr(signal, f"SIG{name}") for name in "KILL ABRT BUS FPE ILL SEGV SYS TRAP STOP TSTP TTIN TTOU".split()}
IDLE = sorted(signal.valid_signals() - LEFT_ALONE - {*STOPPING, signal.SIGCHLD, signal.SIGHUP})
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@WORKERS
@pytest.mark.parametrize("number", STOPPING)
def test_a_stop_waits_for_what_is_under_way_whatever_comes_next(tmp_path, workers, number):
    """A second signal, of this kind or another, ends it neither sooner nor otherwise."""

    async def run(server: Server) -> None:
        reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        writer.write(raw_post("Expect: 100-continue", body=b"", length=len(OK_BODY)))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        os.kill(server.pid, number)
        while "stopping" not in server.messages():
            pass
        for other in (number, *STOPPING, signal.SIGHUP, *IDLE, number):
            for pid in (server.pid, *workers_of(server.pid)):
                os.kill(pid, other)
        writer.write(OK_BODY)
        status, headers, body = await read_response(reader)
        assert (status, headers["connection"], body["mean"]) == (200, "close", 5.0)
        writer.close()
        while server.running:  # to the very end
            os.kill(server.pid, number)

    with Server(tmp_path, "--workers", workers) as server:
        asyncio.run(run(server))
        code, messages = server.wait()
    assert (code, "Traceback" in messages) == (0, False), messages
    with open_store(tmp_path, readonly=True) as store:
        assert store.get(["a1-b1"]) == [Tally(5, 1)]


@WORKERS
def test_signals_that_ask_for_nothing_do_nothing(tmp_path, workers):
    """Sent to each of the processes; SIGHUP too where there is nothing to read again."""
    with Server(tmp_path, "--workers", workers) as server:
        pids = server.pid, *workers_of(server.pid)
        for number in (*IDLE, signal.SIGHUP):
            for pid in pids:
                os.kill(pid, number)
        for _ in range(10):
            assert fetch(f"{server.url}/livez") == b'{"status":"live"}\n'
        assert (server.pid, *workers_of(server.pid)) == pids
        server.terminate()
        code, messages = server.wait()
    assert code == 0, messages
    assert "nothing is done on this signal: " in messages


def test_sighup_waits_for_a_worker_that_starts(tmp_path):
    """It must not end it, and must not be lost: the worker may have read its files already."""
    with Server(tmp_path, "--workers", "2") as server:
        first, second = workers_of(server.pid)
        os.kill(first, signal.SIGKILL)
        while not (new := set(workers_of(server.pid)) - {first, second}):
            pass
        [worker] = new
        while f"worker {worker}: there is nothing to read again" not in server.messages():
            os.kill(server.pid, signal.SIGHUP)
        assert set(workers_of(server.pid)) == {second, worker}
        assert server.messages().count("ended by itself") == 1


class Terminal:
    """`serve` as the first process of a terminal, which is closed by `close`."""

    def __init__(self, path: Path, workers: str, ignoring: bool):
        self._end, terminal = pty.openpty()
        self._messages = path / "messages"

        def become_first() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            if ignoring:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)

        command = [sys.executable, "-m", "scoremean", "serve", "--store", path / "store", "--port", "0", "--workers", workers]
        with open(self._messages, "wb") as messages:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with,subprocess-popen-preexec-fn
                command, stdin=terminal, stdout=terminal, stderr=messages, start_new_session=True, preexec_fn=become_first
            )
        os.close(terminal)
        greeting = b""
        while b"post " not in greeting or not greeting.endswith(b"\n"):  # to its end: the next write would fail
            greeting += os.read(self._end, 1 << 12)
        self.url = re.search(r"listening on (\S+)", greeting.decode())[1]

    def close(self) -> None:
        """Close the terminal, of which all its processes are told by SIGHUP."""
        os.close(self._end)

    def messages(self) -> str:
        """Return what was written to standard error so far."""
        return self._messages.read_text()


@WORKERS
def test_a_terminal_that_is_closed_stops_it(tmp_path, workers):
    """With a drain; a SIGHUP while the terminal is there only reads files again."""
    terminal = Terminal(tmp_path, workers, ignoring=False)
    terminal.process.send_signal(signal.SIGHUP)
    while "nothing to read again" not in terminal.messages():
        pass
    assert fetch(f"{terminal.url}/livez")
    terminal.close()
    assert terminal.process.wait(60) == 0
    assert "stopping" in terminal.messages() and "Traceback" not in terminal.messages()


def test_nohup_outlives_its_terminal(tmp_path):
    """It goes on; and SIGHUP still reads files again."""
    terminal = Terminal(tmp_path, "1", ignoring=True)
    terminal.close()
    while "nothing to read again" not in terminal.messages():
        pass
    assert fetch(f"{terminal.url}/livez")
    terminal.process.terminate()
    assert terminal.process.wait(60) == 0


def test_every_signal_is_documented():
    """In the table of docs/operate.md, each that this system has a name for."""
    table = (DOCS / "operate.md").read_text().partition("## Signals")[2].partition("\n## ")[0]
    named = {name for name in signal.Signals.__members__ if not name.startswith("SIGRT")}
    assert {signal.Signals[name] for name in re.findall(r"SIG[A-Z0-9]+", table) if name in named} == {
        signal.Signals[name] for name in named
    }
