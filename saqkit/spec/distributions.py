"""Distributions of times, sampled by inverting their distribution function.

Both engines turn the *same* uniform number into a time by `quantile`, so that a real run and its simulation can be
given identical draws. The families are in `saqkit.spec.families`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from saqkit.spec.base import Part
from saqkit.spec.families import SHORTEST_S, Constant, Empirical, Exponential, Gamma, Lognormal
from saqkit.spec.inverting import rising_root, rising_roots
from saqkit.spec.percentiles import Percentiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "AnyDistribution",
    "Constant",
    "Distribution",
    "Empirical",
    "Exponential",
    "Gamma",
    "Lognormal",
    "Mixture",
    "Percentiles",
    "parse_distribution",
]

Component = Annotated[Constant | Exponential | Lognormal | Gamma | Empirical | Percentiles, Field(discriminator="kind")]


class Mixture(Part):
    """A share `weights[i]` of the times is from `components[i]`, which may be of every kind but a mixture again.

    Its quantile inverts the sum of the components' distribution functions, to 12 digits.
    """

    kind: Literal["mixture"] = "mixture"
    weights: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    components: Annotated[tuple[Component, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Mixture:
        if len(self.weights) != len(self.components):
            raise ValueError(f"{len(self.weights)} weights for {len(self.components)} components: one for each")
        if abs((total := math.fsum(self.weights)) - 1) > 1e-6:
            raise ValueError(f"the weights add up to {total:.6g}, not to 1")
        return self

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        total = math.fsum(self.weights)
        return tuple(weight / total for weight in self.weights)

    @property
    def mean_s(self) -> float:
        """Mean in seconds."""
        return math.fsum(share * part.mean_s for share, part in zip(self._shares, self.components, strict=True))

    def cdf(self, t_s: Any, above: bool = False) -> Any:
        """Probability of at most `t_s` seconds, or of more (`above`); of a number or an array."""
        total: Any = 0.0
        for share, part in zip(self._shares, self.components, strict=True):
            total = total + share * part.cdf(t_s, above)
        return total

    @cached_property
    def levels(self) -> list[float]:
        """Times that have a share of their own, besides densities, in order."""
        return sorted({level for part in self.components for level in part.levels})

    @cached_property
    def _reached(self) -> tuple[list[float], list[float]]:
        """The probability of less than each of the levels, and of at most it."""
        return [float(self.cdf(math.nextafter(x, -1))) for x in self.levels], [float(self.cdf(x)) for x in self.levels]

    def quantile(self, u: float) -> float:
        """The time in seconds at probability `u` (0 < u < 1)."""
        ends = [part.quantile(u) for part in self.components]
        low, high, levels, (less, at_most) = min(ends), max(ends), self.levels, self._reached
        if (n := bisect_left(at_most, u)) < len(levels):
            if less[n] < u:
                return levels[n]
            high = min(high, levels[n])
        low = max(low, levels[n - 1]) if n else low
        if low >= high:
            return high

        def excess(log: float) -> float:
            # Of a share near 1 the rest has more digits.
            return 1 - u - float(self.cdf(math.exp(log), True)) if u > 0.5 else float(self.cdf(math.exp(log))) - u

        found = rising_root(excess, *(math.log(max(end, SHORTEST_S)) for end in (low, high)))
        return min(max(math.exp(found), low), high)

    def quantiles(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """`quantile` for an array."""
        import numpy as np

        ends = [part.quantiles(u) for part in self.components]
        low, high = np.minimum.reduce(ends), np.maximum.reduce(ends)
        less, at_most = map(np.asarray, self._reached)
        levels = np.array([0.0, *self.levels, np.inf])
        n = np.searchsorted(at_most, u) + 1
        on_level = np.append(less, np.inf)[n - 1] < u
        high = np.minimum(high, levels[n])
        low = np.minimum(np.where(on_level, high, np.maximum(low, levels[n - 1])), high)
        above, rest = u > 0.5, 1 - u  # of a share near 1 the rest has more digits

        def excess(logs: NDArray[np.float64], of: NDArray[np.int64]) -> NDArray[np.float64]:
            times, upper, result = np.exp(logs), above[of], np.empty(len(of))
            result[upper] = rest[of][upper] - self.cdf(times[upper], True)
            result[~upper] = self.cdf(times[~upper]) - u[of][~upper]
            return result

        found = rising_roots(excess, *(np.log(np.maximum(end, SHORTEST_S)) for end in (low, high)))
        return np.minimum(np.maximum(np.exp(found), low), high)


Distribution = Annotated[
    Constant | Exponential | Lognormal | Gamma | Empirical | Percentiles | Mixture, Field(discriminator="kind")
]
AnyDistribution = Constant | Exponential | Lognormal | Gamma | Empirical | Percentiles | Mixture


def parse_distribution(data: dict[str, Any]) -> AnyDistribution:
    """The distribution that `to_dict` of one gave; raises `DescriptionError`."""

    class _Holder(Part):
        distribution: Distribution

    return _Holder.parse({"distribution": data}).distribution
