"""What measuring leaves on a GPU, told of one by the host's own words: none is here."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from budgetfusion_nodes.host.measuring import offloaded


class Recorded:
    """Backends that say where they were sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def to(self, device: torch.device) -> None:
        self.sent.append(device.type)


@pytest.mark.parametrize(("device", "sent"), [("cuda", ["cpu"]), ("mps", ["cpu"]), ("cpu", [])])
def test_no_weights_are_left_on_the_gpu_however_it_ends(
    device: str, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    management = ModuleType("comfy.model_management")
    emptied: list[None] = []
    given: dict[str, Any] = {"get_torch_device": lambda: torch.device(device)}
    for name, value in {**given, "soft_empty_cache": lambda: emptied.append(None)}.items():
        setattr(management, name, value)
    monkeypatch.setitem(sys.modules, management.__name__, management)
    for error in (None, KeyboardInterrupt()):
        backends = Recorded()
        try:
            with offloaded(backends):  # pyright: ignore[reportArgumentType]
                assert backends.sent == []
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            assert error is not None
        assert backends.sent == sent
    assert len(emptied) == 2 * len(sent)
