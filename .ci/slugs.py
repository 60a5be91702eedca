"""A hook of mkdocs: headings get the anchors that forges give them, so that one link is right on both."""

from __future__ import annotations

import re


def on_config(config):
    """Return the configuration with the anchors of forges."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = _slug
    return config


def _slug(heading: str, separator: str) -> str:
    """Return the anchor of a heading: `kill -9` is kill--9, where mkdocs would make it kill-9."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)
