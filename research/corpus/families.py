"""Model family and file format, told by the file's name."""

from __future__ import annotations

import re
from dataclasses import dataclass

IMAGE, VIDEO, AUDIO, SOLID = "image", "video", "audio", "3D"


@dataclass(frozen=True)
class Family:
    """Models of one architecture and one way of sampling."""

    name: str
    makes: str
    pattern: str
    """Regular expression, searched in the lower-case file name."""


FAMILIES = (
    Family("Qwen-Image 2.1", IMAGE, r"qwen_image_2\.1"),
    Family("Qwen-Image", IMAGE, r"qwen.image|firered-image"),
    Family("Wan 2.2", VIDEO, r"wan2\.2|wan_animate"),
    Family("Wan 2.1", VIDEO, r"wan2\.1|wan2_1|wan21|humo|chrono_edit|causal_forcing"),
    Family("Flux 3", IMAGE, r"flux3"),
    Family("Flux 2", IMAGE, r"flux-?2"),
    Family("PiD (pixel decoder)", IMAGE, r"^pid_|pixeldit"),
    Family("Flux 1", IMAGE, r"flux\.?1"),
    Family("Z-Image", IMAGE, r"z_image"),
    Family("SDXL", IMAGE, r"sd_?xl"),
    Family("SD 3.5", IMAGE, r"sd3"),
    Family("SVD", VIDEO, r"^svd"),
    Family("LTX 2.5", VIDEO, r"ltx-2\.5"),
    Family("LTX 2.3", VIDEO, r"ltx-2\.3"),
    Family("LTX 2", VIDEO, r"ltx-2-"),
    Family("LTX Video", VIDEO, r"ltx-video"),
    Family("HiDream O1", IMAGE, r"hidream_o1"),
    Family("HiDream I1 and E1", IMAGE, r"hidream_[ie]1"),
    Family("Kandinsky 5", VIDEO, r"kandinsky5"),
    Family("Hunyuan Video", VIDEO, r"hunyuan_?video|capybara"),
    Family("Hunyuan 3D", SOLID, r"hunyuan_?3d"),
    Family("Pixal3D, TripoSplat", SOLID, r"pixal3d|triposplat|trellis"),
    Family("MiniMax H3", VIDEO, r"minimax_h3|fasth3"),
    Family("MiniMax Music 3", AUDIO, r"minimax_music"),
    Family("CogVideoX (VOID)", VIDEO, r"^void_|cogvideo"),
    Family("ACE-Step 1.5", AUDIO, r"ace.?step_v?1\.5"),
    Family("ACE-Step 1", AUDIO, r"ace.?step_v1_"),
    Family("Stable Audio", AUDIO, r"stable.audio"),
    Family("YuE 2", AUDIO, r"yue2"),
    Family("Chroma", IMAGE, r"chroma"),
    Family("Lumina 2", IMAGE, r"netayume|newbie|lumina"),
    Family("Cosmos 2 (Anima)", IMAGE, r"anima-|cosmos"),
    Family("Krea 2", IMAGE, r"krea2"),
    Family("Ernie Image", IMAGE, r"ernie-image"),
    Family("Mage Flow", IMAGE, r"mage_flow"),
    Family("LongCat Image", IMAGE, r"longcat"),
    Family("MOSS Image", IMAGE, r"moss_image"),
    Family("Ming Image", IMAGE, r"ming_image"),
    Family("Lens", IMAGE, r"^lens_"),
    Family("OmniGen 2, Boogu", IMAGE, r"omnigen2|boogu"),
    Family("Fibo 2", IMAGE, r"fibo2"),
    Family("Ideogram 4", IMAGE, r"ideogram4"),
    Family("JoyAI Image", IMAGE, r"joyai"),
    Family("Ovis Image", IMAGE, r"ovis_image"),
    Family("SeedVR 2 (upscaler)", VIDEO, r"seedvr2"),
    Family("Lotus (depth)", IMAGE, r"lotus"),
)  # fmt: skip
"""Searched from the top: the first that fits is it."""
UNKNOWN = Family("other", "", "")

FORMATS = ("fp8", "int8", "nvfp4", "mxfp8", "bf16", "fp16", "fp32")


def family_of(file: str) -> Family:
    """The family of a model file; UNKNOWN where no pattern fits."""
    stem = re.split(r"[\\/]", file)[-1].lower()
    return next((family for family in FAMILIES if re.search(family.pattern, stem)), UNKNOWN)


def format_of(file: str) -> str:
    """The number format that the name states, 'unstated' where it states none."""
    return next((name for name in FORMATS if name in file.lower()), "unstated")
