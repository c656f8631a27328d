"""What a school's jobs publish: an event of each thing that they did, once, to the people of its institution."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from school_system import MONDAY, Schools, open_schools, school_erp, until

from saqkit.app.school import working
from saqkit.app.store import UserRow
from saqkit.errors import DescriptionError

BY = "ms day"


@pytest.fixture
async def schools(store_url: str, redis_url: str) -> AsyncIterator[Schools]:
    """Pupils 1 to 4 of north, 5 of south; 6 a teacher and 7 a parent of north's main, 8 and 9 of its annexe."""
    topology = school_erp({"job_types.process-batch-attendance.fan_out.batch_size": 2})
    async with open_schools(topology, redis_url, store_url, north=4, south=1) as made:
        people = [UserRow(f"{role}@{name}.example", role.title(), role, "north", name)
                  for name in ("main", "annexe") for role in ("teacher", "parent")]  # fmt: skip
        await made.store.add_users(people)
        yield made


def short(event: Any) -> tuple[str, int | str, dict[str, Any]]:
    return event.type, event.user, event.data


@pytest.mark.row("004.7", "004.8")
async def test_marks_are_told_of_the_pupils_whom_they_change(schools: Schools) -> None:
    calls = schools.calls
    async with schools.worker():
        first = await calls.mark("north", "main", MONDAY, {1: "present", 2: "absent"}, by=BY, correlation_id="req-7")
        await schools.drained()
        await calls.mark("north", "main", MONDAY, {1: "present", 2: "late"}, by=BY)
        await schools.drained()
        await calls.mark("south", "main", MONDAY, {5: "excused"}, by=BY)
        await schools.drained()
    day = MONDAY.isoformat()
    one, two, corrected, south = await schools.events()
    assert sorted(map(short, (one, two))) == [
        ("attendance:marked", 1, {"student": "North 0", "status": "present", "day": day}),
        ("attendance:marked", 2, {"student": "North 1", "status": "absent", "day": day}),
    ]
    assert short(corrected) == ("attendance:corrected", 2, {"student": "North 1", "status": "late", "day": day})
    assert short(south) == ("attendance:marked", 5, {"student": "=1+1", "status": "excused", "day": day})
    assert [(e.tenant, e.institution) for e in (one, two, corrected, south)] == [("north", "main")] * 3 + [
        ("south", "main")
    ]
    assert [e.correlation_id for e in (one, two)] == ["req-7", "req-7"]
    assert corrected.correlation_id not in ("req-7", corrected.id)
    assert {e.causation_id for e in (one, two, corrected, south)} == {""}
    done = await calls.done("north", first.key)
    assert done
    assert one.time == two.time == (await schools.store.audit.of_tenant("north"))[-1].at
    assert await schools.told() == Counter({1: 1, 2: 2, 5: 1})


@pytest.mark.row("004.3", "004.7")
async def test_a_bulk_mark_and_a_report_are_told_when_they_are_done(schools: Schools, tmp_path: Path) -> None:
    async with schools.worker(SAQKIT_REPORTS=str(tmp_path)):
        bulk = await schools.calls.bulk_mark("north", "main", MONDAY, dict.fromkeys(range(1, 4), "present"), by=BY)
        await schools.drained()
        report = await schools.calls.report("north", "main", MONDAY, MONDAY, by=BY)
        await schools.drained()
    events = await schools.events()
    assert Counter(event.type for event in events) == {
        "attendance:marked": 3, "attendance:batch_marked": 1, "attendance:report_generated": 1,
    }  # fmt: skip
    assert len({event.correlation_id for event in events}) == 2
    [of_bulk] = [event for event in events if event.type == "attendance:batch_marked"]
    [of_report] = [event for event in events if event.type == "attendance:report_generated"]
    done = [await schools.calls.done("north", one.key) for one in (bulk, report)]
    assert [of_bulk.data, of_report.data["report"]] == [
        done[0] and done[0].result, done[1] and Path(done[1].result["path"]).name,
    ]  # fmt: skip
    assert await schools.told() == Counter({1: 1, 2: 1, 3: 1, 6: 1}), (
        "the report: to the teacher of main, not of annexe"
    )


@pytest.mark.row("004.4", "004.7")
async def test_each_academic_operation_has_its_event(schools: Schools) -> None:
    steps: list[tuple[str, dict[str, Any], str, int | str, dict[str, Any]]] = [
        ("create-class", {"class_name": "1a"}, "class:created", "", {"class_name": "1a"}),
        ("enrol", {"class_name": "1a", "user": 1}, "student:enrolled", 1, {"class_name": "1a", "student": "North 0"}),
        ("withdraw", {"class_name": "1a", "user": 1}, "student:withdrawn", 1,
         {"class_name": "1a", "student": "North 0"}),
        ("assign-subject", {"class_name": "1a", "subject": "Art", "user": 6}, "subject:assigned", 6,
         {"class_name": "1a", "subject": "Art", "teacher": "Teacher"}),
        ("create-exam", {"exam": "Art 1", "subject": "Art", "day": "2026-03-06"}, "exam:created", "",
         {"exam": "Art 1", "subject": "Art", "day": "2026-03-06"}),
        ("grade", {"exam": "Art 1", "user": 2, "grade": "A"}, "grade:updated", 2,
         {"exam": "Art 1", "grade": "A", "student": "North 1", "subject": "Art"}),
        ("publish-results", {"exam": "Art 1"}, "exam:results_published", "", {"exam": "Art 1"}),
    ]  # fmt: skip
    async with schools.worker():
        for operation, data, *_ in steps:
            await schools.calls.academic("north", "main", operation, data, by=BY)
            await schools.drained()
        await schools.calls.academic("north", "annexe", "enrol", {"class_name": "1a", "user": 1}, by=BY)
        await schools.drained()
    happened = [event for event in await schools.events() if event.type != "system:error_occurred"]
    assert list(map(short, happened)) == [tuple(step[2:]) for step in steps], "none of what could not be done"
    # The class: the teacher of main; enrolled and withdrawn: the pupil; the subject: its teacher; exam and results: the
    # parent of main; the grade: the pupil.
    assert await schools.told() == Counter({6: 2, 1: 2, 7: 2, 2: 1})
    assert await schools.dead("notifications") == await schools.dead("reports") == []


@pytest.mark.row("004.8", "004.16")
async def test_what_a_worker_saved_and_could_not_publish_the_relay_publishes_once(
    schools: Schools, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise ConnectionError("killed between commit and publishing")

    async with schools.worker() as application:
        with monkeypatch.context() as patch:
            patch.setattr(working, "send_many_saved", dies)
            asked = await schools.calls.bulk_mark("north", "main", MONDAY, {1: "late", 2: "late", 3: "late"}, by=BY)
            await schools.drained()
        assert len(await schools.store.undelivered()) == 4
        assert await schools.events() == []
        relay = asyncio.create_task(application.relay.run())

        async def delivered() -> bool:
            return not await schools.store.undelivered()

        await until(delivered)
        await schools.drained()
        job = await schools.queues["attendance"].job(asked.key)
        assert job
        await schools.store.attendance.mark("north", "main", MONDAY, {1: "present"})
        for _ in range(2):  # whatever is repeated, and however often
            await application.school.handle(job.function, job, job.kwargs or {})
            await schools.drained()
        assert await schools.store.undelivered() == []
        relay.cancel()
        await asyncio.wait([relay])
    topics = Counter(event.type for event in await schools.events())
    assert topics == {"attendance:marked": 3, "attendance:batch_marked": 1}
    assert await schools.told() == Counter({1: 1, 2: 1, 3: 1})


async def test_what_is_rolled_back_is_not_told(schools: Schools) -> None:
    await schools.store.tenants.add_institution("north", "Main campus")
    async with schools.worker():
        for number in range(2):  # the same key for another operation
            await schools.calls.academic("north", "Main campus", "create-class", {"class_name": f"{number}"}, by=BY,
                                         key="k")  # fmt: skip
            await schools.drained()
            await schools.queues["academic"].redis.delete(schools.queues["academic"].job_id("update-records@north:k"))
    happened = [event for event in await schools.events() if event.type != "system:error_occurred"]
    assert [(e.institution, e.data) for e in happened] == [("Main campus", {"class_name": "0"})]


async def test_what_cannot_be_in_an_envelope_is_refused_when_it_is_asked_for(schools: Schools) -> None:
    await schools.store.tenants.add("a b")
    await schools.store.tenants.add_institution("a b", "main")
    with pytest.raises(DescriptionError, match="mark-attendance: tenant: should be a word"):
        await schools.calls.mark("a b", "main", MONDAY, {1: "late"}, by=BY)
    with pytest.raises(DescriptionError, match="mark-attendance: correlation_id: should be a word"):
        await schools.calls.mark("north", "main", MONDAY, {1: "late"}, by=BY, correlation_id="a b")
    assert [await queue.count("incomplete") for queue in schools.queues.values()] == [0, 0, 0, 0]
