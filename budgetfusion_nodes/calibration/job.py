"""The calibration job: renders prompt by prompt, keeps every count, makes a planner as soon as one can be guaranteed
and a better one every ten prompts, and ends by itself when more prompts would not change it.

It knows no host: an executor renders, the store keeps, `save` puts a planner where nodes find it, `listen` shows how
far it is. Started again with the same inputs it goes on where it was cut off and ends with the same planner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, product
from typing import Any

import torch

from ..core.curves import all_counts
from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.no_reference import Fall
from ..predictor.dataset import SweepDataset, select, true_quality
from ..predictor.fit import FitOptions, fit_scale
from ..predictor.mean_curve import Comparison
from ..predictor.planner_file import AnyPlanner
from .claims import Claims
from .dataset import build_dataset
from .executors import Executor
from .prompts import CalibrationPrompt, rendering_order
from .records import Encoded, Measurement
from .spec import Spec
from .standing import Standing, make_standing
from .stopping import GUIDE_STEP, LEAST_GUIDES, guide_counts, is_settled, roles
from .store import Kept, KeptPlanner, Store
from .trajectory import Failed, Finished, Measured, Work, next_count

log = logging.getLogger(__name__)

FIRST, EVERY = 9, 10
"""Prompts after which a planner is made: as soon as 10 % can be guaranteed, then every ten."""
LEAST_FAILURES, SHARE_FAILED = 3, 0.2
LOOK_AGAIN_SECONDS = 1.0
"""Between looks at what another process still renders, when nothing else is left."""
GROWTH = 1.4
"""Networks are compared again when there are this many times as many prompts."""


_Place = tuple[int, int]
"""(prompt in the order of rendering, which of its seeds)."""


class CalibrationError(BudgetFusionError):
    """The job cannot go on; what was measured is kept."""


@dataclass(frozen=True)
class Progress:
    """How far the job is."""

    prompts: int
    """Whose trajectories are all done."""
    wanted: int
    renders: int
    """In this run."""
    evaluations: int
    """Steps rendered in this run."""
    left: int
    """Steps that are still to be rendered, at most."""
    seconds_left: float | None
    """None before two renders were timed."""
    set_aside: int
    standing: Standing | None
    seconds: float = 0.0
    """Of rendering and measuring in this run."""
    measuring: float = 0.0
    """Of these, measuring."""
    computed: float = 1.0
    """Share of `left` that is evaluated: a prefix that counts share is, once."""
    left_renders: int = 0
    """At most."""

    def messages(self) -> tuple[Message, ...]:
        """What the node says while it works."""
        found = [message("calibrate_progress", prompts=self.prompts, wanted=self.wanted)]
        if self.seconds_left is not None:
            found.append(message("calibrate_minutes", minutes=max(1, round(self.seconds_left / 60.0))))
        elif self.left:
            cost = {"renders": self.left_renders, "evaluations": round(self.left * self.computed)}
            found.append(message("calibrate_cost", prompts=self.wanted - self.prompts, **cost))
        if self.set_aside:
            found.append(message("calibrate_set_aside", count=self.set_aside))
        return (*found, *(() if self.standing is None else self.standing.messages()))


@dataclass(frozen=True)
class Outcome:
    """What a finished job gave."""

    standing: Standing
    file: str
    progress: Progress
    stopped_early: bool
    dataset: SweepDataset
    reasons: tuple[str, ...]
    """Of the trajectories that were set aside."""
    fall: Fall | None = None
    """Why the target is lower than was asked for."""


@dataclass
class _Tally:
    renders: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    measuring: float = 0.0
    trajectories: int = 0
    """Finished in this run."""


Save = Callable[[AnyPlanner], tuple[str, str]]
"""Writes a planner in one piece; gives its file name and SHA-256."""


@dataclass
class Job:
    """One calibration. `run` may be left at any moment by an exception; a new Job goes on."""

    store: Store
    executor: Executor
    prompts: Sequence[CalibrationPrompt]
    spec: Spec
    name: str
    save: Save
    listen: Callable[[Progress], None] = lambda progress: None
    fit_options: FitOptions | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    """More for the planner's provenance; JSON-safe."""
    _tally: _Tally = field(default_factory=_Tally, init=False)
    _standing: Standing | None = field(default=None, init=False)
    _comparison: Comparison | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)
    _file: str = field(default="", init=False)

    def run(self) -> Outcome:
        """CalibrationError where too many renders fail or too few prompts are left; InputError for bad inputs."""
        self.measure()
        return self._finish()

    def measure(self) -> None:
        """Renders and keeps what is open; see `run`."""
        self._setting_id = self.store.setting_id(self.executor.subject)
        self._backends_id = self.store.backends_id(self.executor.backends)
        self._order, self._ids = self._chosen()
        self._held: list[_Place] = []
        self._open = [self.spec.amount.seeds] * len(self._order)  # trajectories of each prompt that are not done
        self._aside = self._tried = self._complete = 0
        self._forgive()
        with Claims(self.store) as self._claims:
            self._render(product(range(len(self._order)), range(self.spec.amount.seeds)))
            while self._held and not self._stopped:
                time.sleep(LOOK_AGAIN_SECONDS)
                held, self._held = self._held, []
                self._render(held)

    def _render(self, places: Iterable[_Place]) -> None:
        works = self._works(places)
        first = list(islice(works, 1))  # counts what is kept already: the first word is of what is left
        self.listen(self.progress())
        for work, event in self.executor.run(chain(first, works)):
            self._take(work, event)
            if self._stopped:
                break

    # ------------------------------------------------------------------------------------------------------ rendering

    def _chosen(self) -> tuple[list[CalibrationPrompt], list[int]]:
        """(prompts in the order of rendering, their rows). Two texts that the encoder takes for one are one prompt."""
        found: dict[int, CalibrationPrompt] = {}
        for prompt in rendering_order(self.prompts, self.spec.amount.prompts, self._encode):
            text = prompt.text if self.spec.keep_text else None
            found.setdefault(self.store.prompt_id(self._encode(prompt), prompt.category, text), prompt)
        return list(found.values()), list(found)

    def _forgive(self) -> None:
        """A job that too many failures stopped tries them again: the artist has changed something since."""
        wanted = set(self._ids)
        failed = [one for one in self.store.all_set_aside(self._setting_id) if one.prompt_id in wanted]
        if len(failed) >= LEAST_FAILURES and len(failed) > SHARE_FAILED * self.store.begun(self._setting_id):
            self.store.try_again(self._setting_id)

    def _encode(self, prompt: CalibrationPrompt) -> Encoded:
        return self.executor.encode(prompt.text)

    def _works(self, places: Iterable[_Place]) -> Iterator[Work]:
        """What is open. What another process renders is looked at again before each next one, and is in `_held`."""
        for place in places:
            held, self._held = self._held, []
            for one in (*held, place):
                if self._stopped:
                    return
                work = self._work(*one, waited=one in held)
                if work is not None:
                    yield work

    def _work(self, place: int, index: int, waited: bool) -> Work | None:
        """What is open of one trajectory; None where another process renders it, or where nothing is, which counts as
        done."""
        spec, seed = self.spec, self._order[place].seed(index)
        kept = self._kept(place, seed)
        if not self._is_over(kept):
            if not self._claims.take(kept.trajectory_id):
                self._held.append((place, index))
                return None
            kept = self._kept(place, seed)  # another process may have measured more of it before it let it go
        self._tried += 1
        if self._is_over(kept):
            if kept.latent is not None:  # a kill came between the last count and the end
                self.store.finish(kept.trajectory_id)
            self._aside += kept.set_aside is not None
            self._done(place, new=waited)
            return None
        text, tolerance = self._order[place].text, spec.amount.tolerance
        return Work(kept.trajectory_id, self._ids[place], text, seed, spec.grid, tolerance, kept.measured, kept.latent)

    def _kept(self, place: int, seed: int) -> Kept:
        return self.store.trajectory(self._setting_id, self._ids[place], seed, self._backends_id)

    def _is_over(self, kept: Kept) -> bool:
        spec = self.spec
        return kept.set_aside is not None or next_count(spec.grid, kept.measured, spec.amount.tolerance) is None

    def _take(self, work: Work, event: Any) -> None:
        place = self._ids.index(work.prompt_id)
        if isinstance(event, Measured):
            found = event.found
            self.store.record(work.trajectory_id, self._backends_id, found, event.latent)
            self._tally.renders += 1
            self._tally.evaluations += found.steps
            self._tally.seconds += found.render_seconds + found.measure_seconds
            self._tally.measuring += found.measure_seconds
            self._claims.renew(work.trajectory_id)
        elif isinstance(event, Failed):
            self.store.set_aside(work.trajectory_id, event.steps, event.reason)
            self._aside += 1
            self._check_failures(event.reason)
            self._done(place, new=True)
        elif isinstance(event, Finished):
            self.store.finish(work.trajectory_id)
            self._tally.trajectories += 1
            self._done(place, new=True)
        self.listen(self.progress())

    def _check_failures(self, reason: str) -> None:
        if self._aside >= LEAST_FAILURES and self._aside > SHARE_FAILED * self._tried:
            said = message("calibrate_too_many_failures", failed=self._aside, tried=self._tried, reason=reason)
            raise CalibrationError(said)

    def _done(self, place: int, new: bool) -> None:
        self._open[place] -= 1
        while not self._stopped and self._complete < len(self._open) and self._open[self._complete] <= 0:
            self._complete += 1
            if self._complete == FIRST or self._complete % EVERY == 0:
                self._milestone(new)

    # ------------------------------------------------------------------------------------------------------- planning

    def _milestone(self, new: bool) -> None:
        if self.spec.amount.may_stop and not self._stopped:
            self._stopped = self._is_settled()
        if new and not (self._stopped or self.spec.levels_only) and self._complete < len(self._order):
            self._replan(self.dataset(), compare=self._grown())

    def dataset(self) -> SweepDataset | None:
        """What is measured so far; None where no prompt is done."""
        amount, executor = self.spec.amount, self.executor
        splits = roles(self._complete, amount.alone)
        prompts = [
            (prompt_id, split, [prompt.seed(index) for index in range(amount.seeds)])
            for prompt_id, prompt, split in zip(self._ids, self._order, splits, strict=False)
        ]
        return build_dataset(
            self.store,
            self._setting_id,
            self._backends_id,
            prompts,
            self.spec.grid,
            amount.tolerance,
            executor.subject.setting,
            executor.backends,
        )

    def measured(self) -> dict[tuple[int, int], dict[int, Measurement]]:
        """(prompt's row, seed) -> count -> what was measured of it, of this job's prompts."""
        return self.store.measured(self._setting_id, self._backends_id, self._ids[: self._complete])

    def _is_settled(self) -> bool:
        """Whether another ten prompts moved no guaranteed count, by the guide prompts alone."""
        data = self.dataset()
        if data is None or len(data.rows("train")) < LEAST_GUIDES:
            return False
        guides = data.rows("train")
        truth = true_quality(select(data, guides), fit_scale(data, "train"))
        counts = all_counts(self.spec.grid)
        return is_settled(guide_counts(counts, truth[:-GUIDE_STEP]), guide_counts(counts, truth))

    def _grown(self) -> bool:
        before = 0 if self._comparison is None else self._comparison.prompts
        data = self.dataset()
        return data is not None and len(data.rows("train")) >= GROWTH * before

    def _replan(self, data: SweepDataset | None, compare: bool) -> None:
        if data is None:
            return
        with torch.inference_mode(False), torch.enable_grad():  # the host runs its nodes without gradients
            standing = make_standing(
                data, self.name, self._comparison, compare, self.fit_options, lambda: self.listen(self.progress())
            )
        if standing is None:
            return
        own = self.provenance(
            **standing.figures(),
            prompts={split: len(data.rows(split)) for split in ("train", "calibration")},
            seeds=int(data.present.sum()),
        )
        planner = replace(standing.planner, provenance=own)
        self._standing = replace(standing, planner=planner)
        self._comparison = standing.comparison
        file, digest = self.save(planner)
        if file:
            self._file = file
            prompts = planner.risk_table.prompts
            self.record(KeptPlanner(file, digest, prompts, self._standing.figures(), time.time()))

    def record(self, made: KeptPlanner) -> None:
        """Keeps in the store which planner was made of this setting."""
        self.store.record_planner(self._setting_id, made)

    def provenance(self, **figures: Any) -> dict[str, Any]:
        """No prompt text and nothing that differs between two runs of the same job."""
        subject = self.executor.subject
        return {
            "calibration": {
                **figures,
                **self.said,
                "thoroughness": self.spec.thoroughness,
                "tolerance": self.spec.amount.tolerance,
                "set_aside": self._aside,
                "schedule": dict(subject.schedule),
                "facts": dict(subject.facts),
            }
        }

    def _finish(self) -> Outcome:
        data = self.dataset()
        self._replan(data, compare=True)
        aside = self.store.all_set_aside(self._setting_id)
        if self._standing is None or data is None:
            raise CalibrationError(message("calibrate_too_few", prompts=self._complete, least=FIRST))
        progress = self.progress()
        self.listen(progress)
        reasons = tuple(one.reason for one in aside)
        return Outcome(self._standing, self._file, progress, self._stopped, data, reasons)

    def progress(self) -> Progress:
        """How far it is now."""
        tally, spec = self._tally, self.spec
        per_trajectory = sum(spec.grid)
        if tally.trajectories:
            per_trajectory = min(per_trajectory, tally.evaluations / tally.trajectories)
        over = self._stopped or self._complete == len(self._order)
        trajectories = 0 if over else sum(n for n in self._open if n > 0)
        left = round(trajectories * per_trajectory)
        seconds = tally.seconds / tally.evaluations * left if tally.renders >= 2 else None
        return Progress(
            self._complete,
            len(self._order),
            tally.renders,
            tally.evaluations,
            left,
            seconds,
            self._aside,
            self._standing,
            tally.seconds,
            tally.measuring,
            spec.computed_steps(spec.grid) / sum(spec.grid),
            trajectories * len(spec.grid),
        )
