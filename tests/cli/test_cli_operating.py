"""Broker, users, announcements, workers, counts, health and dead letters, by the command line on real parts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from command_line import answer, saqkit, says, start, wait_until

ROOT = Path(__file__).parent.parent.parent
PEOPLE = "email,name,role,tenant,institution\n" + "".join(
    f"p{n}@school.example,P{n},{'teacher' if n < 3 else 'student'},{'north,' if n % 2 else 'south,'}"
    f"{'main' if n in (1, 5) else ''}\n"
    for n in range(12)
)
SAFE = ("--set", "providers.email.latency.mean_s=0.001", "--set", "providers.email.permanent_share=0")


@pytest.fixture
def system(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker and a database with twelve people: three teachers, nine students, half of them of each tenant; p1 and p5
    of its institution main."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'people.db'}")
    people = tmp_path / "people.csv"
    people.write_text(PEOPLE)
    assert answer("users", "import", str(people)) == {"added": 12, "updated": 0, "bad": 0, "skipped": []}


@contextmanager
def worker(*arguments: str, status: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A worker that is ready; it is ended by SIGTERM and must then end with `status`."""
    process = start("worker", "school-events", *arguments)
    try:
        says(process, "ready:")
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == status
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def embedded(tmp_state: Path) -> Iterator[None]:
    """The user's state folder is the test's own; the broker that is started there is ended."""
    from saqkit import broker

    yield
    broker.stop()


@pytest.mark.usefixtures("embedded")
def test_the_embedded_broker_is_started_found_and_stopped() -> None:
    assert answer("broker", "status") == {"running": False}
    assert "not running" in saqkit("broker", "status").stdout
    assert answer("broker", "stop") == {"stopped": False}
    said = answer("broker", "start")
    assert set(said) == {"running", "url", "name", "version", "pid", "folder", "binary"}
    assert said["running"] is True
    assert psutil.pid_exists(said["pid"])
    assert answer("broker", "start") == said
    assert answer("broker", "status") == said
    assert f"{said['name']} {said['version']}" in saqkit("broker", "status").stdout
    assert answer("stats")["queues"]["notifications"]["waiting"] == 0
    assert answer("broker", "stop") == {"stopped": True}
    wait_until(lambda: not psutil.pid_exists(said["pid"]) or psutil.Process(said["pid"]).status() == "zombie")


def test_looking_at_a_broker_never_starts_one(tmp_state: Path) -> None:
    assert saqkit("stats").returncode == 2
    assert saqkit("dlq", "list").returncode == 2
    assert saqkit("health").returncode == 2
    assert not list(tmp_state.rglob("broker.pid"))


def test_users_import_reports_bad_rows_or_refuses_them(tmp_path: Path) -> None:
    file = tmp_path / "u.csv"
    file.write_text("email,role\nann@school.example,student\nnobody,student\nbob@school.example,king\n")
    refused = saqkit("users", "import", str(file), "--on-bad", "refuse", "--json")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "line 3: is not an email address" in refused.stderr
    said = answer("users", "import", str(file))
    assert (said["added"], said["updated"], said["bad"]) == (1, 0, 2)
    assert [row["line"] for row in said["skipped"]] == [3, 4]
    again = saqkit("users", "import", str(file)).stdout
    assert "0 added, 1 updated, 2 bad rows left out" in again
    assert "line 3: is not an email address ('nobody')" in again


def test_the_people_that_come_with_the_kit_are_imported() -> None:
    assert answer("users", "import", str(ROOT / "data" / "users.csv"))["added"] == 1000


@pytest.mark.usefixtures("system")
@pytest.mark.row("000.20", "000.21")
def test_an_announcement_returns_at_once_and_is_served_by_a_worker() -> None:
    said = answer("announce", "--title", "Sports day", "--audience", "students,teachers", "--key", "sports")
    assert set(said) == {"event", "new", "enqueued", "elapsed_ms"}
    assert (said["new"], said["enqueued"]) == (True, True)
    assert said["elapsed_ms"] < 100
    assert answer("stats")["queues"]["notifications"]["waiting"] == 1
    again = answer("announce", "--title", "Sports day", "--audience", "students,teachers", "--key", "sports")
    assert (again["event"], again["new"]) == (said["event"], False)
    wrong = saqkit("announce", "--title", "Trip", "--audience", "all", "--tenant", "nort")
    assert wrong.returncode == 2
    assert 'there is no tenant "nort"' in wrong.stderr
    assert "north" in wrong.stderr
    assert answer("stats")["queues"]["notifications"]["waiting"] == 1
    unhealthy = saqkit("health", "--json")
    assert unhealthy.returncode == 2
    assert "no worker serves it" in json.loads(unhealthy.stdout)["problems"][0]["text"]

    with worker(*SAFE, "--processes", "2"):
        north = answer("announce", "--title", "Trip", "--audience", "students", "--tenant", "north", "--wait")
        assert {key: north[key] for key in ("rows", "sent", "failed", "pending", "reasons", "failures")} == {
            "rows": 5, "sent": 5, "failed": 0, "pending": 0, "reasons": {}, "failures": [],
        }  # fmt: skip
        everybody = saqkit("announce", "--title", "Holiday", "--audience", "all", "--wait")
        assert "elapsed_ms" in everybody.stdout
        assert "rows 12, sent 12, failed 0, pending 0" in everybody.stdout
        nobody = answer("announce", "--title", "x", "--audience", "parents", "--wait")
        assert (nobody["rows"], nobody["pending"]) == (0, 0)
        # The last emails are out; that its job is done may be on its way.
        wait_until(lambda: answer("stats")["queues"]["notifications"]["active"] == 0)
        found = answer("stats")["queues"]["notifications"]
        counted = ("waiting", "active", "delayed", "dead", "workers", "completed", "failed", "retried", "cancelled",
                   "lost", "dead_dropped", "dead_expired")  # fmt: skip
        assert [found[name] for name in counted] == [0, 0, 0, 0, 2, 7, 0, 0, 0, 0, 0, 0]
        health = answer("health", "--audit")
        assert set(health) == {"status", "healthy", "problems", "broker", "queues", "undelivered_events"}
        assert (health["healthy"], health["problems"], health["undelivered_events"]) == (True, [], 0)


@pytest.mark.usefixtures("system")
def test_an_institution_is_announced_to_and_one_that_there_is_not_is_refused() -> None:
    trip = ("announce", "--title", "Trip", "--audience", "all", "--key", "k")
    for more, why in (
        (("--institution", "main"), '--institution: "main" is one of a tenant (add --tenant)'),
        (("--tenant", "north", "--institution", "mian"), 'tenant "north" has no institution "mian" in this database'),
        (("--tenant", "north", "--institution", "mian"), '(did you mean "main"?)'),
        (("--tenant", "south", "--institution", "main"), 'tenant "south" has no institution "main"'),
    ):
        none = saqkit(*trip, *more)
        assert (none.returncode, none.stdout, none.stderr.count("\n")) == (2, "", 1)
        assert why in none.stderr
    assert answer("stats")["queues"]["notifications"]["waiting"] == 0
    with worker(*SAFE):
        few = answer(*trip, "--tenant", "north", "--institution", "main", "--wait")
    assert (few["new"], few["event"], few["rows"], few["sent"]) == (True, 1, 2, 2)


@pytest.mark.usefixtures("system")
def test_an_announcement_is_saved_while_the_broker_is_away(redis_url: str) -> None:
    away = saqkit("announce", "--title", "x", "--audience", "all", "--json", env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert away.returncode == 0
    said = json.loads(away.stdout)
    assert (said["new"], said["enqueued"]) == (True, False)
    assert saqkit("health", "--json", env={"REDIS_URL": "redis://127.0.0.1:1"}).returncode == 2
    with worker(*SAFE):
        waited = answer("announce", "--title", "y", "--audience", "teachers", "--wait")
        assert waited["sent"] == 3
        wait_until(lambda: answer("stats")["queues"]["notifications"]["completed"] == 4)


@pytest.mark.usefixtures("system")
def test_dead_letters_are_listed_replayed_and_purged() -> None:
    broken = ("--set", "job_types.notify.retry.max_attempts=1", "--set", "providers.email.temporary_share=1")
    with worker(*broken, "--set", "job_types.announce.fan_out.batch_size=6"):
        failed = answer("announce", "--title", "x", "--audience", "all", "--wait")
        assert (failed["rows"], failed["sent"], failed["failed"]) == (12, 0, 12)
        assert sum(failed["reasons"].values()) == 12
        assert {row["email"] for row in failed["failures"]} == {f"p{n}@school.example" for n in range(12)}
        wait_until(lambda: answer("stats")["queues"]["notifications"]["dead"] == 2)
    letters = answer("dlq", "list")
    assert [one["error_class"].rsplit(".", 1)[-1] for one in letters] == ["TemporaryFailure"] * 2
    assert sorted(user for one in letters for user in one["kwargs"]["users"]) == list(range(1, 13))
    keys = [one["key"] for one in letters]
    assert all(key in saqkit("dlq", "list").stdout for key in keys)
    assert len(answer("dlq", "list", "--limit", "1")) == 1
    wrong = saqkit("dlq", "replay", keys[0], keys[1] + "x")
    assert wrong.returncode == 2
    assert "did you mean" in wrong.stderr
    assert len(answer("dlq", "list")) == 2  # nothing was half done
    assert 'there is no queue "notification"' in saqkit("dlq", "list", "--queue", "notification").stderr

    with worker(*SAFE):
        assert answer("dlq", "replay", keys[0]) == {"found": 1, "replayed": 1, "users_reopened": 6}
        wait_until(lambda: answer("stats")["queues"]["notifications"]["completed"] == 2)
    assert [one["key"] for one in answer("dlq", "list")] == keys[1:]
    assert answer("dlq", "purge", "--all", "--yes") == {"found": 1, "purged": 1}
    assert answer("dlq", "list") == []
    assert answer("dlq", "replay", "--all") == {"found": 0, "replayed": 0, "users_reopened": 0}
    assert "none" in saqkit("dlq", "list").stdout


def minds_sigterm(pid: int) -> bool:
    caught = re.search(r"(?m)^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.usefixtures("system")
def test_a_worker_that_is_killed_is_started_again_and_none_outlives_the_command() -> None:
    with worker("--processes", "2", "--queues", "notifications", "--concurrency", "2") as process:
        before = psutil.Process(process.pid).children()
        assert len(before) == 2
        os.kill(before[0].pid, signal.SIGKILL)
        wait_until(lambda: len([one for one in psutil.Process(process.pid).children() if one not in before]) == 1)
        children = psutil.Process(process.pid).children()
        wait_until(lambda: all(minds_sigterm(one.pid) for one in children))
        wait_until(lambda: answer("stats")["queues"]["notifications"]["workers"] >= 2)
    assert psutil.wait_procs(children, 10)[1] == []


@pytest.mark.usefixtures("system")
def test_a_worker_says_how_its_processes_ended() -> None:
    process = start("worker", "school-events", "--json")
    try:
        says(process, "ready:")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert json.loads(out) == {"topology": "school-events", "queues": {"notifications": 5}, "processes": 1,
                                   "restarted": 0, "exit_codes": [0]}  # fmt: skip
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
