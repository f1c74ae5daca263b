"""The contact sheet: each adaptive render beside its full-step render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .report import Report, Row

SIDE = 192
GAP = 16
TEXT_HEIGHT = 20
PROMPT_LINES = 3
HEADER = 104
PAIRS_ABREAST = ((6, 1), (16, 2), (10_000, 4))
"""(up to this many pairs, pairs in a row)."""
INK, FAINT, WARNING, PAPER = (28, 28, 32), (105, 105, 115), (176, 58, 18), (250, 250, 248)
PAIR_WIDTH = 2 * SIDE + GAP
PAIR_HEIGHT = PROMPT_LINES * TEXT_HEIGHT + SIDE + 2 * TEXT_HEIGHT + 2 * GAP


@dataclass(frozen=True)
class Pair:
    adaptive: Image.Image
    full: Image.Image
    row: Row


def draw_sheet(pairs: Sequence[Pair], report: Report, quality: float) -> Image.Image:
    """RGB image; the prompt over each pair, counts and quality under each picture."""
    abreast = next(columns for most, columns in PAIRS_ABREAST if len(pairs) <= most)
    down = -(-len(pairs) // abreast)
    width = max(abreast * (PAIR_WIDTH + 2 * GAP) + 2 * GAP, 640)
    sheet = Image.new("RGB", (width, HEADER + down * PAIR_HEIGHT + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(22), ImageFont.load_default(14)
    pen.text((2 * GAP, GAP), f"{report.model.title}: adaptive (left) beside full-step (right)", INK, title)
    reached, measured = report.reached(quality)
    lead = (
        f"ComfyUI {report.host_version}, quality slider {quality:.2f}: {report.mean_steps:.1f} steps on average in "
        f"place of {report.target_steps} (stock {report.mean_steps_stock:.1f}); {reached} of {measured} reached it"
    )
    for number, line in enumerate((lead, report.setting)):
        pen.text((2 * GAP, GAP + 32 + number * TEXT_HEIGHT), line, FAINT, small)
    for number, pair in enumerate(pairs):
        x = 2 * GAP + (number % abreast) * (PAIR_WIDTH + 2 * GAP)
        y = HEADER + (number // abreast) * PAIR_HEIGHT
        _draw_pair(sheet, pen, small, pair, report.target_steps, quality, x, y)
    return sheet


def _draw_pair(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, pair: Pair,
    target: int, quality: float, x: int, y: int,
) -> None:  # fmt: skip
    lines = wrap(pair.row.prompt, font, PAIR_WIDTH)
    if len(lines) > PROMPT_LINES:
        lines = [*lines[: PROMPT_LINES - 1], lines[PROMPT_LINES - 1] + " ..."]
    top = y + (PROMPT_LINES - len(lines)) * TEXT_HEIGHT
    for number, line in enumerate(lines):
        pen.text((x, top + number * TEXT_HEIGHT), line, INK, font)
    y += PROMPT_LINES * TEXT_HEIGHT
    row = pair.row
    missed = row.missed(quality)
    captions = (
        (pair.adaptive, f"{row.steps} steps (adaptive)", _measured(row.quality_measured, quality, missed), missed),
        (pair.full, f"{target} steps (full)", "quality 1.00 (the reference)", False),
    )
    for column, (picture, steps, measured, warned) in enumerate(captions):
        left = x + column * (SIDE + GAP)
        sheet.paste(_fitted(picture), (left, y))
        pen.text((left, y + SIDE + 4), steps, INK, font)
        pen.text((left, y + SIDE + 4 + TEXT_HEIGHT), measured, WARNING if warned else FAINT, font)


def _measured(value: float | None, wanted: float, missed: bool) -> str:
    if value is None:
        return "quality not measured"
    return f"quality {value:.2f}, below {wanted:.2f}" if missed else f"quality {value:.2f} measured"


def _fitted(picture: Image.Image) -> Image.Image:
    """On SIDE x SIDE: small pictures enlarged without smoothing (a pixel stays a pixel), large ones reduced."""
    picture = picture.convert("RGB")
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(edge * scale)) for edge in picture.size)
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    placed = Image.new("RGB", (SIDE, SIDE), PAPER)
    placed.paste(picture.resize((size[0], size[1]), way), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return placed


def wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of whole words that fit the width; a word that is too long alone is cut."""
    lines: list[str] = []
    current = ""
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            if current:
                lines.append(current)
                current = ""
            lines.append(word[:cut])
            word = word[cut:]
        longer = f"{current} {word}".strip()
        if current and font.getlength(longer) > width:
            lines.append(current)
            current = word
        else:
            current = longer
    return [*lines, current] if current else lines


def save_sheet(sheet: Image.Image, path: Path) -> None:
    sheet.save(path, optimize=True)
