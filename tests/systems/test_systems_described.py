"""The five topologies that ship have the queues, jobs, limits and topics that the makers of the five systems state."""

from __future__ import annotations

from typing import Any

import pytest

from saqkit.spec.showing import bounds, describe
from saqkit.spec.topology import RateLimit, Topology, load, shipped
from saqkit.topology_environment import with_environment

SYSTEMS = ("course-platform", "school-erp", "school-events", "shop", "voting")


@pytest.fixture(scope="module")
def systems() -> dict[str, Topology]:
    return {name: load(name) for name in SYSTEMS}


def slots(topology: Topology) -> dict[str, int]:
    return {name: queue.concurrency for name, queue in topology.queues.items()}


def of_queue(topology: Topology, queue: str) -> dict[str, Any]:
    return {name: job for name, job in topology.job_types.items() if job.queue == queue}


def subscribers(topology: Topology) -> dict[str, tuple[str, ...]]:
    return {name: topic.starts for name, topic in topology.topics.items()}


def test_what_ships_are_the_five_systems() -> None:
    assert tuple(shipped()) == SYSTEMS


@pytest.mark.row("000.4", "000.5", "000.6", "000.7", "000.8", "000.9")
def test_school_events(systems: dict[str, Topology]) -> None:
    topology = systems["school-events"]
    [queue], announce, notify = topology.queues.values(), *topology.job_types.values()
    assert announce.fan_out
    assert announce.fan_out.batch_size == 100
    for job in (announce, notify):
        assert (job.retry.max_attempts, job.retry.delays_s) == (3, (5, 25, 125))
    assert queue.concurrency == 5
    assert queue.rate_limit == RateLimit(limit=10, period_s=1.0, unit="jobs")
    assert queue.dead_retention_s == 7 * 86_400
    assert "5 s, 25 s (listed but never used: 125 s)" in describe(topology)


@pytest.mark.row("001.2")
def test_the_course_platform_has_six_queues(systems: dict[str, Topology]) -> None:
    expected = {"email": 5, "sync": 2, "payment": 3, "enrollment": 3, "notification": 5, "cleanup": 1}
    assert slots(systems["course-platform"]) == expected
    assert {job.queue for job in systems["course-platform"].job_types.values()} == set(expected)


@pytest.mark.row("001.3")
def test_every_job_of_the_course_platform_is_tried_three_times_first_after_two_seconds(
    systems: dict[str, Topology],
) -> None:
    for name, job in systems["course-platform"].job_types.items():
        assert (job.retry.max_attempts, job.retry.schedule()[0]) == (3, 2.0), name


@pytest.mark.row("001.3")
def test_the_environment_says_how_often_the_course_platform_tries(systems: dict[str, Topology]) -> None:
    said = with_environment(systems["course-platform"], {"JOB_MAX_RETRIES": "4", "JOB_RETRY_DELAY": "500"})
    assert said.job_types.keys() == systems["course-platform"].job_types.keys()
    for name, job in said.job_types.items():
        assert (job.retry.max_attempts, job.retry.schedule()) == (4, [0.5, 1.0, 2.0]), name


@pytest.mark.row("001.7", "001.16")
def test_the_emails_of_the_course_platform_and_what_a_payment_leads_to(systems: dict[str, Topology]) -> None:
    types = systems["course-platform"].job_types
    for email in ("verification-code", "password-reset", "welcome", "payment-receipt"):
        assert types[email].queue == "email"
        assert types[email].per_user.database == "ledger"
    assert [edge.to for edge in types["verify-payment"].follow_up] == ["complete-enrollment", "payment-receipt"]
    assert [edge.to for edge in types["complete-enrollment"].follow_up] == ["welcome"]
    assert {types["verify-payment"].queue, types["poll-payments"].queue} == {"payment"}


@pytest.mark.row("001.16", "001.17", "001.18")
def test_the_course_platform_works_by_the_clock_too(systems: dict[str, Topology]) -> None:
    topology = systems["course-platform"]
    fired = {one.name: topology.job_types[str(one.job_type)].queue for one in topology.schedules}
    assert fired == {
        "poll-payments": "payment",
        "sync-courses": "sync", "sync-profiles": "sync", "sync-enrollments": "sync",
        "clean-codes": "cleanup", "remind": "cleanup", "report": "cleanup",
    }  # fmt: skip


@pytest.mark.row("001.13", "001.14")
def test_an_email_of_the_course_platform_takes_two_to_five_seconds(systems: dict[str, Topology]) -> None:
    latency = systems["course-platform"].providers["email"].latency
    assert latency.quantile(0.05) == pytest.approx(2.0, abs=0.1)
    assert latency.quantile(0.95) == pytest.approx(5.0, abs=0.2)


@pytest.mark.row("002.2", "002.3")
def test_the_emails_of_voting_have_four_levels(systems: dict[str, Topology]) -> None:
    emails = {name: job.priority.name.lower() for name, job in of_queue(systems["voting"], "email").items()}
    assert emails == {
        "rank-update": "critical", "referral-milestone": "critical",
        "reward-delivery": "high",
        "vote-confirmation": "normal",
        "progress-update": "low", "referral-join": "low", "bulk-email": "low",
    }  # fmt: skip


@pytest.mark.row("002.4")
def test_voting_tries_every_email_three_times(systems: dict[str, Topology]) -> None:
    for name, job in of_queue(systems["voting"], "email").items():
        assert (job.retry.max_attempts, job.retry.schedule()) == (3, [2, 4]), name
        assert job.retry.model_copy(update={"max_attempts": 4}).schedule() == [2, 4, 8], name


@pytest.mark.row("002.7", "002.8")
def test_voting_sends_ten_emails_a_second_in_five_slots(systems: dict[str, Topology]) -> None:
    topology = systems["voting"]
    assert topology.queues["email"].rate_limit == RateLimit(limit=10, period_s=1.0, unit="jobs")
    assert slots(topology) == {"email": 5, "events": 5}
    assert {b["at"]: b["users_per_s"] for b in bounds(topology)}["queues.email.rate_limit"] == 10, "a job is an email"


@pytest.mark.row("002.10", "002.11")
def test_voting_publishes_six_kinds_of_events(systems: dict[str, Topology]) -> None:
    topology = systems["voting"]
    reached = {}
    for topic, starts in subscribers(topology).items():
        edges = [topology.job_types[name].fan_out for name in starts]
        assert {topology.job_types[name].queue for name in starts} == {"events"}
        reached[topic] = [edge.to for edge in edges if edge]
        assert [edge.batch_size for edge in edges if edge] == [1], "an email for each"
    assert reached == {
        "vote.created": ["vote-confirmation"],
        "model.progress_milestone": ["progress-update"],
        "model.rank_changed": ["rank-update"],
        "reward.earned": ["reward-delivery"],
        "user.registered": ["referral-join"],
        "referral.milestone": ["referral-milestone"],
    }
    assert {entry.topic for entry in topology.entry if entry.topic} == set(topology.topics)


@pytest.mark.row("003.2", "003.3", "003.6")
def test_the_shop_has_a_queue_for_each_kind_of_work(systems: dict[str, Topology]) -> None:
    assert slots(systems["shop"]) == {"payments": 10, "notifications": 10, "orders": 10}
    assert {name: job.queue for name, job in systems["shop"].job_types.items()} == {
        "payment": "payments", "check-payments": "payments", "order-email": "notifications",
        "order-sms": "notifications",
        "process-order": "orders",
    }  # fmt: skip


@pytest.mark.row("003.11")
def test_the_shop_asks_each_minute_for_payments_whose_answer_was_lost(systems: dict[str, Topology]) -> None:
    types = systems["shop"].job_types
    assert {name: job.work for name, job in types.items() if job.work != "messages"} == {
        "payment": "payment", "check-payments": "payment-check",
    }  # fmt: skip
    [poll] = systems["shop"].schedules
    assert (poll.job_type, poll.cron, poll.audience) == ("check-payments", "* * * * *", None), "for nobody"


@pytest.mark.row("003.10", "003.11")
def test_a_payment_of_the_shop_comes_first_and_tells_the_customer_when_it_is_done(systems: dict[str, Topology]) -> None:
    topology = systems["shop"]
    payment = topology.job_types["payment"]
    assert subscribers(topology) == {"checkout": ("payment",)}
    assert [edge.to for edge in payment.follow_up] == ["order-email", "order-sms"]
    levels = {name: job.priority.name for name, job in topology.job_types.items()}
    assert levels.pop("payment") == "HIGH"
    assert levels == dict.fromkeys(("check-payments", "order-email", "order-sms", "process-order"), "NORMAL")
    assert {job.retry.backoff for job in topology.job_types.values()} == {"exponential"}
    media = {name: topology.providers[str(job.per_user.provider)].medium for name, job in topology.job_types.items()
             if job.per_user.provider}  # fmt: skip
    assert media == {"payment": "api", "order-email": "email", "order-sms": "sms"}


@pytest.mark.parametrize(
    ("queue", "concurrency", "attempts", "backoff", "priority"),
    [
        pytest.param("attendance", 50, 3, "exponential", "HIGH", marks=pytest.mark.row("004.1")),
        pytest.param("notifications", 20, 5, "exponential", "NORMAL", marks=pytest.mark.row("004.2")),
        pytest.param("reports", 5, 2, "fixed", "LOW", marks=pytest.mark.row("004.3")),
        pytest.param("academic", 10, 3, "exponential", "NORMAL", marks=pytest.mark.row("004.4", "004.6")),
    ],
)
def test_the_queues_of_the_school_erp(
    systems: dict[str, Topology], queue: str, concurrency: int, attempts: int, backoff: str, priority: str
) -> None:
    assert slots(systems["school-erp"])[queue] == concurrency
    assert of_queue(systems["school-erp"], queue)
    for name, job in of_queue(systems["school-erp"], queue).items():
        found = (job.retry.max_attempts, job.retry.backoff, job.retry.delay_s, job.priority.name)
        assert found == (attempts, backoff, 2.0, priority), name


@pytest.mark.row("004.1")
def test_the_school_erp_has_the_jobs_of_attendance(systems: dict[str, Topology]) -> None:
    expected = {"mark-attendance", "process-batch-attendance", "generate-attendance-report"}
    assert set(of_queue(systems["school-erp"], "attendance")) == expected


@pytest.mark.row("004.5")
def test_the_school_erp_keeps_500_failed_jobs_of_each_queue(systems: dict[str, Topology]) -> None:
    assert {queue.dead_cap for queue in systems["school-erp"].queues.values()} == {500}


@pytest.mark.row("004.7")
def test_the_school_erp_has_fourteen_topics_each_with_subscribers(systems: dict[str, Topology]) -> None:
    assert set(subscribers(systems["school-erp"])) == {
        "student:enrolled", "student:withdrawn", "class:created", "subject:assigned",
        "attendance:marked", "attendance:batch_marked", "attendance:corrected", "attendance:report_generated",
        "exam:created", "exam:results_published", "grade:updated",
        "tenant:created", "system:error_occurred", "notification:sent",
    }  # fmt: skip
    assert all(subscribers(systems["school-erp"]).values())


@pytest.mark.row("004.12", "004.15")
def test_the_school_erp_has_a_circuit_breaker_and_lets_schools_take_turns(systems: dict[str, Topology]) -> None:
    topology = systems["school-erp"]
    assert topology.providers["email"].breaker
    assert {queue.fairness for queue in topology.queues.values()} == {"tenants"}
    assert len({entry.tenant for entry in topology.entry} - {""}) >= 2
