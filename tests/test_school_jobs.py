"""A school's jobs by real worker processes, one of which is killed in the middle of a bulk mark."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from school_system import MONDAY, open_schools, school_erp, until

from saqkit.testing import SmtpSink

PUPILS = 600
BY = "the office"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/school.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def sink() -> Iterator[SmtpSink]:
    with SmtpSink() as running:
        yield running


@pytest.mark.row("004.1", "004.7", "004.8", "004.15", "004.16")
async def test_a_bulk_mark_whose_worker_is_killed_marks_each_pupil_once(
    database: str, redis_url: str, tmp_path: Path, sink: SmtpSink
) -> None:
    topology = school_erp({"job_types.process-batch-attendance.fan_out.batch_size": 1})
    async with open_schools(topology, redis_url, database, north=PUPILS) as schools:
        marks = schools.store.attendance

        async def some() -> bool:
            return len(await marks.of_day("north", "main", MONDAY)) >= 20

        async with schools.processes(1, tmp_path, SAQKIT_SMTP_URL=sink.url) as launcher:
            everybody = range(1, PUPILS + 1)
            asked = await schools.calls.bulk_mark("north", "main", MONDAY, dict.fromkeys(everybody, "absent"), by=BY)
            await until(some)
            launcher.kill(0)
            marked = len(await marks.of_day("north", "main", MONDAY))
            assert 20 <= marked < PUPILS, "killed in the middle"
            assert await schools.calls.done("north", asked.key) is None
            assert (await marks.mark("north", "main", MONDAY, {1: "late"}, by="ms day")).corrected == 1
            await schools.drained()
            assert launcher.restarts == 1
        assert await schools.dead() == []
        day = await marks.of_day("north", "main", MONDAY)
        assert day == {**dict.fromkeys(everybody, "absent"), 1: "late"}, "what was marked before is not marked again"
        done = await schools.calls.done("north", asked.key)
        assert done
        assert done.result == {"day": "2026-03-02", "pupils": PUPILS, "new": PUPILS, "corrected": 0}
        assert await schools.audited("north") == [(BY, "attendance.bulk_mark", "main")]
        events = await schools.events()
        marked = Counter(event.user for event in events if event.type == "attendance:marked")
        assert marked == Counter(everybody), "each mark is published once, before and after the kill"
        [bulk] = [event for event in events if event.type != "attendance:marked"]
        assert (bulk.type, bulk.data) == ("attendance:batch_marked", done.result)
        assert {event.correlation_id for event in events} == {bulk.correlation_id}
        assert await schools.store.undelivered() == []
        # An email that was on its way as the worker was killed may be sent again; it is the same one then.
        emails = {(message.recipients[0], message.message_id) for message in sink.messages}
        assert Counter(to for to, _ in emails) == Counter(f"n{n}@x.example" for n in range(PUPILS))
        assert len(sink.messages) - len(emails) <= 20, "no more than were being sent"


@pytest.mark.row("004.1", "004.3", "004.4", "004.15")
async def test_schools_of_two_tenants_are_served_by_the_same_processes(redis_url: str, tmp_path: Path) -> None:
    database, reports = f"sqlite:///{tmp_path}/school.db", tmp_path / "reports"
    async with open_schools(school_erp(), redis_url, database, north=90, south=45) as schools:
        async with schools.processes(2, tmp_path, SAQKIT_REPORTS=str(reports)):
            calls, north, south = schools.calls, range(1, 91), range(91, 136)
            await asyncio.gather(
                calls.bulk_mark("north", "main", MONDAY, dict.fromkeys(north, "present"), by=BY),
                calls.bulk_mark("south", "main", MONDAY, dict.fromkeys(south, "absent"), by=BY),
                calls.academic("north", "main", "create-class", {"class_name": "1a"}, by=BY),
            )
            await schools.drained()
            for tenant in ("north", "south"):
                await calls.report(tenant, "main", MONDAY, MONDAY, by=BY)
            await schools.drained()
        for tenant, pupils in (("north", north), ("south", south)):
            [path] = reports.glob(f"{tenant}/main/*.csv")
            _head, *lines = path.read_text(encoding="utf-8").splitlines()
            assert [int(line.split(",")[0]) for line in lines] == list(pupils)
            actions = sorted(action for _, action, _ in await schools.audited(tenant))
            also = ["academic.create-class"] if tenant == "north" else []
            assert actions == [*also, "attendance.bulk_mark", "attendance.report"]
