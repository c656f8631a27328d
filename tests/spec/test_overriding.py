"""`--set KEY=VALUE` reaches every field, and nothing that is not one."""

from __future__ import annotations

from typing import Any

import pytest

from saqkit.errors import DescriptionError
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override, parse_assignment
from saqkit.spec.topology import load

SCHOOL = load("school-events")


def leaves(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """(path, value) of every field that is no table."""
    if isinstance(data, dict) and data:
        return [leaf for name, value in data.items() for leaf in leaves(value, (*path, name))]
    if isinstance(data, list) and data:
        return [leaf for n, value in enumerate(data) for leaf in leaves(value, (*path, str(n)))]
    return [(".".join(path), data)]


@pytest.mark.parametrize(("path", "value"), leaves(SCHOOL.to_dict()))
def test_every_field_can_be_set_to_itself(path: str, value: Any) -> None:
    assert override(SCHOOL, {path: value}) == SCHOOL


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=20", 20),
        ("a.b=0.5", 0.5),
        ("a.b=none", "none"),
        ('a.b="none"', "none"),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b = { limit = 3 }", {"limit": 3}),
        ("a.b=", ""),
        ("a.b=x=y", "x=y"),
    ],
)
def test_an_assignment_is_read_as_toml_or_as_plain_text(text: str, value: Any) -> None:
    assert parse_assignment(text) == ("a.b", value)


@pytest.mark.parametrize("text", ["", "a.b", "=5", " =5"])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(DescriptionError, match="write KEY=VALUE"):
        parse_assignment(text)


def test_a_limit_can_be_taken_away_and_made_again_key_by_key() -> None:
    open_ = override(SCHOOL, {"queues.notifications.rate_limit": "none"})
    assert open_.queues["notifications"].rate_limit is None
    limit = override(
        open_, {"queues.notifications.rate_limit.limit": 20, "queues.notifications.rate_limit.unit": "users"}
    ).queues["notifications"].rate_limit  # fmt: skip
    assert limit is not None
    assert (limit.limit, limit.unit, limit.period_s) == (20, "users", 1.0)


def test_a_new_kind_drops_what_only_the_old_kind_had_and_takes_its_own_keys() -> None:
    at = "providers.email.latency"
    constant = override(SCHOOL, {f"{at}.kind": "constant"})
    assert constant.providers["email"].latency.to_dict() == {"kind": "constant", "mean_s": 0.075}
    gamma = override(SCHOOL, {f"{at}.kind": "gamma", f"{at}.cv": 1})
    assert gamma.providers["email"].latency.to_dict() == {"kind": "gamma", "mean_s": 0.075, "cv": 1.0}
    empirical = override(SCHOOL, {f"{at}.kind": "empirical", f"{at}.values_s": [0.1, 0.2]})
    assert empirical.providers["email"].latency.to_dict() == {"kind": "empirical", "values_s": [0.1, 0.2]}
    assert override(SCHOOL, {"providers.email.kind": "smtp"}).providers["email"].kind == "smtp"


def test_names_with_dots_and_numbers_of_lists_are_part_of_a_path() -> None:
    assert override(SCHOOL, {"topics.event.created.starts.0": "notify"}).topics["event.created"].starts == ("notify",)
    assert override(SCHOOL, {"job_types.notify.retry.delays_s.1": 7}).job_types["notify"].retry.delays_s == (5, 7, 125)


def test_slots_of_one_queue_can_be_set_where_none_were() -> None:
    assert override(Deployment(), {"concurrency.notifications": 7}).concurrency == {"notifications": 7}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("queues.notification.concurrency", 5, 'there is no "notification" (did you mean "notifications"?)'),
        ("queues.notifications.concurency", 5, 'there is no "concurency" (did you mean "concurrency"?)'),
        ("quues.notifications.concurrency", 5, 'there is no "quues" (did you mean "queues"?)'),
        ("queues.notifications.rate_limit.limt", 5, 'there is no "limt" (did you mean "limit"?)'),
        ("queues.notifications.concurrency.x", 5, '"concurrency" is a single value and has no "x"'),
        ("entry.1.share", 1, 'there is no "1" (known: 0)'),
        ("queues.notifications.concurrency", "ten", "should be a valid integer"),
        ("queues.notifications.concurrency", 0, "should be greater than 0 (given: 0)"),
        ("job_types.notify.priority", "hgh", 'there is no priority "hgh" (did you mean "high"?)'),
        ("providers.email.latency.mean_s", -1, "should be greater than 0 (given: -1)"),
        ("job_types.announce.fan_out.to", "x", 'there is no job type "x"'),
        ("", 1, 'there is no ""'),
    ],
)
def test_a_wrong_override_says_so_with_its_path(path: str, value: Any, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        override(SCHOOL, {path: value})
    assert caught.value.key == path
    assert str(caught.value).startswith("--set: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_original_is_untouched() -> None:
    before = SCHOOL.to_dict()
    override(SCHOOL, {"queues.notifications.concurrency": 99})
    assert SCHOOL.to_dict() == before


def test_an_override_leaves_the_given_table_alone() -> None:
    limit = {"limit": 5}
    topology = override(load("school-events"), {"queues.notifications.rate_limit": limit,
                                                "queues.notifications.rate_limit.limit": 7})  # fmt: skip
    assert topology.queues["notifications"].rate_limit.limit == 7  # type: ignore[union-attr]
    assert limit == {"limit": 5}
