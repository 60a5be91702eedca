"""The verbs. Data goes to standard output, messages to standard error.

Exit codes: 0 done, 1 failed, 2 usage, 3 could not start, 4 damage found.

What needs aiohttp is imported by the verbs that use it, so that the others start in half the time.
"""
# pylint: disable=import-outside-toplevel

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from scoremean.counts import Counts, shared_memory
from scoremean.errors import ListenError, ScoremeanError, SettingError, StoreDamaged, StoreError
from scoremean.model import Mean
from scoremean.notify import READY, notify
from scoremean.operate import backup, check, check_file, restore, stream
from scoremean.settings import SETTINGS, Settings, add_flags, resolve
from scoremean.store import open_store
from scoremean.store.base import Store
from scoremean.store.lmdb import DATA_FILE
from scoremean.transfer import Columns, Importer, export
from scoremean.validation import ScoreDecoder

OK, FAILED, USAGE, NOT_STARTED, DAMAGED = 0, 1, 2, 3, 4

_DESCRIPTION = "Keeps the exact mean of every UUID's scores, durably, in one process."
_EPILOG = "Each setting --some-name is also the environment variable SCOREMEAN_SOME_NAME. Exit codes: 0 done, 1 failed, \
2 usage, 3 could not start, 4 damage found."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb in `arguments` (default: the command line) and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        settings = resolve(vars(options), os.environ)
        return options.run(options, settings)
    except SettingError as error:
        return _complain(error, USAGE)
    except StoreDamaged as error:
        return _complain(error, DAMAGED)
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
    _add_import(verbs)
    export_verb = _add_verb(verbs, "export", _export, "write every UUID's sum, count and mean, also while served", ["store"])
    export_verb.add_argument("--format", choices=("ndjson", "csv", "parquet"), default="ndjson", help="[ndjson]")
    export_verb.add_argument("--output", metavar="FILE", default="-", help="where to; - is standard output [-]")
    _add_operate(verbs)
    settings = ["score_min", "score_max", "batch_max_scores", "queue_max_scores", "body_max_bytes", "token_file"]
    _add_verb(verbs, "openapi", _openapi, "print the OpenAPI document of a service with these settings", settings)
    return top


def _add_import(verbs) -> None:
    settings = ["store", "store_size_max_gib", "score_min", "score_max", "id_retention_hours", "token_file"]
    text = "count the scores of files, in a store that is not served or through a service"
    verb = _add_verb(verbs, "import", _import, text, settings)
    text = "NDJSON, or CSV with a header; plain or gzip; - is standard input"
    verb.add_argument("files", nargs="+", metavar="FILE", help=text)
    verb.add_argument("--url", metavar="URL", help="count them in the service at this address, and in no store here")
    verb.add_argument("--tallies", action="store_true", help="the files hold tallies, as export writes them: merge them")
    verb.add_argument("--no-ids", action="store_true", help="faster; but a second run counts everything twice")
    verb.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="what to do at a bad line [stop]")
    for name in ("UUID", "score", "id"):
        text = f"the member or column that holds the {name} [{name}]"
        verb.add_argument(f"--{name.lower()}-column", default=name, metavar="NAME", help=text)


def _add_operate(verbs) -> None:
    text = "read all of a store, also while it is served, or of a backup, and print every damage found"
    verb = _add_verb(verbs, "check", _check, text, ["store"])
    verb.add_argument("file", nargs="?", metavar="FILE", help="a backup to check, in place of a store")
    text = "write a copy of a store as of one commit, also while it is served, to a new file"
    verb = _add_verb(verbs, "backup", _backup, text, ["store"])
    verb.add_argument("--output", metavar="FILE", default="-", help="where to; - is standard output [-]")
    verb = _add_verb(verbs, "restore", _restore, "check a backup, and make a new store of it", ["store"])
    verb.add_argument("file", metavar="FILE", help="the backup; - is standard input")


def _add_verb(verbs, name: str, run: Callable, text: str, settings: Iterable[str]) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    add_flags(verb, settings)
    return verb


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    from scoremean.app import serve
    from scoremean.logs import log_to_stderr
    from scoremean.workers import loop_factory, serve_with_workers

    log_to_stderr(settings)
    if settings.exposed and not settings.tls_cert:
        logging.getLogger(__name__).warning("tokens and scores cross the network unencrypted: see tls_cert")
    alone, processes = settings.workers == 1, settings.workers + 1
    counts = Counts() if alone else Counts(processes, descriptor=shared_memory(processes))
    with open_store(settings.store, **settings.store_options, counts=counts) as store:

        def announce(url: str) -> None:
            print(_greeting(url, settings, store), flush=True)
            notify(READY)

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            run = serve if alone else serve_with_workers
            ended_well = runner.run(run(settings, store, _version(), announce))
    return OK if ended_well else FAILED


def _greeting(url: str, settings: Settings, store: Store) -> str:
    """Return what `serve` prints once requests are answered: where it is, and how to go on from there."""
    place, stats = Path(settings.store).absolute(), store.stats()
    holds = f"{place}: {stats.uuids:,} UUIDs, {stats.scores:,} scores"
    lines = [f"listening on {url}", f"store  {holds}"]
    base, curl = url, "curl"
    if settings.unix_socket:
        base, curl = "http://localhost", f"curl --unix-socket {settings.unix_socket}"
    else:
        lines.insert(1, f"page   {url}/")
    token = "-H 'Authorization: Bearer TOKEN' " if settings.token_file else ""
    score = f'\'{{"UUID": "a1-b1", "score": {settings.score_max}}}\''
    lines.append(f"post   {curl} {base}/scores {token}-H 'Content-Type: application/json' -d {score}")
    return "\n".join(lines)


def _get(options: argparse.Namespace, settings: Settings) -> int:
    with _reading(settings) as store:
        [tally] = store.get([options.uuid])
    if tally is None:
        return _complain(f"no score was counted for the UUID {options.uuid}", FAILED)
    _print_json(Mean(options.uuid, tally.mean, tally.sum, tally.count))
    return OK


def _stats(_: argparse.Namespace, settings: Settings) -> int:
    with _reading(settings) as store:
        _print_json(store.stats())
    return OK


def _import(options: argparse.Namespace, settings: Settings) -> int:
    if options.url is not None and (options.tallies or options.no_ids):
        raise SettingError("--url takes scores with ids: neither --tallies nor --no-ids goes with it")
    decoder = ScoreDecoder(settings.score_min, settings.score_max, sys.maxsize)
    with _target(options, settings) as store:
        progress = ProgressBar()
        importer = Importer(
            store,
            decoder,
            columns=Columns(options.uuid_column, options.score_column, options.id_column),
            with_ids=not options.no_ids,
            summed=options.url is None,
            tallies=options.tallies,
            skip=options.on_error == "skip",
            progress=progress.show,
        )
        try:
            for name in options.files:
                progress.start(name)
                importer.run(name)
        except OSError as error:
            return _complain(f"cannot read {name}: {error.strerror}", FAILED)
        finally:
            progress.end()
            report = importer.report
            for fault in report.faults:
                print(fault, file=sys.stderr)
            if (more := report.skipped - len(report.faults)) > 0:
                print(f"... and {more} more bad lines", file=sys.stderr)
            _print_json({"counted": report.counted, "replayed": report.replayed, "skipped": report.skipped})
    return OK


def _target(options: argparse.Namespace, settings: Settings) -> AbstractContextManager[Any]:
    if options.url is None:
        return open_store(settings.store, **settings.store_options)
    from scoremean.access import write_token
    from scoremean.client import Served

    return Served(options.url, write_token(settings.token_file) if settings.token_file else None)


def _export(options: argparse.Namespace, settings: Settings) -> int:
    with _reading(settings) as store:
        if options.output == "-":
            export(store, sys.stdout.buffer, options.format)
            sys.stdout.buffer.flush()
            return OK
        try:
            with open(options.output, "wb") as file:
                export(store, file, options.format)
        except OSError as error:
            return _complain(f"cannot write {options.output}: {error.strerror}", FAILED)
    return OK


def _check(options: argparse.Namespace, settings: Settings) -> int:
    name = options.file or settings.store
    try:
        if options.file is not None:
            health = check_file(Path(name), name)
        else:
            with _progress(Path(name, DATA_FILE)) as progress:
                health = check(Path(name), progress)
    except OSError as error:
        return _complain(f"cannot check {name}: {error.strerror}", FAILED)
    _print_json(health)
    if not health.damages:
        return OK
    return _complain(f"{name} is damaged: keep it, and let `scoremean restore` make a store of a sound backup", DAMAGED)


def _backup(options: argparse.Namespace, settings: Settings) -> int:
    store, output = Path(settings.store), sys.stdout.buffer
    if options.output == "-" and output.isatty():
        raise SettingError("a backup is not for a terminal: give it a file with --output, or send it on with a pipe")
    try:
        with _progress(store / DATA_FILE) as progress:
            if options.output == "-":
                stream(store, output, progress)
                return OK
            stats = backup(store, Path(options.output), progress)
    except OSError as error:
        return _complain(f"cannot write {options.output}: {error.strerror}", FAILED)
    _print_json(stats)
    return OK


def _restore(options: argparse.Namespace, settings: Settings) -> int:
    name, piped = options.file, options.file == "-"
    try:
        with _progress(Path(name)) as progress, open(0 if piped else name, "rb", closefd=not piped) as file:
            stats = restore(file, name, Path(settings.store), progress)
    except OSError as error:
        return _complain(f"cannot restore {name} to {settings.store}: {error.strerror}", FAILED)
    _print_json(stats)
    return OK


def _openapi(_: argparse.Namespace, settings: Settings) -> int:
    from scoremean.openapi import encoded

    print(msgspec.json.format(encoded(settings, _version())).decode())
    return OK


class ProgressBar:
    """A line on standard error that says how far a file is read, how fast, and how long it will take; only on a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._size_bytes = 0
        self._started = 0.0

    def start(self, name: str) -> None:
        """Begin with a file; the size of standard input is not known before."""
        self._size_bytes = os.path.getsize(name) if name != "-" else 0
        self._started = time.monotonic()

    def show(self, bytes_read: int, lines_read: int | None = None) -> None:
        """Draw the line again, with the speed in bytes where there are no lines."""
        if not self._shown:
            return
        seconds = max(time.monotonic() - self._started, 1e-9)
        line = f"{bytes_read / 1e6:,.0f} MB, {bytes_read / 1e6 / seconds:,.0f} MB/s"
        if lines_read is not None:
            line = f"{lines_read:,} lines, {lines_read / seconds:,.0f}/s"
        if self._size_bytes:
            done = bytes_read / self._size_bytes
            line = f"[{'#' * int(done * 20):20}] {done:4.0%}  {line}, {seconds / max(done, 1e-9) - seconds:.0f} s left"
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            print(file=sys.stderr)


@contextmanager
def _progress(path: Path) -> Iterator[Callable[[int], None]]:
    """Give what draws how much of a file is copied."""
    progress = ProgressBar()
    with suppress(OSError):  # whoever reads the file says what is wrong with it
        progress.start(str(path))
    try:
        yield progress.show
    finally:
        progress.end()


def _reading(settings: Settings) -> Store:
    return open_store(settings.store, readonly=True, **settings.store_options)


def _version() -> str:
    return importlib.metadata.version("scoremean")


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode())


def _complain(error: object, code: int) -> int:
    print(f"scoremean: {error}", file=sys.stderr)
    return code
