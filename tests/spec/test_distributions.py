"""Distributions: their quantiles rise, their means are what they say, and arrays agree with single values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given
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
    Mixture,
    Percentiles,
    parse_distribution,
)

MEANS, CVS = st.floats(1e-6, 1e4), st.floats(0.05, 3)
SIMPLE = st.one_of(
    st.builds(Constant, mean_s=MEANS),
    st.builds(Exponential, mean_s=MEANS),
    st.builds(Lognormal, mean_s=MEANS, cv=CVS),
    st.builds(Gamma, mean_s=MEANS, cv=CVS),
    st.builds(Empirical, values_s=st.lists(st.floats(0, 1e4), min_size=1, max_size=30)),
)


@st.composite
def percentiles(draw: st.DrawFn) -> Percentiles:
    names = ["p50_s", *(name for name in ("p75_s", "p90_s", "p95_s", "p99_s", "max_s") if draw(st.booleans()))]
    names = names if len(names) > 1 else [*names, "p95_s"]
    values = sorted(draw(st.lists(MEANS, min_size=len(names), max_size=len(names))))
    return Percentiles(**dict(zip(names, values, strict=True)))


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    parts = draw(st.lists(st.one_of(SIMPLE, percentiles()), min_size=1, max_size=4))
    weights = draw(st.lists(st.floats(0.01, 1), min_size=len(parts), max_size=len(parts)))
    return Mixture(weights=tuple(weight / sum(weights) for weight in weights), components=tuple(parts))


ANY = st.one_of(SIMPLE, percentiles(), mixtures())
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
    Percentiles(p50_s=0.91, p75_s=5.1, p90_s=17.9, p95_s=22.6, p99_s=51, max_s=716),
    Percentiles(p50_s=0.1, p90_s=0.2),
    Percentiles(p50_s=1, p95_s=1, max_s=2),
    Percentiles(p50_s=1, p99_s=5, max_s=9, mean_s=1.4),
    Mixture(weights=(0.8, 0.2), components=(Lognormal(mean_s=0.05), Gamma(mean_s=2, cv=1.5))),
    Mixture(weights=(0.5, 0.5), components=(Constant(mean_s=1), Empirical(values_s=[0.3, 3, 3, 3]))),
]


@given(ANY, OPEN, OPEN)
def test_quantiles_rise_and_are_never_negative(distribution: AnyDistribution, u: float, v: float) -> None:
    low, high = sorted((u, v))
    assert 0 <= distribution.quantile(low) <= distribution.quantile(high) * (1 + 1e-12)


@given(ANY, st.lists(OPEN, min_size=1, max_size=20))
def test_arrays_agree_with_single_values(distribution: AnyDistribution, us: list[float]) -> None:
    together = distribution.quantiles(np.array(us))
    assert together.dtype == np.float64
    rtol = 1e-12 if isinstance(distribution, Mixture | Percentiles) else 1e-9
    np.testing.assert_allclose(together, [distribution.quantile(u) for u in us], rtol=rtol, atol=1e-300)


@given(ANY, OPEN)
def test_the_quantile_is_the_shortest_time_that_has_the_probability(distribution: AnyDistribution, u: float) -> None:
    time_s = distribution.quantile(u)
    later, earlier = time_s * (1 + 1e-9), time_s * (1 - 1e-9)
    assert distribution.cdf(later) >= u * (1 - 1e-9)
    assert distribution.cdf(later, above=True) <= (1 - u) * (1 + 1e-9)  # the upper tail has its digits too
    if time_s > 1e-290:
        assert distribution.cdf(earlier) <= u * (1 + 1e-9)


@given(ANY, st.lists(st.floats(0, 1e5), min_size=1, max_size=20))
@example(Empirical(values_s=[0.0, 2.3e-309]), [0.0])
def test_probabilities_of_arrays_agree_and_add_up_to_one(distribution: AnyDistribution, times: list[float]) -> None:
    together, above = distribution.cdf(np.array(times)), distribution.cdf(np.array(times), above=True)
    np.testing.assert_allclose(together + above, 1, rtol=1e-12)
    np.testing.assert_allclose(together, [distribution.cdf(time) for time in times], rtol=1e-9, atol=1e-300)
    assert ((together >= 0) & (together <= 1)).all()
    assert distribution.cdf(-1.0) == distribution.cdf(np.array([-1.0]))[0] == 0


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


def test_a_mixture_has_its_parts_in_their_shares() -> None:
    parts = (Exponential(mean_s=1), Constant(mean_s=0.5), Constant(mean_s=100))
    mixture = Mixture(weights=(0.5, 0.3, 0.2), components=parts)
    assert mixture.mean_s == pytest.approx(0.5 * 1 + 0.3 * 0.5 + 0.2 * 100)
    u = (np.arange(10_000) + 0.5) / 10_000
    times = mixture.quantiles(u)
    assert ((times == 0.5).sum(), (times == 100).sum()) == (3_000, 2_000)  # to the last digit
    for time_s in (0.1, 0.49, 0.51, 3.0):
        expected = 0.5 * -np.expm1(-time_s) + 0.3 * (time_s >= 0.5)
        assert mixture.cdf(time_s) == pytest.approx(expected, rel=1e-14)
        assert mixture.quantile(expected) == pytest.approx(time_s, rel=1e-12)


def test_a_mixture_is_exact_in_both_tails() -> None:
    two = Mixture(weights=(0.5, 0.5), components=(Exponential(mean_s=1), Exponential(mean_s=1)))
    for u in (1e-15, 1e-9, 0.3, 0.7, 1 - 1e-9, 1 - 1e-15):
        assert two.quantile(u) == pytest.approx(-np.log1p(-u), rel=1e-12)
    wide = Mixture(weights=(0.9, 0.1), components=(Lognormal(mean_s=1e-3, cv=0.1), Lognormal(mean_s=1e3, cv=0.1)))
    for u in (1e-12, 0.9 - 1e-9, 0.9 + 1e-9, 1 - 1e-12):
        assert wide.cdf(wide.quantile(u)) == pytest.approx(u, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "parts", "said"),
    [
        ((0.5, 0.4), 2, "the weights add up to 0.9, not to 1"),
        ((1.0,), 2, "1 weights for 2 components: one for each"),
        ((1.5, -0.5), 2, "weights.1: should be greater than 0 (given: -0.5)"),
        ((), 0, "weights: should have at least 1 item"),
    ],
)
def test_wrong_mixtures_are_refused(weights: tuple[float, ...], parts: int, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        Mixture(weights=weights, components=(Constant(mean_s=1),) * parts)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixture_of_mixtures_is_refused_as_a_kind_that_there_is_not() -> None:
    inner = {"kind": "mixture", "weights": [1], "components": [{"kind": "constant", "mean_s": 1}]}
    with pytest.raises(DescriptionError, match=r'components\.0\.kind: there is no kind "mixture"'):
        parse_distribution({"kind": "mixture", "weights": [1], "components": [inner]})
