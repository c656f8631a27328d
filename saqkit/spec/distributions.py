"""Distributions of times, sampled by inverting their distribution function.

Both engines turn the *same* uniform number into a time by `quantile`, so that a real run and its simulation can be
given identical draws.
"""

from __future__ import annotations

import math
from functools import cached_property
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


Distribution = Annotated[Constant | Exponential | Lognormal | Gamma | Empirical, Field(discriminator="kind")]
AnyDistribution = Constant | Exponential | Lognormal | Gamma | Empirical


def parse_distribution(data: dict[str, Any]) -> AnyDistribution:
    """The distribution that `to_dict` of one gave; raises `DescriptionError`."""

    class _Holder(Part):
        distribution: Distribution

    return _Holder.parse({"distribution": data}).distribution
