"""The executor over many machines, with workers of this process in the place of Ray's: what happens when they die."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from budgetfusion_nodes.calibration import wire
from budgetfusion_nodes.calibration.executors import InlineExecutor
from budgetfusion_nodes.calibration.leading import Asked
from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.spec import Spec
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.trajectory import Work
from budgetfusion_nodes.command_line.comfyui import ServerError, ServerGone
from budgetfusion_nodes.command_line.ray_executor import DEATHS, STARTS_IN_VAIN, RayExecutor, connect
from budgetfusion_nodes.command_line.ray_worker import Worker
from tests.calibration.stub import BACKENDS, SETTING, StubRenderer, stub_prompts
from tests.calibration.test_job import make_job, planner_content, run, same_data

TARGET = 30


class RayError(Exception):
    pass


class FakeWorker:
    """Answers as the Calibrate node of a worker's host does; `dies(text)` ends it for good."""

    def __init__(self, dies: Callable[[str], bool] = lambda text: False, facts: dict[str, str] | None = None) -> None:
        self._executor = InlineExecutor(StubRenderer(TARGET), Subject(SETTING, TARGET, facts=facts or {}), BACKENDS)
        self._dies = dies
        call = lambda make: SimpleNamespace(remote=make)  # noqa: E731
        self.where, self.close = call(lambda: "far away"), call(lambda: None)
        self.ask = SimpleNamespace(options=lambda **_: call(lambda task: Answers(self._answers(task))))

    def _answers(self, task: dict[str, Any]) -> Iterator[wire.Json]:
        if task["kind"] == wire.DESCRIBE:
            asked = Asked(Spec(TARGET), "many", tuple(stub_prompts(60)))
            yield wire.Described(self._executor.subject, self._executor.backends, asked).to_json()
        elif task["kind"] == wire.ENCODE:
            yield wire.encoded_to_json(self._executor.encode(task["text"]))
        else:
            for index, (_, event) in enumerate(self._executor.run([wire.work_from_json(task)])):
                if index == 2 and self._dies(task["text"]):
                    raise RayError("the actor died\nmore")
                yield wire.event_to_json(event)


class Answers:
    def __init__(self, source: Iterator[wire.Json]) -> None:
        self.source = source

    def __next__(self) -> wire.Json:
        return next(self.source)


class FakeRay:
    """Of Ray, what the executor calls; the worker that was served longest ago comes first."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self) -> None:
        self.killed: list[Any] = []
        self._served: list[int] = []

    def remote(self, _: type) -> Any:
        return SimpleNamespace(options=lambda **_: None)

    def wait(self, waiting: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        oldest = min(waiting, key=lambda one: self._served.index(id(one)) if id(one) in self._served else -1)
        self._served = [*(one for one in self._served if one != id(oldest)), id(oldest)]
        return [oldest], []

    def get(self, value: Any) -> Any:
        return value

    def kill(self, worker: Any) -> None:
        self.killed.append(worker)


def executor(make: Callable[[Any], FakeWorker] = lambda actor: FakeWorker(), workers: int = 2) -> RayExecutor:
    return RayExecutor(FakeRay(), workers, {}, make)


def calibrate(folder: Path, made: RayExecutor) -> Any:
    folder.mkdir(exist_ok=True)
    with Store.at(folder / "store.sqlite3") as store:
        job = make_job(store, folder, StubRenderer(TARGET))
        job.executor = made
        return job.run()


def test_workers_that_die_are_replaced_and_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    whole = run(tmp_path / "alone")
    died: list[str] = []

    def dies(text: str) -> bool:
        """Once for some of the prompts."""
        if text.endswith("1") and text not in died:
            died.append(text)
            return True
        return False

    with executor(lambda actor: FakeWorker(dies), workers=3) as made:
        outcome = calibrate(tmp_path / "many", made)
        assert made.deaths == len(died) > 0
    same_data(outcome, whole)
    assert outcome.progress.renders == whole.progress.renders, "no count that came back is rendered again"
    assert planner_content(tmp_path / "many") == planner_content(tmp_path / "alone")


def test_a_trajectory_that_takes_its_workers_down_is_set_aside(tmp_path: Path) -> None:
    bad: list[str] = []

    def dies(text: str) -> bool:
        """Always for the first one."""
        bad.extend([] if bad else [text])
        return text == bad[0]

    with executor(lambda actor: FakeWorker(dies)) as made:
        outcome = calibrate(tmp_path, made)
        assert made.deaths == DEATHS
    (reason,) = outcome.reasons
    assert "the actor died" in reason


def test_workers_of_another_model_are_refused() -> None:
    workers = iter([FakeWorker(), FakeWorker(facts={"vae": "another"})])
    with pytest.raises(ServerError, match=r"far away .*facts"), executor(lambda actor: next(workers)) as made:
        list(made.run(Work(1, 1, text, 0, Spec(TARGET).grid, 0.0) for text in "ab"))


def test_an_error_that_every_worker_would_have_ends_it() -> None:
    class Refused(FakeWorker):
        def _answers(self, task: dict[str, Any]) -> Iterator[wire.Json]:
            yield {"error": "no such checkpoint"}

    with pytest.raises(ServerError, match="no such checkpoint"):
        executor(lambda actor: Refused())


def test_a_place_where_nothing_starts_is_given_up() -> None:
    class Dead(FakeWorker):
        def _answers(self, task: dict[str, Any]) -> Iterator[wire.Json]:
            yield {"gone": "ComfyUI ended at once"}

    made: list[FakeWorker] = []

    def make(_: Any) -> FakeWorker:
        made.append(Dead())
        return made[-1]

    with pytest.raises(ServerGone, match="ended at once"):
        executor(make)
    assert len(made) == 2 * (1 + STARTS_IN_VAIN)


@pytest.mark.parametrize(
    ("gpus", "asked", "workers", "place"),
    [
        (8.0, None, 8, {"num_gpus": 1, "num_cpus": 0}),
        (8.0, 3, 3, {"num_gpus": 1, "num_cpus": 0}),
        (0.0, None, 2, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}),
        (0.0, 5, 5, {"num_cpus": 1, "scheduling_strategy": "SPREAD"}),
    ],
)
def test_one_worker_a_gpu_else_one_a_machine(
    gpus: float, asked: int | None, workers: int, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, and one that has left the cluster."""
    ray = SimpleNamespace(
        init=lambda **_: None,
        cluster_resources=lambda: {"CPU": 32.0} | ({"GPU": gpus} if gpus else {}),
        nodes=lambda: [{"Alive": alive} for alive in (True, False, True)],
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert connect("10.0.0.1:6379", asked) == (ray, workers, place)


def test_a_worker_whose_comfyui_does_not_start_says_so(tmp_path: Path) -> None:
    """Errors cross machines as text: the class would have to be there on both."""
    (tmp_path / "main.py").write_text("raise SystemExit('no GPU here')")
    worker = Worker({"1": {"class_type": "x", "inputs": {}}}, "1", str(tmp_path), str(tmp_path), ["--cpu"])

    async def answers() -> list[Any]:
        return [answer async for answer in worker.ask(wire.describe_task())]

    (answer,) = asyncio.run(answers())
    asyncio.run(worker.close())
    assert "no GPU here" in answer["gone"]
