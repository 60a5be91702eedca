"""The settings: one table, from which the flags, the environment variables and the checks of docs/settings.md come.

A setting `queue_max_scores` is the flag `--queue-max-scores` and the variable `SCOREMEAN_QUEUE_MAX_SCORES`. The flag wins,
then the variable, then the default. There is no configuration file.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from scoremean.errors import SettingError
from scoremean.model import SCORE_BOUND

Seconds = Meta(ge=1, le=3600)
ScoreRange = Meta(ge=-SCORE_BOUND, le=SCORE_BOUND)


def _about(text: str) -> Meta:
    return Meta(description=text)


class Settings(Struct, frozen=True, kw_only=True):
    """The value of every setting; `Settings()` is all defaults.

    Raises:
        SettingError: when two settings contradict each other.
    """

    store: Annotated[
        str, Meta(min_length=1), _about("the directory of the store, made if missing")
    ] = "./scoremean-data"
    host: Annotated[str, _about("the address to listen on; any but loopback needs --token-file")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), _about("the TCP port to listen on; 0 picks a free one")] = 8080
    unix_socket: Annotated[str, _about("the path of a Unix socket to listen on, instead of host and port")] = ""
    token_file: Annotated[str, _about("a file of bearer tokens, a line each: read TOKEN or write TOKEN")] = ""
    tls_cert: Annotated[str, _about("a file with the certificate chain in PEM: serve HTTPS")] = ""
    tls_key: Annotated[str, _about("a file with the private key of the certificate, in PEM")] = ""
    tls_client_ca: Annotated[str, _about("a file of CAs in PEM: take only clients with a certificate of theirs")] = ""
    allowed_hosts: Annotated[
        str, _about("further names, with commas between, that a Host header may have; loopback is always known")
    ] = ""
    connections_max: Annotated[
        int, Meta(ge=1, le=1 << 20), _about("the most connections at once, for each worker; past it 503")
    ] = 4096
    workers: Annotated[int, Meta(ge=1, le=64), _about("processes that answer HTTP; past 1, one more owns the store")] = 1
    store_size_max_gib: Annotated[
        int,
        Meta(ge=1, le=1 << 16),
        _about("the size in GiB that the store may grow to; until used it takes only address space"),
    ] = 64
    score_min: Annotated[int, ScoreRange, _about("the lowest score accepted")] = 0
    score_max: Annotated[int, ScoreRange, _about("the highest score accepted")] = 5
    id_retention_hours: Annotated[
        int, Meta(ge=1, le=24 * 366), _about("hours that ids are kept at least; a retry within them counts once")
    ] = 168
    queue_max_scores: Annotated[
        int, Meta(ge=1, le=1 << 24), _about("scores that may wait for a commit; past it posts get 503")
    ] = 65536
    batch_max_scores: Annotated[
        int, Meta(ge=1, le=1 << 20), _about("the most scores in one batch, and UUIDs in one query; past it 413")
    ] = 10_000
    body_max_bytes: Annotated[
        int, Meta(ge=64, le=1 << 30), _about("the largest request body read, in bytes; past it 413")
    ] = 4 << 20
    body_timeout_seconds: Annotated[int, Seconds, _about("seconds that a body may take to arrive; past it 408")] = 10
    header_timeout_seconds: Annotated[
        int, Seconds, _about("seconds that the head of a request may take to arrive; past it the connection is closed")
    ] = 10
    keepalive_timeout_seconds: Annotated[int, Seconds, _about("seconds after which an idle connection is closed")] = 75
    shutdown_timeout_seconds: Annotated[int, Seconds, _about("seconds that a shutdown waits for requests under way")] = 30
    log_format: Annotated[Literal["text", "json"], _about("what a line of the log is: text or json")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _about("the least that is logged: debug, info, warning or error")
    ] = "info"
    access_log_every: Annotated[
        int, Meta(ge=0, le=1_000_000), _about("log one of so many requests, for each worker; 1 logs all, 0 none")
    ] = 0

    def __post_init__(self) -> None:
        require_directory(self.store)
        if self.exposed and not self.token_file:
            raise SettingError(
                f"host {self.host!r} is not a loopback address, so whoever reaches it could post scores:"
                " give token_file too, or listen on 127.0.0.1"
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise SettingError("tls_cert and tls_key go together: one is given and the other is not")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingError("tls_client_ca needs tls_cert and tls_key: without TLS no client shows a certificate")
        if self.score_min >= self.score_max:
            raise SettingError(f"score_min ({self.score_min}) must be below score_max ({self.score_max})")
        if self.batch_max_scores > self.queue_max_scores:
            raise SettingError(
                f"batch_max_scores ({self.batch_max_scores}) must not exceed queue_max_scores ({self.queue_max_scores})"
            )

    @property
    def store_options(self) -> dict[str, int]:
        """What the store is opened with."""
        return {
            "id_retention_seconds": self.id_retention_hours * 3600,
            "size_max_bytes": self.store_size_max_gib << 30,
            "score_min": self.score_min,
            "score_max": self.score_max,
        }

    @property
    def exposed(self) -> bool:
        """Whether other machines can connect."""
        return not self.unix_socket and not is_loopback(self.host)


def require_directory(store: str) -> None:
    """Raise SettingError if `store` looks like a URL: a mistyped one would be made as a new, empty directory.

    That is any name with a colon in its first part, since quotes and the like in front of a URL make no directory of it. Only
    the scheme is told: the rest may be a password.
    """
    if scheme := re.match(r"(?!\.)[^/]*?:", store):
        raise SettingError(
            f"the scheme {scheme[0].strip()} of the store is not known: a store is a directory, and one whose name begins so is"
            " given with ./ in front"
        )


def is_loopback(host: str) -> bool:
    """Return whether `host` can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Setting(NamedTuple):
    """One row of the table: what a setting is called, says and accepts."""

    name: str
    type: Any
    text: str
    default: int | str
    minimum: int | None
    maximum: int | None

    @property
    def flag(self) -> str:
        """The command line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "SCOREMEAN_" + self.name.upper()


def _row(name: str, annotated: Any, default: int | str) -> Setting:
    about = {}
    for meta in annotated.__metadata__:
        about |= {key: value for key in ("description", "ge", "le") if (value := getattr(meta, key)) is not None}
    return Setting(name, annotated, about["description"], default, about.get("ge"), about.get("le"))


SETTINGS = {
    name: _row(name, annotated, getattr(Settings(), name))
    for name, annotated in get_type_hints(Settings, include_extras=True).items()
}


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add the flags of the settings `names` to `parser`."""
    for setting in map(SETTINGS.__getitem__, names):
        parser.add_argument(
            setting.flag,
            dest=setting.name,
            metavar="N" if setting.minimum is not None else setting.name.upper(),
            help=f"{setting.text} [{'none' if setting.default == '' else setting.default}]",
        )


def resolve(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """Return the settings from flags, then environment, then defaults; a name that `flags` lacks or has as None is not set.

    Raises:
        SettingError: naming the flag or variable whose value is refused, and the values it may have.
    """
    values = {}
    for name, setting in SETTINGS.items():
        if (text := flags.get(name)) is not None:
            values[name] = _parse(setting, text, setting.flag)
        elif (text := environment.get(setting.variable)) is not None:
            values[name] = _parse(setting, text, setting.variable)
    return Settings(**values)


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each variable that looks like one of a setting and is none. No value is told: it may be a secret."""
    known = [setting.variable for setting in SETTINGS.values()]
    for name in sorted(environment):
        if name.upper().startswith("SCOREMEAN_") and name not in known:
            [nearest] = difflib.get_close_matches(name.upper(), known, 1, cutoff=0)
            yield f"the variable {name!r} is no setting and does nothing; the nearest that is one is {nearest}"


def integer(text: str) -> int:
    """Return the integer that is posted as `text`. Raises ValueError, also for what only `int` takes for one."""
    return msgspec.json.decode(text, type=int)


def _parse(setting: Setting, text: str, source: str) -> int | str:
    try:
        text.encode()
        return msgspec.convert(text if setting.minimum is None else integer(text), setting.type)
    except ValueError:  # of each of these
        if choices := get_args(get_args(setting.type)[0]):
            raise SettingError(f"{source} must be one of {', '.join(choices)}; it is {text!r}") from None
        if setting.minimum is None:
            raise SettingError(f"{source} must not be empty, and must be UTF-8") from None
        raise SettingError(
            f"{source} must be an integer from {setting.minimum} to {setting.maximum}; it is {text!r}"
        ) from None
