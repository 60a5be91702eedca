"""What is shipped: the single binary where there is no Python, the sdist and the wheel; and how a binary has children."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request

import pytest

from scoremean import __main__ as entry
from scoremean.process import CHILD_FLAG, child_command, child_environment
from tests.support import Server, fetch, require_library, require_program
from tests.test_layers import PACKAGE

ROOT = Path(__file__).parents[1]
# Of a system the binary needs its C library and zlib; a file of 0 bytes stands where /dev/null is put.
LIBRARIES = ("libm.so.6", "librt.so.1", "libutil.so.1", "libresolv.so.2")
# A file system with nothing else in it, whose /proc is unmounted by itself; the first argument is its root.
EMPTY = """
mount -t proc proc "$0/proc"
mount --bind /dev/null "$0/dev/null"
exec env -i "$(command -v chroot)" "$0" /scoremean "$@"
"""


def run(*command: object) -> str:
    """Run a command, which must succeed, and return its standard output."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def post(url: str, score: int) -> float:
    """Post a score of the UUID a1-b1 and return its mean."""
    body = json.dumps({"UUID": "a1-b1", "score": score}).encode()
    return json.loads(fetch(Request(f"{url}/scores", body, {"Content-Type": "application/json"})))["mean"]


def assert_serves(server: Server) -> None:
    """The example, and the page with all its files; then it stops by SIGTERM."""
    assert [post(server.url, score) for score in (5, 3, 4)] == [5.0, 4.0, 4.0]
    assert fetch(server.url) == (PACKAGE / "web" / "page" / "index.html").read_bytes()
    for path in (PACKAGE / "web" / "page").iterdir():
        assert fetch(f"{server.url}/page/{path.name}") == path.read_bytes()
    for route in ("stats", "metrics", "openapi.json", "docs"):
        assert fetch(f"{server.url}/{route}")
    server.terminate()
    code, messages = server.wait()
    assert (code, "Traceback" in messages) == (0, False), messages


# -- the single binary


@pytest.fixture(name="binary", scope="module")
def fixture_binary(tmp_path_factory) -> Path:
    """The single binary, built by the command in docs/deploy.md, alone in a directory."""
    require_program("objdump", "binutils")
    require_library("PyInstaller")
    built = tmp_path_factory.mktemp("binary")
    [command] = re.findall(r"^\.venv/bin/pyinstaller (.*)$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    run(sys.executable, "-m", "PyInstaller", *command.split(), "--distpath", built / "root", "--workpath", built / "work")
    return built / "root" / "scoremean"


class Shipped(NamedTuple):
    """What runs the binary, and a directory for its files, as it sees it."""

    program: list[str]
    directory: Path


@pytest.fixture(name="shipped", scope="module")
def fixture_shipped(binary: Path, tmp_path_factory) -> Shipped:
    """The binary in an empty environment: as root, where there is no other file than those of the C library."""
    if os.geteuid() != 0:
        return Shipped(["env", "-i", str(binary)], tmp_path_factory.mktemp("shipped"))
    root = binary.parent
    for name in ("proc", "dev", "tmp"):
        (root / name).mkdir()
    (root / "dev" / "null").touch()
    found = {Path(path) for path in re.findall(r"(/\S+) \(0x", run("ldd", binary))}
    [libc] = [path for path in found if path.name == "libc.so.6"]
    for path in (*found, *(libc.with_name(name) for name in LIBRARIES)):
        (root / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to("/"))
    return Shipped(["unshare", "--mount", "sh", "-euc", EMPTY, str(root)], Path("/tmp"))


@pytest.mark.ci
@pytest.mark.parametrize("workers", [1, 2])
def test_the_binary_serves_where_there_is_no_python(shipped, workers):
    """With its page, its metrics and its OpenAPI; also as several processes."""
    store = shipped.directory / f"served-{workers}"
    with Server(store, "--workers", str(workers), program=shipped.program) as server:
        assert_serves(server)


@pytest.mark.ci
def test_the_binary_has_every_command(shipped):
    """Also those that need a process of their own: check, backup, restore."""
    program, directory = shipped
    store, copy = directory / "store", directory / "copy"
    lines = "".join(f'{{"UUID": "a1-b1", "score": {score}}}\n' for score in (5, 3, 4))
    subprocess.run([*program, "import", "-", "--store", str(store)], input=lines, text=True, check=True, capture_output=True)
    mean = '{"UUID":"a1-b1","mean":4.0,"sum":12,"count":3}\n'
    assert run(*program, "get", "a1-b1", "--store", store) == mean
    assert json.loads(run(*program, "stats", "--store", store))["scores"] == 3
    assert json.loads(run(*program, "export", "--store", store)) == json.loads(mean)
    assert json.loads(run(*program, "check", "--store", store))["damages"] == []
    run(*program, "backup", "--store", store, "--output", copy)
    assert json.loads(run(*program, "restore", copy, "--store", directory / "restored"))["scores"] == 3
    assert json.loads(run(*program, "openapi"))["openapi"]
    assert run(*program, "--version") == run(sys.executable, "-m", "scoremean", "--version")


# -- sdist and wheel


@pytest.fixture(name="built", scope="module")
def fixture_built(tmp_path_factory) -> Path:
    """A directory with the sdist, and the wheel that was made of it."""
    for name in ("build", "twine"):
        require_library(name)
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT)
    return directory


@pytest.mark.ci
def test_sdist_and_wheel_can_be_published(built):
    """As twine judges them; with the licence, and with all of the package."""
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    package = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert package | {"LICENSE", "README.md", "setup.py", "setup.cfg"} <= in_sdist
    assert package <= in_wheel
    assert any(name.endswith("/LICENSE") for name in in_wheel)


@pytest.mark.ci
def test_the_wheel_serves(built, tmp_path):
    """In an environment that has no other scoremean, with its page and types."""
    [wheel] = built.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    python = tmp_path / "bin" / "python"
    run(sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", wheel)
    [site] = tmp_path.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    assert (site / "scoremean" / "py.typed").exists()
    with Server(tmp_path / "store", "--workers", "2", program=[str(tmp_path / "bin" / "scoremean")]) as server:
        [worker, _] = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text("ascii").split()
        assert bytes(python) in Path(f"/proc/{worker}/cmdline").read_bytes()
        assert_serves(server)


# -- children


def test_a_child_of_the_binary_is_the_binary(monkeypatch):
    """With the flag, by which it finds the module again, and runs it as `python -m` does."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    command = child_command("scoremean.ops.backup", "pages", "/store")
    assert command[0] == sys.executable and "-m" not in command
    monkeypatch.setattr(sys, "argv", command)
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda module, **_: ran.append((module, sys.argv[1:])))
    assert entry.main() == 0
    assert ran == [("scoremean.ops.backup", ["pages", "/store"])]


@pytest.mark.parametrize(("frozen", "module"), [(True, "os"), (True, None), (False, "scoremean.ops.backup")])
def test_the_flag_runs_nothing_else(monkeypatch, capsys, frozen, module):
    """Neither another module, nor anything outside of a binary: then it is a flag that nobody knows."""
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    monkeypatch.setattr(sys, "argv", ["scoremean", CHILD_FLAG, *([module] if module else [])])
    with pytest.raises(SystemExit) as exit_:
        entry.main()
    assert exit_.value.code == 2
    assert "usage: scoremean" in capsys.readouterr().err


def test_what_a_child_is_not_told(monkeypatch):
    """The socket on which its parent alone tells the service manager that it is ready."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("KEPT", "kept")
    environment = child_environment()
    assert "NOTIFY_SOCKET" not in environment and environment["KEPT"] == "kept"
    assert str(ROOT) in environment["PYTHONPATH"].split(os.pathsep)
