"""open_store(url): the one way to a Store, which imports only the store that is asked for."""

from __future__ import annotations

import os

from scoremean.counts import Counts
from scoremean.errors import SettingError
from scoremean.model import shown
from scoremean.settings import require_directory
from scoremean.store.base import ID_RETENTION_SECONDS, SIZE_MAX_BYTES, Store


def open_store(  # pylint: disable=too-many-arguments  # each is a choice of the user's
    url: str | os.PathLike[str],
    *,
    readonly: bool = False,
    size_max_bytes: int = SIZE_MAX_BYTES,
    id_retention_seconds: int = ID_RETENTION_SECONDS,
    score_min: int | None = None,
    score_max: int | None = None,
    counts: Counts | None = None,
) -> Store:
    """Open the store at `url`, a directory, and return it.

    Args:
        url: the directory; a missing one is made, unless `readonly`.
        readonly: read what another process writes, and write nothing.
        size_max_bytes: the size that the store may grow to, 1 MiB to 64 TiB. It costs address space, neither memory nor disk.
        id_retention_seconds: ids are kept at least this long; a score that is sent again within it counts once.
        score_min, score_max: the range of the scores, which a new store keeps (0 to 5); of one that is there, its own, or none.
        counts: where to count what it does; None for counts of its own.

    Raises:
        SettingError: an argument has a value that it cannot have; a `url` with a scheme, too.
        StoreError: one of its kinds (StoreMissing, StoreInUse, StoreForeign), with a sentence that says what to do.
    """
    if not isinstance(url, str | os.PathLike) or not isinstance(path := os.fspath(url), str) or not path:
        raise SettingError(f"a store is at the path of a directory, such as './scoremean-data', not at {shown(url)}")
    require_directory(path)
    limits = {"size_max_bytes": size_max_bytes, "id_retention_seconds": id_retention_seconds}
    for (name, value), least in zip(limits.items(), (1 << 20, 1)):
        if not isinstance(value, int) or not least <= value <= 1 << 46:
            raise SettingError(f"{name} must be an integer from {least} to {1 << 46}, not {shown(value)}")
    from scoremean.store.embedded.store import LmdbStore  # pylint: disable=import-outside-toplevel  # only the store asked for


    return LmdbStore(path, readonly=readonly, score_min=score_min, score_max=score_max, counts=counts, **limits)
