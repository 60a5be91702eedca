"""FastAPI + Redis: one hash a UUID, both numbers in one script. Redis answers after the sync (appendfsync always)."""

from __future__ import annotations

import os

# pylint: disable=import-error  # the peers have an environment of their own, and this folder is their path
import redis.asyncio
from fastapi import FastAPI
from fastapi_model import Mean, Score

ADD = "return {redis.call('HINCRBY', KEYS[1], 'sum', ARGV[1]), redis.call('HINCRBY', KEYS[1], 'count', 1)}"

app = FastAPI()
client = redis.asyncio.Redis(unix_socket_path=os.environ["PEER_SOCKET"], max_connections=256)
add = client.register_script(ADD)


@app.post("/scores")
async def post(score: Score) -> Mean:
    """Count a score."""
    total, count = await add(keys=[score.UUID], args=[score.score])
    return Mean(UUID=score.UUID, mean=total / count)
