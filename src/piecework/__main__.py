"""`python -m piecework` is the command `piecework`."""

from __future__ import annotations

import sys

from piecework.cli import main

if __name__ == "__main__":
    sys.exit(main())
