"""Posts at a constant rate: `paced URL FILE RATE SECONDS CONNECTIONS`, one line of FILE a post, figures to standard output.

The load is open: a post is due at its time whether or not earlier ones were answered, and its latency is counted from then.
So a server that stalls is charged with all that came due meanwhile.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from urllib.parse import urlsplit

HEAD = "POST /scores HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"


def _requests(host: str, path: str) -> list[bytes]:
    with open(path, encoding="ascii") as file:
        return [HEAD.format(host, len(line) - 1, line[:-1]).encode() for line in file]


def _connect(host: str, connections: int) -> deque[socket.socket]:
    name, _, port = host.partition(":")
    idle = deque(socket.create_connection((name, int(port))) for _ in range(connections))
    for connection in idle:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return idle


def _answered(connection: socket.socket, parts: dict[socket.socket, bytes]) -> bool:
    """Read what has come, and return whether it is the whole answer."""
    data = parts.pop(connection, b"") + connection.recv(65536)
    head, end, body = data.partition(b"\r\n\r\n")
    if end and not head.startswith(b"HTTP/1.1 200 ") or not data:
        raise RuntimeError(f"not 200: {data!r}")
    whole = end and len(body) == int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])
    if not whole:
        parts[connection] = data
    return bool(whole)


def _run(requests: list[bytes], idle: deque[socket.socket], rate: float, total: int) -> list[float]:
    """Send `total` requests, each when it is due or as soon after as a connection is idle; return the latencies."""
    due: dict[socket.socket, float] = {}
    parts: dict[socket.socket, bytes] = {}
    latencies: list[float] = []
    start, sent = time.perf_counter(), 0
    while len(latencies) < total:
        now = time.perf_counter()
        while idle and sent < total and start + sent / rate <= now:
            connection = idle.popleft()
            connection.sendall(requests[sent % len(requests)])
            due[connection] = start + sent / rate
            sent += 1
        wait = max(0.0, start + sent / rate - now) if idle and sent < total else 10.0
        for connection in select.select(list(due), [], [], wait)[0]:
            if _answered(connection, parts):
                latencies.append(time.perf_counter() - due.pop(connection))
                idle.append(connection)
    return latencies


def _main(url: str, path: str, rate: str, seconds: str, connections: str) -> None:
    host = urlsplit(url).netloc
    requests, idle = _requests(host, path), _connect(host, int(connections))
    gc.disable()
    start, busy = time.perf_counter(), time.process_time()
    latencies = _run(requests, idle, float(rate), int(float(rate) * float(seconds)))
    took, busy = time.perf_counter() - start, time.process_time() - busy
    latencies.sort()
    figures = {f"p{share}": latencies[int(len(latencies) * share / 100)] * 1e3 for share in (50, 99, 99.9)}
    print(json.dumps(figures | {"longest": latencies[-1] * 1e3, "rate": len(latencies) / took, "busy": busy / took}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
