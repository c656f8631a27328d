"""Distributions: their quantiles rise, their means are what they say, and arrays agree with single values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from saqkit.errors import DescriptionError
from saqkit.spec.distributions import (
    AnyDistribution,
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Lognormal,
    parse_distribution,
)

MEANS, CVS = st.floats(1e-6, 1e4), st.floats(0.05, 3)
ANY = st.one_of(
    st.builds(Constant, mean_s=MEANS),
    st.builds(Exponential, mean_s=MEANS),
    st.builds(Lognormal, mean_s=MEANS, cv=CVS),
    st.builds(Gamma, mean_s=MEANS, cv=CVS),
    st.builds(Empirical, values_s=st.lists(st.floats(0, 1e4), min_size=1, max_size=30)),
)
OPEN = st.floats(1e-9, 1 - 1e-9)
ONE_OF_EACH = [
    Constant(mean_s=0.075),
    Exponential(mean_s=0.075),
    Lognormal(mean_s=0.075, cv=0.5),
    Lognormal(mean_s=2, cv=1.5),
    Gamma(mean_s=0.075, cv=0.5),
    Gamma(mean_s=2, cv=1.5),
    Empirical(values_s=[0.3, 0.1, 0.1, 0.9]),
    Empirical(values_s=[0.3]),
]


@given(ANY, OPEN, OPEN)
def test_quantiles_rise_and_are_never_negative(distribution: AnyDistribution, u: float, v: float) -> None:
    low, high = sorted((u, v))
    assert 0 <= distribution.quantile(low) <= distribution.quantile(high) * (1 + 1e-12)


@given(ANY, st.lists(OPEN, min_size=1, max_size=20))
def test_arrays_agree_with_single_values(distribution: AnyDistribution, us: list[float]) -> None:
    together = distribution.quantiles(np.array(us))
    assert together.dtype == np.float64
    np.testing.assert_allclose(together, [distribution.quantile(u) for u in us], rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("distribution", ONE_OF_EACH, ids=repr)
def test_the_mean_is_the_integral_of_the_quantile(distribution: AnyDistribution) -> None:
    # u = Phi(z) spreads the tail that an integral over u would miss.
    mean, _ = integrate.quad(
        lambda z: distribution.quantile(float(stats.norm.cdf(z))) * stats.norm.pdf(z), -8, 8, limit=500
    )
    assert mean == pytest.approx(distribution.mean_s, rel=1e-3)


@pytest.mark.parametrize("distribution", [d for d in ONE_OF_EACH if isinstance(d, Lognormal | Gamma)], ids=repr)
def test_the_coefficient_of_variation_is_what_was_asked(distribution: Lognormal | Gamma) -> None:
    second, _ = integrate.quad(
        lambda z: distribution.quantile(float(stats.norm.cdf(z))) ** 2 * stats.norm.pdf(z), -8, 8, limit=500
    )
    assert np.sqrt(second - distribution.mean_s**2) / distribution.mean_s == pytest.approx(distribution.cv, rel=1e-3)


@given(MEANS, CVS, OPEN)
def test_quantiles_are_those_of_scipy(mean: float, cv: float, u: float) -> None:
    sigma2 = np.log1p(cv**2)
    lognormal = stats.lognorm(np.sqrt(sigma2), scale=mean * np.exp(-sigma2 / 2))
    gamma = stats.gamma(1 / cv**2, scale=mean * cv**2)
    assert Lognormal(mean_s=mean, cv=cv).quantile(u) == pytest.approx(lognormal.ppf(u), rel=1e-9)
    assume(gamma.ppf(u) > 1e-290)
    assert Gamma(mean_s=mean, cv=cv).quantile(u) == pytest.approx(gamma.ppf(u), rel=1e-9)
    assert Exponential(mean_s=mean).quantile(u) == pytest.approx(stats.expon.ppf(u, scale=mean), rel=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_an_empirical_quantile_is_numpys(values: list[float], u: float) -> None:
    assert Empirical(values_s=values).quantile(u) == pytest.approx(float(np.quantile(values, u)), rel=1e-9, abs=1e-12)


@given(ANY, OPEN)
def test_a_distribution_reads_back_equal_also_after_use(distribution: AnyDistribution, u: float) -> None:
    before = distribution.quantile(u)
    again = parse_distribution(distribution.to_dict())
    assert again == distribution
    assert again.quantile(u) == before


def test_a_narrow_distribution_is_its_mean_and_a_narrower_one_is_refused() -> None:
    for kind in (Lognormal, Gamma):
        assert kind(mean_s=1, cv=1e-6).quantile(0.99) == pytest.approx(1, rel=1e-4)
        with pytest.raises(DescriptionError, match=r"cv: should be greater than or equal to 0\.000001"):
            kind(mean_s=1, cv=1e-7)
