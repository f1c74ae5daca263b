"""The command line: its errors are one sentence, its help is fast, `render` draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from research.cli import main
from research.options import default_host


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from research.cli import build_parser; build_parser(); "
        "print([m for m in ('torch', 'open_clip', 'matplotlib', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny-scenes", "evaluate", "--steps", "0"], "whole number from 1 to 1000"),
        (["tiny-scenes", "evaluate", "--cfg", "nan"], "number from 0 to 30"),
        (["tiny-scenes", "evaluate", "--captions", "many"], "whole number from 1 to 5000"),
        (["tiny-scenes", "render", "--size", "8"], "whole number from 32 to 1024"),
        (["tiny-scenes"], "COMMAND"),
    ],
)
def test_bad_options_name_the_range(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "no.safetensors")
    assert main(["tiny-scenes", "evaluate", "--checkpoint", missing]) == 2
    assert main(["tiny-scenes", "evaluate-encoder", "--encoder", missing]) == 2
    assert main(["tiny-scenes", "train", "--host", str(tmp_path), "--folder", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "tiny-scenes train" in lines[0]
    assert "no ComfyUI folder" in lines[2]


def test_render_writes_pictures_with_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny-scenes", "render", "--count", "3", "--size", "96", "--held-out", "--out", str(tmp_path)]) == 0
    assert "3 pictures" in capsys.readouterr().out
    listed = json.loads((tmp_path / "captions.json").read_text())
    assert len({entry["caption"] for entry in listed}) == 3
    for entry in listed:
        with Image.open(tmp_path / entry["file"]) as image:
            assert image.size == (96, 96)


def test_host_default_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert default_host() == tmp_path
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setenv("BUDGETFUSION_RUN_DIR", str(tmp_path))
    assert default_host().is_relative_to(tmp_path / "host")
