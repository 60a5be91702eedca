"""`python -m scoremean` is `scoremean`."""

import sys

from scoremean.cli import main

if __name__ == "__main__":
    sys.exit(main())
