"""Which distribution a sample of times is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saqkit.spec.distributions import AnyDistribution, Constant, Empirical, Exponential, Gamma, Lognormal

FEWEST = 20
"""With fewer times families cannot be told apart."""
KNOTS = 1000
"""An empirical distribution keeps at most so many steps."""
STEADY = 0.01
"""Times that vary by less are a constant."""
NEAR = 0.02
"""A curve that is nowhere further from the sample than this share of the times fits, however large the sample is."""
PARAMETERS = {"exponential": 1, "gamma": 2, "lognormal": 2}
Z = 1.645
"""Half-width of a 90 % interval, in standard errors."""


@dataclass(frozen=True)
class Fit:
    """A distribution fitted to `samples` times, the 90 % interval of their mean, and why it was chosen.

    `aic` is Akaike's information criterion (1974) of each family that was tried, `distance` the largest distance
    between the chosen curve and that of the sample (Kolmogorov and Smirnov's D).
    """

    distribution: AnyDistribution
    samples: int
    mean_lo: float
    mean_hi: float
    why: str
    aic: Mapping[str, float] = field(default_factory=dict)
    distance: float = 0.0


def fit_times(values: NDArray[np.float64]) -> Fit:
    """Fit times in seconds, none of them negative, at least one.

    Exponential, gamma and lognormal are fitted by maximum likelihood; the one of the least AIC is taken (within 2 of
    it: the one of fewer parameters) if it agrees with the sample: D at most 1/√n, which samples of a fitted family
    exceed about one time in 20 (Lilliefors, 1967 and 1969), or at most 0.02; its mean within 5 % and its 99th
    percentile within 20 % of the sample's, or their noise. Where none agrees, and for fewer than 20 times, it is the
    sample itself.
    """
    x = np.asarray(values, float)
    n, mean, spread = len(x), float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0
    half = Z * spread / np.sqrt(n)
    low, high = max(0.0, mean - half), mean + half
    if spread <= STEADY * mean:
        return Fit(Constant(mean_s=mean), n, low, high, f"constant: varies by less than {STEADY:.0%}")
    if n < FEWEST:
        return Fit(_sample(x), n, low, high, f"empirical: {n} times are too few to tell a family")
    if (x <= 0).any():
        return Fit(_sample(x), n, low, high, f"empirical: {int((x <= 0).sum())} of {n} times are 0")
    found: dict[str, AnyDistribution] = {
        "exponential": Exponential(mean_s=mean),
        "gamma": _gamma(x),
        "lognormal": _lognormal(x),
    }
    aic = {name: 2 * PARAMETERS[name] - 2 * _log_likelihood(one, x) for name, one in found.items()}
    least = min(aic.values())
    best = min((name for name in aic if aic[name] <= least + 2), key=lambda name: (PARAMETERS[name], aic[name]))
    distance = _distance(found[best], x)
    if reason := _disagrees(found[best], x, distance):
        return Fit(_sample(x), n, low, high, f"empirical: {best} is nearest, but {reason}", aic, distance)
    others = ", ".join(f"{name} +{value - aic[best]:.0f}" for name, value in sorted(aic.items()) if name != best)
    return Fit(found[best], n, low, high, f"{best}: least AIC ({others}), D = {distance:.3f}", aic, distance)


def share(count: float, of: float) -> tuple[float, float, float]:
    """A share with its 90 % interval (Wilson, 1927)."""
    if not of:
        return 0.0, 0.0, 1.0
    p, z2 = count / of, Z * Z
    middle, half = p + z2 / (2 * of), Z * np.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    return p, float(max(0.0, (middle - half) / (1 + z2 / of))), float(min(1.0, (middle + half) / (1 + z2 / of)))


def _sample(x: NDArray[np.float64]) -> Empirical:
    kept = x if len(x) <= KNOTS + 1 else np.quantile(x, np.linspace(0, 1, KNOTS + 1))
    return Empirical(values_s=[float(value) for value in np.sort(kept)])


def _gamma(x: NDArray[np.float64]) -> Gamma:
    """The shape k solves ln k - ψ(k) = ln(mean) - mean of ln."""
    from scipy.optimize import brentq
    from scipy.special import digamma

    s = float(np.log(x.mean()) - np.log(x).mean())
    shape = float(brentq(lambda k: np.log(k) - digamma(k) - s, 1e-3, 1e8)) if 1e-8 < s < 900 else 1 / max(2 * s, 1e-8)
    return Gamma(mean_s=float(x.mean()), cv=float(np.clip(shape**-0.5, 1e-6, 20)))


def _lognormal(x: NDArray[np.float64]) -> Lognormal:
    logs = np.log(x)
    mu, variance = float(logs.mean()), float(logs.var())
    return Lognormal(
        mean_s=float(np.exp(mu + variance / 2)), cv=float(np.clip(np.sqrt(np.expm1(min(variance, 5.9))), 1e-6, 20))
    )


def _log_likelihood(family: AnyDistribution, x: NDArray[np.float64]) -> float:
    from scipy.stats import expon, gamma, lognorm

    match family:
        case Exponential():
            density = expon.logpdf(x, scale=family.mean_s)
        case Gamma():
            density = gamma.logpdf(x, family.cv**-2, scale=family.mean_s * family.cv**2)
        case Lognormal():
            sigma = float(np.sqrt(np.log1p(family.cv**2)))
            density = lognorm.logpdf(x, sigma, scale=family.mean_s * np.exp(-(sigma**2) / 2))
        case _:
            raise TypeError(f"{family!r} is not fitted by likelihood")
    return float(density.sum())


def _distance(family: AnyDistribution, x: NDArray[np.float64]) -> float:
    sample, steps = np.sort(x), np.arange(len(x) + 1) / len(x)
    curve = np.asarray(family.cdf(sample), float)
    return float(max((curve - steps[:-1]).max(), (steps[1:] - curve).max()))


def _disagrees(family: AnyDistribution, x: NDArray[np.float64], distance: float) -> str:
    """Why a family does not fit, in words; empty if it does."""
    n, mean = len(x), float(x.mean())
    if distance > max(n**-0.5, NEAR):
        return f"up to {distance:.1%} of the times lie elsewhere"
    if abs(family.mean_s - mean) > max(0.05 * mean, 3 * float(x.std()) / np.sqrt(n)):
        return f"its mean would be {family.mean_s:.3g} s, not {mean:.3g} s"
    if n >= 300:
        # By how much the 99th percentile of a sample varies is seen from its neighbours: the 98.x th and 99.x th.
        at = np.clip(0.99 + np.array([-1, 0, 1]) * 3 * np.sqrt(0.01 * 0.99 / n), 0, 1)
        low, middle, high = np.quantile(x, at)
        curve = family.quantile(0.99)
        if not min(low, middle / 1.2) <= curve <= max(high, middle * 1.2):
            return f"its 99th percentile would be {curve:.3g} s, not {middle:.3g} s"
    return ""
