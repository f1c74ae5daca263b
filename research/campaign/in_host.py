"""Runs an experiment beside a genuine ComfyUI in a process of its own: one host a process, and a crash is told.

The experiment is a function `inside(session, work)` of a part's module; tests call it with their own session.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from research.in_process_host import PACK_ROOT, HostSession, start_host
from research.options import ROOT

from .part import Finding, NotRunError, Work


def run_in_host(module: str, work: Work) -> Sequence[Finding]:
    """The findings of `module`.inside. NotRunError without a ComfyUI; RuntimeError where the process ends early."""
    if work.host is None:
        raise NotRunError("No ComfyUI was given.")
    asked, answer = work.folder / "work.json", work.folder / "findings.json"
    asked.write_text(json.dumps({**asdict(work), "folder": str(work.folder), "host": str(work.host)}))
    own = [sys.executable, "-m", __name__, module, str(asked), str(answer)]
    done = subprocess.run(own, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not answer.is_file():
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-1000:]}")
    return [Finding(**found) for found in json.loads(answer.read_text())]


def pack_module(name: str) -> ModuleType:
    """A module of the pack as the host loaded it, which is not the one that is imported by its own name."""
    return importlib.import_module(f"{str(PACK_ROOT).replace('.', '_x_')}.budgetfusion_nodes.{name}")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node of an API graph."""
    return {"class_type": class_type, "inputs": inputs}


def _main(module: str, asked: str, answer: str) -> None:
    import torch

    torch.set_num_threads(1)
    told = json.loads(Path(asked).read_text())
    work = Work(Path(told["folder"]), Path(told["host"]), told["amount"], told["seed"], told["until"])
    session: HostSession = start_host(told["host"], work.folder / "base", [PACK_ROOT])
    findings = importlib.import_module(module).inside(session, work)
    Path(answer).write_text(json.dumps([asdict(finding) for finding in findings]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
