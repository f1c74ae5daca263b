"""Runs a Python program in this process, and ends it when the process that started it is gone.

    python child_process.py <parent pid> <script> [arguments]
    python child_process.py <parent pid> -m <module> [arguments]

Without it a launcher that is killed outright would leave a server behind that holds memory and a port, or a pip that
goes on writing into the environment which the next run makes anew.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time

POLL_SECONDS = 0.25


def _wait_for_end_of(parent: int) -> None:
    if os.name == "nt":
        import ctypes

        synchronize, forever = 0x00100000, 0xFFFFFFFF
        kernel32 = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue]
        handle = kernel32.OpenProcess(synchronize, False, parent)
        kernel32.WaitForSingleObject(handle, forever)
    else:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
    os._exit(1)


def main() -> None:
    parent, program, *arguments = sys.argv[1:]
    threading.Thread(target=_wait_for_end_of, args=(int(parent),), daemon=True).start()
    # This file's folder must not stand on the path: its neighbours have names that others may import.
    if program == "-m":
        del sys.path[0]
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(program)  # noqa: PTH120 - imports nothing that the program may want to be first with
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
