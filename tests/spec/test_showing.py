"""A topology shown: its tree, its schedules and the bounds that follow from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saqkit.spec.overriding import override
from saqkit.spec.showing import bounds, describe, real_only, to_json, users_per_job
from saqkit.spec.topology import Topology, load, shipped

SCHOOL = load("school-events")
SHOP = Topology.parse(
    {
        "name": "shop",
        "entry": [
            {"topic": "ordered", "share": 0.9, "priority": "high", "tenant": "north"},
            {"job_type": "campaign", "share": 0.1},
        ],
        "topics": {"ordered": {"starts": ["pay", "stock"]}},
        "queues": {"orders": {"rate_limit": {"limit": 5, "period_s": 2, "unit": "users"}}, "mail": {"concurrency": 4}},
        "job_types": {
            "pay": {"queue": "orders", "per_user": {"cpu_us": 500}, "follow_up": [{"to": "confirm"}]},
            "stock": {"queue": "orders"},
            "confirm": {
                "queue": "mail", "per_user": {"provider": "smtp"}, "send_concurrency": 2, "timeout_s": 3,
                "follow_up": [{"to": "audit"}],
            },
            "audit": {"queue": "mail"},
            "campaign": {"queue": "mail", "fan_out": {"to": "confirm", "batch_size": 200}},
            "cleanup": {"queue": "mail"},
        },
        "providers": {"smtp": {"latency": {"kind": "constant", "mean_s": 0.1}}},
    }
)  # fmt: skip


@pytest.mark.parametrize("topology", [SCHOOL, SHOP, *map(load, shipped())], ids=lambda t: t.name)
def test_everything_that_is_named_is_drawn_once(topology: Topology) -> None:
    text = describe(topology)
    for name in [*topology.job_types, *topology.queues, *topology.providers, *topology.topics]:
        assert name in text
    for name, job in topology.job_types.items():
        assert sum(f"{name}  [queue {job.queue}" in line for line in text.splitlines()) == 1


def test_school_events_is_drawn_with_its_schedules_limits_and_bounds() -> None:
    lines = [line.strip(" │├└─") for line in describe(SCHOOL).splitlines()]
    for expected in (
        "topic event.created",
        "batches of 100 → notify  [queue notifications, normal]",
        "3 attempts, delays 5 s, 25 s (listed but never used: 125 s); timeout 300 s",
        "notifications: 5 slots in each worker process, at most 10 jobs in any 1 s",
        "queue notifications: 10 jobs/s × 100 users a job = at most 1,000 users/s",
        "notify: 5 slots ÷ 0.075 s = at most 66.67 users/s per worker process",
        "queues.*.dead_retention_s: a dead letter takes no part in any later attempt",
    ):
        assert expected in lines


def test_batches_reach_what_follows_them() -> None:
    assert users_per_job(SHOP) == {"pay": 1, "stock": 1, "confirm": 200, "audit": 200, "campaign": 0, "cleanup": 1}


def test_bounds_follow_from_limits_slots_and_cpu() -> None:
    assert {bound["at"]: bound["users_per_s"] for bound in bounds(SHOP)} == {
        **{f"queues.{name}.weights": None for name in SHOP.queues},
        "queues.orders.rate_limit": 2.5,
        "job_types.pay.per_user.cpu_us": 2000,
        "job_types.confirm.per_user.provider": 4 * 2 / 0.1,
        "job_types.confirm.timeout_s": None,
    }
    free = override(SCHOOL, {"queues.notifications.rate_limit": "none"})
    assert "queues.notifications.rate_limit" not in {bound["at"] for bound in bounds(free)}


def test_a_job_type_that_nothing_starts_is_drawn_as_the_applications() -> None:
    text = describe(SHOP)
    assert text.index("enqueued by the application only") < text.index("cleanup  [queue mail")
    assert text.count("enqueued by the application only") == 1


def test_what_acts_in_real_runs_only_is_listed_with_reasons() -> None:
    assert dict(real_only(Topology)) == {
        "queues.*.done_retention_s": "a finished job takes no part in any later attempt",
        "queues.*.dead_retention_s": "a dead letter takes no part in any later attempt",
        "queues.*.dead_cap": "a dead letter takes no part in any later attempt",
        "providers.*.url": "an address has no duration",
        "providers.*.sender": "a sender's name has no duration",
        "schedules.*.name": "a name has no duration",
        "schedules.*.title": "a title has no duration",
        "schedules.*.body": "a text has no duration",
        **{f"schedules.*.{key}": "nothing is missed in a run, where somebody always looks"
           for key in ("missed", "late_s", "most_missed")},
    }  # fmt: skip


def test_the_json_form_is_plain_and_reads_back() -> None:
    shown = json.loads(json.dumps(to_json(SCHOOL)))
    assert Topology.parse(shown["topology"]) == SCHOOL
    assert shown["schedules"]["notify"]["delays_s"] == [5, 25]
    assert shown["schedules"]["notify"]["unused_s"] == [125]
    assert [bound["users_per_s"] for bound in shown["bounds"]] == [
        1000, None, pytest.approx(5 / 0.075),
    ]  # fmt: skip
    assert "providers.*.url" in shown["real_only"]


def test_the_laboratory_can_be_shown() -> None:
    lab = load(Path(__file__).parent.parent.parent / "data" / "lab.toml")
    assert "no rate limit" in describe(lab)


def test_schedules_are_drawn_with_what_they_start_and_their_next_firings() -> None:
    schedules = [
        {"name": "sweep", "job_type": "cleanup", "cron": "15 */6 * * *", "audience": "none", "priority": "low"},
        {"name": "sale", "topic": "ordered", "cron": "30 2 * * *", "zone": "Europe/Berlin", "users": 5000,
         "audience": "students,parents", "missed": "all", "tenant": "north"},
    ]  # fmt: skip
    found, eve = Topology.parse({**SHOP.to_dict(), "schedules": schedules}), 1774656000.0  # 2026-03-28T00:00Z
    lines = [line.strip() for line in describe(found, eve).splitlines()]
    assert "schedule sweep, priority low" in lines
    assert "schedule sale, tenant north" in lines
    assert not any("enqueued by the application only" in line for line in lines)
    assert (
        "sweep: 15 */6 * * * UTC, one job without users of each type; missed by more than 60 s: made up for once; "
        "next: 2026-03-28 00:15:00+00:00, 2026-03-28 06:15:00+00:00, 2026-03-28 12:15:00+00:00"
    ) in lines
    assert (
        "sale: 30 2 * * * Europe/Berlin, for students,parents (in a model: 5,000 users); missed by more than 60 s: "
        "made up for, the latest 100; "
        "next: 2026-03-28 02:30:00+01:00, 2026-03-29 03:00:00+02:00, 2026-03-30 02:30:00+02:00"
    ) in lines
    told = to_json(found, eve)
    assert told["firings"]["sale"][1] == "2026-03-29T03:00:00+02:00"
    assert json.loads(json.dumps(told)) == told
