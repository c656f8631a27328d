"""A distribution from percentiles alone: what a team knows of its jobs that has a dashboard and no log."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from saqkit.spec.base import Part
from saqkit.spec.families import SHORTEST_S
from saqkit.spec.inverting import rising_root

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NORMAL = NormalDist()
SHARES = {"p50_s": 0.5, "p75_s": 0.75, "p90_s": 0.9, "p95_s": 0.95, "p99_s": 0.99}
OF_A_THOUSAND = _NORMAL.inv_cdf(0.999)
"""The normal score of `max_s` where it is all that is known beside the median: the longest of a thousand."""
END = 40.0
"""No draw has a normal score beyond it."""
STEEPEST = 1000.0
"""A tail in which a standard deviation is a factor of e^1000 is at 0, or at the maximum, for every purpose."""
STEEPEST_OPEN = 50.0
"""Of a tail without a maximum, where the mean of e^1250 is no bound to anybody."""


class Percentiles(Part):
    """A distribution that has the given percentiles exactly, in seconds; `p50_s` and one number more are needed.

    Between two percentiles the logarithm of the time is linear in the normal score of its share, so that percentiles of
    a lognormal distribution give it back. The line goes on below the lowest percentile and above the highest, there up
    to `max_s`, which nothing exceeds. Where `mean_s` is given (0: not known, it then says what follows from the rest),
    the slope above the highest percentile is the one with that mean; where there is none, so is that below the lowest.
    """

    kind: Literal["percentiles"] = "percentiles"
    p50_s: PositiveFloat
    p75_s: PositiveFloat | None = None
    p90_s: PositiveFloat | None = None
    p95_s: PositiveFloat | None = None
    p99_s: PositiveFloat | None = None
    max_s: PositiveFloat | None = None
    mean_s: NonNegativeFloat = Field(default=0.0, description="0: not known")

    @model_validator(mode="after")
    def _possible(self) -> Percentiles:
        given = [(name, value) for name in (*SHARES, "max_s") if (value := getattr(self, name)) is not None]
        for (low, shorter), (high, longer) in pairwise(given):
            if longer < shorter:
                raise ValueError(f"{high} = {longer:g} is less than {low} = {shorter:g}: percentiles rise")
        if len(given) == 1 and not self.mean_s:
            raise ValueError("p50_s alone says nothing of the spread: give p95_s too, for instance, or mean_s")
        knots = self._knots  # raises if no curve has the mean
        if not self.mean_s:  # what is not given is not written either, see `_as_given`
            object.__setattr__(self, "mean_s", _mean(knots))
            self.model_fields_set.discard("mean_s")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        return data if "mean_s" in self.model_fields_set else {k: v for k, v in data.items() if k != "mean_s"}

    @cached_property
    def _knots(self) -> tuple[list[float], list[float]]:
        """Normal scores and logarithms of times between which the curve is linear, from one end to the other."""
        given = [(_NORMAL.inv_cdf(share), value) for name, share in SHARES.items() if (value := getattr(self, name))]
        scores, logs = [z for z, _ in given], [math.log(value) for _, value in given]
        top = math.inf if self.max_s is None else math.log(self.max_s)
        if len(given) > 1:
            below, above = ((logs[n + 1] - logs[n]) / (scores[n + 1] - scores[n]) for n in (0, len(given) - 2))
        elif self.max_s is not None:
            below = above = (top - logs[0]) / OF_A_THOUSAND
        else:  # the lognormal with this median and mean, if there is one
            below = above = math.sqrt(2 * max(0.0, math.log(self.mean_s) - logs[0]))

        def curve(below: float, above: float) -> tuple[list[float], list[float]]:
            reach = (top - logs[-1]) / above if above else math.inf
            if top == logs[-1]:
                ends, heights = [END], [top]
            elif scores[-1] + reach < END:
                ends, heights = [scores[-1] + reach, END], [top, top]
            else:
                ends, heights = [END], [logs[-1] + above * (END - scores[-1])]
            foot = logs[0] - below * (scores[0] + END)
            return [-END, *scores, *ends], [foot, *logs, *heights]

        if not self.mean_s:
            return curve(below, above)
        steepest = STEEPEST_OPEN if self.max_s is None else STEEPEST
        shortest = _mean(curve(STEEPEST, 0.0))
        longest = math.inf if self.max_s is None else _mean(curve(0.0, STEEPEST))
        if not shortest <= self.mean_s <= longest:
            most = f"at most {longest:.4g} s" if longest < math.inf else "bounded by nothing"
            raise ValueError(f"mean_s = {self.mean_s:g} is impossible with these percentiles: it is at least "
                             f"{shortest:.4g} s and {most}")  # fmt: skip
        above = _fitted(lambda slope: _mean(curve(below, slope)), self.mean_s, 0.0, steepest)
        if not math.isclose(_mean(curve(below, above)), self.mean_s, rel_tol=1e-9):
            below = -_fitted(lambda slope: _mean(curve(-slope, above)), self.mean_s, -STEEPEST, 0.0)
        return curve(below, above)

    @cached_property
    def _slopes(self) -> list[float]:
        """Of the line that ends at each knot."""
        scores, logs = self._knots
        return [0.0, *((logs[n] - logs[n - 1]) / (scores[n] - scores[n - 1]) for n in range(1, len(logs)))]

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        z, (scores, logs) = _NORMAL.inv_cdf(u), self._knots
        n = bisect_left(scores, z)
        return self._bounded(math.exp(logs[n] + self._slopes[n] * (z - scores[n])))

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np
        from scipy.special import ndtri

        z, (scores, logs) = ndtri(u), self._knots
        n = np.searchsorted(scores, z)
        times = np.exp(np.take(logs, n) + np.take(self._slopes, n) * (z - np.take(scores, n)))
        result: NDArray[np.float64] = times if self.max_s is None else np.minimum(times, self.max_s)
        return result

    def _bounded(self, time_s: float) -> float:
        return time_s if self.max_s is None else min(time_s, self.max_s)

    @property
    def levels(self) -> list[float]:
        """Times that have a share of their own: repeated percentiles, and the maximum."""
        return [self._bounded(math.exp(low)) for low, high in pairwise(self._knots[1]) if low == high]

    @cached_property
    def _steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The logarithms that differ, the highest score of each, and scores per unit from there to the next."""
        import numpy as np

        scores, logs = self._knots
        last = [n for n in range(len(logs)) if n == len(logs) - 1 or logs[n + 1] > logs[n]]
        first = [0, *(n + 1 for n in last[:-1])]
        levels, highest, lowest = np.take(logs, last), np.take(scores, last), np.take(scores, first)
        return levels, highest, np.append((lowest[1:] - highest[:-1]) / np.diff(levels), 0.0)

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        import numpy as np
        from scipy.special import ndtr

        levels, highest, slope = self._steps
        # A level is not to be missed for the last digit of its logarithm.
        log = np.log(np.maximum(t_s, SHORTEST_S)) + 1e-15
        at = np.searchsorted(levels, log, "right") - 1
        score = np.where((at < 0) | (t_s <= 0), -END, highest[at] + (log - levels[at]) * slope[at])
        return ndtr(-score) if above else ndtr(score)


def _mean(knots: tuple[list[float], list[float]]) -> float:
    """The mean of the curve through `knots`: the partial expectations of lognormal distributions."""
    from scipy.special import log_ndtr

    total, (scores, logs) = 0.0, knots
    for n in range(len(scores) - 1):
        slope = (logs[n + 1] - logs[n]) / (scores[n + 1] - scores[n])
        near, far = scores[n] - slope, scores[n + 1] - slope
        if near + far > 0:  # of two numbers near 1 the difference has few digits, of those near 0 all
            near, far = -far, -near
        share = float(log_ndtr(far)) + math.log1p(-math.exp(float(log_ndtr(near)) - float(log_ndtr(far))))
        total += math.exp(min(700.0, logs[n] - slope * scores[n] + slope * slope / 2 + share))
    return total


def _fitted(mean: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where between `low` and `high` the mean is the one that is wanted, or nearest to it."""
    return rising_root(lambda slope: math.log(mean(slope) / wanted), low, high)
