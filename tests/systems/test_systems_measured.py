"""Each of the five systems carried out for real, with few users: who was served, by which jobs, in which order."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Any

import pandas as pd
import pytest
from measured import run

import sim
from saqkit.cli.demonstrating_school import PUPILS, has_schools, school_day
from saqkit.cli.demonstration import demonstrate
from saqkit.cli.fitting_the_minute import arriving, fit_the_minute, reached, users_to_fit
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load, shipped
from saqkit.spec.workload import Recorded, Workload

USERS = 60


def quick(name: str, **changes: Any) -> Topology:
    """A system whose providers answer at once and never fail."""
    topology = load(name)
    for provider in topology.providers:
        at = f"providers.{provider}"
        calm = {f"{at}.latency.mean_s": 0.005, f"{at}.temporary_share": 0.0, f"{at}.permanent_share": 0.0}
        topology = override(topology, calm)
    return override(topology, changes) if changes else topology


async def attempts_of(topology: Topology, users: int = USERS, seed: int = 1) -> pd.DataFrame:
    """The attempts of a drained run in which nothing fails; the tables of every run are looked over."""
    measured = await run(topology, workload=arriving(topology, users), workers=1, seed=seed)
    rows = measured.attempts
    assert set(rows["outcome"]) == {"done"}
    assert rows["users_failed"].sum() == 0
    return rows


def done(rows: pd.DataFrame) -> dict[str, int]:
    """Users served by each job type."""
    return {str(name): int(count) for name, count in rows.groupby("job_type")["users_done"].sum().items() if count}


def test_users_come_through_every_entry_as_its_share_says() -> None:
    for name in shipped():
        topology = load(name)
        arrivals = arriving(topology, 1000).arrivals
        if len(topology.entry) == 1:
            assert arrivals.kind == "burst"
            continue
        assert isinstance(arrivals, Recorded)
        assert max(arrivals.users) <= 50
        came: Counter[str] = Counter()
        for entry, users in zip(arrivals.entries, arrivals.users, strict=True):
            came[entry] += users
        shares: Counter[str] = Counter()
        for one in topology.entry:
            shares[one.topic or str(one.job_type)] += round(1000 * one.share)
        assert came == shares, name


@pytest.mark.row("000.12", "000.20")
async def test_school_events_tells_everybody_of_one_event() -> None:
    rows = await attempts_of(quick("school-events"), 91)
    assert done(rows) == {"notify": 91}
    assert rows["job_type"].value_counts().to_dict() == {"announce": 1, "notify": 1}, "91 users are one batch"


@pytest.mark.row("001.2", "001.7", "001.16")
async def test_a_payment_of_the_course_platform_ends_in_an_enrolment_a_receipt_and_a_welcome() -> None:
    topology = quick("course-platform")
    rows = await attempts_of(topology)
    assert done(rows) == {
        "verification-code": 18, "password-reset": 6, "verify-payment": 18, "complete-enrollment": 18 + 6,
        "payment-receipt": 18, "welcome": 18 + 6, "notice": 12,
    }  # fmt: skip
    assert set(rows["queue"]) == {"email", "payment", "enrollment", "notification"}
    ended = rows.set_index("job")["finished_at"]
    for follower, parent in (("welcome", "complete-enrollment"), ("payment-receipt", "verify-payment")):
        followers = rows[rows["job_type"] == follower]
        assert followers["parent"].str.startswith(parent).all()
        assert (followers["started_at"] >= followers["parent"].map(ended) - 0.005).all()


@pytest.mark.row("001.16", "001.17", "001.18")
def test_a_night_of_the_course_platform_in_the_model() -> None:
    arrivals = {"kind": "scheduled", "start": "2026-03-02T02:00:00", "duration_s": 3600}  # no Monday at six
    night = Workload.parse({"arrivals": arrivals})
    rows = sim.predict(quick("course-platform"), workload=night, replications=1).attempts
    assert done(rows) == {"sync-profile": 500, "sync-enrollment": 500}
    fired = rows[rows["users"] == 0]["job_type"].value_counts().to_dict()
    assert fired == {
        "poll-payments": 12, "clean-codes": 4, "sync-courses": 1, "sync-profiles": 1, "sync-enrollments": 1,
    }  # fmt: skip


@pytest.mark.row("002.3", "002.6", "002.7", "002.10", "002.11")
async def test_an_event_of_voting_becomes_an_email_for_each_and_no_window_has_more_than_ten() -> None:
    topology = quick("voting")
    rows = await attempts_of(topology, 40)
    emails = rows[rows["queue"] == "email"]
    assert (emails["users_done"] == 1).all()
    assert done(rows) == {
        "vote-confirmation": 20, "progress-update": 4, "rank-update": 6, "reward-delivery": 4, "referral-join": 2,
        "referral-milestone": 2, "bulk-email": 2,
    }  # fmt: skip
    assert rows[rows["queue"] == "events"]["job_type"].nunique() == 7
    taken = emails["taken_at"].sort_values().to_list()
    assert all(later - earlier >= 1 for earlier, later in zip(taken, taken[10:], strict=False))
    waited = emails[(emails["ready_at"] < taken[10]) & (emails["taken_at"] >= taken[20])]
    levels = waited.sort_values(["taken_at", "priority"])["priority"].to_list()
    assert levels == sorted(levels), "of those who wait, a higher level goes first"


@pytest.mark.row("003.3", "003.10")
async def test_an_order_of_the_shop_is_paid_and_then_its_customer_told_twice() -> None:
    rows = await attempts_of(quick("shop"))
    assert done(rows) == {"payment": USERS, "order-email": USERS, "order-sms": USERS}
    payments = rows[rows["job_type"] == "payment"]
    assert (payments["priority"] == 2).all()
    paid = payments.set_index("job")["finished_at"]
    told = rows[rows["queue"] == "notifications"]
    assert (told["queued_at"] >= told["parent"].map(paid) - 0.005).all()


@pytest.mark.row("004.1", "004.7")
async def test_the_school_erp_marks_pupils_tells_parents_and_keeps_schools_apart() -> None:
    rows = await attempts_of(quick("school-erp"))
    marked, told = 12 + 18 + 12, 12 + 18 + 12 + 6 + 6 + 3
    assert done(rows) == {
        "mark-attendance": marked, "generate-attendance-report": 3, "tell-parents": told,
        "update-records": 9, "refresh-statistics": 6,
    }  # fmt: skip
    assert set(rows["tenant"]) == {"north", "south"}
    schools = rows.groupby("event")["tenant"].nunique()
    assert (schools == 1).all(), "what an event leads to stays in its school"
    assert rows.groupby("queue")["priority"].unique().map(list).to_dict() == {
        "attendance": [2], "notifications": [3], "academic": [3], "reports": [4],
    }  # fmt: skip


@pytest.mark.parametrize("name", shipped())
async def test_a_demonstration_of_a_system_fits_the_minute(name: str) -> None:
    few = users_to_fit(load(name))
    shaped, slots, reasons = await fit_the_minute(load(name), 1000, few, 2)
    took_s = 0.0
    for users, workers in ((few, 1), (1000, 2)):
        drained = sim.predict(shaped, workload=arriving(shaped, users), workers=workers, concurrency=slots,
                              replications=1)  # fmt: skip
        took_s += drained.combinations[0].measures["makespan_s"]["mean"]
    assert took_s < 30
    assert (slots is not None) == ("concurrency" in reasons)
    assert ("job_types" in reasons) == (name in ("course-platform", "school-erp", "shop"))
    assert [*shaped.job_types] == reached(load(name))
    assert {job.queue for job in shaped.job_types.values()} == set(shaped.queues)


@pytest.mark.slow
async def test_a_demonstration_tells_what_each_job_type_did(tmp_path: Any) -> None:
    lines: list[str] = []
    result = await demonstrate(quick("voting"), users=60, calibration_users=40, folder=tmp_path, echo=lines.append)
    story = "\n".join(lines)
    assert result.run.measures()["users_done"] == 60
    assert "Somebody votes" in story
    rows = {line.split()[1]: line.split() for line in story.splitlines() if line.startswith("   email ")}
    assert rows["vote-confirmation"][2:5] == ["30", "30", "0"], "attempts, users served, and not"
    assert len(rows) == 7


@pytest.mark.row("004.1", "004.15")
async def test_the_demonstration_of_the_school_erp_marks_and_reports_for_real(tmp_path: Any) -> None:
    topology = load("school-erp")
    assert [name for name in shipped() if has_schools(load(name))] == ["school-erp"]
    story = await school_day(topology, tmp_path, date(2026, 3, 2))
    rows = {words[0]: words[1:] for words in (line.split() for line in story.splitlines()) if words[0] in PUPILS}
    assert rows == {"north": ["60", "54", "5", "1", "3"], "south": ["30", "27", "3", "0", "2"]}
    assert 'refused (user 61 is not of tenant "north")' in story
    for tenant, pupils in PUPILS.items():
        [path] = tmp_path.glob(f"{tenant}/main/*.csv")
        assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + pupils
        assert str(path) in story
