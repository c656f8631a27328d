"""`saqkit school` on real parts: jobs that a worker does, what has become of them, and whatever cannot be asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from command_line import answer, saqkit, says, start

PEOPLE = """email,name,role,tenant,institution
p1@n.example,Ann,student,north,main
p2@n.example,Ben,student,north,main
p3@n.example,Cai,student,north,main
p1@s.example,Dee,student,south,main
"""
WHERE = ("--tenant", "north", "--institution", "main", "--by", "ms day")
MARK = ("school", "mark", *WHERE, "--day", "2026-03-02")
BULK = ("school", "bulk-mark", *WHERE, "--day", "2026-03-02")
SURE = ("--set", "providers.email.latency.mean_s=0.002", "--set", "providers.email.permanent_share=0")


@pytest.fixture(autouse=True)
def people(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker, database and reports are this test's own; the people are in it."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'school.db'}")
    monkeypatch.setenv("SAQKIT_REPORTS", str(tmp_path / "reports"))
    (tmp_path / "people.csv").write_text(PEOPLE)
    assert answer("users", "import", str(tmp_path / "people.csv"))["added"] == 4


@contextmanager
def worker() -> Iterator[None]:
    process = start("worker", "school-erp", *SURE)
    try:
        says(process, "ready:")
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def reads(*arguments: str) -> str:
    done = saqkit(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.row("004.1", "004.4")
def test_a_school_day_from_a_shell(tmp_path: Path) -> None:
    marks = tmp_path / "marks.csv"
    marks.write_text("status,user,remark\npresent,1,\nabsent,2,ill\npresent,3,\n")
    with worker():
        bulk = answer(*BULK, "--file", str(marks), "--key", "monday", "--wait", "30")
        assert (bulk["state"], bulk["new"]) == ("done", True)
        assert bulk["result"] == {"day": "2026-03-02", "pupils": 3, "new": 3, "corrected": 0}
        one = answer(*MARK, "2=late", "--wait", "30", "--correlation-id", "call-7")
        assert one["result"] == {"day": "2026-03-02", "pupils": 1, "new": 0, "corrected": 1}
        report = answer("school", "report", *WHERE, "--first", "2026-03-02", "--last", "2026-03-02", "--wait", "30")
        assert Path(report["result"]["path"]).read_text().splitlines()[1:] == [
            "1,Ann,1,0,0,0,1", "2,Ben,0,0,1,0,1", "3,Cai,1,0,0,0,1",
        ]  # fmt: skip
        made = answer("school", "academic", "create-class", "class_name=1a", *WHERE, "--wait", "30")
        assert made["result"] == {"class_name": "1a"}
        enrolled = answer("school", "academic", "enrol", "class_name=1a", "user=1", *WHERE, "--wait", "30")
        assert enrolled["result"] == {"class_name": "1a", "user": 1}
        failed = answer("school", "academic", "enrol", "class_name=9z", "user=1", *WHERE, "--wait", "30")
        assert (failed["state"], failed["result"]) == ("failed", None)
        assert failed["error"].endswith('institution "main" of tenant "north" has no class "9z"')
    again = answer(*BULK, "1=present", "2=absent", "3=present", "--key", "monday")
    assert (again["new"], again["job"], again["state"]) == (False, bulk["job"], "done")
    asked = answer("school", "done", bulk["job"], "--tenant", "north")
    assert asked == {"job": bulk["job"], "state": "done", "result": bulk["result"], "error": ""}


def test_people_read_what_has_become_of_a_job() -> None:
    said = reads(*MARK, "1=late", "--key", "k")
    job = re.escape("mark-attendance@north:k")
    assert re.fullmatch(rf"job {job}: waiting; elapsed_ms [\d.]+\n", said)
    again = reads(*MARK, "1=late", "--key", "k")
    assert again.endswith(" (asked for before with this key)\n")
    assert reads("school", "done", "mark-attendance@north:k", "--tenant", "north") == (
        "job mark-attendance@north:k: waiting\n"
    )
    for tenant in ("south", "nobody"):
        none = saqkit("school", "done", "mark-attendance@north:k", "--tenant", tenant)
        assert (none.returncode, none.stdout) == (2, "")
        assert f'tenant "{tenant}" has no job mark-attendance@north:k' in none.stderr


def test_a_job_has_the_priority_and_the_delay_that_are_asked_for(redis_url: str) -> None:
    answer(*MARK, "1=late", "--key", "now", "--priority", "critical")
    later = answer(*MARK, "2=late", "--key", "later", "--delay", "60")
    assert later["state"] == "waiting"
    found: dict[str, Any] = answer("stats", "--topology", "school-erp")["queues"]["attendance"]
    assert (found["waiting"], found["delayed"]) == (1, 1)
    [job] = answer("jobs", "attendance", "--topology", "school-erp", "--priority", "critical")
    assert job["key"] == "mark-attendance@north:now"


def test_who_waits_is_told_that_nobody_serves() -> None:
    done = saqkit(*MARK, "1=late", "--wait", "0.2", "--json")
    assert json.loads(done.stdout)["state"] == "waiting"
    assert "is queued; waiting for it" in done.stderr
    assert "no worker serves attendance" in done.stderr


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "an institution that there is not": ((*MARK, "1=late", "--institution", "mian"),
                                         'tenant "north" has no institution "mian"'),
    "a tenant that there is not": ((*MARK, "1=late", "--tenant", "nort"), 'tenant "nort" has no institution "main"'),
    "a pupil of another tenant": ((*MARK, "4=late"), 'user 4 is not of tenant "north"'),
    "no pair": ((*MARK, "1:late"), '"1:late" is no mark (write USER=STATUS, such as 7=late)'),
    "no id": ((*MARK, "ann=late"), '"ann" is no id of a user'),
    "no mark": ((*MARK, "1=lat"), '"lat" (user 1) is no mark: did you mean "late"?'),
    "marked twice": ((*MARK, "1=late", "1=present"), '"1" is given twice'),
    "marked twice, written otherwise": ((*MARK, "1=late", "01=present"), "user 1 is marked twice"),
    "no marks": (MARK, "school mark: USER=STATUS... is missing"),
    "no day": (("school", "mark", *WHERE, "1=late"), "school mark: --day is missing"),
    "a day that is none": (("school", "mark", *WHERE, "1=late", "--day", "monday"), "day: 'monday' is no day"),
    "neither marks nor file": (BULK, "bulk-mark: give marks, as 7=late, or --file"),
    "marks and file": ((*BULK, "1=late", "--file", "x.csv"), "bulk-mark: give marks, as 7=late, or --file"),
    "a file that is not there": ((*BULK, "--file", "none.csv"), "--file none.csv: cannot be read: No such file"),
    "a format that there is not": (("school", "report", *WHERE, "--first", "2026-03-02", "--last", "2026-03-02",
                                    "--format", "xls"), 'there is no "xls"'),
    "an operation that there is not": (("school", "academic", "expel", *WHERE), 'operation: there is no "expel"'),
    "data that is missing": (("school", "academic", "enrol", "user=1", *WHERE), "enrol: class_name is missing"),
    "data that is none": (("school", "academic", "enrol", "1a", *WHERE), '"1a" is no NAME=VALUE'),
    "a command that there is not": (("school", "marc"), 'school: there is no command "marc" (did you mean "mark"?)'),
    "a topology without schools": ((*MARK, "1=late", "--topology", "voting"),
                                   "topology voting has no job type mark-attendance"),
    "a correlation id that cannot be": ((*MARK, "1=late", "--correlation-id", "a b"),
                                        "mark-attendance: correlation_id: should be a word"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_for_is_refused_in_one_line(case: str, redis_url: str) -> None:
    arguments, why = REFUSED[case]
    done = saqkit(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert why in done.stderr
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.dbsize() == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", 'line 1: there is no column "user" (give user,status)'),
        (b"user,mark\n1,late\n", 'line 1: there is no column "status" (give user,status)'),
        (b"user,status\nann,late\n", '"ann" is no id of a user'),
        (b"user,status\n1,late\n1,late\n", "user 1 is marked twice"),
        (b"user,status\n1\n", '"" (user 1) is no mark'),
        ("user,status\n1,späť\n".encode("utf-16"), "is no CSV file in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "marks.csv"
    file.write_bytes(content)
    done = saqkit(*BULK, "--file", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert why in done.stderr


def test_while_the_broker_is_away_nothing_is_asked_for() -> None:
    for command in ((*MARK, "1=late", "--key", "k"), ("school", "done", "x", "--tenant", "north")):
        away = saqkit(*command, env={"REDIS_URL": "redis://127.0.0.1:1"})
        assert (away.returncode, away.stdout, away.stderr.count("\n")) == (2, "", 1)
    with_key = saqkit(*MARK, "1=late", env={"REDIS_URL": "redis://127.0.0.1:1"})
    found = re.search(r"the job may not be queued: .*127\.0\.0\.1:1.* \(ask again with --key (\w+): it is done once\)",
                      with_key.stderr)  # fmt: skip
    assert found
    first = answer(*MARK, "1=late", "--key", found[1])
    assert (first["new"], first["job"]) == (True, f"mark-attendance@north:{found[1]}")
