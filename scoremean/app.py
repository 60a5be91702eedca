"""The one place that wires: Store, Writer, routes and HTTP server, and the order in which they start and stop.

    start   Store (opened by the caller) -> Writer -> routes -> listening socket
    stop    listening socket -> requests under way -> Writer -> (the caller closes the Store)
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from scoremean.errors import ListenError
from scoremean.process import STOPPING, notify, with_descriptors
from scoremean.settings import Settings
from scoremean.store.base import Store
from scoremean.web.access import Access
from scoremean.web.connection import Server
from scoremean.web.events import Live
from scoremean.web.handlers import Handlers
from scoremean.web.server import Router
from scoremean.web.wire import ScoreDecoder
from scoremean.writer import Writer

_log = logging.getLogger(__name__)

_HINTS = {
    errno.EADDRINUSE: "stop what listens there, or give --port another one (0 picks a free one)",
    errno.EADDRNOTAVAIL: "give --host an address of this machine",
    errno.EACCES: "give --port one from 1024 on, or --unix-socket a directory that is yours",
}

COLLECT_AT_OBJECTS = 20_000
LISTEN_BACKLOG = 1024


class Service:
    """scoremean over HTTP: started, it listens at `url`; stopped, it has answered everything that it took.

    Args:
        settings: where to listen, and the limits.
        store: an open Store. The Service does not close it.
        version: what /stats tells.
        listening: sockets that listen already, instead of the address in the settings. They are closed at the stop.

    Attributes:
        url: the address that it listens on, once started; also after it was stopped.
        access: who may connect and ask.

    Raises:
        SettingError: a file that `settings` names is at fault.
    """

    def __init__(self, settings: Settings, store: Store, version: str, listening: Sequence[socket.socket] = ()):
        self._settings = settings
        self._store = store
        self._version = version
        self._listening = listening
        self._writer: Writer
        self._live: Live
        self._server: Server
        self._servers: list[asyncio.AbstractServer] = []
        self.access = Access(settings)
        self.url = ""

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Resolves when a commit has failed; the Service must then be stopped."""
        return self._writer.failed

    async def start(self) -> None:
        """Listen; when it returns, requests are answered.

        Raises:
            ListenError: the address cannot be listened on.
        """
        settings = self._settings
        if not self._listening:
            [self._listening] = listen(settings)
        self._writer = Writer(self._store, settings.queue_max_scores)
        self._live = Live(self._store, self._version, settings.score_min, settings.score_max)
        handlers = Handlers(
            self._store,
            self._writer,
            self._live,
            ScoreDecoder(settings.score_min, settings.score_max, settings.batch_max_scores),
            self._version,
            settings,
        )
        self._server = Server(Router(handlers.routes()), self.access, settings, self._store.counts)
        await self._answer()
        self.url = _url(self._listening[0], self.access.tls is not None)

    async def _answer(self) -> None:
        """Begin to accept connections on the sockets that listen."""
        options: dict[str, Any] = {"backlog": LISTEN_BACKLOG}
        if self.access.tls is not None:
            options |= {"ssl": self.access.tls.context, "ssl_handshake_timeout": self._settings.header_timeout_seconds}
        loop = asyncio.get_running_loop()
        create: Callable[..., Awaitable[asyncio.Server]] = loop.create_server
        if self._settings.unix_socket:
            create = loop.create_unix_server
            if sys.version_info >= (3, 13):
                options["cleanup_socket"] = False  # or a worker that ends would take away the path from the others
        for one in self._listening:
            self._servers.append(await create(self._server, sock=one, **options))

    async def stop(self) -> None:
        """Listen no more, answer what is under way, and return when every score taken is durable."""
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)  # what was accepted in this turn of the loop is let in first
        self._live.close()  # its streams would go on
        self._server.pre_shutdown()
        await self._server.shutdown(self._settings.shutdown_timeout_seconds)
        await self._writer.close()


def listen(settings: Settings, workers: int = 1) -> list[list[socket.socket]]:
    """Return for each worker its sockets, one for each address of the host; all have the same port, or one Unix socket.

    Raises:
        ListenError: the address cannot be listened on.
    """
    host, port, path = settings.host, settings.port, settings.unix_socket
    listening: list[list[socket.socket]] = [[] for _ in range(workers)]
    try:
        if path:
            first = _bind_unix(path)
            listening[0].append(first)
            for sockets in listening[1:]:
                sockets.append(first.dup())
            return listening
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            # The first socket does not share the port, so that it is refused where anything listens; then it does.
            first = socket.create_server((address[0], port), family=family, backlog=LISTEN_BACKLOG)
            listening[0].append(first)
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(workers > 1))
            port = first.getsockname()[1]
            for sockets in listening[1:]:
                sockets.append(socket.create_server((address[0], port), family=family, backlog=LISTEN_BACKLOG, reuse_port=True))
    except OSError as error:
        close_all(listening)
        raise ListenError(f"cannot listen on {path or f'{host} port {port}'}: {_reason(error)}") from error
    return listening


def _reason(error: OSError) -> str:
    """Return why an address cannot be listened on, and what to do about it."""
    known = isinstance(error, socket.gaierror) or not error.errno  # the system's own words
    reason = error.strerror or str(error) if known else os.strerror(error.errno)
    hint = "give --host a name or address of this machine" if known else _HINTS.get(error.errno)
    return f"{reason}; {hint}" if hint else reason


def close_all(listening: Sequence[Sequence[socket.socket]]) -> None:
    """Close what `listen` returned, in this process."""
    for sockets in listening:
        for one in sockets:
            one.close()


def _bind_unix(path: str) -> socket.socket:
    """Return a socket with this path, for this user alone. One that a process left there when it died is replaced."""
    with socket.socket(socket.AF_UNIX) as probe:
        if Path(path).is_socket() and probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(path)
        os.chmod(path, 0o600)  # nobody can connect before it listens
        one.listen(LISTEN_BACKLOG)
    except OSError:
        one.close()
        raise
    return one


def _url(listening: socket.socket, tls: bool) -> str:
    """Return the address of a socket that listens, as it is announced."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what went wrong outside of any request: in one line if it is no bug, such as when there are no more descriptors."""
    error = context.get("exception")
    if isinstance(error, OSError):
        _log.error("%s: %s", context["message"], error)
    else:
        loop.default_exception_handler(context)


# The signals that are left as they are: those that cannot be caught, those that are a fault of the process itself, and those
# that end nothing, by default or because Python ignores them.
_LEFT_ALONE = "KILL STOP ABRT BUS FPE ILL SEGV SYS TRAP CHLD CONT TSTP TTIN TTOU URG WINCH PIPE XFSZ".split()
_STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
_ANSWERED = signal.valid_signals() - {getattr(signal, f"SIG{name}") for name in _LEFT_ALONE}


def answer_signals(stop: Callable[[], object], reload: Callable[[], object]) -> None:
    """Have every signal that would end this process do what docs/operate.md says: `stop`, `reload`, or nothing.

    SIGHUP stops if it is the end of this process's terminal, unless it was to be ignored (nohup); else it reloads.
    """
    loop = asyncio.get_running_loop()
    by_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
    for number in _ANSWERED:
        loop.add_signal_handler(number, _log.info, "nothing is done on this signal: %s", signal.strsignal(number))
    for number in _STOPPING:
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: stop() if by_terminal and not _has_terminal() else reload())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # see workers


def ignore_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Do nothing more on any of these signals, to the end of this process: a second one must not cut short what is left to do.

    `loop` is the one in which they were answered, which has done its work.
    """
    for number in _ANSWERED:
        loop.remove_signal_handler(number)
        signal.signal(number, lambda *_: None)
        atexit.register(signal.signal, number, signal.SIG_IGN)  # then Python takes its own handlers away


def _has_terminal() -> bool:
    """Return whether this process has a terminal that controls it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


async def serve(
    settings: Settings,
    store: Store,
    version: str,
    announce: Callable[[str], None],
    listening: Sequence[socket.socket] = (),
) -> bool:
    """Serve until a signal ends it, or until a commit fails. Return whether it ended well: every score taken is durable.

    Args:
        announce: called with the address, once requests are answered.
        listening: see Service.
    """
    service = Service(with_descriptors(settings), store, version, listening)
    await service.start()
    # What is there now stays until the end, and requests leave next to no cycles: the collector need not look so often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AT_OBJECTS, *gc.get_threshold()[1:])
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_error)
    stop = asyncio.Event()
    answer_signals(stop.set, service.access.reload)
    service.failed.add_done_callback(lambda _: stop.set())
    announce(service.url)
    await stop.wait()
    notify(STOPPING)
    _log.info("stopping: answering what is under way")
    await service.stop()
    return not service.failed.done()
