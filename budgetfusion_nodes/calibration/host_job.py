"""A calibration inside the host: from what a graph connects to a planner file, with the host's own progress and cancel.

What the node Calibrate calls. Everything that is rendered is in the store before the next render starts.
"""

from __future__ import annotations

import importlib
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.messages import message
from ..core.no_reference import FEWEST_PICTURES
from ..core.schedule import NESTED, STOCK, NestedSchedule
from ..core.setting import Setting
from ..host.identity import read_identity
from ..host.measuring import offloaded
from ..host.memory import stop_if_cancelled
from ..host.paths import planner_folders, store_path
from ..host.sampling import report_steps
from ..host.schedule import nested_sigmas
from ..planning.service import Request, render_setting
from ..planning.special import unsettled
from . import prompts as prompt_sources
from .executors import InlineExecutor
from .host_renderer import Graph, HostRenderer, Report, choose_backends
from .host_search import choose_schedule
from .job import FIRST, Progress
from .leading import Asked, Result, Searched, lead
from .planner_folder import file_name
from .prompts import CalibrationPrompt
from .records import Subject
from .report import curve_dict
from .search_stage import SearchProgress
from .spec import Spec
from .standing import Standing
from .store import Store

EVENT = "budgetfusion.calibration"
"""What the page receives while the job runs: {"node", "messages", "prompts", "wanted", "curve"}."""
TELL_SECONDS = 0.5
BUILT_IN, TEXT, FILE = "built-in", "text, one a line", "file in the input folder"
SOURCES = (BUILT_IN, TEXT, FILE)


def read_prompts(source: str, text: str, file: str) -> tuple[CalibrationPrompt, ...]:
    """By the node's inputs. file: a name in the input folder, or `output` for the PNG files of the output folder."""
    if source == BUILT_IN:
        return prompt_sources.built_in()
    if source == TEXT:
        return prompt_sources.from_text(text)
    folder_paths = importlib.import_module("folder_paths")
    inside = Path(folder_paths.get_input_directory()).resolve()
    if file.strip() == "output":
        return prompt_sources.from_file(Path(folder_paths.get_output_directory()))
    there = False
    path = inside / file.strip()
    with suppress(OSError, ValueError):  # a zero byte, half a letter, thousands of letters
        path = path.resolve()
        there = inside in path.parents and path.exists()
    if not there:
        raise InputError(message("calibrate_no_file", file=file, folder=str(inside)))
    return prompt_sources.from_file(path)


@dataclass
class Teller:
    """The host's progress bar, and what the page draws on the node."""

    node: str | None
    _bar: Any = None
    _done: int = 0
    _total: int = 1
    _told: float = 0.0
    _drawn: Standing | None = None

    def model_for(self, steps: int, model: Any) -> Any:
        """A clone of the MODEL that reports each of its `steps` steps on the job's one bar."""
        kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
        reporting = model.clone()
        total = max(self._total, self._done + steps)
        wrapper = report_steps(model, self._progress_bar(), self._done, total)
        reporting.add_wrapper_with_key(kinds.OUTER_SAMPLE, "budgetfusion_calibration", wrapper)
        return reporting

    def __call__(self, progress: Progress | SearchProgress) -> None:
        self._done, self._total = progress.evaluations, max(1, progress.evaluations + progress.left)
        self._progress_bar().update_absolute(self._done, self._total)
        stop_if_cancelled()
        now = time.monotonic()
        if now - self._told < TELL_SECONDS and progress.left and progress.standing is self._drawn:
            return
        self._told, self._drawn = now, progress.standing
        if self.node is None:
            return
        server = importlib.import_module("server").PromptServer.instance
        content = {
            "node": self.node,
            "messages": [one.to_dict() for one in progress.messages()],
            "prompts": progress.prompts,
            "wanted": progress.wanted,
            "curve": None if progress.standing is None else curve_dict(progress.standing),
        }
        server.send_sync(EVENT, content, server.client_id)

    def _progress_bar(self) -> Any:
        if self._bar is None:
            self._bar = importlib.import_module("comfy.utils").ProgressBar(self._total)
        return self._bar


@dataclass(frozen=True)
class Prepared:
    """A job that can begin: what renders, how much, and the planner's name."""

    renderer: HostRenderer
    subject: Subject
    backends: dict[str, str]
    spec: Spec
    name: str

    @property
    def executor(self) -> InlineExecutor:
        return InlineExecutor(self.renderer, self.subject, self.backends)


def prepare(graph: Graph, asked: Asked, clip_vision: Any, report: Report) -> Prepared:
    """Along the stock schedule. Refuses what cannot be calibrated, before anything is rendered. report: see
    `HostRenderer`."""
    backends, metrics = choose_backends(graph.model, clip_vision)
    names = backends.names()
    noisy = unsettled(graph.model, graph.sampler_name, graph.scheduler) is not None
    spec = replace(asked.spec, levels_only=noisy)
    least = FEWEST_PICTURES if noisy else FIRST
    if len(asked.prompts) < least:
        raise InputError(message("calibrate_too_few", prompts=len(asked.prompts), least=least))
    setting = setting_of(graph)
    file_name(asked.name or planner_name(setting))
    subject = Subject(setting, spec.target, facts=graph.facts())
    renderer = HostRenderer(graph, backends, metrics, report, texts=[prompt.text for prompt in asked.prompts])
    return Prepared(renderer, subject, {metric: names[metric] for metric in metrics}, spec, asked.name.strip())


def along(ready: Prepared, schedule: str) -> Prepared:
    """The same job along a schedule as a Setting holds it. InputError where this model has no such sigmas."""
    nested = NestedSchedule.from_text(schedule)
    if nested is None or ready.spec.levels_only:
        return replace(ready, name=ready.name or planner_name(ready.subject.setting))
    graph = ready.renderer.graph
    spec = replace(ready.spec, prefix_steps=nested.prefix_steps)
    nested_sigmas(graph.model, graph.sampler_name, graph.scheduler, nested, spec.grid[-1])
    subject = replace(ready.subject, setting=replace(ready.subject.setting, schedule=nested.to_text()))
    name = ready.name or planner_name(subject.setting)
    return replace(ready, renderer=ready.renderer.along(nested), subject=subject, spec=spec, name=name)


def calibrate_graph(graph: Graph, asked: Asked, clip_vision: Any, node: str | None) -> Result:
    """Runs the job to its end. InputError, UnsupportedError, CalibrationError say what is wrong and what to do; the
    host's own cancel passes. Whatever happens, what was measured is kept."""
    teller = Teller(node)
    ready = prepare(graph, asked, clip_vision, teller.model_for)
    with offloaded(ready.renderer.backends):
        schedule, searched = asked.schedule, Searched()
        if schedule == NESTED:
            schedule, searched = _search(ready, asked, teller)
        ready = along(ready, schedule)
        asked = replace(asked, spec=ready.spec, name=ready.name)
        return lead(store_path(), ready.executor, asked, planner_folders()[0], teller, searched)


def _search(ready: Prepared, asked: Asked, teller: Teller) -> tuple[str, Searched]:
    """(the schedule as a Setting holds it, what the report says of the search)."""
    with Store.at(store_path()) as store:
        found = choose_schedule(store, ready.renderer, ready.subject, ready.backends, ready.spec, asked.prompts, teller)
    tables = {} if found.found is None else {"search": dict(found.found.tables)}
    return found.schedule, Searched(found.said, found.pairs, tables)


def planner_name(setting: Setting) -> str:
    """By default: a planner of each schedule may lie side by side."""
    kind = "" if setting.schedule == STOCK else f" {NESTED}"
    return f"{setting.model_name} {setting.sampler_name} {setting.scheduler}{kind}"


def setting_of(graph: Graph) -> Setting:
    """As the planning nodes will ask for it, with what the graph lays on every prompt."""
    request = Request(graph.sampler_name, graph.scheduler, graph.cfg)
    return render_setting(read_identity(graph.model), graph.model, graph.conditioning(""), request, graph.latent)
