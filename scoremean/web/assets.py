"""The files of the page for people, scoremean/web/page: read once, when one of them is first asked for."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from mimetypes import guess_type
from typing import NamedTuple

# A browser asks each time whether its copy is still right, which costs next to nothing and is right after an upgrade.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Asset(NamedTuple):
    """A file as it is sent."""

    body: bytes
    content_type: str
    etag: str


@lru_cache(maxsize=1)
def page_files() -> dict[str, Asset]:
    """Return every file of the page by its name."""
    return {entry.name: make_asset(entry.name, entry.read_bytes()) for entry in (files("scoremean.web") / "page").iterdir()}


def make_asset(name: str, body: bytes) -> Asset:
    """Return `body` as the file `name`, of which only the ending counts."""
    kind = guess_type(name)[0] or "application/octet-stream"
    charset = "; charset=utf-8" if kind.startswith("text/") else ""
    return Asset(body, kind + charset, f'"{sha256(body).hexdigest()[:16]}"')
