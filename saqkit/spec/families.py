"""Families of distributions of times: each has its quantile, by which it is drawn from, and its probabilities."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from saqkit.spec.base import Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NORMAL = NormalDist()
# Narrower than a millionth is a constant, and beyond 20 nearly all times would be 0.
Variation = Annotated[float, Field(ge=1e-6, le=20)]
SHORTEST_S = 1e-300
"""Stands for 0 where a logarithm is taken."""


class Constant(Part):
    """Always `mean_s` seconds."""

    kind: Literal["constant"] = "constant"
    mean_s: NonNegativeFloat

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        return self.mean_s

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np

        return np.full_like(u, self.mean_s)

    @property
    def levels(self) -> list[float]:
        """Times that have a share of their own, besides densities: the only one."""
        return [self.mean_s]

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        return ((t_s < self.mean_s) if above else (t_s >= self.mean_s)) * 1.0


class Exponential(Part):
    """Exponential with mean `mean_s` seconds."""

    kind: Literal["exponential"] = "exponential"
    mean_s: NonNegativeFloat

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        return -self.mean_s * math.log1p(-u)

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np

        return -self.mean_s * np.log1p(-u)

    @property
    def levels(self) -> list[float]:
        """Times that have a share of their own, besides densities: none but a mean of 0."""
        return [] if self.mean_s else [0.0]

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        import numpy as np

        if not self.mean_s:
            return ((t_s < 0) if above else (t_s >= 0)) * 1.0
        if isinstance(t_s, float):
            return math.exp(-max(t_s, 0.0) / self.mean_s) if above else -math.expm1(-max(t_s, 0.0) / self.mean_s)
        turns = np.maximum(t_s, 0.0) / self.mean_s
        return np.exp(-turns) if above else -np.expm1(-turns)


class Lognormal(Part):
    """Lognormal with mean `mean_s` seconds and coefficient of variation `cv` (standard deviation over mean)."""

    kind: Literal["lognormal"] = "lognormal"
    mean_s: PositiveFloat
    cv: Variation = 0.5

    @cached_property
    def _shape(self) -> tuple[float, float]:
        variance = math.log1p(self.cv**2)
        return math.log(self.mean_s) - variance / 2, math.sqrt(variance)

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        mu, sigma = self._shape
        return math.exp(mu + sigma * _NORMAL.inv_cdf(u))

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np
        from scipy.special import ndtri

        mu, sigma = self._shape
        result: NDArray[np.float64] = np.exp(mu + sigma * ndtri(u))
        return result

    @property
    def levels(self) -> list[float]:
        """Times that have a share of their own, besides densities: none."""
        return []

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        import numpy as np
        from scipy.special import ndtr

        mu, sigma = self._shape
        if isinstance(t_s, float):
            score = (math.log(max(t_s, SHORTEST_S)) - mu) / sigma
            return math.erfc((score if above else -score) / math.sqrt(2)) / 2
        score = (np.log(np.maximum(t_s, SHORTEST_S)) - mu) / sigma
        return ndtr(-score) if above else ndtr(score)


class Gamma(Part):
    """Gamma with mean `mean_s` seconds and coefficient of variation `cv`."""

    kind: Literal["gamma"] = "gamma"
    mean_s: PositiveFloat
    cv: Variation = 0.5

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        from scipy.special import gammaincinv

        return float(gammaincinv(1 / self.cv**2, u)) * self.mean_s * self.cv**2

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np
        from scipy.special import gammaincinv

        result: NDArray[np.float64] = np.asarray(gammaincinv(1 / self.cv**2, u) * self.mean_s * self.cv**2, np.float64)
        return result

    @property
    def levels(self) -> list[float]:
        """Times that have a share of their own, besides densities: none."""
        return []

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        import numpy as np
        from scipy.special import gammainc, gammaincc

        least = max(t_s, 0.0) if isinstance(t_s, float) else np.maximum(t_s, 0.0)
        turns = least / (self.mean_s * self.cv**2)
        return gammaincc(1 / self.cv**2, turns) if above else gammainc(1 / self.cv**2, turns)


class Empirical(Part):
    """The times of a sample, linear between its order statistics.

    `values_s` are kept sorted; the quantile at u interpolates at u·(n-1), numpy's default definition.
    """

    kind: Literal["empirical"] = "empirical"
    values_s: Annotated[list[NonNegativeFloat], Field(min_length=1)]

    @field_validator("values_s", mode="after")
    @classmethod
    def _sorted(cls, values: list[float]) -> list[float]:
        return sorted(values)

    @property
    def mean_s(self) -> float:
        """Mean of the interpolated distribution in seconds."""
        v = self.values_s
        return v[0] if len(v) == 1 else (sum(v) - (v[0] + v[-1]) / 2) / (len(v) - 1)

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        place = u * (len(self.values_s) - 1)
        low = int(place)
        high = min(low + 1, len(self.values_s) - 1)
        return self.values_s[low] + (place - low) * (self.values_s[high] - self.values_s[low])

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np

        result: NDArray[np.float64] = np.interp(
            u * (len(self.values_s) - 1), np.arange(len(self.values_s)), np.asarray(self.values_s)
        )
        return result

    @property
    def levels(self) -> list[float]:
        """Times that have a share of their own, besides densities: those that the sample has more than once."""
        values = self.values_s
        tied = {value for value, following in pairwise(values) if value == following}
        return sorted(tied) if len(values) > 1 else values

    @cached_property
    def _steps(self) -> tuple[NDArray[np.float64], ...]:
        """The values that differ, the last place of each, and how far in seconds and in places it is to the next."""
        import numpy as np

        values, first, count = np.unique(np.asarray(self.values_s), return_index=True, return_counts=True)
        last = (first + count - 1).astype(np.float64)
        return values, last, np.append(np.diff(values), np.inf), np.append(first[1:] - last[:-1], 0.0)

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        import numpy as np

        values, last, gap_s, places = self._steps
        at = np.searchsorted(values, t_s, "right") - 1
        most = len(self.values_s) - 1
        within = (np.minimum(t_s, values[-1]) - values[at]) / gap_s[at]  # a gap may be too narrow for its inverse
        place = (last[at] + within * places[at]) * (at >= 0) if most else (at >= 0) * 1.0
        return (max(most, 1) - place) / max(most, 1) if above else place / max(most, 1)
