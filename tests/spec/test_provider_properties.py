"""A provider's rate, connections and circuit breaker as a description says them, and as they are shown."""

from __future__ import annotations

from typing import Any

import pytest

from saqkit.errors import DescriptionError
from saqkit.spec.overriding import override, parse_assignment
from saqkit.spec.showing import bounds, describe
from saqkit.spec.topology import Provider, load

SCHOOL = load("school-events")
QUOTA = {
    "providers.email.rate": {"limit": 14},
    "providers.email.connections": 3,
    "providers.email.breaker": {"failures": 5, "reset_s": 20},
}


def test_without_them_nothing_stands_before_a_provider() -> None:
    assert not Provider().guarded
    assert not SCHOOL.providers["email"].guarded
    for field in ({"rate": {"limit": 1}}, {"connections": 1}, {"breaker": {}}):
        assert Provider.parse(field).guarded


def test_their_defaults() -> None:
    provider = Provider.parse({"rate": {"limit": 14}, "breaker": {}})
    assert provider.rate is not None
    assert provider.rate.period_s == 1.0
    assert provider.breaker is not None
    assert (provider.breaker.failures, provider.breaker.reset_s) == (5, 30.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rate": 14}, "rate: should be a table (given: 14)"),
        ({"rate": {"period_s": 1}}, "rate.limit: is missing"),
        ({"rate": {"limit": 0}}, "rate.limit: should be greater than 0 (given: 0)"),
        ({"rate": {"limit": 1, "period_s": 0}}, "rate.period_s: should be greater than 0 (given: 0)"),
        ({"rate": {"limit": 1, "unit": "users"}}, 'rate.unit: unknown key "unit"'),
        ({"limit": 14}, 'limit: unknown key "limit" (did you mean "rate.limit"?)'),
        ({"rate_limit": {"limit": 14}}, 'rate_limit: unknown key "rate_limit" (did you mean'),
        ({"connections": 0}, "connections: should be greater than 0 (given: 0)"),
        ({"connections": True}, "connections: should not be true or false (given: true)"),
        ({"breaker": {"failures": 0}}, "breaker.failures: should be greater than 0 (given: 0)"),
        ({"breaker": {"reset": 30}}, 'breaker.reset: unknown key "reset" (did you mean "reset_s"?)'),
        ({"breaker": {"reset_s": -1}}, "breaker.reset_s: should be greater than 0 (given: -1)"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        Provider.parse(fields)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_they_are_set_and_taken_away_by_their_paths() -> None:
    words = ["providers.email.rate.limit=14", "providers.email.connections=2", "providers.email.breaker.reset_s=5"]
    changed = override(SCHOOL, map(parse_assignment, words))
    email = changed.providers["email"]
    assert email.rate is not None
    assert email.breaker is not None
    assert (email.rate.limit, email.connections, email.breaker.reset_s) == (14, 2, 5.0)
    gone = override(changed, {f"providers.email.{name}": "none" for name in ("rate", "connections", "breaker")})
    assert gone == SCHOOL


def test_they_are_shown_and_bound_what_can_be_sent() -> None:
    topology = override(SCHOOL, QUOTA)
    text = describe(topology)
    for words in (
        "timeout 30 s; at most 14 sends in any 1 s; 3 at once in each worker process; after 5 failures in a row left "
        "alone for 20 s",
        "provider email: at most 14 sends/s, over all processes",
        "provider email: 3 connections ÷ 0.075 s = at most 40 sends/s per worker process",
    ):
        assert words in text
    found = {bound["at"]: bound["users_per_s"] for bound in bounds(topology)}
    assert found["providers.email.rate"] == 14
    assert found["providers.email.connections"] == pytest.approx(40)
    assert "sends in any" not in describe(SCHOOL)
