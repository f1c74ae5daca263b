#!/usr/bin/env python3
"""BudgetFusion from a clean clone: `python3 run.py demo`, `test`, `serve`, `bench`, `startup-cost` and more (`--help`).

This file parses under any Python, so that one that is too old can be told so; the rest is in `launcher/`.
"""

import sys

OLDEST, NEWEST = (3, 10), (3, 13)


def main():
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found, oldest, newest = (".".join(str(part) for part in v[:2]) for v in (sys.version_info, OLDEST, NEWEST))
        sys.stderr.write(
            "Error: BudgetFusion needs Python %s to %s, and this is Python %s. Install one of them from python.org or "
            "your package manager and start run.py with it, for example: python%s run.py demo\n"
            % (oldest, newest, found, newest)
        )
        return 1
    from launcher.cli import main as launch

    return launch(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
