"""scoremean keeps the exact mean of every UUID's scores, durably, in one process.

As a library:

    >>> from scoremean import Score, open_store
    >>> with open_store("./my-scores") as store:             # doctest: +SKIP
    ...     store.post(Score("a1-b1", 5)).mean               # returns once it is on disk
    5.0
"""

from scoremean.errors import ScoremeanError
from scoremean.model import Add, Batch, Forget, Mean, Merge, Page, Replay, Score, Stats, Tally, Void, Voided, VoidScore
from scoremean.store import open_store
from scoremean.store.base import Store

__all__ = [
    "Add",
    "Batch",
    "Forget",
    "Mean",
    "Merge",
    "Page",
    "Replay",
    "Score",
    "ScoremeanError",
    "Stats",
    "Store",
    "Tally",
    "Void",
    "VoidScore",
    "Voided",
    "open_store",
]
__version__ = "0.1.0"
