"""What the pack uses of ComfyUI is there: an upstream change is found by this test in that version."""

from __future__ import annotations

from typing import Any

from research.host_symbols import missing, used_symbols


def test_the_host_has_every_symbol_that_the_pack_uses(session: Any) -> None:
    symbols = used_symbols()
    assert {"nodes.common_ksampler", "comfy_api.latest.io.Schema", "comfy.model_patcher.ModelPatcher.clone"} <= set(
        symbols
    )
    assert {symbol: symbols[symbol] for symbol in missing(symbols)} == {}


def test_a_symbol_that_went_away_is_found(session: Any) -> None:
    """A module, a function, a member of an enumeration, a method of a value."""
    gone = [
        "comfy.no_such_module.thing",
        "nodes.no_such_function",
        "comfy.patcher_extension.WrappersMP.NO_SUCH_WRAPPER",
        "comfy.model_patcher.ModelPatcher.no_such_method",
    ]
    assert missing(gone) == gone
