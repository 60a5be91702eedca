"""The verbs. Data goes to standard output, messages to standard error.

Exit codes: 0 done, 1 failed, 2 usage, 3 could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence

import msgspec

from scoremean.app import serve
from scoremean.errors import ListenError, ScoremeanError, SettingError, StoreError
from scoremean.model import Mean
from scoremean.settings import SETTINGS, Settings, add_flags, resolve
from scoremean.store import open_store

OK, FAILED, USAGE, NOT_STARTED = 0, 1, 2, 3

_DESCRIPTION = "Keeps the exact mean of every UUID's scores, durably, in one process."
_EPILOG = "Each setting --some-name is also the environment variable SCOREMEAN_SOME_NAME. Exit codes: 0 done, 1 failed, \
2 usage, 3 could not start."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb in `arguments` (default: the command line) and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        settings = resolve(vars(options), os.environ)
        return options.run(options, settings)
    except SettingError as error:
        return _complain(error, USAGE)
    except (StoreError, ListenError) as error:
        return _complain(error, NOT_STARTED)
    except ScoremeanError as error:
        return _complain(error, FAILED)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; docs/cli.md is made from its help."""
    top = argparse.ArgumentParser("scoremean", description=_DESCRIPTION, epilog=_EPILOG)
    top.add_argument("--version", action="version", version=f"scoremean {_version()}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_verb(verbs, "serve", _serve, "answer HTTP until SIGTERM or SIGINT", SETTINGS)
    get = _add_verb(verbs, "get", _get, "print the mean of a UUID, also while the store is served", ["store"])
    get.add_argument("uuid", metavar="UUID", help="the UUID to look up")
    _add_verb(verbs, "stats", _stats, "print what the store holds, also while it is served", ["store"])
    return top


def _add_verb(verbs, name: str, run: Callable, text: str, settings: Iterable[str]) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    add_flags(verb, settings)
    return verb


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = {
        "size_max_bytes": settings.store_size_max_gib << 30,
        "id_retention_seconds": settings.id_retention_hours * 3600,
    }
    with open_store(settings.store, **options) as store:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            ended_well = runner.run(serve(settings, store, _version(), _announce))
    return OK if ended_well else FAILED


def _get(options: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings.store, readonly=True) as store:
        [tally] = store.get([options.uuid])
    if tally is None:
        return _complain(f"no score was counted for the UUID {options.uuid}", FAILED)
    _print_json(Mean(options.uuid, tally.mean, tally.sum, tally.count))
    return OK


def _stats(_: argparse.Namespace, settings: Settings) -> int:
    with open_store(settings.store, readonly=True) as store:
        _print_json(store.stats())
    return OK


def _announce(url: str) -> None:
    print(f"listening on {url}", flush=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's when it is installed: the same loop, faster."""
    try:
        import uvloop  # pylint: disable=import-outside-toplevel  # optional: the extra `speed`
    except ImportError:
        return None
    return uvloop.new_event_loop


def _version() -> str:
    return importlib.metadata.version("scoremean")


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode())


def _complain(error: object, code: int) -> int:
    print(f"scoremean: {error}", file=sys.stderr)
    return code
