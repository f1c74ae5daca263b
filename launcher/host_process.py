"""Runs ComfyUI's own main.py in this process, and ends it when the process that started it is gone.

Started as `python host_process.py <ComfyUI folder> <parent pid> <ComfyUI's arguments>` with the host's Python. Without
it a launcher that is killed outright would leave a server behind that holds memory and a port.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time


def _wait_for_end_of(parent: int) -> None:
    if os.name == "nt":
        import ctypes

        synchronize, forever = 0x00100000, 0xFFFFFFFF
        kernel32 = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue]
        handle = kernel32.OpenProcess(synchronize, False, parent)
        kernel32.WaitForSingleObject(handle, forever)
    else:
        while os.getppid() == parent:
            time.sleep(1.0)
    os._exit(1)


def main() -> None:
    folder, parent, *arguments = sys.argv[1:]
    threading.Thread(target=_wait_for_end_of, args=(int(parent),), daemon=True).start()
    script = os.path.join(folder, "main.py")  # noqa: PTH118 - nothing is imported here that main.py may want to import first
    sys.argv = [script, *arguments]
    sys.path[0] = folder
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
