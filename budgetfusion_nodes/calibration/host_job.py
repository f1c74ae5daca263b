"""A calibration inside the host: from what a graph connects to a planner file, with the host's own progress and cancel.

What the node Calibrate calls. Everything that is rendered is in the store before the next render starts.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.messages import message
from ..core.schedule import NESTED, STOCK, NestedSchedule
from ..core.setting import Setting
from ..host.identity import read_identity
from ..host.memory import stop_if_cancelled
from ..host.paths import planner_folders, store_path
from ..host.sampling import report_steps
from ..host.schedule import nested_sigmas
from ..planning.service import Request, render_setting
from ..planning.special import unsettled
from . import prompts as prompt_sources
from .executors import InlineExecutor
from .host_renderer import Graph, HostRenderer, Report, choose_backends
from .job import Progress
from .leading import Asked, Result, lead
from .planner_folder import file_name
from .prompts import CalibrationPrompt
from .records import Subject
from .report import curve_dict

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
    path = (inside / file.strip()).resolve()
    if not file.strip() or inside not in path.parents or not path.exists():
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

    def model_for(self, steps: int, model: Any) -> Any:
        """A clone of the MODEL that reports each of its `steps` steps on the job's one bar."""
        kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
        reporting = model.clone()
        total = max(self._total, self._done + steps)
        wrapper = report_steps(model, self._progress_bar(), self._done, total)
        reporting.add_wrapper_with_key(kinds.OUTER_SAMPLE, "budgetfusion_calibration", wrapper)
        return reporting

    def __call__(self, progress: Progress) -> None:
        self._done, self._total = progress.evaluations, max(1, progress.evaluations + progress.left)
        self._progress_bar().update_absolute(self._done, self._total)
        stop_if_cancelled()
        now = time.monotonic()
        if now - self._told < TELL_SECONDS and progress.left:
            return
        self._told = now
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


def calibrate_graph(graph: Graph, asked: Asked, clip_vision: Any, node: str | None) -> Result:
    """Runs the job to its end. InputError, UnsupportedError, CalibrationError say what is wrong and what to do; the
    host's own cancel passes. Whatever happens, what was measured is kept."""
    teller = Teller(node)
    executor, asked = prepare(graph, asked, clip_vision, teller.model_for)
    return lead(store_path(), executor, asked, planner_folders()[0], teller)


def prepare(graph: Graph, asked: Asked, clip_vision: Any, report: Report) -> tuple[InlineExecutor, Asked]:
    """(who renders and measures, what is asked with everything decided that the graph decides)."""
    backends, metrics = choose_backends(graph.model, clip_vision)
    names = backends.names()
    noisy = unsettled(graph.model, graph.sampler_name, graph.scheduler) is not None
    nested = None if noisy or asked.schedule == NESTED else NestedSchedule.from_text(asked.schedule)
    spec = replace(asked.spec, levels_only=noisy, prefix_steps=0 if nested is None else nested.prefix_steps)
    if nested is not None:  # a schedule that this model has no sigmas for is refused before anything is rendered
        nested_sigmas(graph.model, graph.sampler_name, graph.scheduler, nested, spec.grid[-1])
    renderer = HostRenderer(graph, backends, metrics, report, nested)
    setting = replace(setting_of(graph), schedule=STOCK if nested is None else nested.to_text())
    subject = Subject(setting, spec.target, facts=graph.facts())
    name = asked.name.strip() or planner_name(setting)
    file_name(name)  # a name that cannot be saved is refused before anything is rendered
    executor = InlineExecutor(renderer, subject, {metric: names[metric] for metric in metrics})
    return executor, replace(asked, spec=spec, name=name)


def planner_name(setting: Setting) -> str:
    """By default: a planner of each schedule may lie side by side."""
    kind = "" if setting.schedule == STOCK else f" {NESTED}"
    return f"{setting.model_name} {setting.sampler_name} {setting.scheduler}{kind}"


def setting_of(graph: Graph) -> Setting:
    """As the planning nodes will ask for it, with what the graph lays on every prompt."""
    request = Request(graph.sampler_name, graph.scheduler, graph.cfg)
    return render_setting(read_identity(graph.model), graph.model, graph.conditioning(""), request, graph.latent)
