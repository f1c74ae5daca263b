"""Runs a command that ends when whoever started it closes our standard input, or dies: a server that outlived its
command would go on holding the GPU. A script of its own, which imports nothing of the pack."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""
SECONDS = 10.0
"""For ComfyUI to end by itself."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which cancels the graph before it ends
    own = _die_with_parent if sys.platform == "linux" else None
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=own)  # noqa: PLW1509 (no thread yet)
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    return child.wait()


def _die_with_parent() -> None:
    """In the child: Ray kills the processes of a worker that died, this one before it has ended its own child."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(SECONDS)
    child.kill()


if __name__ == "__main__":
    sys.exit(main())
