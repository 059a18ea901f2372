"""`python -m jaxprune` is the command `jaxprune`."""

import sys

from jaxprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
