"""Every command that README.md prints, from a copy of the pack in `custom_nodes`.

Commands that only read run as they are printed. Those that render, install or serve are given to the program's own
parser, in the copy: a renamed command, a missing option or a value that is refused fails here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
NAME = "budgetfusion"
"""The folder into which the README clones."""
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "demo_out", "node_modules", "tests")
FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell", "console", "bat", "powershell")
"""Languages of blocks that hold commands."""
INLINE = re.compile(r"`([^`]+)`")
PYTHON = re.compile(r"(?:\S*[\\/])?python(?:3|\.exe)?")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
PLACEHOLDER = re.compile(r"[A-Z](?:_?[A-Z])*")
PARSERS = {
    "run.py": "from launcher.cli import _parser as parser",
    "budgetfusion_nodes": "from budgetfusion_nodes.cli import parser",
    "research": "from research.cli import build_parser as parser",
}
"""Program -> what gives its parser, where the pack lies."""
READ_ONLY = (("planners", "list"), ("planners", "show"), ("planners", "verify"), ("store", "info"))
"""Commands of budgetfusion_nodes that change nothing and take seconds."""


@dataclass(frozen=True)
class Command:
    """One command as it is printed."""

    text: str
    program: str
    """A key of PARSERS, 'pip', or the program's own name."""
    arguments: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether it is run as it is printed."""
        if any(PLACEHOLDER.fullmatch(part) for part in self.arguments) or self.program not in PARSERS:
            return False
        return "--help" in self.arguments or (self.program == "budgetfusion_nodes" and self.arguments[:2] in READ_ONLY)


def printed(text: str) -> list[Command]:
    """The commands of a Markdown text: each line of a fenced block, and code in the text that calls Python or git."""
    blocks = [block for language, block in FENCE.findall(text) if language.strip() in SHELLS]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    inline = (" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", text)))
    lines += [code for code in inline if is_command(code)]
    found = [read(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return list(dict.fromkeys(found))


def is_command(code: str) -> bool:
    words = [word for word in code.split() if not ASSIGNMENT.fullmatch(word)]
    return len(words) > 1 and (words[0] == "git" or PYTHON.fullmatch(words[0]) is not None)


def read(line: str) -> Command:
    """`python3 run.py demo  # a remark` -> the program and what it is given."""
    text = line.strip().removeprefix("$ ")
    windows = "\\" in text.split()[0]
    words = shlex.split(text.replace("\\", "/") if windows else text, comments=True)
    text = re.sub(r"\s+#\s.*$", "", text)
    while ASSIGNMENT.fullmatch(words[0]):
        del words[0]
    program, *rest = words
    if PYTHON.fullmatch(program):
        program, *rest = rest[1:] if rest[0] == "-m" else rest
    return Command(text, program, tuple(rest))


COMMANDS = printed(README.read_text(encoding="utf-8"))
IDS = [command.text for command in COMMANDS]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, host_dir: Path) -> Path:
    """<ComfyUI>/custom_nodes/budgetfusion, with the genuine host around it."""
    comfyui = tmp_path_factory.mktemp("readme") / "ComfyUI"
    (comfyui / "custom_nodes").mkdir(parents=True)
    for part in ("main.py", "folder_paths.py", "comfy", "nodes.py"):
        (comfyui / part).symlink_to(host_dir / part)
    return Path(shutil.copytree(ROOT, comfyui / "custom_nodes" / NAME, ignore=NOT_COPIED))


def environment(pack: Path) -> dict[str, str]:
    """With this Python as `python` and `python3`, and nothing of the tree that the tests run in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COMFYUI_", "PYTHONPATH"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}", "PWD": str(pack)}


@pytest.fixture(scope="module")
def refused(pack: Path) -> dict[str, str]:
    """Command -> what its program's parser says against it; "" where nothing."""
    return {text: said for program, source in PARSERS.items() for text, said in parsed(pack, program, source, COMMANDS)}


def parsed(pack: Path, program: str, source: str, commands: Sequence[Command]) -> list[tuple[str, str]]:
    """All commands of one program, parsed by it in the copy."""
    own = [command for command in commands if command.program == program]
    # a lonely capital stands for a number: --width W
    given = [["64" if re.fullmatch("[A-Z]", part) else part for part in command.arguments] for command in own]
    code = f"""{source}
import contextlib, io, json, sys
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser().parse_args(arguments)
    except SystemExit as end:
        print(json.dumps(said.getvalue() if end.code else ""))
    else:
        print(json.dumps(""))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        cwd=pack,
        env=environment(pack),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return list(zip((command.text for command in own), answers, strict=True))


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_every_command_is_one_that_the_program_knows(command: Command, refused: dict[str, str], pack: Path) -> None:
    places = (pack, *list(pack.parents)[:3])  # where an artist may stand: the README says it in words
    if command.program in PARSERS:
        assert refused[command.text] == ""
    elif command.program == "pip":
        assert command.arguments[0] == "install"
        for part in command.arguments:
            assert not part.endswith(".txt") or any((place / part).is_file() for place in places), part
    elif command.program == "git":
        assert command.arguments[0] in ("clone", "pull")
        assert command.arguments[0] == "pull" or command.arguments[-1] == NAME
    elif command.program == "cd":
        (folder,) = command.arguments
        assert any((place / folder).is_dir() for place in places)
    else:
        pytest.fail(f"{command.program} is not a program that this test knows: {command.text}")


@pytest.mark.parametrize(
    "command", [pytest.param(command, id=command.text) for command in COMMANDS if command.runs] or [None]
)
def test_what_only_reads_runs_as_it_is_printed(command: Command | None, pack: Path) -> None:
    printed_here = command.text if command else "python -m budgetfusion_nodes planners list"
    done = subprocess.run(
        printed_here,
        shell=True,
        cwd=pack,
        env=environment(pack),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_readme_is_read_as_it_is_printed() -> None:
    text = """Try `python -m budgetfusion_nodes
store info` and `budgetfusion_nodes`, or with `COMFYUI_PATH=/x python3 run.py test`.

```
python3 run.py demo --prompt "two stars"   # renders
python -m budgetfusion_nodes calibrate \\
    --checkpoint FILE
```

| `..\\..\\python_embeded\\python.exe -m pip install -r budgetfusion\\requirements.txt` | Windows |
"""
    found = [(command.program, command.arguments, command.runs) for command in printed(text)]
    assert found == [
        ("run.py", ("demo", "--prompt", "two stars"), False),
        ("budgetfusion_nodes", ("calibrate", "--checkpoint", "FILE"), False),
        ("budgetfusion_nodes", ("store", "info"), True),
        ("run.py", ("test",), False),
        ("pip", ("install", "-r", "budgetfusion/requirements.txt"), False),
    ]


def test_a_command_that_does_not_exist_is_refused(pack: Path) -> None:
    wrong = [read("python3 run.py demmo"), read("python3 run.py demo --no-such-option")]
    assert all("run.py" in said for _, said in parsed(pack, "run.py", PARSERS["run.py"], wrong))
