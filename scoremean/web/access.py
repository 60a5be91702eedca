"""Who may connect and ask: bearer tokens, names of the service, TLS.

    token_file      read 3xZ...     one token a line: `read` or `write`, then the token; # begins a comment
                    write 9kQ...

What is in the files is read at the start and again by `Access.reload`. A file that is then at fault changes nothing: what was
read before goes on being used. No token is ever part of a message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import stat
from collections.abc import Callable, Iterable
from enum import IntEnum
from hashlib import sha256
from hmac import compare_digest

from scoremean.errors import Forbidden, MisdirectedRequest, SettingError, Unauthorized
from scoremean.settings import Settings

TOKENS_MAX = 64
TOKEN_MIN_CHARACTERS = 16
# What RFC 6750 lets a bearer token be made of.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}={0,2}")
_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HOSTS_KNOWN_MAX = 256

_log = logging.getLogger(__name__)


class Right(IntEnum):
    """What a token allows, and what a route needs; a higher one holds the lower ones."""

    NONE = 0
    READ = 1
    WRITE = 2


def read_tokens(path: str) -> list[tuple[str, Right]]:
    """Return the tokens in a file with the right of each, at least one.

    Raises:
        SettingError: the file cannot be read, others than its owner and group may read it, or a line is at fault.
    """
    _require_private("token_file", path)
    tokens: dict[str, Right] = {}
    for number, line in enumerate(_read("token_file", path).splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in ("read", "write") or not _TOKEN.fullmatch(words[1]):
            raise SettingError(f"token_file {path}: line {number} is neither `read TOKEN` nor `write TOKEN`")
        where = f"token_file {path}: the token in line {number}"
        if len(words[1]) < TOKEN_MIN_CHARACTERS:
            raise SettingError(f"{where} is shorter than {TOKEN_MIN_CHARACTERS} characters")
        if words[1] in tokens:
            raise SettingError(f"{where} stands there twice")
        tokens[words[1]] = Right[words[0].upper()]
    if not 0 < len(tokens) <= TOKENS_MAX:
        raise SettingError(f"token_file {path}: it must hold 1 to {TOKENS_MAX} tokens, and holds {len(tokens)}")
    return list(tokens.items())


def write_token(path: str) -> str:
    """Return the first token in a file that may write. Raises SettingError if there is none, and as read_tokens does."""
    for token, right in read_tokens(path):
        if right is Right.WRITE:
            return token
    raise SettingError(f"token_file {path}: none of its tokens may write")


class Tokens:
    """The tokens of a file, of which only hashes are kept."""

    def __init__(self, path: str):
        self._path = path
        self._rights: list[tuple[bytes, Right]] = []
        self.reload()

    def reload(self) -> None:
        """Read the file again. Raises SettingError, and keeps what it had."""
        self._rights = [(_digest(token), right) for token, right in read_tokens(self._path)]

    def require(self, authorization: str, needed: Right) -> None:
        """Return if a request with this Authorization header may use a route that needs this right.

        Args:
            authorization: empty if there is none; of several all, with commas between (RFC 9110, 5.3).

        Raises:
            Unauthorized: no token, or none of these.
            Forbidden: its token may only read.
        """
        if needed is Right.NONE:
            return
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise Unauthorized("this needs the header Authorization: Bearer TOKEN")
        digest, found = _digest(match[1]), Right.NONE
        for known, right in self._rights:  # to the end, so that the time tells nothing of where it was found
            if compare_digest(known, digest):
                found = right
        if found is Right.NONE:
            raise Unauthorized("the token is not known")
        if found < needed:
            raise Forbidden("the token may only read")


def _digest(token: str) -> bytes:
    """Return what is compared in place of a token: as long for every token, and of no use to who finds it in memory."""
    return sha256(token.encode(errors="surrogateescape")).digest()


class Hosts:
    """The names that a Host header may have: those of loopback and `names`, with any port.

    A page of any site can have its own name lead to 127.0.0.1 and then read what is there (DNS rebinding). The browser tells
    that name in the Host header. The port is not compared: a tunnel may have changed it, and it says nothing of the site.

    Attributes:
        known: headers as they came in that were found to be right, to be looked up first. None, no header, is for HTTP/1.0,
            which no browser speaks.
    """

    def __init__(self, names: Iterable[str]):
        self._names = {*_LOOPBACK_NAMES, *(_name(name) for name in names)}
        self.known: set[str | None] = {None}

    def require(self, header: str) -> None:
        """Return if `header` has one of the names, and know it from then on. Raises MisdirectedRequest."""
        if (match := _HOST_PORT.fullmatch(header)) is None or _name(match[1]) not in self._names:
            raise MisdirectedRequest("the Host header is not a name of this service; the setting allowed_hosts adds one")
        if len(self.known) < _HOSTS_KNOWN_MAX:
            self.known.add(header)


def _names(text: str) -> list[str]:
    """Return the names in the setting allowed_hosts. Raises SettingError for one that no Host header could have."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if (match := _HOST_PORT.fullmatch(name)) is None or match[2] or "/" in name:
            raise SettingError(f"allowed_hosts: {name!r} must be a name without a port, an IPv6 address in brackets")
    return names


def _name(text: str) -> str:
    """Return a host name as it is compared: an IPv6 address in brackets, none of it in upper case, no dot at its end."""
    text = text.strip().lower().rstrip(".")
    return f"[{text}]" if ":" in text and not text.startswith("[") else text


class Tls:
    """TLS as the settings say, 1.2 or newer.

    Attributes:
        context: for the listening socket. It stays the same one; a reload changes what new connections get.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._newest = self.context = _make_context(settings)
        self.context.sni_callback = self._use_newest

    def reload(self) -> None:
        """Read the files again. Raises SettingError, and keeps what it had."""
        self._newest = _make_context(self._settings)

    def still_trusts(self, transport: asyncio.Transport) -> bool:
        """Return whether the client that is connected has shown a certificate, if it must, to what was read last."""
        return not self._settings.tls_client_ca or transport.get_extra_info("ssl_object").context is self._newest

    def _use_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called in each handshake, with or without a name. Loading into the listening context instead would leave half of
        # the change there where the second half is at fault, and would never remove a CA.
        connection.context = self._newest


def _make_context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _require_private("tls_key", settings.tls_key)
    _read("tls_cert", settings.tls_cert)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        files = f"tls_cert {settings.tls_cert} and tls_key {settings.tls_key}"
        raise SettingError(f"{files} are of no use: {_reason(error)}") from None
    if settings.tls_client_ca:
        _require_certificates(context, settings.tls_client_ca)
    return context


def _require_certificates(context: ssl.SSLContext, path: str) -> None:
    """Take only clients with a certificate of the CAs in a file."""
    try:
        context.load_verify_locations(cadata=_read("tls_client_ca", path))
    except (ssl.SSLError, ValueError) as error:
        raise SettingError(f"tls_client_ca {path} holds no certificates: {_reason(error)}") from None
    context.verify_mode = ssl.CERT_REQUIRED
    # A session that is resumed shows no certificate again: a CA that was removed would go on being trusted.
    context.options |= ssl.OP_NO_TICKET  # pylint: disable=no-member  # it is made when ssl is imported
    context.num_tickets = 0


def _no_password() -> str:
    raise ValueError("the key has a password, which nobody could type at a start")


def _reason(error: Exception) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else None) or str(error)


def _require_private(name: str, path: str) -> None:
    """Raise SettingError unless the file of the setting `name` is there and is for its owner, and its group to read."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise SettingError(f"cannot read {name} {path}: {error.strerror}") from None
    # A secret that is mounted into a container is often owned by root, and read by group.
    if mode & 0o037:
        raise SettingError(f"{name} {path} has the mode {mode:04o}, so others may read or change it: chmod 600 {path}")


def _read(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise SettingError(f"cannot read {name} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingError(f"{name} {path} is not UTF-8 text") from None


class Access:
    """What the settings say of access, with the files read.

    Attributes:
        tokens: None if none are needed.
        hosts: None if any Host header will do.
        tls: None without TLS.

    Raises:
        SettingError: a file is at fault.
    """

    def __init__(self, settings: Settings):
        self.tokens = Tokens(settings.token_file) if settings.token_file else None
        self.tls = Tls(settings) if settings.tls_cert else None
        names = _names(settings.allowed_hosts)
        # A browser cannot reach a Unix socket, and has no token to show elsewhere.
        loopback = not settings.unix_socket and not settings.exposed
        self.hosts = Hosts([settings.host, *names]) if loopback or names else None

    def reload(self) -> None:
        """Read all files again; one that is at fault is logged, and what it held before stays."""
        if self.tokens is None and self.tls is None:
            _log.info("there is nothing to read again: neither a token_file nor TLS")
        for name, part in (("token_file", self.tokens), ("the files of TLS", self.tls)):
            if part is not None:
                _reload(name, part.reload)

    def still_trusts(self, transport: asyncio.Transport) -> bool:
        """Return whether a connection that was let in may stay: a request is checked each time, a certificate only at first."""
        return self.tls is None or self.tls.still_trusts(transport)

    def still_allows(self, transport: asyncio.Transport, authorization: str, needed: Right) -> bool:
        """Return whether a request that was let in would be let in now; see Tokens.require."""
        try:
            if self.tokens is not None:
                self.tokens.require(authorization, needed)
        except (Unauthorized, Forbidden):
            return False
        return self.still_trusts(transport)


def _reload(name: str, load: Callable[[], None]) -> None:
    try:
        load()
    except SettingError as error:
        _log.error("%s: what was read before stays in use: %s", name, error)
    else:
        _log.info("%s: read again", name)
