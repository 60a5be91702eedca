"""`serve --workers N`: N processes answer HTTP, and the one that started them owns the store.

    worker   Service -> Writer -> RemoteStore ══ socketpair ══╗
    worker   Service -> Writer -> RemoteStore ══ socketpair ══╩═> parent: SharedStore -> Store

A worker reads the store's files itself. It gets all it needs at its start: its sockets by inheritance, everything else as JSON
on standard input; and it says on standard output that it listens. It stops by SIGTERM, or when the connection to the parent
ends, however that died. The parent starts another one for a worker that ends by itself.

Each worker listens on a socket of its own for the one port (SO_REUSEPORT), so the kernel spreads connections evenly. The parent
holds these sockets too: what waits in the one of a worker that died is accepted by the next.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec import Struct

from scoremean.app import answer_signals, close_all, ignore_signals, listen, serve
from scoremean.counts import Counts
from scoremean.errors import ScoremeanError, StoreFull
from scoremean.logs import log_to_stderr
from scoremean.process import STOPPING, child_command, child_environment, loop_factory, notify
from scoremean.settings import Settings
from scoremean.store.base import Store
from scoremean.store.embedded.store import LmdbStore
from scoremean.store.forward import RemoteStore, SharedStore
from scoremean.web.access import Access

QUICK_END_SECONDS = 1.0
QUICK_ENDS_MAX = 5
STOP_MARGIN_SECONDS = 10
CATCH_UP_SECONDS = 0.02

_log = logging.getLogger(__name__)


class Start(Struct):
    """What a worker is told at its start; sockets, and the memory of the counts, by the numbers of their descriptors.

    `row` is the one of the counts that it writes: that of the worker whose place it takes, if there was one.
    """

    settings: Settings
    version: str
    connection: int
    listening: list[int]
    counts: int
    row: int


async def serve_with_workers(settings: Settings, store: Store, version: str, announce: Callable[[str], None]) -> bool:
    """Serve with `settings.workers` processes until a signal ends it, or until a commit fails; see app.serve.

    Args:
        store: its counts are in shared memory, with a row for this process and one for each worker.

    Returns whether it ended well: every score taken is durable, and every worker has answered what it took.

    Raises:
        ListenError: the address cannot be listened on.
        SettingError: a file that `settings` names is at fault.
    """
    parent = _Parent(settings, store, version, announce)
    return await parent.run()


class _Parent:
    """Starts the workers, commits what they send, starts another for one that ends by itself, and stops them."""

    def __init__(self, settings: Settings, store: Store, version: str, announce: Callable[[str], None]):
        self._settings = settings
        self._store = store
        self._version = version
        self._announce = announce
        self._shared = SharedStore(store)
        self._stop = asyncio.Event()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._ready: set[int] = set()

    async def run(self) -> bool:
        """See serve_with_workers."""
        # A first commit, so that the size that the store may grow to is on disk, from which the workers take it.
        with suppress(StoreFull):  # it may be full: what was counted is read, and retries get their first answers
            await asyncio.wrap_future(self._store.submit([]))
        Access(self._settings)  # so that a file at fault is told here, and not by each worker
        listening = listen(self._settings, self._settings.workers)
        answer_signals(self._stop.set, lambda: self._signal(signal.SIGHUP))
        self._shared.failed.add_done_callback(lambda _: self._stop.set())
        keepers = [asyncio.ensure_future(self._keep(slot, sockets)) for slot, sockets in enumerate(listening)]
        await self._stop.wait()
        notify(STOPPING)
        _log.info("stopping the workers")
        close_all(listening)  # before the workers do, whose close is then the last one: what came in later is refused
        self._signal(signal.SIGTERM)
        timeout_seconds = self._settings.shutdown_timeout_seconds + STOP_MARGIN_SECONDS
        _, late = await asyncio.wait(keepers, timeout=timeout_seconds)
        for process in self._processes if late else ():
            _log.error("worker %d did not stop in time and is killed", process.pid)
            process.kill()
        ended_well = all(await asyncio.gather(*keepers))
        await self._shared.close()
        return ended_well and not self._shared.failed.done()

    def _signal(self, number: int) -> None:
        """Pass a signal on to the workers."""
        for process in self._processes:
            process.send_signal(number)

    async def _keep(self, slot: int, sockets: list[socket.socket]) -> bool:
        """Run a worker, and another one when it ends by itself, until all stop. Return whether the last one ended well.

        One that ends again and again as soon as it is started stops everything, for then the next one would too.
        """
        quick_ends = 0
        try:
            while quick_ends < QUICK_ENDS_MAX:
                code, seconds = await self._work(slot, sockets)
                if self._stop.is_set():
                    return code in (0, -signal.SIGTERM)  # by the signal itself only while it was starting
                quick_ends = quick_ends + 1 if seconds < QUICK_END_SECONDS else 0
            _log.critical("workers end as soon as they are started, the service must stop")
            return False
        finally:
            self._stop.set()

    async def _work(self, slot: int, sockets: list[socket.socket]) -> tuple[int, float]:
        """Run one worker until it ends. Return its exit code, and the seconds for which it listened."""
        batches, worker_batches = socket.socketpair()
        control, worker_control = socket.socketpair()
        with worker_batches, worker_control:
            start = Start(
                self._settings,
                self._version,
                worker_batches.fileno(),
                [one.fileno() for one in sockets],
                self._store.counts.descriptor,
                slot + 1,  # row 0 is the parent's
            )
            # It takes SIGHUP when it can answer: it may have read its files by then, and must not miss that they have changed.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
            process = subprocess.Popen(  # pylint: disable=consider-using-with  # it is waited for below
                child_command("scoremean.workers"),
                stdin=worker_control,
                stdout=worker_control,
                pass_fds=[start.connection, start.counts, *start.listening],
                # The SIGINT of a terminal is for the parent alone, which then stops the workers.
                start_new_session=True,
                env=child_environment(),
            )
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        self._processes.add(process)
        await self._shared.connect(batches)
        reader, writer = await asyncio.open_unix_connection(sock=control)
        writer.write(msgspec.json.encode(start))
        writer.write_eof()
        url = ""
        with suppress(ConnectionError):  # it may be ended before it has read what it is told
            url = (await reader.readline()).decode().strip()
        listened_since = time.monotonic()
        if url and slot not in self._ready:
            self._ready.add(slot)
            if len(self._ready) == self._settings.workers:
                self._announce(url)
        with suppress(ConnectionError):
            await reader.read()  # ends with the process, so that the wait for it is none
        writer.close()
        code = process.wait()
        self._processes.remove(process)
        if not self._stop.is_set():
            _log.error("worker %d ended by itself with exit code %d; another one takes over", process.pid, code)
        return code, time.monotonic() - listened_since


async def _serve(start: Start) -> bool:
    """Be a worker: serve until SIGTERM, or until the parent is gone. Return whether it ended well."""
    settings = start.settings
    counts = Counts(settings.workers + 1, start.row, start.counts)
    own = LmdbStore(settings.store, readonly=True, size_max_bytes=settings.store_size_max_gib << 30)
    remote = RemoteStore(own, counts)
    await remote.connect(socket.socket(fileno=start.connection))
    catching_up = asyncio.ensure_future(_catch_up(own))
    remote.lost.add_done_callback(lambda _: signal.raise_signal(signal.SIGTERM))
    with remote:
        listening = [socket.socket(fileno=number) for number in start.listening]
        ended_well = await serve(settings, remote, start.version, lambda url: print(url, flush=True), listening)
        catching_up.cancel()
    return ended_well and not remote.lost.done()


async def _catch_up(store: LmdbStore) -> None:
    """Follow what the parent commits, in slices, so that no read has more to catch up with than came in CATCH_UP_SECONDS."""
    with suppress(ScoremeanError):  # which the next read tells its client
        while True:
            await asyncio.sleep(CATCH_UP_SECONDS if store.catch_up() else 0)


def main() -> int:
    """Be the worker that standard input describes, and return its exit code."""
    start = msgspec.json.decode(sys.stdin.buffer.read(), type=Start)
    log_to_stderr(start.settings, "worker %(process)d: ")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            ended_well = runner.run(_serve(start))
            ignore_signals(runner.get_loop())
            return 0 if ended_well else 1
    except ScoremeanError as error:
        _log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
