"""Every command that README.md prints is run as it is printed, from a clone of the pack in `custom_nodes`.

The first block makes that clone, by git and pip; the others then run in it, one after the other. What stands for a file
or an address of the artist's is one of that very name here. The commands of the other pages are given to their
programs' parsers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.layout import Layout

pytestmark = pytest.mark.long_file

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
NAME = "budgetfusion"
"""The folder into which the README clones."""
NOT_CLONED = shutil.ignore_patterns(".*", "__pycache__", "demo_out", "node_modules", "tests")
ARTISTS = ("custom_nodes", "models", "input", "output", "temp", "user")
"""Folders of a ComfyUI that are an artist's own."""
FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell", "console", "bat", "powershell")
"""Languages of blocks that hold commands."""
INLINE = re.compile(r"`([^`]+)`")
PYTHON = re.compile(r"(?:\S*[\\/])?python(?:3|\.exe)?")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
PARSERS = {
    "run.py": "from launcher.cli import _parser as parser",
    "budgetfusion_nodes": "from budgetfusion_nodes.cli import parser",
    "research": "from research.cli import build_parser as parser",
}
"""Program -> what gives its parser, where the pack lies."""
NOT_RUN = ("python3 run.py test",)
"""It is what runs this test; the build server runs it, and nothing else."""
SAMPLER = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 1}
SAMPLER |= {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_scenes.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red star", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "4": {"class_type": "KSampler", "inputs": SAMPLER},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
}
"""GRAPH.json: a stock graph of two steps, so that it is calibrated in seconds."""
LEAVES = {
    "calibrate": "../../models/budgetfusion/*.safetensors",
    "demo": "demo_out/contact_sheet.png",
}
"""Word of a command -> what is there when it has run."""


@dataclass(frozen=True)
class Command:
    """One command as it is printed."""

    text: str
    program: str
    """A key of PARSERS, or the program's own name; of a module its name."""
    arguments: tuple[str, ...]


def blocks(text: str) -> list[str]:
    """The fenced blocks that hold commands, as they are printed."""
    return [block for language, block in FENCE.findall(text) if language.strip() in SHELLS]


def lines(text: str) -> list[str]:
    """Those of a Markdown text's blocks, and code in the text that calls Python or git."""
    found = [line for block in blocks(text) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    inline = (" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", text)))
    return [
        line for line in (*found, *filter(is_command, inline)) if line.strip() and not line.lstrip().startswith("#")
    ]


def printed(text: str) -> list[Command]:
    """The commands of a Markdown text whose blocks hold nothing else."""
    return list(dict.fromkeys(map(read, lines(text))))


def is_command(code: str) -> bool:
    words = [word for word in code.split() if not ASSIGNMENT.fullmatch(word)]
    return len(words) > 1 and (words[0] == "git" or PYTHON.fullmatch(words[0]) is not None)


def read(line: str) -> Command:
    """`python3 run.py demo  # a remark` -> the program and what it is given."""
    text = line.strip().removeprefix("$ ")
    words = shlex.split(text.replace("\\", "/") if is_for_windows(text) else text, comments=True)
    text = re.sub(r"\s+#\s.*$", "", text)
    while ASSIGNMENT.fullmatch(words[0]):
        del words[0]
    program, *rest = words
    if PYTHON.fullmatch(program):
        program, *rest = rest[1:] if rest[0] == "-m" else rest
    return Command(text, program, tuple(rest))


def is_for_windows(text: str) -> bool:
    return "\\" in text.split()[0]


FIRST_BLOCK = blocks(README.read_text(encoding="utf-8"))[0]
PRINTED = [one for one in printed(README.read_text(encoding="utf-8")) if one.text not in FIRST_BLOCK]
COMMANDS = [one for one in PRINTED if one.text not in NOT_RUN]
"""What is run in the clone, in the order in which it is printed: blocks, then code in the text."""


# ------------------------------------------------------------------------------------------------------------ the clone


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory, host_dir: Path) -> Path:
    """A copy of the genuine ComfyUI, with the repository at `ADDRESS` in its custom_nodes, and the portable build's
    Python beside it."""
    place = tmp_path_factory.mktemp("readme")
    folder = place / "ComfyUI"
    shutil.copytree(host_dir, folder, ignore=lambda at, _: ARTISTS if Path(at) == host_dir else ("__pycache__",))
    repository = folder / "custom_nodes" / "ADDRESS"
    shutil.copytree(ROOT, repository, ignore=NOT_CLONED)
    (repository / ".gitignore").write_text("__pycache__\n")
    who = ("-c", "user.name=artist", "-c", "user.email=artist@localhost")
    for command in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "-m", "as it is here")):
        subprocess.run(("git", *command), cwd=repository, check=True, timeout=60)
    make_python(place / "python_embeded")
    return folder


def make_python(folder: Path) -> None:
    """A Python with the packages of this one, and in place of the page's package one that holds no page."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (own,) = folder.rglob("site-packages")
    (ours,) = {path for path in sys.path if path.endswith("site-packages")}
    (own / "packages.pth").write_text(ours)
    page = own / "comfyui_frontend_package"
    (page / "static").mkdir(parents=True)
    (page / "__init__.py").write_text("__version__ = '0.0.0'")
    (page / "static" / "index.html").write_text("<p>No page.</p>")
    if os.name != "nt":  # no link: a virtual environment is found by its place
        (folder / "python.exe").write_text(f'#!/bin/sh\nexec "{folder}/bin/python" "$@"\n')
        (folder / "python.exe").chmod(0o755)


def environment(comfyui: Path, **more: str) -> dict[str, str]:
    """With the Python of this ComfyUI as `python` and `python3`, and nothing of the tree that the tests run in but what
    run.py has fetched."""
    programs = comfyui.parent / "python_embeded" / ("Scripts" if os.name == "nt" else "bin")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COMFYUI_", "PYTHONPATH"))}
    kept |= {"PATH": f"{programs}{os.pathsep}{kept.get('PATH', '')}", "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"}
    return {**kept, "BUDGETFUSION_RUN_DIR": str(Layout.from_environment().run_dir), "BROWSER": "true", **more}


@pytest.fixture(scope="module")
def pack(comfyui: Path) -> Path:
    """The clone that the README's first block made, as it is printed, typed in ComfyUI's folder."""
    assert "git clone" in FIRST_BLOCK and "pip install" in FIRST_BLOCK
    runs(f"set -e\n{FIRST_BLOCK}", comfyui, comfyui)
    made = comfyui / "custom_nodes" / NAME
    (made / "GRAPH.json").write_text(json.dumps(GRAPH))
    shutil.rmtree(made.with_name("ADDRESS") / "budgetfusion_nodes")  # else ComfyUI loads it as a pack too
    return made


# ------------------------------------------------------------------------------------------------------- what is run


@pytest.mark.parametrize("command", COMMANDS, ids=[command.text for command in COMMANDS])
def test_every_command_of_the_readme_runs_as_it_is_printed(command: Command, pack: Path) -> None:
    comfyui = pack.parents[1]
    if is_for_windows(command.text):
        runs(command.text if os.name == "nt" else command.text.replace("\\", "/"), pack.parent, comfyui)
    elif command.arguments == ("serve",):
        serves(command.text, pack, comfyui)
    else:
        assert runs(command.text, pack, comfyui).strip()
    for word, left in LEAVES.items():
        assert word not in command.arguments or any(pack.glob(left)), f"{command.text} left no {left}"


def runs(text: str, folder: Path, comfyui: Path) -> str:
    """What it printed, typed in this folder."""
    own = environment(comfyui, PWD=str(folder))
    done = subprocess.run(
        text, shell=True, cwd=folder, env=own, check=False, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def serves(text: str, pack: Path, comfyui: Path) -> None:
    """The page answers until Ctrl-C. With the ComfyUI around the pack, which the README allows: for the pinned one the
    page's packages would be fetched."""
    (python,) = (comfyui.parent / "python_embeded").rglob("python.exe")
    own = environment(comfyui, COMFYUI_PATH=str(comfyui), COMFYUI_PYTHON=str(python), PYTHONUNBUFFERED="1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored
    running = subprocess.Popen(shlex.split(text), cwd=pack, env=own, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        assert running.stdout is not None
        lines = iter(running.stdout)
        (url,) = next((found for line in lines if (found := re.findall(r"BudgetFusion: (http\S+)", line))), ("",))
        assert url, "it ended before the page answered"
        with urllib.request.urlopen(f"{url}/object_info/BudgetFusion_Calibrate", timeout=60) as answer:
            assert "BudgetFusion_Calibrate" in json.load(answer)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    finally:
        running.kill()
        running.wait()


# ------------------------------------------------------------------------------------------- what is known elsewhere


def test_every_command_of_every_page_is_one_that_its_program_knows() -> None:
    texts = [line for page in PAGES for line in lines(page.read_text(encoding="utf-8"))]
    commands = [read(text) for text in dict.fromkeys(texts) if is_command(text)]
    said = {text: error for name in PARSERS for text, error in refused(name, commands).items()}
    assert len(said) > 20
    assert {text: error for text, error in said.items() if error} == {}


def refused(program: str, commands: Sequence[Command]) -> dict[str, str]:
    """Command of this program -> what its parser says against it; "" where nothing."""
    own = [command for command in commands if command.program == program]
    # a lonely capital stands for a number: --width W
    given = [["64" if re.fullmatch("[A-Z]", part) else part for part in command.arguments] for command in own]
    code = f"""{PARSERS[program]}
import contextlib, io, json, sys
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser().parse_args(arguments)
    except SystemExit as end:
        text = said.getvalue()
        # a page that speaks of a command need not give what it requires
        print(json.dumps(text if end.code and " required" not in text.splitlines()[-1] else ""))
    else:
        print(json.dumps(""))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip((command.text for command in own), answers, strict=True))


def test_a_page_is_read_as_it_is_printed() -> None:
    text = """Try `python -m budgetfusion_nodes
store info` and `budgetfusion_nodes`, or with `COMFYUI_PATH=/x python3 run.py test`.

```
python3 run.py demo --prompt "two stars"   # renders
python -m budgetfusion_nodes calibrate \\
    --checkpoint FILE
```

| `..\\..\\python_embeded\\python.exe -m pip install -r budgetfusion\\requirements.txt` | Windows |
"""
    assert [(command.program, command.arguments) for command in printed(text)] == [
        ("run.py", ("demo", "--prompt", "two stars")),
        ("budgetfusion_nodes", ("calibrate", "--checkpoint", "FILE")),
        ("budgetfusion_nodes", ("store", "info")),
        ("run.py", ("test",)),
        ("pip", ("install", "-r", "budgetfusion/requirements.txt")),
    ]


def test_a_command_that_does_not_exist_is_refused() -> None:
    wrong = [read("python3 run.py demmo"), read("python3 run.py demo --no-such-option")]
    assert all("run.py" in said for said in refused("run.py", wrong).values())
