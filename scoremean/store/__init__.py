"""open_store(url): the one way to a Store, which imports only the store that is asked for."""

from __future__ import annotations

import os
from typing import Any

from scoremean.counts import Counts
from scoremean.errors import SettingError
from scoremean.model import shown
from scoremean.settings import is_cluster
from scoremean.store.base import ID_RETENTION_SECONDS, SIZE_MAX_BYTES, Store


def open_store(
    url: str | os.PathLike[str],
    *,
    readonly: bool = False,
    size_max_bytes: int = SIZE_MAX_BYTES,
    id_retention_seconds: int = ID_RETENTION_SECONDS,
    counts: Counts | None = None,
    **cluster: Any,
) -> Store:
    """Open the store at `url`, a directory or a Redis Cluster, and return it.

    Args:
        url: the directory; a missing one is made, unless `readonly`. Or redis://host:port,... with some nodes of a cluster,
            which needs the extra `redis`.
        readonly: read what another process writes, and write nothing.
        size_max_bytes: the size that the store may grow to, 1 MiB to 64 TiB. It costs address space, neither memory nor disk.
        id_retention_seconds: ids are kept at least this long; a score that is sent again within it counts once.
        counts: where to count what it does; None for counts of its own.
        cluster: `wait_replicas` and `timeout_seconds`, see RedisStore.

    Raises:
        SettingError: an argument has a value that it cannot have.
        StoreError: one of its kinds (StoreMissing, StoreInUse, StoreForeign), with a sentence that says what to do.
    """
    # pylint: disable=import-outside-toplevel  # only the store asked for
    if not isinstance(url, str | os.PathLike) or not isinstance(path := os.fspath(url), str) or not path:
        raise SettingError(f"a store is at the path of a directory, such as './scoremean-data', not at {shown(url)}")
    given = {"size_max_bytes": size_max_bytes, "id_retention_seconds": id_retention_seconds}
    for (name, value), least in zip(given.items(), (1 << 20, 1)):
        if not isinstance(value, int) or not least <= value <= 1 << 46:
            raise SettingError(f"{name} must be an integer from {least} to {1 << 46}, not {shown(value)}")
    if is_cluster(path):
        from scoremean.store.redis import RedisStore

        return RedisStore(
            path, readonly=readonly, id_retention_seconds=id_retention_seconds, counts=counts, **cluster
        )
    from scoremean.store.lmdb import LmdbStore

    return LmdbStore(path, readonly=readonly, counts=counts, **given, **cluster)
