"""Percentiles alone: the curve through them, the mean that it is given, and what no curve can have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from saqkit.errors import DescriptionError
from saqkit.spec.distributions import Gamma, Lognormal, Percentiles, parse_distribution

SHARES = {"p50_s": 0.5, "p75_s": 0.75, "p90_s": 0.9, "p95_s": 0.95, "p99_s": 0.99}
TASKS = {"p50_s": 0.91, "p75_s": 5.1, "p90_s": 17.9, "p95_s": 22.6, "p99_s": 51.0, "max_s": 716.0}
GRID = (np.arange(400_000) + 0.5) / 400_000


def of(given: dict[str, Any]) -> Percentiles:
    return Percentiles(**given)


@st.composite
def known(draw: st.DrawFn) -> dict[str, float]:
    names = ["p50_s", *(name for name in ("p75_s", "p90_s", "p95_s", "p99_s", "max_s") if draw(st.booleans()))]
    values = sorted(draw(st.lists(st.floats(1e-3, 1e3), min_size=len(names), max_size=len(names))))
    return dict(zip(names, values, strict=True)) if len(names) > 1 else {"p50_s": 1.0, "p99_s": 3.0}


@given(known())
def test_every_percentile_that_is_given_comes_out_and_nothing_exceeds_the_maximum(values: dict[str, float]) -> None:
    curve = of(values)
    for name, share in SHARES.items():
        if name in values:
            assert curve.quantile(share) == pytest.approx(values[name], rel=1e-13)
    if "max_s" in values:
        assert curve.quantile(1 - 1e-16) <= values["max_s"]
        assert curve.cdf(values["max_s"]) == 1
    times = curve.quantiles(GRID[::100])
    assert (np.diff(times) >= -1e-12 * times[1:]).all()


@settings(max_examples=40)
@given(known(), st.floats(0.001, 0.999))
def test_a_mean_that_is_possible_is_met_and_the_percentiles_stay(values: dict[str, float], how_far: float) -> None:
    with pytest.raises(DescriptionError, match="is impossible") as caught:
        of({**values, "mean_s": 1e-9})
    least = float(str(caught.value).split("at least ")[1].split(" s")[0]) * 1.001
    most = 4 * values["p50_s"] + 4 * max(values.values())
    if "max_s" in values:
        with pytest.raises(DescriptionError, match="at most") as caught:
            of({**values, "mean_s": 1e9})
        most = float(str(caught.value).split("at most ")[1].split(" s")[0]) * 0.999
    wanted = least + how_far * (most - least)
    if not least < wanted < most:
        return  # all percentiles are the same
    curve = of({**values, "mean_s": wanted})
    assert curve.mean_s == wanted
    for name, share in SHARES.items():
        if name in values:
            assert curve.quantile(share) == pytest.approx(values[name], rel=1e-12)
    if "max_s" in values:  # else the mean may hang on what is beyond any draw
        normal = np.linspace(-8.2, 8.2, 100_001)
        times = curve.quantiles(np.clip(stats.norm.cdf(normal), 1e-16, 1 - 1e-16))
        found = float(np.trapezoid(times * stats.norm.pdf(normal), normal))
        assert found == pytest.approx(wanted, rel=2e-3)


def test_percentiles_of_a_lognormal_distribution_give_it_back() -> None:
    whole = Lognormal(mean_s=2, cv=1.3)
    curve = of({name: whole.quantile(share) for name, share in SHARES.items() if name != "p90_s"})
    np.testing.assert_allclose(curve.quantiles(GRID), whole.quantiles(GRID), rtol=1e-9)
    assert curve.mean_s == pytest.approx(2, rel=1e-9)
    from_mean = of({"p50_s": whole.quantile(0.5), "mean_s": 2.0})
    np.testing.assert_allclose(from_mean.quantiles(GRID), whole.quantiles(GRID), rtol=1e-9)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_percentiles_of_a_gamma_distribution_come_near_it(cv: float) -> None:
    whole = Gamma(mean_s=1, cv=cv)
    curve = of({name: whole.quantile(share) for name, share in SHARES.items()})
    inner = GRID[(GRID > 0.5) & (GRID < 0.99)]
    np.testing.assert_allclose(curve.quantiles(inner), whole.quantiles(inner), rtol=0.03 if cv <= 1 else 0.1)
    assert curve.mean_s == pytest.approx(1, rel=0.06)


def test_the_mean_that_is_not_given_is_that_of_the_curve_and_is_not_written() -> None:
    curve = of(TASKS)
    assert curve.mean_s == pytest.approx(curve.quantiles(GRID).mean(), rel=1e-3)
    assert "mean_s" not in curve.to_dict()
    assert curve.to_dict() == {"kind": "percentiles", **TASKS}
    assert parse_distribution(curve.to_dict()) == curve
    met = of({**TASKS, "mean_s": 6.0})
    assert met.to_dict() == {"kind": "percentiles", **TASKS, "mean_s": 6.0}
    assert parse_distribution(met.to_dict()) == met
    assert met.quantiles(GRID).mean() == pytest.approx(6.0, rel=1e-3)


def test_a_mean_moves_the_slowest_first_and_the_fastest_only_if_it_must() -> None:
    plain, more = of(TASKS), of({**TASKS, "mean_s": 8.0})
    assert more.quantile(0.2) == pytest.approx(plain.quantile(0.2), rel=1e-12)
    assert more.quantile(0.995) > plain.quantile(0.995)
    less = of({**TASKS, "mean_s": 4.83})
    assert less.quantile(0.995) == pytest.approx(51, rel=1e-12)
    assert less.quantile(0.2) < plain.quantile(0.2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"p75_s": 0.5}, "p75_s = 0.5 is less than p50_s = 0.91: percentiles rise"),
        ({"max_s": 50}, "max_s = 50 is less than p99_s = 51: percentiles rise"),
        ({"p50_s": None}, "p50_s: should be a valid number"),
        ({"p95_s": 0}, "p95_s: should be greater than 0 (given: 0)"),
        ({"mean_s": 3}, "mean_s = 3 is impossible with these percentiles: it is at least 4.811 s and at most 11.88 s"),
        ({"mean_s": 12}, "mean_s = 12 is impossible with these percentiles: it is at least 4.811 s and at most"),
        ({"p97_s": 30}, 'p97_s: unknown key "p97_s" (did you mean "p'),
    ],
)
def test_what_no_curve_can_have_is_said(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        of({**TASKS, **changed})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_median_is_needed_and_is_not_enough() -> None:
    with pytest.raises(DescriptionError, match="p50_s: is missing"):
        of({"p95_s": 1.0})
    with pytest.raises(DescriptionError, match="p50_s alone says nothing of the spread: give p95_s too"):
        of({"p50_s": 1.0})
    wide = of({"p50_s": 1.0, "max_s": 8.0})
    assert wide.quantile(0.999) == pytest.approx(8.0)
    assert wide.quantile(0.001) == pytest.approx(1 / 8)
    assert math.isclose(of({"p50_s": 1.0, "mean_s": 0.8}).mean_s, 0.8)
