"""The one place that wires: Store, Writer, routes and HTTP server, and the order in which they start and stop.

    start   Store (opened by the caller) -> Writer -> routes -> listening socket
    stop    listening socket -> requests under way -> Writer -> (the caller closes the Store)
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence

from aiohttp import web

from scoremean.errors import ListenError
from scoremean.handlers import Handlers
from scoremean.server import Router, Server
from scoremean.settings import Settings
from scoremean.store.base import Store
from scoremean.validation import ScoreDecoder
from scoremean.writer import Writer

_log = logging.getLogger(__name__)

COLLECT_AT_OBJECTS = 20_000


class Service:
    """scoremean over HTTP: started, it listens at `url`; stopped, it has answered everything that it took.

    Args:
        settings: where to listen, and the limits.
        store: an open Store. The Service does not close it.
        version: what /stats tells.
        listening: sockets that listen already, instead of the address in the settings. They are closed at the stop.

    Attributes:
        url: the address that it listens on, once started; also after it was stopped.
    """

    def __init__(self, settings: Settings, store: Store, version: str, listening: Sequence[socket.socket] = ()):
        self._settings = settings
        self._store = store
        self._version = version
        self._listening = listening
        self._writer: Writer
        self._runner: web.ServerRunner
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
        self._writer = Writer(self._store, settings.queue_max_scores)
        handlers = Handlers(
            self._store,
            self._writer,
            ScoreDecoder(settings.score_min, settings.score_max, settings.batch_max_scores),
            self._version,
            settings.body_max_bytes,
            settings.body_timeout_seconds,
            settings.batch_max_scores,
        )
        server = Server(Router(handlers.routes()))
        self._runner = web.ServerRunner(server, shutdown_timeout=settings.shutdown_timeout_seconds)
        await self._runner.setup()
        sites = [web.SockSite(self._runner, one) for one in self._listening]
        try:
            for site in sites or [web.TCPSite(self._runner, settings.host, settings.port)]:
                await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ListenError(f"cannot listen on {settings.host} port {settings.port}: {os.strerror(error.errno)}") from error
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Listen no more, answer what is under way, and return when every score taken is durable."""
        await self._runner.cleanup()
        await self._writer.close()


async def serve(
    settings: Settings,
    store: Store,
    version: str,
    announce: Callable[[str], None],
    listening: Sequence[socket.socket] = (),
) -> bool:
    """Serve until SIGTERM or SIGINT, or until a commit fails. Return whether it ended well: every score taken is durable.

    Args:
        announce: called with the address, once requests are answered.
        listening: see Service.
    """
    service = Service(settings, store, version, listening)
    await service.start()
    # What is there now stays until the end, and requests leave next to no cycles: the collector need not look so often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AT_OBJECTS, *gc.get_threshold()[1:])
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service.failed.add_done_callback(lambda _: stop.set())
    announce(service.url)
    await stop.wait()
    _log.info("stopping: answering what is under way")
    await service.stop()
    return not service.failed.done()
