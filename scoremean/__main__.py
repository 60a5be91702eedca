"""`python -m scoremean` is `scoremean`; and so is the single binary, which is also each process that scoremean starts."""
# pylint: disable=import-outside-toplevel  # so that an interrupt ends the reading of modules without a traceback, too

import runpy
import sys


def main() -> int:
    """Run the command line; in a binary that was started as a child, the module that it is told to. Return the exit code."""
    try:
        from scoremean import process

        match sys.argv[1:]:
            case [process.CHILD_FLAG, module, *arguments] if process.is_frozen() and module in process.CHILD_MODULES:
                sys.argv[1:] = arguments
                runpy.run_module(module, run_name="__main__", alter_sys=True)
                return 0
        from scoremean.cli import main as run  # a worker needs none of it

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
