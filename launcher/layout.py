"""Where things lie: everything that run.py makes is under one ignored folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the pack, which is also what a user clones into `custom_nodes`."""


def child_command(python: Path, *program: str) -> list[str]:
    """A command line for a script, or for `-m` and a module, that ends when this process does, however that ends."""
    return [str(python), str(Path(__file__).with_name("child_process.py")), str(os.getpid()), *program]


@dataclass(frozen=True)
class Layout:
    """Paths below the run folder (`BUDGETFUSION_RUN_DIR`, by default `.run` beside run.py)."""

    run_dir: Path

    @classmethod
    def from_environment(cls) -> Layout:
        return cls(Path(os.environ.get("BUDGETFUSION_RUN_DIR") or ROOT / ".run").expanduser().absolute())

    @property
    def venv(self) -> Path:
        return self.run_dir / "venv"

    @property
    def python(self) -> Path:
        """The interpreter of the virtual environment."""
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """What is completely installed in the virtual environment; see `packages`."""
        return self.venv / "budgetfusion-setup.json"

    @property
    def incomplete(self) -> Path:
        """Exists only while files of the virtual environment are being written."""
        return self.run_dir / "venv.incomplete"

    @property
    def hosts(self) -> Path:
        return self.run_dir / "host"

    @property
    def base(self) -> Path:
        """Parent of the servers' base directories, one for each server."""
        return self.run_dir / "base"

    @property
    def logs(self) -> Path:
        return self.run_dir / "logs"

    @property
    def temporary(self) -> Path:
        return self.run_dir / "tmp"

    @property
    def lock(self) -> Path:
        return self.run_dir / "lock"
