"""Two-alternative forced choice: how many pairs an observer told apart, and at which quality they stop telling.

Who cannot tell two pictures apart chooses each half of the time, so n choices of which k fell on the better picture are
binomial with p >= 1/2, and what is beyond a half was told apart (Abbott's correction for guessing: 2 p - 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

GUESS = 0.5
"""Chance of the better picture where nothing is seen."""
LAPSE = 0.02
"""Chance of a slip of the hand where everything is seen; an observer's slips must not move the threshold (Wichmann &
Hill 2001, "The psychometric function I", who bound it by .06)."""
CONFIDENCE = 0.95
LEAST_CHOICES = 20
"""Below, no threshold is stated: with fewer the interval covers most of the slider whatever was chosen."""
LEAST_VALUES = 2

_MU = np.linspace(0.3, 1.1, 161)
_SPREAD = np.geomspace(0.01, 0.3, 25)
"""Grid of the threshold and of the width over which an observer goes from telling all to telling none; in quality."""

Verdict = Literal["told", "untold", "reversed"]


def clopper_pearson(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact interval for the chance behind k of n (Clopper & Pearson 1934, by quantiles of the beta law)."""
    from scipy.special import betaincinv

    tail = (1.0 - confidence) / 2.0
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1.0 - tail))
    return low, high


@dataclass(frozen=True)
class Tally:
    """Choices at one slider value."""

    n: int
    right: int
    """How many fell on the better picture."""
    coins: int = 0
    """How many of n a coin decided, because the observer saw no difference."""

    @property
    def interval(self) -> tuple[float, float]:
        """Of the chance to choose the better picture."""
        return clopper_pearson(self.right, self.n)

    @property
    def told(self) -> tuple[float, float, float]:
        """How many of n were told apart, with its interval: (estimate, low, high), 0 to n."""
        shares = (self.right / self.n, *self.interval)
        estimate, low, high = (self.n * max(0.0, 2.0 * share - 1.0) for share in shares)
        return estimate, low, high

    @property
    def verdict(self) -> Verdict:
        """Whether the interval leaves a half out; `reversed`: the other picture was preferred."""
        low, high = self.interval
        return "told" if low > GUESS else "reversed" if high < GUESS else "untold"


@dataclass(frozen=True)
class Threshold:
    """The quality from which on an observer tells fewer than half of the pairs apart."""

    quality: float | None = None
    """Where both ends of its interval are known."""
    low: float | None = None
    """None where the tested slider values do not bound it from below."""
    high: float | None = None


def fit_threshold(tallies: Mapping[float, Tally]) -> Threshold:
    """From choices at several slider values.

    P(better | q) = 1/2 + (1/2 - LAPSE) / (1 + exp((q - mu) / spread)): the logistic psychometric function of a
    two-alternative forced choice, which falls as quality rises. Flat priors over a grid of mu and log spread; the
    median of mu's posterior and its central interval. An end outside the tested values is not stated, because there it
    would be the prior that speaks.
    """
    values = np.array(sorted(tallies))
    n = np.array([tallies[q].n for q in values])
    if len(values) < LEAST_VALUES or n.sum() < LEAST_CHOICES:
        return Threshold()
    k = np.array([tallies[q].right for q in values])
    z = (values - _MU[:, None, None]) / _SPREAD[:, None]  # [mu, spread, value]
    p = GUESS + (1.0 - GUESS - LAPSE) / (1.0 + np.exp(np.clip(z, -50.0, 50.0)))
    likelihood = (k * np.log(p) + (n - k) * np.log1p(-p)).sum(-1)
    posterior = np.exp(likelihood - likelihood.max()).sum(1)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, median, high = np.interp((tail, 0.5, 1.0 - tail), np.cumsum(posterior) / posterior.sum(), _MU)
    known = low >= values[0], high <= values[-1]
    return Threshold(
        float(median) if all(known) else None, float(low) if known[0] else None, float(high) if known[1] else None
    )
