"""How a module of scoremean is run in a process of its own, by Python or by the single binary, beside which there is no Python.

It alone knows how the two differ. The binary runs itself, with a flag in front that `scoremean.__main__` looks for.
"""

from __future__ import annotations

import os
import sys

CHILD_FLAG = "--child-module"
# What the binary runs besides the command line.
CHILD_MODULES = ("scoremean.workers", "scoremean.ops.backup")


def hold_standard_descriptors() -> None:
    """Open those of the descriptors 0 to 2 that are closed, on nothing: else the next file that is opened gets one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def frozen() -> bool:
    """Whether this is the binary: PyInstaller says so."""
    return getattr(sys, "frozen", False)


def command(module: str, *arguments: str) -> list[str]:
    """Return what runs `module`, one of CHILD_MODULES, as `python -m` does."""
    if frozen():
        return [sys.executable, CHILD_FLAG, module, *arguments]
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return what a child is started with: this process's variables, but for those that are for this process alone.

    With -P, it imports from where this process did, and from nowhere else.
    """
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
