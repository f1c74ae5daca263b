"""`python -m research`: see cli.py."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":  # workers of a study import this module again
    sys.exit(main())
