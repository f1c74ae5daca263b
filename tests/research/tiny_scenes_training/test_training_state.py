"""The file that a killed training goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from research.tiny_scenes_training.training_state import load_training_state, save_training_state


@dataclass(frozen=True)
class Settings:
    steps: int = 10
    learning_rate: float = 0.1


def parts(seed: int) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return {"model": model, "optimiser": optimiser}


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    saved, other = parts(0), parts(1)
    path = tmp_path / "new" / "state.pt"
    save_training_state(path, saved, Settings(), step=7, average=0.25)
    assert load_training_state(path, other, Settings()) == {"step": 7, "average": 0.25}
    for name in ("weight", "bias"):
        assert torch.equal(saved["model"].state_dict()[name], other["model"].state_dict()[name])
    assert torch.equal(
        saved["optimiser"].state_dict()["state"][0]["exp_avg"], other["optimiser"].state_dict()["state"][0]["exp_avg"]
    )


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    untouched = parts(0)
    before = untouched["model"].state_dict()["weight"].clone()
    assert load_training_state(tmp_path / "state.pt", untouched, Settings()) is None
    assert torch.equal(untouched["model"].state_dict()["weight"], before)


def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path: Path) -> None:
    path, other = tmp_path / "state.pt", parts(1)
    save_training_state(path, parts(0), Settings(), step=7)
    before = other["model"].state_dict()["weight"].clone()
    with pytest.raises(ValueError, match=r"learning_rate 0\.1 there, 0\.2 now"):
        load_training_state(path, other, Settings(learning_rate=0.2))
    assert torch.equal(other["model"].state_dict()["weight"], before)
    assert load_training_state(path, other, Settings(steps=20), changeable=("steps",)) == {"step": 7}


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save({"settings": Evil()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_training_state(tmp_path / "state.pt", parts(0), Settings())
