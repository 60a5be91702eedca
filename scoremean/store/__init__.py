"""open_store(url): the one way to a Store, which imports only the store that is asked for."""

from __future__ import annotations

import os
from typing import Any

from scoremean.settings import require_directory
from scoremean.store.base import Store


def open_store(url: str | os.PathLike[str], **options: Any) -> Store:
    """Open the store at `url`, a directory, and return it.

    Args:
        url: the directory; a missing one is made, unless `readonly`.
        options: what LmdbStore takes: `readonly`, `id_retention_seconds`, `size_max_bytes`, `score_min`,
            `score_max`, `counts`.

    Raises:
        SettingError: `url` begins with a scheme.
        StoreError: one of its kinds (StoreMissing, StoreInUse, StoreForeign), with a sentence that says what to do.
    """
    require_directory(os.fspath(url))
    from scoremean.store.lmdb import LmdbStore  # pylint: disable=import-outside-toplevel  # only the store asked for

    return LmdbStore(url, **options)
