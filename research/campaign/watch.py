"""What a process opens, writes, starts and asks for while something runs in it, told by Python's own audit events
(PEP 578): nothing is patched, and nothing escapes but what native code does by itself."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

READS = ("open", "os.listdir", "os.scandir", "sqlite3.connect", "os.chdir")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen", "pickle.find_class")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_watching: list[Watch] = []
_hooked = threading.Event()


class Watch:
    """A `with` block in which accesses are noted."""

    def __init__(self) -> None:
        self.read: set[Path] = set()
        self.written: set[Path] = set()
        self.ran: set[str] = set()
        """Programs, foreign libraries, pickled classes, and connections to other machines."""

    def __enter__(self) -> Watch:
        if not _hooked.is_set():
            _hooked.set()
            sys.addaudithook(_hook)  # for good: Python takes none away again
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)

    def beside(self, allowed: Sequence[Path]) -> list[str]:
        """What was written outside of the folders."""
        return sorted(str(path) for path in self.written if not any(one in path.parents for one in allowed))

    def below(self, folder: Path) -> list[str]:
        """What was read or written inside of a folder, or the folder itself."""
        return sorted(str(path) for path in self.read | self.written if folder == path or folder in path.parents)

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in RUNS:
            self.ran.add(f"{event} {args[0]}")
        elif event == "socket.connect" and isinstance(args[1], tuple):
            self.ran.update({f"{event} {args[1]}"} if args[1][0] not in ("127.0.0.1", "::1") else ())
        elif event in READS or event in WRITES:
            paths = [_path(one) for one in args[:2] if isinstance(one, (str, bytes, os.PathLike))][
                : 1 + (event in WRITES)
            ]
            writes = event in WRITES or (event == "open" and isinstance(args[2], int) and bool(args[2] & WRITING))
            (self.written if writes else self.read).update(paths)


def _path(value: Any) -> Path:
    return Path(os.path.realpath(os.fsdecode(value).split("?")[0].removeprefix("file://")))


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for watch in _watching:
        try:
            watch.note(event, args)
        except (ValueError, OSError, IndexError, TypeError):  # a name that is none; the operation itself says so
            continue
