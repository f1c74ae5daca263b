"""`python -m budgetfusion_nodes.study ...`: the study commands without the rest of the command line."""

from __future__ import annotations

from .commands import main

if __name__ == "__main__":
    raise SystemExit(main())
