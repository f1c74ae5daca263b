"""What a planner reads of the host's CONDITIONING, and what is said about the rest.

A CONDITIONING is a list of entries `[tokens [B, L, D], extras]`. A planner was calibrated on one prompt that fills the
image. So each entry (and each row of a batch) is planned as such a prompt, the one that needs most steps decides, and
areas, masks and ranges are named in a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import InputError

MAX_PROMPTS = 32
"""Beyond this many entries, planning would become noticeable; the first ones are planned and a note says so."""

CONNECT = "Connect the CONDITIONING of a CLIP Text Encode node."


@dataclass(frozen=True)
class Prompt:
    """One prompt's text encoding."""

    tokens: Tensor
    """[L, D]"""
    pooled: Tensor | None
    """[P], or None where the encoder gave none."""


def extract(conditioning: Any) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """(tokens [L, D], pooled [P] or None, notes) of the first prompt. InputError if there is none."""
    prompts, notes = extract_all(conditioning)
    return prompts[0].tokens, prompts[0].pooled, notes


def extract_all(conditioning: Any, name: str = "positive") -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """Every prompt in it, and one sentence for each thing that the plan cannot take into account."""
    if not isinstance(conditioning, (list, tuple)) or not conditioning:
        raise InputError(f"{name}: the conditioning is empty. {CONNECT}")
    prompts: list[Prompt] = []
    notes: list[str] = []
    for entry in conditioning:
        tokens, extras = _checked(entry, name)
        prompts.extend(_rows(tokens, extras.get("pooled_output"), name))
        notes.extend(note for note in _extras_notes(extras, name) if note not in notes)
    if len(prompts) > 1:
        notes.insert(
            0, f"{name} holds {len(prompts)} prompts: each was planned, and the one that needs most steps decides."
        )
    if len(prompts) > MAX_PROMPTS:
        notes.insert(0, f"{name}: only the first {MAX_PROMPTS} prompts were planned.")
    return tuple(prompts[:MAX_PROMPTS]), tuple(notes)


def _checked(entry: Any, name: str) -> tuple[Tensor, Mapping[str, Any]]:
    if not isinstance(entry, (list, tuple)) or len(entry) < 2 or not isinstance(entry[1], Mapping):
        raise InputError(f"{name}: an entry is no conditioning (expected tokens and their extras). {CONNECT}")
    tokens = entry[0]
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or 0 in tokens.shape:
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"{name}: the text encoding has shape {shape}; expected [batch, tokens, width]. {CONNECT}")
    return tokens, entry[1]


def _rows(tokens: Tensor, pooled: Any, name: str) -> list[Prompt]:
    if pooled is not None and (not isinstance(pooled, Tensor) or pooled.ndim < 2 or pooled.shape[0] == 0):
        raise InputError(f"{name}: the pooled output is no [batch, width] tensor. {CONNECT}")
    rows = None if pooled is None else pooled.reshape(pooled.shape[0], -1)
    # the host repeats a shorter batch, so a single pooled row serves every token row
    return [Prompt(tokens[i], None if rows is None else rows[i % rows.shape[0]]) for i in range(tokens.shape[0])]


def _extras_notes(extras: Mapping[str, Any], name: str) -> list[str]:
    notes: list[str] = []
    if extras.get("area") is not None:
        notes.append(f"{name} has an area: the plan treats its text as if it filled the image.")
    if extras.get("mask") is not None:
        notes.append(f"{name} has a mask: the plan treats its text as if it filled the image.")
    if (extras.get("start_percent") or 0.0) > 0.0 or (extras.get("end_percent") or 1.0) < 1.0:
        notes.append(f"{name} is limited to a range of the sampling: the plan treats it as if it applied all along.")
    if extras.get("control") is not None:
        notes.append(f"{name} carries a ControlNet, which was not there at calibration.")
    if extras.get("hooks") is not None:
        notes.append(f"{name} carries hooks (a LoRA on a prompt), which were not there at calibration.")
    if extras.get("concat_latent_image") is not None or extras.get("reference_latents") is not None:
        notes.append(f"{name} carries a picture, which was not there at calibration.")
    return notes
