"""scoremean keeps the exact mean of every UUID's scores, durably, in one process.

As a library:

    >>> from scoremean import Score, open_store
    >>> with open_store("./scoremean-data") as store:        # doctest: +SKIP
    ...     [tally] = store.commit([Score("a1-b1", 5)])      # returns once it is on disk
    ...     tally.mean
    5.0
"""

from scoremean.errors import ScoremeanError
from scoremean.model import Add, Batch, Forget, Merge, Page, Replay, Score, Stats, Tally, Void, Voided, VoidScore
from scoremean.store import open_store

__all__ = [
    "Add",
    "Batch",
    "Forget",
    "Merge",
    "Page",
    "Replay",
    "Score",
    "ScoremeanError",
    "Stats",
    "Tally",
    "Void",
    "VoidScore",
    "Voided",
    "open_store",
]
__version__ = "0.1.0"
