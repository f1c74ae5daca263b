"""Several finished sweeps of one model as one: more training prompts later, or parts from other machines."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.dataset import ABSENT, SweepDataset, merge_datasets, select
from research.bench.evidence import load_judges

from .prompts import PromptList, StudyPrompt
from .rendering import JUDGES
from .strips import strip_path
from .sweep import (
    DATASET_FILE,
    JUDGES_FILE,
    PROMPTS_FILE,
    SPEC_FILE,
    Merged,
    SweepSpec,
    changes,
    open_job,
    save_merged,
    write_json,
)

SAME = {"host_version": None, "torch": None, "device": "cpu"}
"""Of the provenance: what besides the settings decides the numbers, and what a sweep that does not say it had."""


@dataclass(frozen=True)
class _Part:
    """What one sweep brings: its prompts that no earlier one holds."""

    folder: Path
    spec: SweepSpec
    prompts: PromptList
    kept: tuple[int, ...]
    """Indices into `prompts`."""
    whole: SweepDataset
    rows: tuple[int, ...]
    """Rows of `whole` that belong to `kept`, in the same order."""


def join(folders: Sequence[Path], out: Path, made: Mapping[str, Any] | None = None) -> Merged:
    """Writes the joined sweep to `out`: prompts, settings, data, judges and kept pictures, but no shards.

    A prompt whose text or scene an earlier sweep holds is left out. The sweeps may differ in their prompts alone.
    `made` goes into the provenance.
    InputError where they differ in more, where one is unfinished, or where `out` holds something.
    """
    if len(folders) < 2:
        raise InputError("join: name at least two folders of finished sweeps.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} is not an empty folder. Choose another one.")
    parts = _parts([folder.resolve() for folder in folders])
    prompts = _prompts(parts)
    spec = replace(parts[0].spec, prompts_sha256=prompts.digest())
    merged = _merged(parts, spec, prompts, made or {})
    try:
        out.mkdir(parents=True, exist_ok=True)
        _copy_pictures(parts, out)
        prompts.save(out / PROMPTS_FILE)
        write_json(out / SPEC_FILE, spec.to_dict())
        save_merged(merged, out)
    except OSError as error:
        for path in out.iterdir() if out.is_dir() else ():  # it was empty: what lies there is half a sweep
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise InputError(f"--out: {out} cannot be written ({error}). Choose another folder.") from error
    return merged


def _parts(folders: Sequence[Path]) -> list[_Part]:
    parts: list[_Part] = []
    texts: set[str] = set()
    keys: set[str] = set()
    for folder in folders:
        job = open_job(folder)
        whole = SweepDataset.load(folder / DATASET_FILE)
        _check_same(parts, folder, job.spec, whole)
        rows = {text: row for row, text in enumerate(whole.prompts)}
        kept = []
        for index, prompt in enumerate(job.prompts.prompts):
            if not _is_whole(whole, rows.get(prompt.text), prompt):
                raise InputError(f"join: {folder.name} lacks renders of {prompt.text!r}. Finish that sweep first.")
            if prompt.text not in texts and prompt.key not in keys:
                kept.append(index)
                texts.add(prompt.text)
                keys.add(prompt.key)
        found = job.prompts.prompts
        parts.append(_Part(folder, job.spec, job.prompts, tuple(kept), whole, tuple(rows[found[i].text] for i in kept)))
    return parts


def _is_whole(data: SweepDataset, row: int | None, prompt: StudyPrompt) -> bool:
    """Whether every seed of the prompt was rendered, each in its place: judges are copied by place."""
    rest = [ABSENT] * (data.seeds.shape[1] - len(prompt.seeds))
    return row is not None and data.seeds[row].tolist() == [*prompt.seeds, *rest]


def _check_same(parts: Sequence[_Part], folder: Path, spec: SweepSpec, data: SweepDataset) -> None:
    if not parts:
        return
    first = parts[0]
    if replace(spec, prompts_sha256="") != replace(first.spec, prompts_sha256=""):
        places = f"in {first.folder.name}", f"in {folder.name}"
        differing = changes(first.spec, replace(spec, prompts_sha256=first.spec.prompts_sha256), places)
        raise InputError(
            f"join: {folder.name} was rendered with other settings than {first.folder.name} ({differing})."
        )
    if ("measured_again" in data.provenance) != ("measured_again" in first.whole.provenance):
        raise InputError(
            f"join: one of {first.folder.name} and {folder.name} was measured again from its 8-bit pictures. Run "
            "'study remeasure' on the other one too."
        )
    for name, usual in SAME.items():
        here, there = data.provenance.get(name, usual), first.whole.provenance.get(name, usual)
        if here != there:
            raise InputError(f"join: {folder.name} was made with {name} {here}, {first.folder.name} with {there}.")


def _prompts(parts: Sequence[_Part]) -> PromptList:
    prompts: list[StudyPrompt] = [part.prompts.prompts[i] for part in parts for i in part.kept]
    left_out = sum(len(part.prompts.prompts) - len(part.kept) for part in parts)
    return PromptList(tuple(prompts), {"joined": [dict(part.prompts.source) for part in parts], "left_out": left_out})


def _merged(parts: Sequence[_Part], spec: SweepSpec, prompts: PromptList, made: Mapping[str, Any]) -> Merged:
    data = merge_datasets([select(part.whole, np.array(part.rows, np.int64)) for part in parts if part.rows])
    judges = np.full((*data.seeds.shape, len(data.grid), len(JUDGES)), np.nan, np.float32)
    place = 0
    for part in parts:
        found = load_judges(part.folder / JUDGES_FILE)
        if found.names != JUDGES:
            raise InputError(f"join: {part.folder.name} has other judges. Run 'study merge' there, or sweep again.")
        rows = found.values[list(part.rows)][:, : judges.shape[1]]
        judges[place : place + len(rows), : rows.shape[1]] = rows
        place += len(rows)
    return Merged(replace(data, provenance={**_provenance(parts, spec, prompts, data), **made}), judges)


def _provenance(parts: Sequence[_Part], spec: SweepSpec, prompts: PromptList, data: SweepDataset) -> dict[str, Any]:
    own = ("trajectories", "worker_seconds", "commit", "command", "measured_again", "joined")
    first = parts[0].whole.provenance
    return {
        "spec": spec.to_dict(),
        "source": dict(prompts.source),
        "trajectories": int(data.present.sum()),
        **{name: first.get(name, usual) for name, usual in SAME.items()},
        "joined": [{name: p.whole.provenance[name] for name in own if name in p.whole.provenance} for p in parts],
    }


def _copy_pictures(parts: Sequence[_Part], out: Path) -> None:
    place = 0
    for part in parts:
        for index in part.kept:
            for noise in part.prompts.prompts[index].seeds:
                kept = strip_path(part.folder, index, noise)
                if kept.is_file():
                    copy = strip_path(out, place, noise)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(kept, copy)
            place += 1
