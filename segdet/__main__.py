"""``python -m segdet``: the same as the command ``segdet``."""

import sys

from segdet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
