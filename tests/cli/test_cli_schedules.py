"""A topology's schedules: fired once by several workers and through kills, shown, predicted, measured, refused."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from command_line import answer, saqkit, start, wait_until

from saqkit.app.store import Store
from saqkit.spec.topology import Topology

DIGEST = """
name = "digest"
entry = [{ job_type = "announce" }]

[[schedules]]
name = "each"
job_type = "announce"
cron = "* * * * * *"
users = 3
missed = "all"

[queues.mail]
lease_s = 1
sweep_s = 0.5
tick_s = 0.05

[job_types.announce]
queue = "mail"
fan_out = { to = "send", batch_size = 100 }

[job_types.send]
queue = "mail"
per_user = { database = "ledger", provider = "email" }

[providers.email]
latency = { kind = "constant", mean_s = 0.002 }
"""
DAILY = 'cron = "0 7 * * *"\nzone = "Europe/Berlin"'
WINDOW = """[arrivals]
kind = "scheduled"
start = 2026-03-28T00:00:00
zone = "Europe/Berlin"
duration_s = 172800
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "digest.toml"
    path.write_text(DIGEST)
    return path


def left(client: Any) -> int:
    """How many jobs have not ended."""
    with client.pipeline() as pipe:
        for place in ("incomplete", "leases", "queued:3"):
            pipe.zcard(f"saq:{{mail}}:{place}")
        return sum(pipe.execute())


async def test_three_workers_and_kills_fire_each_time_once(
    file: Path, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed from outside; one dies whenever it has saved an event and is about to enqueue its job."""
    database = tmp_path / "data.db"
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{database}")
    async with await Store.open(f"sqlite:///{database}") as store:
        await store.add_numbered_users(3)

    def asked(statement: str) -> list[Any]:
        with sqlite3.connect(database) as connection:
            return connection.execute(statement).fetchall()

    def events() -> int:
        return int(asked("SELECT count(*) FROM events")[0][0])

    def worker(*words: str) -> subprocess.Popen[str]:
        return start("worker", str(file), "--statistics", "0", *words)

    running = [worker("--processes", "2")]
    try:
        wait_until(lambda: events() >= 1, 60)
        log = tmp_path / "faults.log"
        monkeypatch.setenv("SAQKIT_FAULTS", f"rate=1,actions=kill,only=enqueue.before,log={log}")
        running.append(worker())
        wait_until(lambda: log.exists() and "kill" in log.read_text(), 60)
        monkeypatch.delenv("SAQKIT_FAULTS")
        psutil.Process(running[0].pid).children()[0].kill()
        more = events() + 4
        wait_until(lambda: events() >= more, 60)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.communicate(timeout=40)
    running = [worker("--set", "schedules=[]")]  # what is under way is finished, and nothing fires
    try:
        with redis.Redis.from_url(redis_url) as client:
            wait_until(lambda: not asked("SELECT 1 FROM outbox WHERE delivered_at IS NULL"), 60)
            wait_until(lambda: not left(client), 60)
            counts: Any = client.hgetall("saq:{mail}:counts")
    finally:
        running[0].send_signal(signal.SIGTERM)
        running[0].communicate(timeout=40)
    keys = [key for (key,) in asked("SELECT key FROM events ORDER BY key")]
    times = [datetime.fromisoformat(key.removeprefix("schedule each@")).timestamp() for key in keys]
    assert times == [times[0] + n for n in range(len(times))], "each second once, and none is left out"
    assert asked("SELECT status, count(*) FROM notifications GROUP BY status") == [("sent", 3 * len(keys))]
    assert int(counts[b"complete"]) == 2 * len(keys)
    assert b"failed" not in counts


def test_they_are_shown_with_their_next_firings(file: Path) -> None:
    file.write_text(DIGEST.replace('cron = "* * * * * *"', DAILY))
    found = answer("show", str(file))
    times = [datetime.fromisoformat(at) for at in found["firings"]["each"]]
    assert [(at.hour, at.minute) for at in times] == [(7, 0)] * 3
    assert [(b.date() - a.date()).days for a, b in pairwise(times)] == [1, 1]
    text = " ".join(saqkit("show", str(file)).stdout.split())
    assert "each: 0 7 * * * Europe/Berlin, for all (in a model: 3 users)" in text
    assert times[0].isoformat(" ") in text


def test_a_night_is_predicted(file: Path, tmp_path: Path) -> None:
    """Two mornings, between which the clocks jump."""
    file.write_text(DIGEST.replace('cron = "* * * * * *"', DAILY).replace("users = 3", "users = 5000"))
    (tmp_path / "night.toml").write_text(WINDOW)
    (found,) = answer("predict", str(file), "--workload", str(tmp_path / "night.toml"), "--profile", "nominal",
                      "--replications", "2")  # fmt: skip
    assert found["users"] == 10_000
    assert found["users_done"]["mean"] == 10_000
    assert found["makespan_s"]["mean"] == pytest.approx(23 * 3600, abs=60)


def test_a_short_window_is_measured(file: Path, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(WINDOW.replace("172800", "1.5"))
    done = saqkit("measure", str(file), "--workload", str(tmp_path / "short.toml"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["users_done"], found["attempts"]) == (6, 4)
    assert 1 <= found["makespan_s"] < 30


DAYS = ("* * * * * *", "@daily")

WRONG = {
    "job type": ('job_type = "anounce"',
         'schedules.0.job_type: there is no job type "anounce" (did you mean "announce"?)'),
    "topic": ('topic = "made"', 'schedules.0.topic: there is no topic "made"'),
    "two targets": ('topic = "a"\njob_type = "announce"',
         "schedules.0: a schedule names exactly one of topic and job_type"),
    "no target": ("", "schedules.0: a schedule names exactly one of topic and job_type"),
    "never": ('job_type = "send"\ncron = "0 0 30 2 *"', 'schedules.0.cron: cron line "0 0 30 2 *": never fires'),
    "no line": ('job_type = "send"\ncron = "daily"', 'schedules.0.cron: cron line "daily"'),
    "zone": ('job_type = "send"\nzone = "Europe/Berln"',
         'schedules.0.zone: there is no time zone "Europe/Berln" (did you'),
    "role": ('job_type = "send"\naudience = "studens"',
         'schedules.0.audience: "studen" is no role: did you mean "student"?'),
    "missed": ('job_type = "send"\nmissed = "onec"',
         'schedules.0.missed: there is no missed "onec" (did you mean "once"?)'),
    "late": ('job_type = "send"\nlate_s = 0', "schedules.0.late_s: should be greater than 0"),
    "most": ('job_type = "send"\nmost_missed = 0', "schedules.0.most_missed: should be greater than or equal to 1"),
    "users": ('job_type = "send"\nusers = 0', "schedules.0.users: should be greater than 0"),
    "nobody": ('job_type = "send"\naudience = "none"\nusers = 3', 'schedules.0: users = 3, but audience = "none"'),
    "nobody to find": ('job_type = "announce"\naudience = "none"', 'schedules.0.audience: "announce" fans out'),
    "title": ('job_type = "send"\ntitle = "a\\nb"', "schedules.0.title: has a line break"),
    "key": ('job_type = "send"\ntimezone = "UTC"',
         'schedules.0.timezone: unknown key "timezone" (did you mean "zone"?)'),
    "twice": ('job_type = "send"\n[[schedules]]\nname = "s"\ncron = "@daily"\njob_type = "send"',
              'schedules.1.name: two schedules are called "s"'),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", ["show", "worker"])
def test_a_wrong_schedule_is_refused_with_its_file_and_key(command: str, case: str, file: Path) -> None:
    lines, reason = WRONG[case]
    before, _, after = DIGEST.partition("[[schedules]]")
    cron = "" if "cron" in lines and case != "twice" else 'cron = "0 7 * * *"\n'
    file.write_text(f'{before}[[schedules]]\nname = "s"\n{cron}{lines}\n\n[queues{after.partition("[queues")[2]}')
    done = saqkit(command, str(file), env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert (done.returncode, done.stdout, done.stderr.count(os.linesep)) == (2, "", 1)
    assert f"{file}: {reason}" in done.stderr


def test_two_schedules_without_a_line_is_refused(file: Path) -> None:
    file.write_text(DIGEST.replace('cron = "* * * * * *"', ""))
    done = saqkit("show", str(file))
    assert done.returncode == 2
    assert "schedules.0.cron: is missing" in done.stderr


@pytest.mark.parametrize(
    ("topology", "window", "reason"),
    [
        (("users = 3", ""), WINDOW, "schedules.0.users: is missing"),
        (("* * * * * *", "0 7 1 1 *"), WINDOW, "arrivals.duration_s: no schedule of topology digest fires in this time "
         "(the next is each at 2027-01-01T07:00:00+00:00)"),
        (DAYS, WINDOW.replace("Berlin", "Berln"), 'arrivals.zone: there is no time zone "Europe/Berln"'),
        (DAYS, WINDOW.replace("2026-03-28T00:00:00", "7"), "arrivals.start: should be a time between"),
        (DAYS, WINDOW.replace("2026-03-28T00:00:00", '"soon"'), "arrivals.start: should be a valid"),
        (DAYS, WINDOW.replace("172800", "1e12"), "arrivals.duration_s: should be less than"),
        (DAYS, f'{WINDOW}others = {{ kind = "recorded", at_s = [0], entries = ["annonce"] }}',
         'arrivals.others.entries.0: no entry of topology digest has a topic or job type "annonce"'),
        (DAYS, f'{WINDOW}others = {{ kind = "closed_loop" }}', "arrivals.others.kind: there is no kind"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["predict", "measure"])
def test_a_window_that_cannot_be_played_is_refused(
    command: str, topology: tuple[str, str], window: str, reason: str, file: Path, tmp_path: Path
) -> None:
    file.write_text(DIGEST.replace(*topology))
    (tmp_path / "window.toml").write_text(window)
    profile = ["--profile", "nominal"] if command == "predict" else []
    done = saqkit(command, str(file), "--workload", str(tmp_path / "window.toml"), *profile)
    assert (done.returncode, done.stdout, done.stderr.count(os.linesep)) == (2, "", 1)
    assert reason in done.stderr


def test_a_workload_of_schedules_needs_some(tmp_path: Path) -> None:
    (tmp_path / "window.toml").write_text(WINDOW)
    done = saqkit("predict", "school-events", "--workload", str(tmp_path / "window.toml"), "--profile", "nominal")
    assert done.returncode == 2
    assert "arrivals.kind: topology school-events has no schedules" in done.stderr


def test_a_field_is_set_by_its_path(file: Path) -> None:
    found = answer("show", str(file), "--set", "schedules.0.cron=@yearly", "--set", "schedules.0.audience=none",
                   "--set", "schedules.0.users=none", "--set", "schedules.0.job_type=send")  # fmt: skip
    described = Topology.parse(found["topology"])
    assert described.schedules[0].audience is None
    assert all(at.endswith("-01-01T00:00:00+00:00") for at in found["firings"]["each"])
