"""The verbs. Data goes to standard output, messages to standard error.

Exit codes: 0 done, 1 failed, 2 usage, 3 could not start, 4 damage found; and as a shell has it of other programs, 130 after
Ctrl-C, 141 when whoever reads its output went away.

What needs aiohttp is imported by the verbs that use it, so that the others start in half the time.
"""
# pylint: disable=import-outside-toplevel

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import io
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO
from uuid import uuid4

import msgspec

from scoremean.counts import Counts, shared_memory
from scoremean.errors import ListenError, ScoremeanError, SettingError, StoreDamaged, StoreError
from scoremean.model import Mean, Merge, Score, Tally, Void, Voided, VoidScore
from scoremean.ops.backup import backup, check, check_file, replacing, restore, stream
from scoremean.ops.transfer import Columns, Importer, cut, export
from scoremean.process import READY, loop_factory, notify
from scoremean.settings import SETTINGS, Settings, add_flags, integer, resolve, unknown_variables
from scoremean.store import open_store
from scoremean.store.base import Change, Store
from scoremean.store.embedded.files import DATA_FILE, require_store
from scoremean.web.wire import ScoreDecoder

OK, FAILED, USAGE, NOT_STARTED, DAMAGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141

# A message is cut to this, whatever of a file or of the command line is in it: less than a screen.
MESSAGE_MAX_CHARACTERS = 1000

_DESCRIPTION = "Keeps the exact mean of every UUID's scores, durably, in one process."
# What a store is opened with to be read.
_READING = ("store", "store_size_max_gib")

_EPILOG = "Each setting --some-name is also the environment variable SCOREMEAN_SOME_NAME. Exit codes: 0 done, 1 failed, \
2 usage, 3 could not start, 4 damage found, 130 interrupted, 141 nobody read the output, 128 and more another signal."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb in `arguments` (default: the command line) and return its exit code.

    Here ends, for every verb, what is no error of scoremean's: an interrupt, and output that cannot be written.
    """
    _require_streams()
    try:
        try:
            return _run(arguments)
        finally:
            _flush(sys.stdout)
    except _Terminated as ended:
        return 128 + ended.number
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:
        return _complain(f"{error.filename or 'standard output'}: {_reason(error)}", FAILED)
    finally:
        with suppress(OSError):
            _flush(sys.stderr)


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    for sentence in unknown_variables(os.environ):
        print(f"scoremean: {sentence}", file=sys.stderr)
    try:
        # Not the variables of settings that the verb has not: they are for another one.
        own = {SETTINGS[name].variable for name in vars(options).keys() & SETTINGS.keys()}
        settings = resolve(vars(options), {name: text for name, text in os.environ.items() if name in own})
        if options.run is _serve:  # which drains
            return options.run(options, settings)
        with _ended_in_order():
            return options.run(options, settings)
    except SettingError as error:
        return _complain(error, USAGE)
    except StoreDamaged as error:
        return _complain(error, DAMAGED)
    except (StoreError, ListenError) as error:
        return _complain(error, NOT_STARTED)
    except ScoremeanError as error:
        return _complain(error, FAILED)


class _Terminated(KeyboardInterrupt):
    """A signal that ends a verb as Ctrl-C does: what it was writing is removed."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def _terminate(number: int, _: object) -> NoReturn:
    raise _Terminated(number)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end what follows in order; not if they are ignored (nohup), or somebody else's to answer."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        numbers = []
    for number in numbers:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class _Parser(argparse.ArgumentParser):
    """Whose messages are cut: a file's text that a shell made arguments of is no help."""

    def error(self, message: str) -> NoReturn:
        super().error(cut(message, MESSAGE_MAX_CHARACTERS))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; docs/cli.md is made from its help."""
    top = _Parser("scoremean", description=_DESCRIPTION, epilog=_EPILOG)
    top.add_argument("--version", action="version", version=f"scoremean {_version()}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_verb(verbs, "serve", _serve, "answer HTTP until SIGTERM or SIGINT", SETTINGS)
    get = _add_verb(verbs, "get", _get, "print the mean of a UUID, also while the store is served", _READING)
    get.add_argument("uuid", metavar="UUID", help="the UUID to look up")
    _add_verb(verbs, "stats", _stats, "print what the store holds, also while it is served", _READING)
    _add_mend(verbs)
    _add_import(verbs)
    export_verb = _add_verb(verbs, "export", _export, "write every UUID's sum, count and mean, also while served", _READING)
    export_verb.add_argument("--format", choices=("ndjson", "csv", "parquet"), default="ndjson", help="[ndjson]")
    export_verb.add_argument("--output", metavar="FILE", default="-", help="where to; - is standard output [-]")
    _add_operate(verbs)
    settings = ["score_min", "score_max", "batch_max_scores", "queue_max_scores", "body_max_bytes", "token_file"]
    _add_verb(verbs, "openapi", _openapi, "print the OpenAPI document of a service with these settings", settings)
    return top


def _add_mend(verbs) -> None:
    settings = ["store", "store_size_max_gib", "score_min", "score_max", "id_retention_hours", "token_file"]
    text = "take a score out of its mean, in a store that is not served or through a service"
    void = _add_verb(verbs, "void", _void, text, settings)
    void.add_argument("name", metavar="ID|UUID", help="the id of the score; or, for one whose id is not known, its UUID")
    text = "with a UUID: the value of the score, of which one is taken out"
    void.add_argument("score", metavar="SCORE", nargs="?", type=integer, help=text)
    text = "with a UUID: the void's own id, for which it takes out once, however often it is repeated [a new one]"
    void.add_argument("--id", metavar="ID", help=text)
    text = "add the scores of a UUID to those of another one and forget it, in a store or through a service likewise"
    merge = _add_verb(verbs, "merge", _merge, text, settings)
    merge.add_argument("uuid", metavar="UUID", help="the UUID that goes")
    merge.add_argument("--into", metavar="UUID", required=True, help="the UUID that is to have the scores of both")
    for verb in (void, merge):
        verb.add_argument("--url", metavar="URL", help="do it in the service at this address, and in no store here")


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
    for name in ("UUID", "score"):
        text = f"the member or column that holds the {name} [{name}]"
        verb.add_argument(f"--{name.lower()}-column", metavar="NAME", help=text)
    text = "the member or column that holds the id [id, unless another column is named]"
    verb.add_argument("--id-column", metavar="NAME", help=text)


def _add_operate(verbs) -> None:
    text = "read all of a store, also while it is served, or of a backup, and print every damage found"
    verb = _add_verb(verbs, "check", _check, text, _READING)
    verb.add_argument("file", nargs="?", metavar="FILE", help="a backup to check, in place of a store")
    text = "write a copy of a store as of one commit, also while it is served, to a new file"
    verb = _add_verb(verbs, "backup", _backup, text, _READING)
    verb.add_argument("--output", metavar="FILE", default="-", help="where to; - is standard output [-]")
    verb = _add_verb(verbs, "restore", _restore, "check a backup, and make a new store of it", _READING)
    verb.add_argument("file", metavar="FILE", help="the backup; - is standard input")


def _add_verb(verbs, name: str, run: Callable, text: str, settings: Iterable[str]) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    add_flags(verb, settings)
    return verb


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    from scoremean.app import ignore_signals, serve
    from scoremean.logs import log_to_stderr
    from scoremean.workers import serve_with_workers

    log_to_stderr(settings)
    if settings.exposed and not settings.tls_cert:
        logging.getLogger(__name__).warning("tokens and scores cross the network unencrypted: see tls_cert")
    alone, processes = settings.workers == 1, settings.workers + 1
    counts = Counts() if alone else Counts(processes, descriptor=shared_memory(processes))
    with open_store(settings.store, **settings.store_options, counts=counts) as store:

        def announce(url: str) -> None:
            with suppress(OSError):  # nobody reads it, and the service is there all the same
                print(_greeting(url, settings, store))
                _flush(sys.stdout)
            notify(READY)

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            run = serve if alone else serve_with_workers
            ended_well = runner.run(run(settings, store, _version(), announce))
            ignore_signals(runner.get_loop())
    return OK if ended_well else FAILED


def _greeting(url: str, settings: Settings, store: Store) -> str:
    """Return what `serve` prints once requests are answered: where it is, and how to go on from there."""
    place, stats = Path(settings.store).absolute(), store.stats()
    holds = f"{place}: {stats.uuids:,} UUIDs, {stats.scores:,} scores"
    lines = [f"listening on {url}", f"store  {holds}"]
    base, curl = url, "curl"
    if settings.unix_socket:
        base, curl = "http://localhost", f"curl --unix-socket {shlex.quote(settings.unix_socket)}"
    else:
        lines.insert(1, f"page   {url}/")
    token = "-H 'Authorization: Bearer TOKEN' " if settings.token_file else ""
    score = f'\'{{"UUID": "a1-b1", "score": {settings.score_max}}}\''
    lines.append(f"post   {curl} {shlex.quote(f'{base}/scores')} {token}-H 'Content-Type: application/json' -d {score}")
    return "\n".join(lines)


def _get(options: argparse.Namespace, settings: Settings) -> int:
    with _reading(settings) as store:
        [tally] = store.get([options.uuid])
    if tally is None:
        return _complain(f"no score was counted for the UUID {options.uuid}", FAILED)
    return _print_mean(options.uuid, tally)


def _stats(_: argparse.Namespace, settings: Settings) -> int:
    with _reading(settings) as store:
        _print_json(store.stats())
    return OK


def _void(options: argparse.Namespace, settings: Settings) -> int:
    if options.score is None:
        if options.id is not None:
            raise SettingError("--id is for a void by UUID and SCORE: to void the score with an id, give that id alone")
        return _mend(options, settings, Void(options.name), lambda client: client.void(options.name))
    score = Score(options.name, options.score, uuid4().hex if options.id is None else options.id)
    return _mend(options, settings, VoidScore(score), lambda client: client.void_score(score), score.uuid)


def _merge(options: argparse.Namespace, settings: Settings) -> int:
    merge = Merge(options.uuid, options.into)
    return _mend(options, settings, merge, lambda client: client.merge(merge.uuid, into=merge.into), merge.into)


def _mend(
    options: argparse.Namespace, settings: Settings, change: Change, ask: Callable[[Any], Awaitable[Mean]], uuid: str = ""
) -> int:
    """Make `change`, by `ask` in the service at --url, or else in the store, and print what becomes of `uuid`."""
    if options.url is not None:
        _print_json(asyncio.run(_asked(options.url, _token(settings), ask)))
        return OK
    require_store(Path(settings.store))
    with open_store(settings.store, **settings.store_options) as store:
        [outcome] = store.commit([change])
    if isinstance(outcome, ScoremeanError):
        raise outcome
    return _print_mean(outcome.uuid, outcome.tally) if isinstance(outcome, Voided) else _print_mean(uuid, outcome)


async def _asked(url: str, token: str | None, ask: Callable[[Any], Awaitable[Mean]]) -> Mean:
    from scoremean.client import Client

    async with Client(url, token=token) as client:
        return await ask(client)


def _import(options: argparse.Namespace, settings: Settings) -> int:
    if options.url is not None and (options.tallies or options.no_ids):
        raise SettingError("--url takes scores with ids: neither --tallies nor --no-ids goes with it")
    columns = Columns(options.uuid_column, options.score_column, options.id_column)
    if options.tallies and columns != Columns():
        raise SettingError("tallies have the columns UUID, sum and count: with --tallies no column can be named")
    decoder = ScoreDecoder(settings.score_min, settings.score_max, sys.maxsize)
    with _target(options, settings) as store:
        progress = ProgressBar()
        importer = Importer(
            store,
            decoder,
            columns=columns,
            with_ids=not options.no_ids,
            summed=options.url is None,
            tallies=options.tallies,
            skip=options.on_error == "skip",
            progress=progress.show,
            # Over HTTP an answer may take minutes, and what was counted without one is counted once all the same.
            whole=_uninterrupted if options.url is None else nullcontext,
        )
        try:
            for name in options.files:
                with _refusing(f"read {name}"):
                    progress.start(name)
                    importer.run(name)
        finally:
            progress.end()
            report = importer.report
            for fault in report.faults:
                _tell(fault)
            if (more := report.skipped - len(report.faults)) > 0:
                _tell(f"... and {more} more bad lines")
            _print_json({"counted": report.counted, "replayed": report.replayed, "skipped": report.skipped})
    return OK


def _target(options: argparse.Namespace, settings: Settings) -> AbstractContextManager[Any]:
    if options.url is None:
        return open_store(settings.store, **settings.store_options)
    from scoremean.client import Served

    return Served(options.url, _token(settings))


def _token(settings: Settings) -> str | None:
    """Return the token that a service is written to with, if there is a file of them."""
    from scoremean.web.access import write_token

    return write_token(settings.token_file) if settings.token_file else None


def _export(options: argparse.Namespace, settings: Settings) -> int:
    with _reading(settings) as store:
        if options.output == "-":
            export(store, sys.stdout.buffer, options.format)
            return OK
        target = Path(os.path.realpath(options.output))
        if target.parent == Path(os.path.realpath(settings.store)) and target.suffix in {".mdb", ".lock"}:
            raise SettingError(f"{options.output} is a file of the store itself: give --output another name")
        with _refusing(f"write {options.output}"), replacing(Path(options.output)) as file:
            export(store, file, options.format)
    return OK


def _check(options: argparse.Namespace, settings: Settings) -> int:
    name = settings.store if options.file is None else options.file
    with _refusing(f"check {name}"):
        if options.file is not None:
            health = check_file(Path(name), name)
        else:
            with _progress(Path(name, DATA_FILE)) as progress:
                health = check(Path(name), progress)
    _print_json(health)
    if not health.damages:
        return OK
    return _complain(f"{name} is damaged: keep it, and let `scoremean restore` make a store of a sound backup", DAMAGED)


def _backup(options: argparse.Namespace, settings: Settings) -> int:
    store, output = Path(settings.store), sys.stdout.buffer
    if options.output == "-" and output.isatty():
        raise SettingError("a backup is not for a terminal: give it a file with --output, or send it on with a pipe")
    with _refusing(f"write {options.output}"), _progress(store / DATA_FILE) as progress:
        if options.output == "-":
            stream(store, output, progress)
            return OK
        stats = backup(store, Path(options.output), progress)
    _print_json(stats)
    return OK


def _restore(options: argparse.Namespace, settings: Settings) -> int:
    name, piped = options.file, options.file == "-"
    with (
        _refusing(f"restore {name} to {settings.store}"),
        _progress(Path(name)) as progress,
        open(0 if piped else name, "rb", closefd=not piped) as file,
    ):
        stats = restore(file, name, Path(settings.store), progress)
    _print_json(stats)
    return OK


def _openapi(_: argparse.Namespace, settings: Settings) -> int:
    from scoremean.web.openapi import encoded

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
        _tell(f"\r{line}\x1b[K", end="")

    def end(self) -> None:
        """Leave the line."""
        if self._shown:
            _tell("")


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


def _require_streams() -> None:
    """Put something in place of each standard stream that is closed: messages go nowhere, data can be neither read nor written.

    Data is UTF-8, whatever the locale; names of files are printed as they are.
    """
    for name, flags, mode in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)  # as the others are, for workers
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):  # of PYTHONUNBUFFERED, which takes a part of what is written for all
            sys.stdout = os.fdopen(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False)
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _flush(file: TextIO) -> None:
    """Raise OSError if what was written goes nowhere. Then `file` is closed, or Python would try again at its exit."""
    try:
        if not file.closed:
            file.flush()
    except OSError:
        with suppress(OSError):
            file.close()
        raise


@contextmanager
def _refusing(doing: str) -> Iterator[None]:
    """Make a sentence of an error of the operating system."""
    try:
        yield
    except OSError as error:
        raise ScoremeanError(f"cannot {doing}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C, and what else ends a verb, wait until this is left."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    caught: list[int] = []
    ending = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if callable(signal.getsignal(number))]
    handlers = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in ending}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in caught[:1]:
            signal.raise_signal(number)


def _reading(settings: Settings) -> Store:
    return open_store(settings.store, readonly=True, size_max_bytes=settings.store_size_max_gib << 30)


def _version() -> str:
    return importlib.metadata.version("scoremean")


def _print_mean(uuid: str, tally: Tally) -> int:
    _print_json(Mean(uuid, tally.mean if tally.count else None, tally.sum, tally.count))
    return OK


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode())


def _complain(error: object, code: int) -> int:
    _tell(f"scoremean: {error}")
    return code


def _tell(message: str, end: str = "\n") -> None:
    """Print a message; that nobody can read it is no reason to stop."""
    with suppress(OSError):
        print(cut(message, MESSAGE_MAX_CHARACTERS), end=end, file=sys.stderr, flush=True)
