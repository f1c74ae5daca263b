"""Which stage is named: the innermost function of the pack."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from budgetfusion_nodes.core import curves, stages
from budgetfusion_nodes.core.errors import InputError


def _error(call: Callable[..., object], *arguments: object) -> BaseException:
    with pytest.raises((InputError, RuntimeError)) as caught:
        call(*arguments)
    return caught.value


def test_the_stage_is_named_as_its_file_and_function() -> None:
    error = _error(curves.parse_grid, "x")
    assert stages.stage_of(error) == "core/curves.py parse_grid"
    assert stages.told(error) == f"InputError: {error} [core/curves.py parse_grid]"


def test_of_several_calls_it_is_the_innermost() -> None:
    """service catches, curves.validate_grid is what it called, and the fault lies in messages below."""
    frames = [("planning/service.py", "plan_render"), ("core/curves.py", "validate_grid"), ("core/messages.py", "word")]
    call: Callable[[], object] = lambda: 1 / 0  # noqa: E731
    for file, name in reversed(frames):
        source = f"def {name}():\n    call()\n"
        space = {"call": call}
        exec(compile(source, str(stages.PACK / file), "exec"), space)
        call = space[name]
    with pytest.raises(ZeroDivisionError) as caught:
        call()
    assert stages.stage_of(caught.value) == "core/messages.py word"


def test_an_error_from_elsewhere_names_no_stage() -> None:
    def elsewhere() -> None:
        raise RuntimeError("first line\nsecond line")

    assert stages.told(_error(elsewhere)) == "RuntimeError: first line"
