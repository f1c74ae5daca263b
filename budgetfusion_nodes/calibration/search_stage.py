"""Before the calibration proper: looks for a nested schedule on a few prompts, with what was seen kept in the store.

Dense runs find the commit point, metrics without a reference a short prefix (`schedule_search`). One picture at a
time; of each only numbers and a small copy are kept, so that a search that was cut off goes on, and one that has ended
is never made again. Knows no host.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.curves import METRICS, FloatArray
from ..core.messages import Message, message
from ..core.schedule import STOCK, NestedSchedule, SigmaQuantile, Sigmas
from ..metrics.clip_score import NAME as CLIP_SCORE
from .prompts import CalibrationPrompt
from .schedule_search import (
    COARSE_TAIL,
    PREFIXES,
    Measure,
    Trial,
    commit_candidates,
    commit_runs,
    find_commit,
    find_prefix,
    worsening,
)
from .search_store import Found, Look, SearchStore, run_digest
from .spec import CRUDEST
from .trajectory import RenderError

log = logging.getLogger(__name__)

QUALITY = 0.9
"""A picture below it, in units of the crudest one's distances, is another one."""
L_SNR_TOLERANCE = 0.1
"""dB."""
ENCODER_TOLERANCE, PLAIN_TOLERANCE = 0.01, 0.03
"""Of kernel distances between sets: in an encoder's features, and in standardised plain ones, where it is a shift of a
tenth of a standard deviation."""
CLIP_TOLERANCE = 0.01
"""Of the dense runs' mean CLIP score."""
TARGET_TAIL = 20
"""Steps of the tail with which a prefix is judged, at most; more change no picture that eyes or metrics can tell."""
PAIRS = 10
"""Prompts whose pictures the report shows."""
LEAST_PROMPTS = 8
PLAIN = ("low-pass", "spectrum")
ENCODER = "i_clip"


class _FewerPrompts(Exception):
    """One was left out while a prefix was rendered."""


class Looker(Protocol):
    """Renders and judges pictures along any sigmas: the host's, or a test's."""

    quantile: SigmaQuantile
    tail_end: float

    def stock(self, steps: int) -> Sigmas:
        """The scheduler's own sigmas [n + 1]."""
        ...

    def looks(
        self, text: str, seed: int, dense: Sigmas, runs: Sequence[Sigmas], kept: bytes | None
    ) -> Iterator[tuple[Sigmas, Look]]:
        """Each of `runs`, in their order; before them the dense one unless its latent is `kept`. RenderError where a
        render failed twice."""
        ...


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is; what a `Job` tells of itself, for the same listener."""

    done: int
    total: int
    """Pictures, as far as it is known."""
    evaluations: int
    left: int
    """Steps."""
    seconds_left: float | None = None
    """None before two pictures were timed."""
    prompts: int = 0
    wanted: int = 0
    standing: None = None

    def messages(self) -> tuple[Message, ...]:
        found = [message("calibrate_search", done=self.done, total=self.total)]
        if self.seconds_left is not None:
            found.append(message("calibrate_minutes", minutes=max(1, round(self.seconds_left / 60.0))))
        elif self.left:
            found.append(message("calibrate_search_cost", evaluations=self.left))
        return tuple(found)


@dataclass
class ScheduleSearch:
    """One search. `run` may be left at any moment by an exception; a new one goes on."""

    kept: SearchStore
    looker: Looker
    prompts: Sequence[tuple[int, CalibrationPrompt]]
    """(row in the store, prompt)."""
    seeds: int
    target: int
    listen: Callable[[SearchProgress], None] = lambda progress: None
    _rows: list[list[dict[str, Look]]] = field(default_factory=list, init=False)
    """[P][S] what was seen of each prompt and seed."""
    _alive: list[int] = field(default_factory=list, init=False)
    _left_out: list[str] = field(default_factory=list, init=False)
    """The reason of each prompt that is left out."""
    _done: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _ahead: int = field(default=0, init=False)
    """Steps that are not open yet and may be, at most."""

    def run(self) -> Found:
        """The commit point with the prefix to take, or the stock schedule. Either is kept, but not that there is no
        nested one where a prompt was left out: with it there may be, so the next queue looks again."""
        self._rows = [[self.kept.looks(row, p.seed(s)) for s in range(self.seeds)] for row, p in self.prompts]
        self._alive = list(range(len(self.prompts)))
        found = self._search()
        left_out = {"left_out": Counter(self._left_out)} if self._left_out else {}
        found = replace(found, tables={**found.tables, "asked": len(self.prompts), **left_out})
        if found.schedule != STOCK or not left_out:
            self.kept.keep(found)
        return found

    def _search(self) -> Found:
        looker = self.looker
        dense, crude = looker.stock(self.target), looker.stock(CRUDEST)
        runs = commit_runs(looker.quantile, dense, commit_candidates(looker.quantile), looker.tail_end)
        self._ahead = sum(min(p + TARGET_TAIL, self.target) for p in self._prefixes) * self.seeds * len(self._alive)
        self._prepare(dense, [crude, *runs.values()])
        if len(self._alive) < LEAST_PROMPTS:
            return Found(STOCK, {"prompts": len(self._alive)})
        scale = np.median(self._distances(self._seen(crude)), axis=0)

        def missed(pictures: list[Look], _: list[Look]) -> NDArray[np.bool_]:
            return (self._distances(pictures) / scale).max(axis=1) > 1.0 - QUALITY

        commit, shares = find_commit(self._seen, self._seen(dense), missed, runs)
        renders = len(self._alive) * self.seeds
        tables: dict[str, Any] = {
            "prompts": len(self._alive),
            "seeds": self.seeds,
            "target": self.target,
            "commit": [[sigma, share, *share_interval(share, renders)] for sigma, share in sorted(shares.items())],
        }
        if commit is None:
            return Found(STOCK, tables)
        return self._with_prefix(NestedSchedule(1, float(f"{commit:.3g}"), looker.tail_end), dense, tables)

    def _with_prefix(self, start: NestedSchedule, dense: Sigmas, tables: dict[str, Any]) -> Found:
        """Every prefix is judged by the same prompts: where one fails, all begin again with those that are left, and
        nothing is rendered again. The commit point stands, since each of its runs was seen of every prompt."""
        self._ahead = 0
        while True:
            if len(self._alive) < LEAST_PROMPTS:
                return Found(STOCK, {"prompts": len(self._alive)})
            with suppress(_FewerPrompts):
                found, trials = self._find_prefix(start, dense)
                break
        tables["prompts"] = len(self._alive)
        tables["sigma_commit"] = start.sigma_commit
        tables["prefixes"] = [_row(trial) for trial in trials]
        tables["limits"] = {name: found.tolerance for name, found in trials[0].worsening.items()}
        if found is None:
            return Found(STOCK, tables)
        target = found.sigmas(trials[-1].target_steps, self.looker.quantile)
        return Found(found.to_text(), {**tables, "pairs": [run_digest(dense), run_digest(target)]})

    def _find_prefix(self, start: NestedSchedule, dense: Sigmas) -> tuple[NestedSchedule | None, tuple[Trial, ...]]:
        before, prompts = self._seen(dense), len(self._alive)

        def render(sigmas: Sigmas) -> list[Look]:
            self._prepare(dense, [sigmas])
            if len(self._alive) < prompts:
                raise _FewerPrompts
            return self._seen(sigmas)

        return find_prefix(
            render,
            self.looker.quantile,
            before,
            start,
            measures(before, prompts, self._scored),
            prompts,
            prefixes=self._prefixes,
            target_tail=TARGET_TAIL,
            most_steps=self.target,
        )

    # ------------------------------------------------------------------------------------------------------ rendering

    def _prepare(self, dense: Sigmas, runs: Sequence[Sigmas]) -> None:
        """Renders what is not there yet, prompt by prompt, so that runs of one beginning share its evaluations."""
        self._tell(runs)
        for place in list(self._alive):
            row, prompt = self.prompts[place]
            try:
                for index in range(self.seeds):
                    self._trajectory(row, prompt, index, self._rows[place][index], dense, runs)
            except RenderError as error:
                said = "BudgetFusion leaves the store's prompt %d out of the search for a nested schedule: %s"
                log.warning(said, row, error)  # the number: texts are kept only where that was asked for
                self._alive.remove(place)
                self._left_out.append(str(error))

    def _trajectory(
        self,
        row: int,
        prompt: CalibrationPrompt,
        index: int,
        seen: dict[str, Look],
        dense: Sigmas,
        runs: Sequence[Sigmas],
    ) -> None:
        missing = [sigmas for sigmas in runs if run_digest(sigmas) not in seen]
        if not missing:
            return
        known, seed = seen.get(run_digest(dense)), prompt.seed(index)
        for sigmas, look in self.looker.looks(prompt.text, seed, dense, missing, known.latent if known else None):
            self.kept.record(row, seed, run_digest(sigmas), look)
            seen[run_digest(sigmas)] = look
            self._done += 1
            self._steps += len(sigmas) - 1
            self._seconds += look.seconds
            self._tell(runs)

    def _tell(self, runs: Sequence[Sigmas]) -> None:
        open_runs = [
            len(sigmas) - 1
            for place in self._alive
            for seen in self._rows[place]
            for sigmas in runs
            if run_digest(sigmas) not in seen
        ]
        left = sum(open_runs) + self._ahead
        seconds = self._seconds / self._steps * left if self._done >= 2 else None
        self.listen(SearchProgress(self._done, self._done + len(open_runs), self._steps, left, seconds))

    @property
    def _prefixes(self) -> list[int]:
        """That leave room for a tail."""
        return [p for p in PREFIXES if p + COARSE_TAIL <= self.target]

    @property
    def _scored(self) -> bool:
        """Whether every picture has a CLIP score; those of a search that an older version began have none."""
        rows = [seen for place in self._alive for seen in self._rows[place]]
        return all(CLIP_SCORE in look.distances for seen in rows for look in seen.values())

    def _seen(self, sigmas: Sigmas) -> list[Look]:
        """[N] of every prompt and seed that is left."""
        return [seen[run_digest(sigmas)] for place in self._alive for seen in self._rows[place]]

    @staticmethod
    def _distances(looks: Sequence[Look]) -> FloatArray:
        """[N, M] in the order of METRICS."""
        names = [name for name in METRICS if name in looks[0].distances]
        return np.array([[look.distances[name] for name in names] for look in looks])


def measures(dense: Sequence[Look], prompts: int, scored: bool) -> dict[str, Measure]:
    """What a prefix's target is judged by, none of it with the dense picture of the same seed.

    dense: of each of P prompts the seeds one after the other; scored: whether all pictures have a CLIP score.
    """
    found = {"L-SNR": Measure(lambda looks: np.array([look.l_snr for look in looks]), L_SNR_TOLERANCE, "other")}
    if scored:
        level = worsening(Measure(_short_of_prompt, 0.0), _short_of_prompt(dense), np.zeros(len(dense)), prompts)
        if level.high < 0.0:  # else picture and text encoder share no space, and the scores tell nothing
            found["CLIP score"] = Measure(_short_of_prompt, -CLIP_TOLERANCE * level.value)
    for name in sorted(dense[0].features):  # from the store they come in another order
        tolerance = ENCODER_TOLERANCE if name == ENCODER else PLAIN_TOLERANCE
        found[name] = Measure(_features(name, dense), tolerance, "set")
    return found


def _short_of_prompt(looks: Sequence[Look]) -> FloatArray:
    """[N], larger is worse."""
    return -np.array([look.distances[CLIP_SCORE] for look in looks])


def _features(name: str, dense: Sequence[Look]) -> Callable[[Sequence[Look]], FloatArray]:
    """[N, D]: an encoder's with length sqrt(D), plain ones in standard deviations of the dense runs."""
    known = np.array([look.features[name] for look in dense], np.float64)
    middle, spread = known.mean(axis=0), known.std(axis=0) + 1e-6

    def values(looks: Sequence[Look]) -> FloatArray:
        rows = np.array([look.features[name] for look in looks], np.float64)
        if name != ENCODER:
            return (rows - middle) / spread
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) * rows.shape[1] ** 0.5

    return values


def share_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    hits = round(share * count)
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def _row(trial: Trial) -> dict[str, Any]:
    found = {name: [w.value, w.low, w.high] for name, w in trial.worsening.items()}
    return {"prefix": trial.schedule.prefix_steps, "worsening": found, "accepted": trial.accepted}


def settled(found: Found | None, prompts: int) -> bool:
    """Whether what was found stands when a search on so many prompts is asked for.

    A nested schedule does; that there is none does not where more prompts may show one.
    """
    return found is not None and (found.schedule != STOCK or found.tables["asked"] >= prompts)


def said(found: Found) -> tuple[Message, ...]:
    """The search in sentences: what was found, every commit point and prefix that was tried, and the limits."""
    tables = found.tables
    rows = [
        message(
            "calibrate_search_sigma", sigma=f"{sigma:.3g}", tail=COARSE_TAIL, share=f"{share:.0%}", high=f"{high:.0%}"
        )
        for sigma, share, _low, high in reversed(tables.get("commit", []))
    ]
    tried = tables.get("prefixes", [])
    if tried:
        limits = ", ".join(f"{name} {limit:.3g}" for name, limit in tables["limits"].items())
        rows.append(message("calibrate_search_limits", limits=limits))
    for place, row in enumerate(tried):
        cells = ", ".join(
            f"{name} {v:+.3f} ({low:+.3f} to {high:+.3f})" for name, (v, low, high) in row["worsening"].items()
        )
        if found.schedule != STOCK and place == len(tried) - 1:
            rows.append(message("calibrate_search_taken", prefix=row["prefix"], measures=cells))
        else:
            rows.append(
                message(
                    "calibrate_search_enough" if row["accepted"] else "calibrate_search_refused",
                    prefix=row["prefix"],
                    measures=cells,
                )
            )
    left_out = tables.get("left_out", {})
    rows += [message("calibrate_left_out", count=count, reason=reason) for reason, count in left_out.items()]
    return (_verdict(found), *rows)


def _verdict(found: Found) -> Message:
    tables = found.tables
    nested = NestedSchedule.from_text(found.schedule)
    if nested is not None:
        values = {"prompts": tables["prompts"], "seeds": tables["seeds"]}
        return message("calibrate_search_found", prefix=nested.prefix_steps, sigma=nested.sigma_commit, **values)
    if "commit" not in tables:
        return message("calibrate_search_prompts", prompts=tables["prompts"], least=LEAST_PROMPTS)
    if "prefixes" not in tables:
        return message("calibrate_search_no_commit", share=f"{tables['commit'][0][1]:.0%}")
    return message("calibrate_search_no_prefix", sigma=tables["sigma_commit"])


def pairs(
    kept: SearchStore, found: Found, prompts: Sequence[tuple[int, CalibrationPrompt]]
) -> list[tuple[bytes, bytes]]:
    """Small PNGs of the dense stock target and the nested one, same seed, of up to PAIRS prompts."""
    runs: Mapping[int, Any] = dict(enumerate(found.tables.get("pairs", [])))
    if len(runs) != 2:
        return []
    seen = [kept.looks(row, prompt.seed(0)) for row, prompt in prompts[:PAIRS]]
    return [(one[runs[0]].picture, one[runs[1]].picture) for one in seen if runs[0] in one and runs[1] in one]
