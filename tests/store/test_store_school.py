"""A school's jobs on real databases: marked, reported and recorded once, with an audit entry, and inside a tenant."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from school_system import MONDAY, Schools, open_schools, school_erp, until

from saqkit.app.school.operations import Record
from saqkit.app.store.attendance import Marked
from saqkit.errors import UsageError
from saqkit.queue.submitting import NewJob

BY = "ms day"


@pytest.fixture
async def schools(store_url: str, redis_url: str) -> AsyncIterator[Schools]:
    """Pupils 1 to 6 of north, 7 and 8 of south; classes of 2."""
    topology = school_erp({"job_types.process-batch-attendance.fan_out.batch_size": 2})
    async with open_schools(topology, redis_url, store_url) as made:
        yield made


async def asked(schools: Schools, job_type: str, given: dict[str, Any], tenant: str = "north", key: str = "k") -> None:
    """Enqueue a job of somebody who checks nothing."""
    meta = {"tenant": tenant} if tenant else {}
    job = NewJob(job_type, given, key=key, properties={"meta": meta, "retries": 3}).job()
    await schools.queues[schools.topology.job_types[job_type].queue].enqueue(job)


@pytest.mark.row("004.1", "004.15")
async def test_pupils_are_marked_corrected_and_audited_by_jobs(schools: Schools) -> None:
    calls = schools.calls
    async with schools.worker():
        first = await calls.mark("north", "main", MONDAY, {1: "present", 2: "absent"}, by=BY)
        await schools.drained()
        again = await calls.mark("north", "main", "2026-03-02", {2: "late"}, by="the office")
        await schools.drained()
    assert await schools.store.attendance.of_day("north", "main", MONDAY) == {1: "present", 2: "late"}
    done = [await calls.done("north", one.key) for one in (first, again)]
    assert [one and (one.kind, one.result["new"], one.result["corrected"]) for one in done] == [
        ("attendance.mark", 2, 0), ("attendance.mark", 0, 1),
    ]  # fmt: skip
    assert await schools.audited("north") == [
        (BY, "attendance.mark", "main"), ("the office", "attendance.mark", "main"),
    ]  # fmt: skip
    assert await schools.audited("south") == []
    assert await calls.done("south", first.key) is None


@pytest.mark.row("004.1")
async def test_a_school_is_marked_class_by_class_in_one_job(schools: Schools) -> None:
    async with schools.worker():
        asked = await schools.calls.bulk_mark("north", "main", MONDAY, dict.fromkeys(range(1, 6), "present"), by=BY)
        await schools.drained()
    assert await schools.store.attendance.of_day("north", "main", MONDAY) == dict.fromkeys(range(1, 6), "present")
    done = await schools.calls.done("north", asked.key)
    assert done
    assert done.result == {"day": "2026-03-02", "pupils": 5, "new": 5, "corrected": 0}
    assert await schools.audited("north") == [(BY, "attendance.bulk_mark", "main")]


@pytest.mark.row("004.15", "004.16")
async def test_a_job_that_is_repeated_takes_no_correction_back(schools: Schools) -> None:
    async with schools.worker() as application:
        asked = await schools.calls.bulk_mark("north", "main", MONDAY, dict.fromkeys(range(1, 5), "absent"), by=BY)
        await schools.drained()
        await schools.store.attendance.mark("north", "main", MONDAY, {1: "present", 4: "late"})
        job = await schools.queues["attendance"].job(asked.key)
        assert job
        said = await application.school.handle(job.function, job, job.kwargs or {})
    assert (said["new"], said["corrected"]) == (4, 0)
    day = await schools.store.attendance.of_day("north", "main", MONDAY)
    assert day == {1: "present", 2: "absent", 3: "absent", 4: "late"}
    assert await schools.audited("north") == [(BY, "attendance.bulk_mark", "main")]


async def test_a_key_is_one_operation_of_its_tenant(schools: Schools) -> None:
    calls = schools.calls
    async with schools.worker():
        first = await calls.mark("north", "main", MONDAY, {1: "present"}, by=BY, key="monday")
        assert first.accepted
        again = await calls.mark("north", "main", MONDAY, {1: "present"}, by=BY, key="monday")
        assert (again.accepted, again.key) == (False, first.key)
        assert (await calls.mark("south", "main", MONDAY, {7: "present"}, by=BY, key="monday")).accepted
        await schools.drained()
        await schools.queues[
            "attendance"
        ].redis.flushall()  # the broker has forgotten the key, and the database has not
        assert (await calls.mark("north", "main", MONDAY, {1: "absent"}, by=BY, key="monday")).accepted
        await schools.drained()
    assert await schools.store.attendance.of_day("north", "main", MONDAY) == {1: "present"}
    [(why, attempts)] = await schools.dead()
    assert "is that of another operation" in why
    assert attempts == 1


@pytest.mark.row("004.15")
async def test_what_is_of_another_tenant_is_refused_where_it_is_asked_for(schools: Schools) -> None:
    calls = schools.calls
    for tenant, institution, pupil, why in (
        ("north", "main", 7, 'user 7 is not of tenant "north"'),
        ("south", "annexe", 7, 'tenant "south" has no institution "annexe"'),
        ("nobody", "main", 1, 'tenant "nobody" has no institution "main"'),
        ("", "main", 1, "names no tenant"),
    ):
        with pytest.raises(UsageError, match=why):
            await calls.mark(tenant, institution, MONDAY, {pupil: "present"}, by=BY)
        with pytest.raises(UsageError, match=why):
            await calls.bulk_mark(tenant, institution, MONDAY, {pupil: "present"}, by=BY)
    with pytest.raises(UsageError, match='tenant "south" has no institution "annexe"'):
        await calls.report("south", "annexe", MONDAY, MONDAY, by=BY)
    with pytest.raises(UsageError, match='user 7 is not of tenant "north"'):
        await calls.academic("north", "main", "enrol", {"class_name": "1a", "user": 7}, by=BY)
    assert [await queue.count("incomplete") for queue in schools.queues.values()] == [0, 0, 0, 0]


@pytest.mark.row("004.15", "004.12")
async def test_a_job_that_reaches_for_another_tenant_is_a_dead_letter_at_once_and_changes_nothing(
    schools: Schools,
) -> None:
    place = {"institution": "main", "by": BY, "day": "2026-03-02"}
    async with schools.worker():
        await asked(schools, "mark-attendance", {**place, "marks": [[1, "present"], [7, "present"]]}, key="stranger")
        marks = [[n, "present"] for n in range(1, 8)]
        await asked(schools, "process-batch-attendance", {**place, "marks": marks}, key="one stranger of seven")
        await asked(schools, "mark-attendance", {**place, "tenant": "south", "marks": [[7, "present"]]}, key="named")
        await asked(schools, "mark-attendance", {**place, "marks": [[1, "present"]]}, tenant="", key="of nobody")
        await asked(schools, "mark-attendance", {**place, "marks": [[1, "asleep"]]}, key="no mark")
        await schools.drained()
    found = sorted(await schools.dead())
    assert [attempts for _, attempts in found] == [1] * 5
    for (said, _), why in zip(found, sorted((
        "job of nobody is of no tenant", 'marks: "asleep" (user 1) is no mark', "there is no tenant",
        'user 7 is not of tenant "north"', 'user 7 is not of tenant "north"',
    )), strict=True):  # fmt: skip
        assert why in said
    for tenant in ("north", "south"):
        assert await schools.store.attendance.of_day(tenant, "main", MONDAY) == {}
        assert await schools.audited(tenant) == []


@pytest.mark.row("004.1", "004.15")
async def test_a_report_is_a_file_of_the_own_tenant(schools: Schools, tmp_path: Path) -> None:
    mark = schools.store.attendance.mark
    assert await mark("north", "main", MONDAY, {1: "present", 2: "absent"}) == Marked(2, 0)
    await mark("north", "main", MONDAY + timedelta(1), {1: "late"})
    await mark("north", "annexe", MONDAY, {3: "present"})
    await mark("south", "main", MONDAY, {7: "excused"})
    calls, week = schools.calls, MONDAY + timedelta(4)
    async with schools.worker(SAQKIT_REPORTS=str(tmp_path / "reports")):
        north = await calls.report("north", "main", MONDAY, week, by=BY)
        south = await calls.report("south", "main", MONDAY, week, by=BY)
        printed = await calls.report("north", "main", MONDAY, week, by=BY, format="pdf")
        await schools.drained()
    head = ["user", "name", "present", "absent", "late", "excused", "days"]
    rows = {}
    for tenant, one in (("north", north), ("south", south), ("north", printed)):
        done = await calls.done(tenant, one.key)
        assert done
        path = Path(done.result["path"])
        assert path.parent == tmp_path / "reports" / tenant / "main"
        rows[one.key] = path.read_bytes()
    assert list(csv.reader(rows[north.key].decode().splitlines())) == [
        head, ["1", "North 0", "1", "0", "1", "0", "2"], ["2", "North 1", "0", "1", "0", "0", "1"],
    ]  # fmt: skip
    assert list(csv.reader(rows[south.key].decode().splitlines())) == [head, ["7", "'=1+1", "0", "0", "0", "1", "1"]]
    assert rows[printed.key].startswith(b"%PDF-")
    assert sorted(path.suffix for path in tmp_path.glob("reports/*/*/*")) == [".csv", ".csv", ".pdf"], "nothing else"
    assert await schools.audited("north") == [(BY, "attendance.report", "main")] * 2


async def test_a_report_that_cannot_be_written_is_tried_again_and_leaves_no_part(
    schools: Schools, tmp_path: Path
) -> None:
    blocked = tmp_path / "reports"
    blocked.write_text("no folder")
    async with schools.worker(SAQKIT_REPORTS=str(blocked)):
        one = await schools.calls.report("north", "main", MONDAY, MONDAY, by=BY)
        queue = schools.queues["attendance"]

        async def waits() -> bool:
            job = await queue.job(one.key)
            return job is not None and job.attempts == 1 and "cannot be written" in (job.error or "")

        await until(waits)
        blocked.unlink()
        await schools.drained()
    done = await schools.calls.done("north", one.key)
    assert done
    assert done.result["pupils"] == 0
    assert [path.name for path in tmp_path.glob("reports/*/*/*")] == [Path(done.result["path"]).name]


@pytest.mark.row("004.4", "004.15")
async def test_academic_operations_leave_records_and_need_what_they_are_about(schools: Schools) -> None:
    calls = schools.calls
    async with schools.worker():
        for operation, data in (
            ("create-class", {"class_name": "1a"}),
            ("enrol", {"class_name": "1a", "user": 1}),
            ("enrol", {"class_name": "1a", "user": 2}),
            ("withdraw", {"class_name": "1a", "user": 2}),
            ("assign-subject", {"class_name": "1a", "subject": "Maths", "user": 3}),
            ("create-exam", {"exam": "Maths 1", "subject": "Maths", "day": "2026-03-06"}),
            ("grade", {"exam": "Maths 1", "user": 1, "grade": "B"}),
            ("grade", {"exam": "Maths 1", "user": 1, "grade": "A"}),
            ("publish-results", {"exam": "Maths 1"}),
        ):
            await calls.academic("north", "main", operation, data, by=BY)
            await schools.drained()
        await calls.academic("north", "annexe", "enrol", {"class_name": "1a", "user": 1}, by=BY)
        await calls.academic("south", "main", "grade", {"exam": "Maths 1", "user": 7, "grade": "A"}, by=BY)
        await schools.drained()
    records = schools.calls.operations.records
    assert await records("north", "main", "enrolment") == [
        Record("enrolment", "1a", 1, {"class_name": "1a", "user": 1, "state": "enrolled"}),
        Record("enrolment", "1a", 2, {"class_name": "1a", "user": 2, "state": "withdrawn"}),
    ]
    assert [(one.name, one.user, one.data["user"]) for one in await records("north", "main", "subject")] == [
        ('["1a", "Maths"]', 0, 3)
    ]
    assert [(one.user, one.data["grade"]) for one in await records("north", "main", "grade")] == [(1, "A")]
    assert [one.data["state"] for one in await records("north", "main", "results")] == ["published"]
    assert await records("north", "annexe", "enrolment") == await records("south", "main", "grade") == []
    assert sorted(await schools.dead("academic")) == [
        ('saqkit.errors.PermanentFailure: institution "annexe" of tenant "north" has no class "1a"', 1),
        ('saqkit.errors.PermanentFailure: institution "main" of tenant "south" has no exam "Maths 1"', 1),
    ]
    assert len(await schools.audited("north")) == 9
    assert (await schools.audited("north"))[-1] == (BY, "academic.publish-results", "main")


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (("mark", MONDAY, {}), "give 1 to 100 pairs"),
        (("mark", MONDAY, {1: "asleep"}), '"asleep" \\(user 1\\) is no mark'),
        (("mark", MONDAY, {-1: "late"}), "'-1' is no id of a user"),
        (("mark", "yesterday", {1: "late"}), "'yesterday' is no day"),
        (("mark", "2026-02-30", {1: "late"}), "'2026-02-30' is no day"),
        (("bulk_mark", MONDAY, dict.fromkeys(range(1, 5002), "late")), "give 1 to 5,000 pairs"),
        (("report", MONDAY, date(2026, 3, 1)), "the first of them first"),
        (("report", date(2025, 3, 1), date(2026, 3, 2)), "give 1 to 366 days"),
        (("academic", "expel", {}), 'there is no "expel"'),
        (("academic", "enrol", {"class_name": "1a"}), "enrol: user is missing"),
        (("academic", "create-class", {"class_name": "a\nb"}), "give one line of 1 to 200 characters"),
        (("academic", "create-class", {"class_name": "1a", "x": 1}), "create-class: there is no x"),
    ],
)
async def test_bad_arguments_are_refused_before_anything_is_enqueued(
    schools: Schools, call: tuple[Any, ...], why: str
) -> None:
    name, *arguments = call
    with pytest.raises(UsageError, match=why):
        await getattr(schools.calls, name)("north", "main", *arguments, by=BY)
    with pytest.raises(UsageError, match="by: '' \\(give one line"):
        await schools.calls.mark("north", "main", MONDAY, {1: "late"}, by="")
    assert [await queue.count("incomplete") for queue in schools.queues.values()] == [0, 0, 0, 0]


@pytest.mark.row("004.5", "004.6")
async def test_a_job_has_the_priority_and_delay_that_its_call_says(schools: Schools) -> None:
    calls, queue = schools.calls, schools.queues["attendance"]
    plain = await calls.mark("north", "main", MONDAY, {1: "late"}, by=BY)
    urgent = await calls.mark("north", "main", MONDAY, {2: "late"}, by=BY, priority="critical")
    later = await calls.report("north", "main", MONDAY, MONDAY, by=BY, delay_s=60)
    found = [await queue.job(one.key) for one in (plain, urgent, later)]
    assert [job and job.priority for job in found] == [2, 1, 2]
    assert [job and bool(job.scheduled) for job in found] == [False, False, True]
    assert [job and job.retries for job in found] == [3, 3, 3]
