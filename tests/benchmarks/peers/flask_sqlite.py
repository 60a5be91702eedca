"""Flask + SQLite: one upsert a score, each a transaction of its own, on a connection for each thread."""

from __future__ import annotations

import os
import threading

# pylint: disable=import-error  # the peers have an environment of their own, and this folder is their path
from flask import Flask, Response, abort, jsonify, request
from sqlite_load import UPSERT, connect

app = Flask(__name__)
local = threading.local()


@app.post("/scores")
def post() -> Response:
    """Count a score."""
    score = request.get_json()
    if not isinstance(score, dict) or score.keys() != {"UUID", "score"}:
        abort(422)
    uuid, value = score["UUID"], score["score"]
    if not isinstance(uuid, str) or not 0 < len(uuid) <= 256 or value.__class__ is not int or not 0 <= value <= 5:
        abort(422)
    if not hasattr(local, "connection"):
        local.connection = connect(os.environ["PEER_DATABASE"])
    local.connection.execute("BEGIN IMMEDIATE")
    [(total, count)] = local.connection.execute(UPSERT + " RETURNING sum, count", (uuid, value)).fetchall()
    local.connection.execute("COMMIT")
    return jsonify(UUID=uuid, mean=total / count)
