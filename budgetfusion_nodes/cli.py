"""The pack's one command line: `python -m budgetfusion_nodes calibrate | planners | store | blind`.

Exit codes: 0 done, 1 failed with the reason on the error output, 2 wrong options, 130 ended with Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .command_line import blind, calibrate, planners, store
from .command_line.options import FAILED, INTERRUPTED, say
from .core.errors import BudgetFusionError


def parser() -> argparse.ArgumentParser:
    """Everything that can be given. Heavy imports wait until a command runs, so that --help is quick."""
    made = argparse.ArgumentParser(
        prog="python -m budgetfusion_nodes",
        description="Makes and looks after the planners of BudgetFusion for ComfyUI.",
        epilog="'COMMAND --help' says what each takes.",
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (calibrate, planners, store, blind):
        part.add_parser(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except BudgetFusionError as error:
        say(f"Error: {error}", sys.stderr)
        return FAILED
    except OSError as error:
        say(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
