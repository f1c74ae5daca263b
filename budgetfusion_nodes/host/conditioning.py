"""What a planner reads of the host's CONDITIONING, and what else it carries.

A CONDITIONING is a list of entries `[tokens [B, L, D], extras]`. A planner reads the text of one prompt. So each entry
(and each row of a batch) is planned as such a prompt and the one that needs most steps decides; whatever else moves the
image becomes part of the Setting, so that every difference from the calibration is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.messages import Message, message
from .digest import digest_of

MAX_PROMPTS = 32
"""Beyond this many entries, planning would become noticeable; the first ones are planned and a note says so."""


@dataclass(frozen=True)
class Prompt:
    """One prompt's text encoding."""

    tokens: Tensor
    """[L, D], without padding where the encoder says which tokens are padding."""
    pooled: Tensor | None
    """[P], or None where the encoder gave none."""


def extract(conditioning: Any) -> tuple[Tensor, Tensor | None, tuple[Message, ...]]:
    """(tokens [L, D], pooled [P] or None, notes) of the first prompt. InputError if there is none."""
    prompts, notes = extract_all(conditioning)
    return prompts[0].tokens, prompts[0].pooled, notes


def extract_all(conditioning: Any, name: str = "positive") -> tuple[tuple[Prompt, ...], tuple[Message, ...]]:
    """Every prompt in it, and what is said where there are several."""
    prompts: list[Prompt] = []
    for entry in _entries(conditioning, name):
        tokens, extras = _checked(entry, name)
        prompts.extend(_rows(tokens, extras, name))
    notes: list[Message] = []
    if len(prompts) > MAX_PROMPTS:
        notes.append(message("prompts_first", input=name, n=MAX_PROMPTS))
    if len(prompts) > 1:
        notes.append(message("prompts_each", input=name, n=len(prompts)))
    return tuple(prompts[:MAX_PROMPTS]), tuple(notes)


def _entries(conditioning: Any, name: str) -> list[Any]:
    if not isinstance(conditioning, (list, tuple)) or not conditioning:
        raise InputError(message("conditioning_empty", input=name))
    return list(conditioning)


def _checked(entry: Any, name: str) -> tuple[Tensor, Mapping[str, Any]]:
    if not isinstance(entry, (list, tuple)) or len(entry) < 2 or not isinstance(entry[1], Mapping):
        raise InputError(message("conditioning_entry", input=name))
    tokens = entry[0]
    if not isinstance(tokens, Tensor) or tokens.ndim < 3 or 0 in tokens.shape:
        shape = str(tuple(tokens.shape)) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(message("conditioning_shape", input=name, shape=shape))
    return tokens.flatten(1, -2), entry[1]  # [B, L, D]: some encoders give a row for each of their layers


def _rows(tokens: Tensor, extras: Mapping[str, Any], name: str) -> list[Prompt]:
    pooled = extras.get("pooled_output")
    if pooled is not None and (not isinstance(pooled, Tensor) or pooled.ndim < 2 or 0 in pooled.shape):
        raise InputError(message("pooled_shape", input=name))
    rows = None if pooled is None else pooled.reshape(pooled.shape[0], -1)
    mask = _token_mask(extras.get("attention_mask"), tokens)
    return [
        # the host repeats a shorter batch, so a single pooled row serves every token row
        Prompt(
            tokens[i] if mask is None else tokens[i][mask[i % mask.shape[0]]],
            None if rows is None else rows[i % rows.shape[0]],
        )
        for i in range(tokens.shape[0])
    ]


def _token_mask(mask: Any, tokens: Tensor) -> Tensor | None:
    """[1 or B, L] bool, True where a token is no padding; None where the encoder does not say it for these tokens.

    Encoders give 0 and 1 as whole numbers; a mask that is added to attention has 0 and a very negative number.
    """
    if not isinstance(mask, Tensor) or mask.shape[-1:] != tokens.shape[1:2]:
        return None
    mask = mask.reshape(-1, mask.shape[-1])
    kept = mask >= 0 if mask.is_floating_point() and bool((mask < 0).any()) else mask > 0
    return kept.to(tokens.device) if bool(kept.any(dim=1).all()) else None


# ------------------------------------------------------------------------------------- what else moves the image

TEXT = frozenset(
    {
        *("pooled_output", "attention_mask", "attention_mask_mt5xl", "attention_mask_img_shape", "projected_pooled"),
        *("conditioning_llama3", "conditioning_byt5small", "conditioning_mt5xl", "conditioning_lyrics"),
        *("t5xxl_ids", "t5xxl_weights", "text_input_ids", "unprocessed_ltxav_embeds", "cross_attn"),
        *("cross_attn_controlnet", "pooled_output_controlnet", "clip_start_percent", "clip_end_percent", "uuid"),
    }
)
"""The text itself as other encoders of the same prompt say it, and what the host adds to each entry."""
OWN_WORDS = TEXT | {
    "control_apply_to_uncond",
    "set_area_to_bounds",
    "mask_strength",
    "reference_latents_method",
    "default",
}
"""The same, and what belongs to an extra that is named anyway."""

KINDS = {
    "unclip_conditioning": "unclip",
    "reference_latents_text_embeds": "reference_latents",
    "ref_latent": "reference_latents",
    **dict.fromkeys(("concat_latent_image", "concat_mask", "concat_image", "noise_concat"), "concat_image"),
    **dict.fromkeys(("audio_embed", "ref_audio", "audio_codes", "reference_audio_timbre_latents"), "audio"),
    **dict.fromkeys(("clip_vision_output", "clip_vision_outputs", "clip_vision_output_ref"), "clip_vision"),
}
"""The host's key -> the kind under which it is told. Keys that are not here are told under their own name."""

SIZES = ("width", "height", "crop_w", "crop_h", "target_width", "target_height", "aesthetic_score")


def read_extras(conditioning: Any) -> tuple[tuple[str, ...], float | None]:
    """(extras of a Setting, distilled guidance or None). Never raises: what is no conditioning carries nothing."""
    found: dict[str, list[str]] = {}
    guidance: list[float] = []
    for entry in conditioning if isinstance(conditioning, (list, tuple)) else ():
        extras = entry[1] if isinstance(entry, (list, tuple)) and len(entry) > 1 else None
        if not isinstance(extras, Mapping):
            continue
        for kind, detail in _kinds(extras).items():
            found.setdefault(kind, [])
            if detail and detail not in found[kind]:
                found[kind].append(detail)
        distilled = _number(extras.get("guidance"))
        guidance += [] if distilled is None else [distilled]
    told = tuple(f"{kind} {' + '.join(details)}".strip() for kind, details in sorted(found.items()))
    return told, max(guidance, default=None)


def extras_digest(conditioning: Any) -> str:
    """Digest of all that it carries beside the text (reference pictures, areas, guidance, ControlNets ...) with its
    content; empty where that is nothing."""
    found = [{key: value for key, value in extras.items() if key not in TEXT} for _, extras, *_ in conditioning]
    if not any(found):
        return ""
    return digest_of(found[0] if len(found) == 1 else found)


def _kinds(extras: Mapping[str, Any]) -> dict[str, str]:
    """Kind -> detail of one entry's extras."""
    found = _range(extras) | _sizes(extras)
    for name, value in extras.items():
        key = str(name)
        if value is None or key in OWN_WORDS or key in SIZES or key in ("guidance", "start_percent", "end_percent"):
            continue
        kind = KINDS.get(key, key)
        if kind == "strength" and (value == 1.0 or extras.get("area") is not None):
            continue
        found[kind] = found.get(kind) or _detail(value)
    return found


def _range(extras: Mapping[str, Any]) -> dict[str, str]:
    start, end = _number(extras.get("start_percent")) or 0.0, _number(extras.get("end_percent"))
    end = 1.0 if end is None else end
    return {"range": f"{start:.0%} - {end:.0%}"} if start > 0.0 or end < 1.0 else {}


def _number(value: Any) -> float | None:
    """A number, or a tensor of one; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    return float(value) if isinstance(value, (int, float)) else None


def _sizes(extras: Mapping[str, Any]) -> dict[str, str]:
    named = [f"{key} {extras[key]}" for key in SIZES if extras.get(key) is not None]
    return {"size_conditioning": ", ".join(named)} if named else {}


def _detail(value: Any) -> str:
    """What of a value can be compared from render to render and read by an artist, with a digest of networks and LoRAs;
    empty for tensors and other objects."""
    if isinstance(getattr(value, "hooks", None), list):
        return _digest(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str, list, tuple)):
        return " + ".join(_controls(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        plain = [item for item in value if isinstance(item, (int, float, str))]
        return ", ".join(map(str, plain)) if len(plain) == len(value) else str(len(value))
    return str(value)[:60]


def _controls(control: Any) -> Iterator[str]:
    """Strength and part of the sampling of each ControlNet in the host's chain; nothing for other objects."""
    while isinstance(getattr(control, "strength", None), (int, float)):
        start, end = getattr(control, "timestep_percent_range", None) or (0.0, 1.0)
        part = "" if (start, end) == (0.0, 1.0) else f" {start:.0%} - {end:.0%}"
        yield f"{control.strength:g}{part} {_network(control)}".rstrip()
        control = getattr(control, "previous_controlnet", None)


NETWORKS = ("control_weights", "control_model", "t2i_model")
"""Of a ControlNet; one that is a LoRA has its network in a run alone."""
ARGUMENTS = ("control_type",)
"""What of its arguments the artist set: the union types."""


def _network(control: Any) -> str:
    """A digest of which ControlNet it is, and of the kind of hint that it was set to, whatever the picture."""
    held = next(filter(None, (getattr(control, name, None) for name in NETWORKS)), None)
    arguments = {key: value for key, value in (getattr(control, "extra_args", None) or {}).items() if key in ARGUMENTS}
    return " ".join(_digest(part) for part in (held, arguments) if part)


def _digest(value: Any) -> str:
    """8 hex digits; nothing of what cannot be read."""
    try:
        return f"#{digest_of(value)[:8]}"
    except Exception:  # another pack's object, or weights that do not show themselves
        return "#?"


# ------------------------------------------------------------------------------------------------------ latents


def first_part(samples: Any) -> Tensor | None:
    """The samples of a LATENT; of a multi-part latent (a video and its sound) the first part. None if it is neither."""
    if isinstance(samples, Tensor):
        return samples
    parts = getattr(samples, "tensors", None)
    return parts[0] if isinstance(parts, (list, tuple)) and parts and isinstance(parts[0], Tensor) else None


TIME_RATIOS = {"Mochi": 6, "LTXV": 8, "Cosmos1CV8x8x8": 8}
"""Of the host's latent formats for video; all others have 4."""


def frame_count(model: Any, latent: Mapping[str, Any]) -> int | None:
    """Frames of the video that this latent becomes, 1 for a picture; None where it cannot be told."""
    samples = first_part(latent.get("samples"))
    if samples is None or samples.ndim < 4:
        return None
    frames = int(samples.shape[2]) if samples.ndim == 5 else 1
    return (frames - 1) * _time_ratio(model.get_model_object("latent_format")) + 1


def _time_ratio(latent_format: Any) -> int:
    """Frames that one frame of the latent stands for; hosts before 0.30 do not say it."""
    said = getattr(latent_format, "temporal_downscale_ratio", None)
    names = (known.__name__ for known in type(latent_format).__mro__)
    return int(next((TIME_RATIOS[name] for name in names if name in TIME_RATIOS), 4) if said is None else said)


def latent_extras(latent: Mapping[str, Any]) -> tuple[str, ...]:
    """A noise mask, with the share of the picture that is made anew."""
    mask = first_part(latent.get("noise_mask"))
    return () if mask is None or not mask.numel() else (f"noise_mask {_share(mask)}",)


def _share(mask: Tensor) -> str:
    return f"{float(mask.to(torch.float32).mean()):.0%}"
