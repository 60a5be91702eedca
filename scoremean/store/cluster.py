"""A Redis Cluster as seen from a client: its address, connections, and which node has which slot.

It alone knows hiredis, and what a node answers when it is not the one to ask. It sends nothing twice by itself: who asks knows
what may be sent again.

Protocol: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from binascii import crc_hqx
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from scoremean.errors import StoreError

try:
    from hiredis import HiredisError, Reader, ReplyError, pack_command
except ImportError as missing:
    raise StoreError("a store on Redis Cluster needs hiredis: pip install 'scoremean[redis]'") from missing

SLOTS = 16384
PORT = 6379
ASK_SECONDS = 0.5
ASKED_NODES = 5
_SCHEMES = ("redis://", "rediss://")

ASKING = pack_command((b"ASKING",))

Address = tuple[str, int]

# What an exchange with a node that is gone, or no Redis, raises.
BROKEN = (OSError, TimeoutError, HiredisError)

_log = logging.getLogger(__name__)


def slot_of(key: bytes) -> int:
    """Return the slot of a key, all of which is hashed: it has no `{tag}`, or an empty one first."""
    return crc_hqx(key, 0) & (SLOTS - 1)


class Location(NamedTuple):
    """What a URL says: some nodes of a cluster, and how to be let in."""

    seeds: list[Address]
    tls: bool = False
    username: str = ""
    password: str = ""

    def __str__(self) -> str:
        """The URL without a password."""
        return _SCHEMES[self.tls] + ",".join(f"{host}:{port}" for host, port in self.seeds)


def parse_url(url: str) -> Location:
    """Return what `redis://[[user]:password@]host[:port],...` says; `rediss` is with TLS. Raises StoreError."""
    scheme, _, rest = url.partition("://")
    login, _, nodes = rest.rstrip("/").rpartition("@")
    username, _, password = map(unquote, login.partition(":"))
    try:
        seeds = [_address(node) for node in nodes.split(",")]
    except ValueError:
        raise StoreError("the store must be redis://[[user]:password@]host[:port],... with the nodes of a cluster") from None
    return Location(seeds, scheme == "rediss", username, password)


def _address(text: str) -> Address:
    """Return `host[:port]` as an address. Raises ValueError."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    host = (host if colon else text).strip("[]")
    if not host or "/" in host or "?" in host:
        raise ValueError(text)
    return host, int(port) if colon else PORT


class Connection(asyncio.Protocol):
    """One connection to one node: commands out, as many replies in, in order."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._expected: deque[tuple[int, asyncio.Future[list[Any]]]] = deque()
        self._replies: list[Any] = []
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self._expected and (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
                if len(self._replies) == self._expected[0][0]:
                    future = self._expected.popleft()[1]
                    if not future.done():
                        future.set_result(self._replies)
                    self._replies = []
        except HiredisError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        while self._expected:
            future = self._expected.popleft()[1]
            if not future.done():
                future.set_exception(exc or ConnectionResetError("the node has closed the connection"))

    def exchange(self, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send `commands` and return the future of their `count` replies; a reply that is an error is a ReplyError.

        The future raises OSError when the connection breaks: whether they were carried out is unknown then.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._transport.is_closing():
            future.set_exception(ConnectionResetError("the connection is closed"))
        else:
            self._expected.append((count, future))
            self._transport.write(commands)
        return future

    @property
    def open(self) -> bool:
        """Whether more can be sent."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Close it at once, whatever is under way."""
        self._transport.abort()


class Link:
    """A connection to one node that is made when it is needed, and again when it broke.

    Args:
        prepare: commands to be sent first, and how many they are; each must succeed.
    """

    def __init__(self, location: Location, address: Address | None, prepare: tuple[bytes, int] = (b"", 0)):
        self._location = location
        self._prepare = prepare
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self.address = address

    async def exchange(self, commands: bytes, count: int) -> list[Any]:
        """Return the replies to `commands`. Raises one of BROKEN; whether they were carried out is unknown then."""
        connection = self._connection
        if connection is None or not connection.open:
            connection = await self._connect()
        return await connection.exchange(commands, count)

    async def _connect(self) -> Connection:
        async with self._connecting:
            if self._connection is not None and self._connection.open:
                return self._connection
            if self.address is None:
                raise ConnectionRefusedError("no node is known to have the slot")
            if self.address is None:
                raise ConnectionRefusedError("no node has this slot")
            host, port = self.address
            context = ssl.create_default_context() if self._location.tls else None
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, host, port, ssl=context)
            first, count = self._prepare
            if self._location.password:
                login = (self._location.username or "default", self._location.password)
                first, count = pack_command(("AUTH", *login)) + first, count + 1
            try:
                for reply in await connection.exchange(first, count) if count else ():
                    if isinstance(reply, ReplyError):
                        raise ConnectionRefusedError(f"{host}:{port} says: {reply}")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            return connection

    def close(self) -> None:
        """Close the connection, if there is one; the next exchange makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class View(NamedTuple):
    """What one node says of the cluster: how new that is, whether all slots are served, and who is the primary of each."""

    epoch: int
    whole: bool
    primaries: list[Address | None]


class Topology:
    """Which node is the primary of which slot, as far as is known.

    Attributes:
        location: as given.
        primaries: the address for each slot, None where no node is known.
    """

    def __init__(self, location: Location):
        self.location = location
        self._links: dict[Address, Link] = {address: Link(location, address) for address in location.seeds}
        self._refreshing: asyncio.Task[View | None] | None = None
        self.primaries: list[Address | None] = [None] * SLOTS

    async def refresh(self) -> View | None:
        """Ask some nodes and take over the newest answer; return it, or None when none answers. Many callers ask once."""
        if self._refreshing is None:
            self._refreshing = asyncio.ensure_future(self._refresh())
        return await asyncio.shield(self._refreshing)

    async def _refresh(self) -> View | None:
        try:
            links = random.sample(list(self._links.values()), min(ASKED_NODES, len(self._links)))
            views = [view for view in await asyncio.gather(*map(self._ask, links)) if view is not None]
            if not views:
                return None
            view = max(views, key=lambda one: (one.whole, one.epoch))
            self.primaries = view.primaries
            return view
        finally:
            self._refreshing = None

    async def _ask(self, link: Link) -> View | None:
        commands = pack_command((b"CLUSTER", b"INFO")) + pack_command((b"CLUSTER", b"SLOTS"))
        try:
            async with asyncio.timeout(ASK_SECONDS):
                info, slots = await link.exchange(commands, 2)
        except BROKEN as error:
            _log.debug("%s:%d does not say who has which slot: %s", *link.address, error)
            link.close()
            return None
        if isinstance(info, ReplyError) and "cluster support disabled" in str(info):
            raise StoreError(f"{link.address[0]}:{link.address[1]} is no node of a cluster: {info}")
        if isinstance(info, ReplyError) or isinstance(slots, ReplyError):
            return None  # such as LOADING: it has just been started
        return self._view(link.address, facts(info), slots)

    def _view(self, asked: Address, found: dict[str, str], slots: Sequence[Any]) -> View:
        primaries: list[Address | None] = [None] * SLOTS
        for first, last, primary, *others in slots:
            # A node that does not know its own name leaves it out: it is where it was asked.
            addresses = [(node[0].decode() if node[0] else asked[0], node[1]) for node in (primary, *others)]
            for address in addresses:
                if address not in self._links:
                    self._links[address] = Link(self.location, address)
            primaries[first : last + 1] = [addresses[0]] * (last + 1 - first)
        return View(int(found["cluster_current_epoch"]), found["cluster_state"] == "ok", primaries)

    def move(self, slot: int, text: str, asked: Address) -> None:
        """Take over what MOVED says: the new primary of a slot."""
        self.primaries[slot] = target(text, asked)

    def close(self) -> None:
        """Close all connections."""
        for link in self._links.values():
            link.close()


def facts(info: bytes) -> dict[str, str]:
    """Return what INFO or CLUSTER INFO says, by name."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def target(text: str, asked: Address) -> Address:
    """Return the address in `MOVED slot host:port` or `ASK slot host:port`, as the node `asked` says it."""
    host, _, port = text.split()[2].rpartition(":")
    return host or asked[0], int(port)


class Myself:
    """What a node says of itself in CLUSTER NODES.

    Attributes:
        slots: those that it has.
        moving: of these, the ones that are on their way, each with the address of the node that it goes to.
    """

    def __init__(self, text: str):
        self.slots: set[int] = set()
        self.moving: dict[int, Address] = {}
        nodes = [line.split() for line in text.splitlines()]
        addresses = {node[0]: _address(node[1].partition("@")[0]) for node in nodes}
        for word in next(node for node in nodes if "myself" in node[2])[8:]:
            if not word.startswith("["):
                first, _, last = word.partition("-")
                self.slots.update(range(int(first), int(last or first) + 1))
            elif "->-" in word:
                slot, _, to = word.strip("[]").partition("->-")
                self.moving[int(slot)] = addresses[to]
