"""`python -m research captions`: captions of fresh scenes, one a line: what the shipped planners are calibrated on."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from research.options import whole

SPARE = 4
"""Scenes drawn for each that is wanted: some are on the list that must not be met, few captions are equal."""


def add_parser(subparsers: Any) -> None:
    """Adds `captions`; `args.run(args)` returns the exit code."""
    text = "write captions of scenes that no training and no benchmark has seen, one a line"
    parser = subparsers.add_parser("captions", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--out", type=Path, required=True, help="text file")
    parser.add_argument("--count", type=whole(1, 10_000), default=240, help="captions (%(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="of the scenes (%(default)s)")
    parser.add_argument(
        "--not-in",
        type=Path,
        action="append",
        default=[],
        help="prompt list whose scenes are left out; may be repeated",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the SHA-256 of the file. Beside it lies a .json that says which scenes were drawn."""
    from budgetfusion_nodes.core.files import in_one_piece

    from .prompts import PromptList

    texts = fresh_captions(args.count, args.seed, args.not_in)
    content = ("\n".join(texts) + "\n").encode()
    with in_one_piece(args.out) as partial:
        partial.write_bytes(content)
    left_out = [dict(PromptList.load(path).source) for path in args.not_in]
    source = {"grammar": "tiny_scenes", "seed": args.seed, "prompts": _drawn(args.count), "not_in": left_out}
    args.out.with_suffix(".json").write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(texts)} captions, SHA-256 {hashlib.sha256(content).hexdigest()}\n")
    return 0


def fresh_captions(count: int, seed: int, not_in: list[Path]) -> list[str]:
    """Captions in the generator's natural mix, from plain to busy, of scenes held out from everything."""
    from .prompts import PromptList, tiny_scenes_prompts

    known = {prompt.key for path in not_in for prompt in PromptList.load(path).prompts}
    drawn = tiny_scenes_prompts(seed, _drawn(count))
    fresh = [prompt.text for prompt in drawn.prompts if prompt.key not in known]
    return list(dict.fromkeys(fresh))[:count]


def _drawn(count: int) -> dict[str, int]:
    return {"train": 0, "calibration": SPARE * count, "test": 0}
