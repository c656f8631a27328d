"""What an event may be, which topics there are, and what is said of those that cannot be."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

from saqkit import Bus, Event, EventTopic
from saqkit.bus.envelope import MAX_DATA_BYTES
from saqkit.bus.topics import GROUPS, RECIPIENTS, KnownTopics
from saqkit.errors import DescriptionError, SaqkitError, UsageError


@pytest.mark.row("002.10", "004.7")
def test_the_six_topics_of_voting_and_the_fourteen_of_school_erp() -> None:
    assert [len(topics) for topics in GROUPS.values()] == [6, 4, 4, 3, 3]
    assert sorted(topic for topics in GROUPS.values() for topic in topics) == sorted(EventTopic)
    assert set(RECIPIENTS) == set(GROUPS["voting"])
    assert {"vote.created", "exam:results_published", "system:error_occurred"} < KnownTopics(EventTopic)


def test_patterns_mean_topics_that_there_are() -> None:
    topics = KnownTopics([*EventTopic, "order.paid"])
    assert topics.meant("exam:*") == ("exam:created", "exam:results_published")
    assert topics.meant(["order.paid", EventTopic.GRADE_UPDATED, "grade:*"]) == ("grade:updated", "order.paid")
    assert len(topics.meant(None)) == 21
    assert KnownTopics(["a"]) == {"a", "system:error_occurred"}


@pytest.mark.row("004.8")
def test_an_event_says_what_it_is_and_begins_its_own_correlation() -> None:
    event = Event(type="grade:updated", data={"pupil": 7, "marks": [1, 2.5, None]}, tenant="a", institution="b", user=3)
    assert event.correlation_id == event.id
    assert event.causation_id == ""
    assert event.time > 1.7e9
    assert Event.from_json(event.to_json()) == event
    assert Event(type="grade:updated").id != Event(type="grade:updated").id


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tennant": "a"}, r'unknown key "tennant" \(did you mean "tenant"\?\)'),
        ({"type": "no topic"}, r"^type: is no name"),
        ({"tenant": "a b"}, r"^tenant: should be a word of at most 64 characters, without blanks and \|"),
        ({"tenant": "a\nb"}, r"^tenant: should be a word"),
        ({"id": "x|y"}, r"^id: should be a word"),
        ({"id": ""}, r"^id: should have at least 1 character"),
        ({"correlation_id": "x" * 65}, r"^correlation_id: should be a word"),
        ({"time": -1}, r"^time: should be greater than or equal to 0"),
        ({"user": True}, r"^user: should not be true or false"),
        ({"data": [1]}, r"^data: should be a table"),
        ({"data": {"at": datetime(2026, 1, 1)}}, r"^data.at: "),
        ({"data": {"n": float("nan")}}, r"^data.n: should be a finite number"),
        ({"data": {"n": 10**5000}}, r"^data: cannot be written as JSON"),
        ({"data": {"text": "x" * MAX_DATA_BYTES}}, r"^data: are 32,779 bytes of JSON, at most 32,768 fit \(pass ids"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(DescriptionError) as error:
        Event(**{"type": "grade:updated", **wrong})
    assert re.search(said, str(error.value))
    assert "\n" not in str(error.value)


async def test_an_unknown_topic_is_refused_wherever_it_is_named(bus: Bus) -> None:
    meant = r'there is no topic "exam:results_publishd" \(did you mean "exam:results_published"\?\)'
    with pytest.raises(UsageError, match=meant):
        await bus.publish("exam:results_publishd")
    with pytest.raises(UsageError, match=meant):
        await bus.publish(Event(type="exam:results_publishd"))
    with pytest.raises(UsageError, match=meant):
        await bus.publish_many([Event(type="exam:results_publishd")])
    with pytest.raises(UsageError, match=meant):
        await bus.broadcast("exam:results_publishd")
    with pytest.raises(UsageError, match=meant):
        bus.subscribe("exam:results_publishd")(handler)
    with pytest.raises(UsageError, match=meant):
        bus.history("exam:results_publishd")
    with pytest.raises(UsageError, match=meant):
        bus.live("exam:results_publishd")
    assert await bus.queue.count("incomplete") == 0


async def handler(ctx: dict[str, Any], event: Event) -> None:
    """Nothing."""


async def test_what_a_bus_cannot_do_is_said(bus: Bus) -> None:
    bus.subscribe("exam:*", name="tell")(handler)
    wrong: list[tuple[Any, str]] = [
        (lambda: bus.subscribe("exam:*", name="tell")(handler), "subscriber tell: there is one of that name"),
        (lambda: bus.subscribe("exam:*", name="a:b")(handler), "subscriber: name: is no name"),
        (lambda: bus.subscribe([])(handler), "no topic is named"),
        (lambda: bus.subscribe("exam:*", name="x", priority="urgent")(handler), 'there is no priority "urgent"'),
        (lambda: bus.subscribe("exam:*", name="x", timeout_s=0)(handler), "subscriber: timeout_s: should be greater"),
        (lambda: bus.subscribe("exam:*", name="x", tenants="a b")(handler), "tenants.0: should be a word"),
        (lambda: bus.subscribe("exam:*", name="x", tenants=5)(handler), "tenants.0: should be a valid string"),  # type: ignore[arg-type]
        (lambda: bus.subscribe(5)(handler), 'there is no topic "5"'),  # type: ignore[arg-type]
        (lambda: bus.watch(bus.queue), "no job type is named"),
        (lambda: bus.history(since=2, until=1), "since 2 is not before until 1"),
        (lambda: bus.history(since=datetime(2026, 1, 1)), "has no time zone"),
        (lambda: bus.history(since=float("nan")), "give epoch seconds"),
        (lambda: Bus(bus.queue, remember_s=0), "remember_s 0"),
        (lambda: Bus(bus.queue, history_events=1e5), "history_events 100000.0 (give a whole number)"),  # type: ignore[arg-type]
        (lambda: bus.subscribe("exam:*", name="x")(lambda ctx, event: None), "x: is no coroutine function"),  # type: ignore[arg-type,return-value]
    ]
    for call, said in wrong:
        with pytest.raises(SaqkitError) as error:
            call()
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match='there is no subscriber "tel"'):
        await bus.replay("tel")
    with pytest.raises(UsageError, match='there is no subscriber "tel"'):
        await bus.unsubscribe("tel")
    with pytest.raises(DescriptionError, match=r"event exam:created: data: should be a table \(given: 5\)"):
        await bus.publish("exam:created", 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is given whole, and data beside it"):
        await bus.publish(Event(type="exam:created"), {"a": 1})
