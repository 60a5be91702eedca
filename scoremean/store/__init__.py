"""open_store(url): the one way to a Store, which imports only the store that is asked for."""

from __future__ import annotations

import os
from typing import Any

from scoremean.settings import is_cluster
from scoremean.store.base import Store


def open_store(url: str | os.PathLike[str], **options: Any) -> Store:
    """Open the store at `url`, a directory or a Redis Cluster, and return it.

    Args:
        url: the directory; a missing one is made, unless `readonly`. Or redis://host:port,... with some nodes of a cluster,
            which needs the extra `redis`.
        options: what the store's own class takes, see LmdbStore and RedisStore: `readonly`, `id_retention_seconds`, `counts`;
            `size_max_bytes`, or `wait_replicas` and `timeout_seconds`.

    Raises:
        StoreError: one of its kinds (StoreMissing, StoreInUse, StoreForeign), with a sentence that says what to do.
    """
    # pylint: disable=import-outside-toplevel  # only the store asked for
    if is_cluster(os.fspath(url)):
        from scoremean.store.redis import RedisStore

        return RedisStore(os.fspath(url), **options)
    from scoremean.store.lmdb import LmdbStore

    return LmdbStore(url, **options)
