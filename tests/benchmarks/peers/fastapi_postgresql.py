"""FastAPI + PostgreSQL: one upsert a score, asyncpg's pool. PostgreSQL answers after the sync (synchronous_commit on)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# pylint: disable=import-error  # the peers have an environment of their own, and this folder is their path
import asyncpg
from fastapi import FastAPI
from fastapi_model import Mean, Score

UPSERT = (
    "INSERT INTO tallies AS t VALUES ($1, $2, 1)"
    " ON CONFLICT (uuid) DO UPDATE SET sum = t.sum + EXCLUDED.sum, count = t.count + 1 RETURNING sum, count"
)


@asynccontextmanager
async def _pool(service: FastAPI) -> AsyncIterator[None]:
    size = int(os.environ["PEER_POOL"])
    async with asyncpg.create_pool(
        host=os.environ["PEER_SOCKET"], user="postgres", database="postgres", min_size=size, max_size=size
    ) as service.state.pool:
        yield


app = FastAPI(lifespan=_pool)


@app.post("/scores")
async def count_score(score: Score) -> Mean:
    """Count a score."""
    total, count = await app.state.pool.fetchrow(UPSERT, score.UUID, score.score)
    return Mean(UUID=score.UUID, mean=total / count)
