"""SQLite in WAL with synchronous=FULL; as a program, `sqlite_load.py DATABASE SCORES.tsv` counts a file in one transaction."""

from __future__ import annotations

import sqlite3
import sys

TABLE = "CREATE TABLE IF NOT EXISTS tallies (uuid TEXT PRIMARY KEY, sum INTEGER, count INTEGER) WITHOUT ROWID"
UPSERT = (
    "INSERT INTO tallies VALUES (?, ?, 1)"
    " ON CONFLICT (uuid) DO UPDATE SET sum = sum + excluded.sum, count = count + 1"
)


def connect(path: str) -> sqlite3.Connection:
    """Return a connection whose commits are on disk when they return; transactions are begun by hand."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "mmap_size=268435456"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(TABLE)
    return connection


def _load(path: str, scores: str) -> None:
    connection = connect(path)
    connection.execute("BEGIN IMMEDIATE")
    with open(scores, encoding="ascii") as lines:
        connection.executemany(UPSERT, (line.split() for line in lines))
    connection.execute("COMMIT")
    connection.close()


if __name__ == "__main__":
    _load(*sys.argv[1:])
