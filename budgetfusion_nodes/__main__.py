"""`python -m budgetfusion_nodes calibrate | planners | store`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
