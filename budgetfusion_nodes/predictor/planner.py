"""A planner: everything fitted for one setting, and the call that turns a prompt's conditioning into a Plan."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.messages import Message, message
from ..core.plan import (
    DEFAULT_MIN_STEPS,
    DEFAULT_QUALITY,
    DEFAULT_RISK,
    Decision,
    Plan,
    check_request,
    threshold_at,
)
from ..core.risk import RiskTable
from ..core.schedule import least_steps
from ..core.setting import Setting, differences
from .calibrated import Calibrated
from .features import ConditioningFeatures, OutOfDistribution, Projection, collate
from .network import CurvePredictor, ensemble_quantiles
from .prediction import Prediction

if TYPE_CHECKING:
    from .memory import Recalled


@dataclass(frozen=True)
class Considered:
    """What a plan is decided by."""

    prediction: Prediction
    """As memory has it."""
    decision: Decision
    alone: Decision
    """Without memory."""
    recalled: Recalled | None = None

    def steps(self, quality: float, least: int, most: int) -> tuple[int, int]:
        """(steps, those without memory)."""
        with_memory, without = (one.steps(quality, least, most) for one in (self.decision, self.alone))
        return with_memory, without


def consider(
    prediction: Prediction, thresholds: RiskTable, risk: float, recall: Callable[[Prediction], Recalled] | None = None
) -> Considered:
    """thresholds: the planner's; recall: what memory makes of the prediction."""
    alone = _decision(prediction, thresholds.thresholds(risk))
    recalled = None if recall is None else recall(prediction)
    if recalled is None:
        return Considered(prediction, alone, alone)
    known, knots = recalled.prediction, recalled.knots(risk)
    same = known is prediction and knots is None
    return Considered(known, alone if same else _decision(known, knots or alone.thresholds), alone, recalled)


def _decision(prediction: Prediction, knots: Sequence[tuple[float, float]]) -> Decision:
    return Decision.from_curves(prediction.grid, prediction.high(), prediction.quality(1), knots)


@dataclass(frozen=True, kw_only=True)
class Planner(Calibrated):
    """Fitted parts; built by fit.py or read by planner_file.load_planner."""

    scale: tuple[float, ...]
    """s_m in the metric's unit."""
    projection: Projection
    networks: tuple[CurvePredictor, ...]
    risk_table: RiskTable
    out_of_distribution: OutOfDistribution

    @property
    def risk_range(self) -> tuple[float, float]:
        return self.risk_table.alphas[0], self.risk_table.alphas[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Of what it predicts, whatever its name and thresholds are: equal for equal predictors on equal scales."""
        digest = hashlib.sha256(repr((self.grid, self.metrics, self.scale, sorted(self.backends.items()))).encode())
        parts = [*vars(self.projection).values(), *(p for n in self.networks for p in n.state_dict().values())]
        for part in parts:
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def features(self, tokens: Tensor, pooled: Tensor | None) -> ConditioningFeatures:
        return self.projection(tokens, pooled)

    def predict(self, tokens: Tensor, pooled: Tensor | None = None) -> Prediction:
        """tokens: [L, D]; pooled: [P] or None. UnsupportedError for the output of another text encoder."""
        features = self.features(tokens, pooled)
        curves = ensemble_quantiles(self.networks, collate([features]))[0]
        return Prediction(
            grid=self.grid,
            metrics=self.metrics,
            scale=self.scale,
            normalised=curves.double().numpy(),
            distance=self.out_of_distribution.score(features),
        )

    def plan(
        self,
        tokens: Tensor,
        pooled: Tensor | None = None,
        *,
        quality: float = DEFAULT_QUALITY,
        risk: float = DEFAULT_RISK,
        min_steps: int = DEFAULT_MIN_STEPS,
        max_steps: int | None = None,
        setting: Setting | None = None,
        nfe_of: Callable[[int], int] | None = None,
        recall: Callable[[Prediction], Recalled] | None = None,
    ) -> Plan:
        """The plan for one prompt. setting: the render at hand, to warn about differences; nfe_of: steps -> calls;
        recall: what memory makes of the prediction.

        Raises only InputError (a value out of range) and UnsupportedError (another text encoder).
        """
        started = time.perf_counter()
        max_steps = self.target_steps if max_steps is None else max_steps
        check_request(quality, risk, min_steps, max_steps, self.risk_range)
        min_steps = max(min_steps, min(least_steps(self.setting.schedule), max_steps))
        found = consider(self.predict(tokens, pooled), self.risk_table, risk, recall)
        prediction, decision, recalled = found.prediction, found.decision, found.recalled
        steps, without = found.steps(quality, min_steps, max_steps)
        return Plan(
            steps=steps,
            max_steps=max_steps,
            min_steps=min_steps,
            quality=quality,
            risk=risk,
            quality_predicted=decision.quality_at(steps),
            limited_by=decision.limited_by(quality),
            grid=self.grid,
            quality_low=prediction.quality(2),
            quality_median=prediction.quality(1),
            quality_high=prediction.quality(0),
            shortfall_median=prediction.shortfall_median(),
            threshold=threshold_at(decision.thresholds, quality),
            planner=self.name,
            setting=self.setting,
            warnings=self._warnings(decision, prediction, quality, risk, min_steps, max_steps, setting, pooled),
            nfe=steps if nfe_of is None else nfe_of(steps),
            seconds=time.perf_counter() - started,
            distance=prediction.distance,
            decision=decision,
            remembered=None if recalled is None else recalled.told(steps, without),
        )

    def _warnings(
        self,
        decision: Decision,
        prediction: Prediction,
        quality: float,
        risk: float,
        min_steps: int,
        max_steps: int,
        setting: Setting | None,
        pooled: Tensor | None,
    ) -> tuple[Message, ...]:
        found = [self._moved(said) or said for said in decision.limit_warnings(quality, min_steps, max_steps)]
        if not self.risk_table.enough_prompts(risk):
            found.append(message("too_few_prompts", n=self.risk_table.prompts, risk=risk, target=self.target_steps))
        if not prediction.distance <= 1.0:
            found.append(message("out_of_distribution", score=prediction.distance))
        if pooled is None and self.projection.pooled_mean.shape[0] > 0:
            found.append(message("no_pooled"))
        return (*found, *(differences(self.setting, setting) if setting is not None else ()))

    def _moved(self, said: Message) -> Message | None:
        """Why plans end where they do, in place of that they do: with more steps this model gets worse."""
        fall = self.provenance.get("calibration", {}).get("fall")
        if said.code != "max_beyond" or not isinstance(fall, Mapping):
            return None
        best, last, prompts = (fall.get(key, "?") for key in ("best", "last", "pictures"))
        return message("target_moved", best=best, last=last, prompts=prompts)
