"""`python -m scoremean` is `scoremean`; and so is the single binary, which is also each process that scoremean starts."""

import runpy
import sys

from scoremean import process


def main() -> int:
    """Run the command line; in a binary that was started as a child, the module that it is told to. Return the exit code."""
    match sys.argv[1:]:
        case [process.CHILD_FLAG, module, *arguments] if process.is_frozen() and module in process.CHILD_MODULES:
            sys.argv[1:] = arguments
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return 0
    try:
        from scoremean.cli import main as run  # pylint: disable=import-outside-toplevel  # a worker needs none of it

        return run()
    except KeyboardInterrupt:  # of one who did not wait for the modules to be read
        return 130


if __name__ == "__main__":
    sys.exit(main())
