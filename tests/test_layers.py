"""Imports form one line: a module imports only from its left."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import scoremean

PACKAGE = Path(scoremean.__file__).parent
LINE = (
    "errors model settings process counts metrics store.base store.embedded.format store.embedded.journal "
    "store.embedded.erasure store.embedded.files store.embedded.commit store.embedded.check store.embedded.store "
    "store.embedded store.forward store writer logs web.overview web.wire web.assets web.access web.answer "
    "web.server web.connection web.events web.openapi web.docs_page web.handlers web app client workers "
    "ops.transfer ops.backup ops cli __main__".split()
)


def modules() -> dict[str, Path]:
    """Return every module of the package by its name in LINE; the package itself is the empty name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, also inside its functions, by their names in LINE."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from scoremean import codec` imports the module codec; any other name is what the module on the left has.
            found = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name.removeprefix("scoremean.") in LINE else node.module for name in found}
    return {name.removeprefix("scoremean").removeprefix(".") for name in names if name.split(".")[0] == "scoremean"}


def test_every_module_has_its_place():
    """A new module is put into the line, here and in docs/architecture.md."""
    assert set(modules()) == {*LINE, ""}


@pytest.mark.parametrize("name", LINE)
def test_a_module_imports_only_from_its_left(name):
    """So each can be read, and tested, with what stands left of it."""
    assert imports(modules()[name]) <= set(LINE[: LINE.index(name)])


@pytest.mark.parametrize("name", LINE)
def test_no_message_names_a_file_that_a_wheel_lacks(name):
    """Who reads it may have no more. `/docs` of the service, `scoremean VERB --help` and the sentence itself are there."""
    nodes = list(ast.walk(ast.parse(modules()[name].read_text())))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    messages = [node.value for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
    assert not [text for text in messages if re.search(r"\b(docs|tests)/|\.(md|rst)\b|README", str(text))]


def test_the_page_names_no_file_that_a_wheel_lacks():
    """Nor do its comments, which are sent with it."""
    for path in (PACKAGE / "web" / "page").iterdir():
        assert not re.search(rb"\b(docs|tests)/|\.md\b|README", path.read_bytes()), path


def test_only_the_codec_knows_msgpack():
    """The bytes on disk are known in one place; likewise lmdb and the store, aiohttp and the HTTP modules."""
    users = {
        "msgpack": {"store.embedded.format"},
        "lmdb": {f"store.embedded.{name}" for name in "journal erasure files commit check store".split()} | {"ops.backup"},
        "aiohttp": {"web.answer", "web.server", "web.connection", "web.handlers", "client"},
    }
    for library, allowed in users.items():
        statement = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
        assert {name for name, path in modules().items() if statement.search(path.read_text())} == allowed
