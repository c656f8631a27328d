"""Emails from a call to a mailbox: a real queue, a real worker, a real SMTP server."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from saq.job import Job

from saqkit import Queue, Topology
from saqkit.app.announcing import Announcer
from saqkit.app.audience import Audience
from saqkit.app.emails.calls import Emails
from saqkit.app.emails.catalogue import EMAIL_TYPES
from saqkit.app.emails.sending import message_id_of
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import Email, Provider, build_providers
from saqkit.app.store import Store, UserRow
from saqkit.errors import DescriptionError, TemporaryFailure, UsageError
from saqkit.queue.building import build_queues
from saqkit.queue.dead_letters import get, replay
from saqkit.queue.job import QueuedJob
from saqkit.queue.letter import DeadLetter
from saqkit.queue.submitting import NewJob
from saqkit.spec.as_toml import as_toml
from saqkit.spec.backoff import Retry
from saqkit.testing import Drained, RecordingProvider, SmtpSink, delays, drain
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
from saqkit.worker.recording import read

PRIORITIES = {"rank-update": "critical", "referral-milestone": "critical", "reward-delivery": "high",
              "progress-update": "low", "referral-join": "low"}  # fmt: skip
LANDING = "https://vote.example"
RANK: dict[str, Any] = {"model": 7, "model_name": "Nova", "rank": 2, "previous_rank": 5}


def topology(**changes: Any) -> Topology:
    """Every email type on one queue, with the priorities of the voting system."""
    types = {name: {"queue": "email", "priority": PRIORITIES.get(name, "normal"), "retry": {"max_attempts": 3},
                    "per_user": {"database": "none", "provider": "email"}} for name in EMAIL_TYPES}  # fmt: skip
    quick = {"concurrency": 5, "tick_s": 0.05, "lease_s": 1.0, "sweep_s": 0.5}
    described = {"name": "post", "entry": [{"job_type": "vote-confirmation"}], "queues": {"email": quick},
                 "job_types": types, "providers": {"email": {"sender": "Vote <no-reply@vote.example>"}}}  # fmt: skip
    return Topology.parse(described | changes)


class Post:
    """Somebody who queues emails, and a worker who sends them."""

    def __init__(self, emails: Emails, application: Application, database: str) -> None:
        self.emails, self.application, self.database = emails, application, database
        self.queue = emails.queues["email"]

    async def drain(self, **how: Any) -> Drained:
        context = {"application": self.application}
        return await drain(
            self.queue, self.application.functions(), context=context, after_process=after_process, **how
        )

    async def letter(self, key: str) -> DeadLetter:
        letter = await get(self.queue, key)
        assert letter is not None
        return letter

    async def job(self, key: str) -> Job:
        job = await self.queue.job(key)
        assert job is not None
        return job


Opened = Callable[..., Any]


@pytest.fixture
def opened(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a `Post`, by default with a provider that keeps what it is given; users 1 (Ann, north) and 2 (Bob)."""
    monkeypatch.setenv("FRONTEND_URL", LANDING)

    @asynccontextmanager
    async def open_post(
        provider: Provider | None = None, smtp: str = "", described: Topology | None = None
    ) -> AsyncIterator[Post]:
        described, database = described or topology(), f"sqlite:///{tmp_path}/data.db"
        store = await Store.open(database)
        await store.add_users([UserRow("ann@vote.example", "Ann Lee", tenant="north"), UserRow("bob@vote.example")])
        workers_queues = build_queues(described, redis_url)
        providers = build_providers(described, 0, {"SAQKIT_SMTP_URL": smtp}) if smtp else {
            "email": provider or RecordingProvider(sender="Vote <no-reply@vote.example>")}  # fmt: skip
        application = Application(described, store, workers_queues, providers)
        async with Emails.open(described, redis_url) as emails:
            try:
                yield Post(emails, application, database)
            finally:
                await application.close()
                for queue in workers_queues.values():
                    await queue.disconnect()

    return open_post


# --- the calls -------------------------------------------------------------------------------------------------------


@pytest.mark.row("001.7", "002.2")
async def test_every_call_becomes_one_email_with_text_and_html(opened: Opened) -> None:
    with SmtpSink() as sink:
        async with opened(smtp=sink.url) as post:
            emails: Emails = post.emails
            told = [
                await emails.send_verification_code("cem@vote.example", "482913", "Cem"),
                await emails.send_password_reset("cem@vote.example", "t0ken", "Cem"),
                await emails.send_welcome_email(1, 12),
                await emails.send_payment_receipt(1, 99, 12),
                await emails.send_vote_confirmation("cem@vote.example", model=7, model_name="Nova", votes=3),
                await emails.send_progress_update(2, model=7, model_name="Nova", percent=50),
                await emails.send_rank_update("cem@vote.example", **RANK),
                await emails.send_reward_delivery(1, reward=4, reward_name="Gold badge"),
                await emails.send_referral_join(1, friend="Zoë"),
                await emails.send_referral_milestone(1, referrals=10),
            ]
            assert all(told)
            assert (await post.job(told[2].key)).kwargs == {"to": 1, "course": 12}  # ids, no objects
            drained = await post.drain(slots=3)
            assert (len(drained.done), len(drained.failed)) == (10, 0)
            found = {message.message_id: message for message in sink.messages}
            assert len(sink.messages) == 10
            sender = "no-reply@vote.example"
            names = list(EMAIL_TYPES)[:10]  # the two of school-erp are sent by subscribers alone
            by_type = {
                name: found[message_id_of(name, one.key, sender=sender)] for name, one in zip(names, told, strict=True)
            }
            assert {message.sender for message in sink.messages} == {sender}
    to = {name: str(message.message["To"]) for name, message in by_type.items()}
    assert to["rank-update"] == to["vote-confirmation"] == "cem@vote.example"
    assert to["verification-code"] == "Cem <cem@vote.example>"
    assert to["welcome"] == to["referral-join"] == "Ann Lee <ann@vote.example>"
    assert to["progress-update"] == "bob@vote.example"
    subjects = {name: str(message.message["Subject"]) for name, message in by_type.items()}
    assert subjects == {
        "verification-code": "Your verification code",
        "password-reset": "Choose a new password",
        "welcome": "Welcome to your course",
        "payment-receipt": "Receipt of payment 99",
        "vote-confirmation": "Your vote for Nova",
        "progress-update": "Nova is at 50 %",
        "rank-update": "Nova is number 2 now",
        "reward-delivery": "Your reward: Gold badge",
        "referral-join": "Zoë has joined",
        "referral-milestone": "10 people have joined through you",
    }
    for name, received in by_type.items():
        plain, html = received.message.iter_parts()
        assert (plain.get_content_type(), html.get_content_type()) == ("text/plain", "text/html"), name
        assert LANDING in plain.get_content()
        assert f'href="{LANDING}' in html.get_content()
    body = by_type["welcome"].message.get_body(("plain",))
    assert body is not None
    assert body.get_content().startswith("Hello Ann,")
    assert f"{LANDING}/courses/12" in body.get_content()


@pytest.mark.row("002.3")
async def test_priorities_are_those_of_the_types_and_can_be_chosen_for_a_job(opened: Opened) -> None:
    async with opened() as post:
        emails: Emails = post.emails
        await emails.send_progress_update("a@vote.example", model=7, model_name="Nova", percent=5)
        await emails.send_vote_confirmation("b@vote.example", model=7, model_name="Nova")
        await emails.send_rank_update("c@vote.example", **RANK, priority="high")
        await emails.send_reward_delivery("d@vote.example", reward=1, reward_name="Cup")
        await emails.send_rank_update("e@vote.example", **RANK)
        await emails.send_referral_join("f@vote.example", friend="Zoë")
        await emails.send_referral_milestone("g@vote.example", referrals=5)
        await emails.send_vote_confirmation("h@vote.example", model=7, model_name="Nova", priority=1)
        drained = await post.drain()
    assert "".join(attempt.kwargs["to"][0] for attempt in drained.done) == "eghcdbaf"


@pytest.mark.row("002.5")
async def test_a_scheduled_email_is_sent_at_its_time_and_a_delayed_one_after_its_delay(opened: Opened) -> None:
    async with opened() as post:
        at = datetime.now(UTC) + timedelta(seconds=60)
        told = await post.emails.schedule_email("rank-update", "ann@vote.example", RANK, at)
        await post.emails.send_rank_update("bob@vote.example", **RANK, delay_s=20)
        assert (await post.drain(follow_time=False)).attempts == ()
        assert await post.queue.count("scheduled") == 2
        drained = await post.drain()
        assert [attempt.kwargs["to"][:3] for attempt in drained.done] == ["bob", "ann"]
        assert drained.done[1].job == told.key
        assert 55 < drained.travelled_s < 62
        past = datetime(2020, 12, 25, 10, tzinfo=UTC)
        await post.emails.schedule_email("rank-update", "ann@vote.example", RANK, past)
        assert len((await post.drain(follow_time=False)).done) == 1


@pytest.mark.row("002.6")
async def test_bulk_is_one_round_trip_for_a_chunk_and_one_email_for_a_recipient(opened: Opened) -> None:
    async with opened() as post:
        await post.emails.send_referral_join("first@vote.example", friend="Zoë")  # the server knows the script now

        async def calls() -> int:
            stats = await post.queue.redis.info("commandstats")
            return int(stats["cmdstat_evalsha"]["calls"]) + int(stats.get("cmdstat_eval", {"calls": 0})["calls"])

        recipients = [f"u{n}@vote.example" for n in range(1200)]
        before = await calls()
        told = await post.emails.queue_bulk_emails("referral-join", [*recipients, *recipients[:7]], {"friend": "Zoë"},
                                                   key="zoe", chunk=500)  # fmt: skip
        assert await calls() - before == 3
        assert len(told) == len({one.key for one in told}) == 1200
        assert all(told)
        assert await post.queue.count("queued") == 1201
        again = await post.emails.queue_bulk_emails("referral-join", [*recipients, "new@vote.example"],
                                                    {"friend": "Zoë"}, key="zoe")  # fmt: skip
        assert [bool(one) for one in again] == [False] * 1200 + [True]
        keyless = await post.emails.queue_bulk_emails("referral-join", recipients[:3], {"friend": "Zoë"})
        assert [bool(one) for one in keyless] == [True] * 3
        provider: RecordingProvider = post.application.providers["email"]
        assert len((await post.drain(slots=20)).done) == 1205
        assert sorted(email.to for email in provider.sent) == sorted(
            [*recipients, *recipients[:3], "first@vote.example", "new@vote.example"]
        )
        assert len({email.message_id for email in provider.sent}) == 1205


async def test_other_work_goes_on_while_a_bulk_is_checked_and_built(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, read, built = 0, Counter[int](), Counter[int]()
    build = NewJob.job

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def recipients() -> Iterator[str]:
        for n in range(2000):
            read[turn] += 1
            yield f"u{n}@vote.example"

    def counted(new: NewJob) -> QueuedJob:
        built[turn] += 1
        return build(new)

    monkeypatch.setattr(NewJob, "job", counted)
    async with opened() as post:
        task = asyncio.create_task(others())
        told = await post.emails.queue_bulk_emails("referral-join", recipients(), {"friend": "Zoë"}, chunk=100)
        task.cancel()
        assert len(told) == 2000
        assert all(told)
    assert sum(read.values()) == 2000
    assert sum(built.values()) == 2001, "once each, and once to see whether all can be built"
    assert max(read.values()) <= 100
    assert max(built.values()) <= 101


async def test_a_key_is_taken_for_a_day_after_its_email_was_sent(opened: Opened) -> None:
    async with opened() as post:
        assert await post.emails.send_payment_receipt(1, 99, 12, key="payment:99")
        assert len((await post.drain()).done) == 1
        told = await post.emails.send_payment_receipt(1, 99, 12, key="payment:99")
        assert (told.accepted, told.key) == (False, "payment-receipt:payment:99")
        assert await post.emails.send_welcome_email(1, 12, key="payment:99"), "another type has other keys"


async def test_a_key_that_is_free_again_makes_an_email_with_another_message_id(opened: Opened) -> None:
    provider = RecordingProvider(defer={"ann@vote.example": 4})
    async with opened(provider) as post:
        told = await post.emails.send_payment_receipt(1, 99, 12, key="payment:99")
        assert [attempt.outcome for attempt in (await post.drain()).attempts] == ["retry", "retry", "dead"]
        assert await replay(post.queue, [told.key]) == [True]
        assert [attempt.outcome for attempt in (await post.drain()).attempts] == ["retry", "done"]
        assert len({email.message_id for email in provider.tried}) == 1
        await post.queue.redis.delete(post.queue.key_of(told.key))  # a day later
        assert await post.emails.send_payment_receipt(1, 99, 12, key="payment:99")
        assert len((await post.drain()).done) == 1
        first, second = (email.message_id for email in provider.sent)
        assert first != second


async def test_tenants_do_not_take_each_others_keys(opened: Opened) -> None:
    async with opened() as post:
        takers: list[dict[str, Any]] = [
            {"key": "payment:99"}, {"key": "payment:99", "tenant": "north"}, {"key": "payment:99", "tenant": "south"},
            {"key": "north:payment:99"}, {"key": "b:c", "tenant": "a"}, {"key": "c", "tenant": "a:b"},
        ]  # fmt: skip
        told = [await post.emails.send_payment_receipt(1, 99, 12, **options) for options in takers]
        assert [one.accepted for one in told] == [True] * 6
        again = [await post.emails.send_payment_receipt(1, 99, 12, **options) for options in takers]
        assert [(one.accepted, one.key) for one in again] == [(False, one.key) for one in told]
        bulk = [
            await post.emails.queue_bulk_emails("welcome", [1], {"course": 1}, key="k", tenant=tenant)
            for tenant in ("north", "south", "north")
        ]
        assert [one.accepted for (one,) in bulk] == [True, True, False]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda e: e.send_welcome_email("a@vote.example\nBcc: b@vote.example", 1), "is no email address"),
        (lambda e: e.send_verification_code("a@vote.example", "123456", "Ann\r\nBcc: b@x.example"), "line break"),
        (lambda e: e.queue_email("rank-update", "a@vote.example", {"model": 7}), "rank and previous_rank missing"),
        (lambda e: e.queue_email("rank-up", "a@vote.example", RANK), 'did you mean "rank-update"?'),
        (lambda e: e.schedule_email("rank-update", "a@vote.example", RANK, datetime(2030, 1, 1)), "has no time zone"),
        (
            lambda e: e.schedule_email("rank-update", 1, RANK, datetime(2030, 1, 1, tzinfo=UTC), delay_s=3),
            "has a delay_s and a time",
        ),
        (lambda e: e.send_rank_update(1, **RANK, priority="urgent"), "there is no priority urgent"),
        (lambda e: e.send_rank_update(1, **RANK, delay_s=-1), "delay_s -1 (give seconds, 0 or more)"),
        (lambda e: e.send_rank_update(1, **RANK, retry={"max_attempts": 5}), "retry is a dict"),
        (lambda e: e.send_rank_update(1, **RANK, atempts=5), "there is no option atempts"),
        (lambda e: e.queue_bulk_emails("welcome", [1, 2, "b@vote\n.example"], {"course": 7}), "is no email address"),
        (lambda e: e.queue_bulk_emails("welcome", [1], {"course": 7}, chunk=0), "chunk 0 (give 1 or more)"),
        (lambda e: e.send_welcome_email(0, 1), "'0' is nobody"),
        (lambda e: e.send_welcome_email(2**63, 1), "a number of 64 bits is nobody"),
        (lambda e: e.send_verification_code("a@vote.example", " "), "code is blank"),
        (lambda e: e.queue_bulk_emails("welcome", [1, 2], {"course": 7}, priority="urgent"), "there is no priority"),
        (lambda e: e.queue_bulk_emails("welcome", [], {"course": 7}, delay_s=-1), "delay_s -1 (give seconds"),
    ],
)
async def test_bad_input_is_refused_and_nothing_is_enqueued(
    opened: Opened, call: Callable[[Emails], Awaitable[Any]], told: str
) -> None:
    async with opened() as post:
        with pytest.raises(UsageError) as refused:
            await call(post.emails)
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)
        assert await post.queue.count("incomplete") == 0


async def test_a_type_that_the_topology_does_not_have_is_refused(opened: Opened) -> None:
    types = topology().to_dict()["job_types"]
    types["welcome"]["per_user"]["provider"] = "none"
    del types["rank-update"]
    async with opened(described=topology(job_types=types)) as post:
        with pytest.raises(UsageError, match=r"^email rank-update: topology post has no job type of that name"):
            await post.emails.send_rank_update(1, **RANK)
        with pytest.raises(UsageError, match=r"^email welcome: its job type has no per_user.provider to send by$"):
            await post.emails.send_welcome_email(1, 7)
        told = await post.queue.submit("welcome", {"to": 1, "course": 7})  # somebody who did not ask first
        assert len((await post.drain()).dead) == 1
        assert "has no per_user.provider to send by" in (await post.letter(told.key)).reason


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.row("001.3", "002.4")
async def test_a_temporary_failure_is_tried_again_under_the_same_message_id(opened: Opened) -> None:
    provider = RecordingProvider(defer={"ann@vote.example": 2, "bob@vote.example": 3})
    async with opened(provider) as post:
        await post.queue.redis.set(post.queue.namespace("recording"), 1)
        ann = await post.emails.send_reward_delivery(1, reward=4, reward_name="Cup")
        bob = await post.emails.send_reward_delivery(2, reward=4, reward_name="Cup")
        drained = await post.drain()
        assert sorted((attempt.job == ann.key, attempt.number, attempt.outcome) for attempt in drained.attempts) == [
            (False, 1, "retry"), (False, 2, "retry"), (False, 3, "dead"),
            (True, 1, "retry"), (True, 2, "retry"), (True, 3, "done"),
        ]  # fmt: skip
        ids = {to: {email.message_id for email in provider.tried if email.to == to} for to in provider.defer}
        assert [len(found) for found in ids.values()] == [1, 1]
        assert len(set.union(*ids.values())) == 2
        assert [email.attempt for email in provider.tried if email.to == "ann@vote.example"] == [1, 2, 3]
        assert "451 4.2.1 mailbox busy" in (await post.letter(bob.key)).reason


@pytest.mark.row("002.9")
async def test_what_a_server_refuses_for_ever_is_a_dead_letter_at_once_and_can_be_replayed(opened: Opened) -> None:
    with SmtpSink(refuse={"ann@vote.example"}) as sink:
        async with opened(smtp=sink.url) as post:
            told = await post.emails.send_welcome_email(1, 12)
            await post.emails.send_welcome_email(2, 12)
            drained = await post.drain()
            assert (len(drained.done), len(drained.retried), len(drained.dead)) == (1, 0, 1)
            letter = await post.letter(told.key)
            assert (letter.attempts, letter.kwargs) == (1, {"to": 1, "course": 12})
            assert re.search(r"PermanentFailure: email \(127.0.0.1:\d+\): 550 5.1.1 no such mailbox", letter.reason)
            sink.refuse.clear()
            sink.defer_once.add("ann@vote.example")
            assert await replay(post.queue, [told.key]) == [True]
            drained = await post.drain()
            assert [attempt.outcome for attempt in drained.attempts] == ["retry", "done"], "it has all its attempts"
        assert [message.recipients[0] for message in sink.messages] == ["bob@vote.example", "ann@vote.example"]


async def test_a_missing_variable_is_a_dead_letter_at_once_that_names_it_and_can_be_given_it(opened: Opened) -> None:
    async with opened() as post:
        less = {name: value for name, value in RANK.items() if name != "rank"}
        told = await post.queue.submit("rank-update", {"to": "ann@vote.example", **less})
        assert [attempt.outcome for attempt in (await post.drain()).attempts] == ["dead"]
        letter = await post.letter(told.key)
        assert letter.error_class == "saqkit.errors.PermanentFailure"
        assert "template rank-update.txt: 'rank' is undefined" in letter.reason
        assert "email rank-update needs: model, model_name, rank, previous_rank" in letter.reason
        provider: RecordingProvider = post.application.providers["email"]
        assert provider.tried == []
        assert await replay(post.queue, [told.key], kwargs={"rank": 2}) == [True]
        assert len((await post.drain()).done) == 1
        assert [email.subject for email in provider.sent] == ["Nova is number 2 now"]


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"course": 7}, "the job has no recipient"),
        ({"to": 77, "course": 7}, "user 77: the user was deleted or deactivated"),
        ({"to": 2**63, "course": 7}, "the job has no recipient"),
        ({"to": 1, "course": None}, "email welcome: course is a NoneType, no small value"),
        ({"to": 1, "course": " "}, "email welcome: course is blank"),
        ({"to": "ann@vote.example", "course": 7, "first_name": None}, "first_name is a NoneType, no small value"),
        ({"to": "ann@vote.example\nBcc: x@vote.example", "course": 7}, "to has a line break or control character"),
        ({"to": "ann@vote.example", "course": 7, "first_name": "Ann\nX: y"}, "name has a line break"),
    ],
)
async def test_a_job_that_nobody_checked_is_a_dead_letter_too(
    opened: Opened, kwargs: dict[str, Any], told: str
) -> None:
    async with opened() as post:
        key = (await post.queue.submit("welcome", kwargs)).key
        assert [attempt.outcome for attempt in (await post.drain()).attempts] == ["dead"]
        assert told in (await post.letter(key)).reason
        assert post.application.providers["email"].sent == []


async def test_a_subject_cannot_be_given_a_header(opened: Opened) -> None:
    async with opened() as post:
        key = (await post.queue.submit("referral-join", {"to": 1, "friend": "Zoë\nBcc: x@vote.example"})).key
        assert [attempt.outcome for attempt in (await post.drain()).attempts] == ["dead"]
        assert "friend has a line break or control character" in (await post.letter(key)).reason


async def test_a_user_of_another_tenant_is_nobody(opened: Opened) -> None:
    async with opened() as post:
        told = [await post.emails.send_welcome_email(1, 12, tenant=tenant) for tenant in ("north", "south")]
        drained = await post.drain()
        assert [attempt.job for attempt in drained.done] == [told[0].key]
        assert [attempt.job for attempt in drained.dead] == [told[1].key]
        assert (await post.letter(told[1].key)).tenant == "south"


@pytest.mark.row("002.4")
async def test_a_job_can_have_attempts_and_delays_of_its_own(opened: Opened) -> None:
    provider = RecordingProvider(defer={"ann@vote.example": 4, "bob@vote.example": 1})
    async with opened(provider) as post:
        many = await post.emails.send_rank_update(1, **RANK, retry=Retry(max_attempts=5, delay_s=3.0))
        one = await post.emails.send_rank_update(2, **RANK, retry=Retry(max_attempts=1))
        usual = await post.emails.send_rank_update("cem@vote.example", **RANK)
        jobs = {name: await post.job(told.key) for name, told in (("many", many), ("one", one), ("usual", usual))}
        assert {name: delays(post.queue, job) for name, job in jobs.items()} == {
            "many": [3.0, 6.0, 12.0, 24.0], "one": [], "usual": [2.0, 4.0],
        }  # fmt: skip
        assert [job.retries for job in jobs.values()] == [5, 1, 3]
        drained = await post.drain()
        assert [attempt.number for attempt in drained.attempts if attempt.job == many.key] == [1, 2, 3, 4, 5]
        assert [attempt.job for attempt in drained.dead] == [one.key]
        assert 44 < drained.travelled_s < 47


async def test_a_worker_that_dies_after_the_email_was_sent_repeats_it_under_the_same_message_id(
    opened: Opened, redis_url: str, tmp_path: Path, until: Callable[..., Awaitable[float]]
) -> None:
    launchers: list[Launcher] = []
    with SmtpSink(on_message=lambda received: launchers.pop().kill(0) if launchers else None) as sink:
        async with opened() as post:
            described = post.emails.topology
            launcher = Launcher([Configuration(
                topology=described.to_dict(), broker=redis_url, database=post.database, slots={"email": 5},
                name="w", folder=str(tmp_path), environ={"SAQKIT_SMTP_URL": sink.url}, grace_s=5.0,
            )], tmp_path)  # fmt: skip
            await launcher.start()
            try:
                await launcher.ready()
                launchers.append(launcher)
                told = await post.emails.send_welcome_email(1, 12)

                async def sent() -> bool:
                    return len(sink.messages) == 2 and not await post.queue.count("incomplete")

                await until(sent, 30)
            finally:
                await launcher.stop(10)
            assert launcher.restarts == 1
            first, second = sink.messages
            assert first.message_id == second.message_id
            assert first.message_id == message_id_of("welcome", told.key, sender="no-reply@vote.example")
            text = second.message.get_body(("plain",))
            assert text is not None
            assert f"{LANDING}/courses/12" in text.get_content()


async def test_users_of_an_event_are_served_by_such_a_job_type_as_by_any_other(opened: Opened) -> None:
    async with opened() as post:
        store = post.application.store
        announced = await Announcer(post.emails.topology, store, post.emails.queues).announce(
            title="Thank you", audience=Audience(), patience_s=5
        )
        assert announced.enqueued
        assert len((await post.drain()).done) == 2
        assert [email.subject for email in post.application.providers["email"].sent] == ["Thank you"] * 2


async def test_the_attempts_table_has_emails_as_jobs_of_one_user(opened: Opened) -> None:
    async with opened(RecordingProvider(refuse={"bob@vote.example"})) as post:
        await post.queue.redis.set(post.queue.namespace("recording"), 1)
        await post.emails.send_welcome_email(1, 12)
        await post.emails.send_welcome_email(2, 12)
        await post.drain()
        records = await post.queue.redis.lrange(post.queue.namespace("trace"), 0, -1)
        rows = [read(record, "email", "run") for record in records]
    found = sorted((row["outcome"], row["users"], row["users_done"], row["users_failed"]) for row in rows)
    assert found == [("dead", 1, 0, 1), ("done", 1, 1, 0)]
    assert all(row["cpu_s"] > 0 and row["database_s"] > 0 and row["host"] for row in rows)


# --- secrets ---------------------------------------------------------------------------------------------------------


async def bodies(queue: Queue) -> str:
    found = [await queue.redis.hget(key, "body") async for key in queue.redis.scan_iter(match=queue.key_of("*"))]  # type: ignore[misc]
    return " ".join(body.decode() for body in found if body)


async def test_codes_and_tokens_are_sealed_where_there_is_a_key(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAQKIT_PAYLOAD_KEYS", f"k1:{base64.b64encode(bytes(range(32))).decode()}")
    async with opened() as post:
        for n in range(30):
            await post.emails.send_verification_code("ann@vote.example", f"48{n}7", "Ann", retry=Retry(max_attempts=2))
        await post.emails.send_password_reset("ann@vote.example", "tok-4711")
        stored = await bodies(post.queue)
        assert "ann@vote.example" in stored
        assert not re.search(r"48\d+7\"|tok-4711", stored)
        assert len((await post.drain(slots=5)).done) == 31
        provider: RecordingProvider = post.application.providers["email"]
        assert sum(bool(re.search(r"code is 48\d+7\n", email.text)) for email in provider.sent) == 30
        assert any("token=tok-4711" in email.text for email in provider.sent)


async def test_a_code_that_looks_like_a_number_of_the_kit_is_no_reason_to_refuse_a_job(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAQKIT_PAYLOAD_KEYS", f"k1:{base64.b64encode(bytes(range(32))).decode()}")
    async with opened() as post:
        for code in ("8640", "6400", "2500"):
            assert await post.emails.send_verification_code(
                "ann@vote.example", code, key=f"for-{ord(code[0])}", retry=Retry(delay_s=2500)
            )
        with pytest.raises(UsageError, match="its key has what is to be sealed in code"):
            await post.emails.send_verification_code("ann@vote.example", "8640", key="code-8640")


class Talkative:
    """A server whose refusals repeat what it was sent."""

    name, sender = "email", "no-reply@vote.example"

    async def send(self, email: Email) -> None:
        raise TemporaryFailure(f"451 cannot store: {' '.join(email.text.split())}")

    async def close(self) -> None:
        pass


async def test_without_a_key_they_are_still_shown_nowhere(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(Talkative()) as post:
        told = await post.emails.send_verification_code("ann@vote.example", "482913", "Ann")
        assert "482913" in await bodies(post.queue)
        shown = (await post.job(told.key)).to_dict()["kwargs"]
        assert shown == {"to": "ann@vote.example", "code": "***", "first_name": "Ann"}
        assert len((await post.drain()).dead) == 1
        letter = await post.letter(told.key)
        assert "Your verification code is *** Enter it here" in letter.error
        assert "482913" not in json.dumps(letter.kwargs) + letter.error + caplog.text
        assert "cannot store" in caplog.text


class Crashing(Talkative):
    """A provider that was not written for this: what it raises is its own, and repeats what it was sent."""

    async def send(self, email: Email) -> None:
        raise RuntimeError(f"cannot store {' '.join(email.text.split())}")


async def test_what_a_provider_raises_shows_no_code_either(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(Crashing()) as post:
        told = await post.emails.send_verification_code("ann@vote.example", "482913", retry=Retry(max_attempts=1))
        assert len((await post.drain()).dead) == 1
        assert "482913" not in (await post.letter(told.key)).error + caplog.text
        said = "provider email failed for user 0: RuntimeError: cannot store Hello, Your verification code is ***"
        assert said in caplog.text
        await post.emails.send_welcome_email(1, 12, retry=Retry(max_attempts=1))
        assert len((await post.drain()).dead) == 1
        assert not [record for record in caplog.records if record.exc_info and "user 0" in record.message]
        assert [record.message for record in caplog.records if record.exc_info and "user 1" in record.message] == [
            "provider email failed for user 1"  # where nothing is secret, the stack is told
        ]


async def test_a_token_is_hidden_as_it_stands_in_a_link_too(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(Talkative()) as post:
        told = await post.emails.send_password_reset("ann@vote.example", "a/b+c=", retry=Retry(max_attempts=1))
        assert len((await post.drain()).dead) == 1
        error = (await post.letter(told.key)).error
        assert "/reset-password?token=*** If it was not you" in error
        assert "a%2Fb%2Bc" not in error + caplog.text


# --- the worker ------------------------------------------------------------------------------------------------------


async def test_a_worker_without_email_types_needs_no_frontend(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTEND_URL", "vote.example")
    with pytest.raises(DescriptionError, match=r'^FRONTEND_URL: "vote.example" is no http:// or https:// address'):
        async with opened():
            pass
    plain = {"queue": "email", "per_user": {"provider": "email"}}
    async with opened(described=topology(entry=[{"job_type": "notify"}], job_types={"notify": plain})) as post:
        assert post.queue.payload is None


def test_a_frontend_url_without_scheme_ends_the_worker_command_with_status_2(tmp_path: Path, redis_url: str) -> None:
    path = tmp_path / "post.toml"
    path.write_text(as_toml(topology()))
    environ = {**os.environ, "FRONTEND_URL": "vote.example", "REDIS_URL": redis_url,
               "SAQKIT_DATABASE_URL": f"sqlite:///{tmp_path}/data.db"}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "saqkit.cli", "worker", str(path)], env=environ, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert (
        'FRONTEND_URL: "vote.example" is no http:// or https:// address (such as https://school.example)'
        in (done.stderr.strip().splitlines()[-1])
    )
