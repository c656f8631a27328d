"""Whom a subscriber of the reference application tells, and how often, when its delivery is tried again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from saqkit import Event, load
from saqkit.app.announcing import Announcer
from saqkit.app.event_bus import event_queue
from saqkit.app.publishing import Publisher
from saqkit.app.store import Store, UserRow
from saqkit.app.subscribers.subscribing import KNOWN, subscribed
from saqkit.errors import UsageError
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Topology

RANK = {"model": 7, "model_name": "Nova", "rank": 1, "previous_rank": 2}


@dataclass
class Context:
    """What a handler finds as its application."""

    topology: Topology
    store: Store
    queues: dict[str, Queue]
    announcer: Announcer


async def opened(name: str, url: str, folder: Path) -> AsyncIterator[Context]:
    topology = load(name)
    queues = build_queues(topology, url)
    async with await Store.open(f"sqlite:///{folder}/data.db") as store:
        people = [UserRow(f"{role}{n}@{tenant}.example", role=role, tenant=tenant)
                  for tenant in ("north", "south") for role in ("supporter", "parent") for n in range(5)]  # fmt: skip
        await store.add_users(people)
        yield Context(topology, store, queues, Announcer(topology, store, queues))
    for queue in queues.values():
        await queue.disconnect()


@pytest.fixture
async def voting(redis_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    async for one in opened("voting", redis_url, tmp_path):
        yield one


@pytest.fixture
async def school(redis_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    async for one in opened("school-erp", redis_url, tmp_path):
        yield one


async def test_a_delivery_that_is_tried_again_queues_nobodys_email_twice(
    voting: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut short between two pages of people."""
    monkeypatch.setattr("saqkit.app.subscribers.subscriber.PAGE", 2)
    event, page = Event(type="model.rank_changed", data=RANK, tenant="north"), voting.store.audience_page
    pages = 0

    async def breaks(*args: object) -> list[int]:
        nonlocal pages
        pages += 1
        if pages == 3:
            raise ConnectionError("cut short")
        return await page(*args)  # type: ignore[arg-type]  # as the real one

    monkeypatch.setattr(voting.store, "audience_page", breaks)
    with pytest.raises(ConnectionError, match="cut short"):
        await KNOWN["on-rank-changed"].handle(voting, event)
    assert await voting.queues["email"].count("queued") == 4
    await KNOWN["on-rank-changed"].handle(voting, event)
    assert await voting.queues["email"].count("queued") == 5  # the five of north, once each


@pytest.mark.row("002.10")
async def test_another_event_is_told_again_and_that_of_no_tenant_to_all(voting: Context) -> None:
    for tenant in ("north", ""):
        event = Event(type="model.rank_changed", data=RANK, tenant=tenant)
        await KNOWN["on-rank-changed"].handle(voting, event)
    assert await voting.queues["email"].count("queued") == 15


@pytest.mark.row("004.7")
async def test_a_job_of_the_school_that_an_event_starts_is_started_once(school: Context) -> None:
    event = Event(type="class:created", data={"class_name": "7b"}, tenant="north")
    for _ in range(2):
        await KNOWN["update-records"].handle(school, event)
    assert await school.queues["academic"].count("queued") == 1
    assert await school.store.undelivered() == []


async def test_news_of_more_than_one_line_becomes_one_line(school: Context) -> None:
    event = Event(type="system:error_occurred", data={"job_type": "x", "error": "Boom:\n\tno\x1b"}, tenant="north")
    with pytest.raises(UsageError, match="error missing in its data"):
        KNOWN["tell-staff"].check(event.model_copy(update={"data": {"job_type": "x"}}))
    await school.store.add_users([UserRow("t@north.example", role="teacher", tenant="north")])
    await KNOWN["tell-staff"].handle(school, event)
    keys = [job.kwargs async for job in school.queues["notifications"].iter_jobs()]
    assert [given["news"] for given in keys if given] == ["x has failed for good: Boom: no"]


def test_events_have_a_queue_of_their_own_or_that_of_the_first_job_that_a_topic_starts() -> None:
    queues = {name: event_queue(load(name)) for name in ("voting", "school-erp", "course-platform")}
    assert queues == {
        "voting": "events",
        "school-erp": "academic",
        "course-platform": load("course-platform").entry_queue,
    }


def test_a_topology_without_subscribers_has_no_bus(redis_url: str) -> None:
    topology = load("school-events")
    assert subscribed(topology, build_queues(topology, redis_url), {}) is None


@pytest.mark.row("002.11")
async def test_an_application_publishes_once_and_gives_ids_of_its_own(voting: Context) -> None:
    publisher = Publisher(voting.announcer)
    envelope = {"user": 1, "id": "reward-9", "correlation_id": "request-3", "patience_s": 5.0}
    sent = [await publisher.publish("reward.earned", {"reward": 4, "reward_name": "Cup"}, **envelope) for _ in range(2)]
    assert [(one.new, one.enqueued) for one in sent] == [(True, True), (False, False)]
    assert sent[0].row == sent[1].row
    job = await voting.queues["events"].job("event:|reward-9")
    assert job is not None
    assert (job.meta["event_id"], job.meta["correlation_id"]) == ("reward-9", "request-3")
    assert await voting.queues["events"].count("queued") == 1
