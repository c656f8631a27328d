"""The commands of operators on a real broker: what they say, what they do, and their exit statuses."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pytest
from command_line import answer, as_process, saqkit, says, start, wait_until
from saq.job import Job, Status

from saqkit.queue.queue import Queue
from saqkit.queue.tables import JOBS, STATISTICS, WORKERS, read_csv
from saqkit.worker.worker import FOLLOW_S

T = TypeVar("T")
Do = Callable[[Callable[[Queue], Awaitable[T]]], T]
NAME = "notifications"


@pytest.fixture
def do(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Do[Any]:
    """Do something with the queue of the topology, on the broker that the commands find too."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'people.db'}")

    def carry_out(work: Callable[[Queue], Awaitable[Any]]) -> Any:
        async def on_a_queue() -> Any:
            queue = Queue.from_url(redis_url, name=NAME)
            try:
                return await work(queue)
            finally:
                await queue.disconnect()

        return asyncio.run(on_a_queue())

    return carry_out


@pytest.fixture
def worker(do: Do[Any]) -> Iterator[None]:
    process = start("worker", "school-events", "--concurrency", "2", "--statistics", "0")
    try:
        says(process, "ready:")
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


async def fill(queue: Queue) -> None:
    """Two jobs that wait, one that is delayed, one that runs, one that is done, two dead letters."""
    for key, how in (("done", Status.COMPLETE), ("dead1", Status.FAILED), ("dead2", Status.FAILED)):
        await queue.enqueue("notify", key=key)
        job = await queue.dequeue(timeout=5)
        assert job is not None
        job.attempts += 1
        await queue.finish(job, how, error="ValueError: no" if how == Status.FAILED else None)
    await queue.enqueue_many([
        Job("notify", key="a", priority=1, kwargs={"users": [1, 2]}, meta={"tenant": "north"}),
        Job("announce", key="b", meta={"tenant": "south"}),
        Job("notify", key="later", meta={"tenant": "north"}, scheduled=int(time.time()) + 900),
    ])  # fmt: skip


WRONG = {
    "pause of no queue": (("pause", "notification"), 'has no queue "notification" (did you mean "notifications"?)'),
    "pause of nothing": (("pause",), "give either the names of QUEUEs, or --all"),
    "pause of both": (("pause", NAME, "--all"), "give either the names of QUEUEs, or --all"),
    "resume": (("resume", "nowhere"), 'has no queue "nowhere"'),
    "clear": (("clear",), "give either the names of QUEUEs, or --all"),
    "clear state": (("clear", "--all", "--state", "active"), 'there is no "active" (known: waiting, delayed)'),
    "cancel of nothing": (("cancel",), "give either the KEYs of jobs"),
    "cancel of both": (("cancel", "a", "--type", "notify"), "give either the KEYs of jobs"),
    "cancel in no queue": (("cancel", "a", "--queue", "nowhere"), 'has no queue "nowhere"'),
    "priority": (("cancel", "--priority", "urgent"), 'there is no priority "urgent" (1 critical'),
    "cancel of no job": (("cancel", "none"), 'there is no job "none" in queue notifications'),
    "cancel of a finished job": (("cancel", "a", "done"), 'job "done" of queue notifications is done, it cannot be'),
    "cancel of a dead letter": (("cancel", "dead1"), "is dead, it cannot be cancelled"),
    "promote of a waiting job": (("promote", "a"), "is waiting, it cannot be promoted (only one that is delayed)"),
    "concurrency 0": (("concurrency", NAME, "0"), "concurrency: [N]: 0 is too small"),
    "concurrency of no queue": (("concurrency", "nowhere", "3"), 'has no queue "nowhere"'),
    "concurrency and reset": (("concurrency", NAME, "3", "--reset"), "give either N or --reset"),
    "limit of nothing": (("limit", NAME, "rate_limt=none"), 'did you mean "rate_limit"?'),
    "limit 0": (("limit", NAME, "rate_limit.limit=0"), "notifications: rate_limit.limit"),
    "limit of a negative period": (("limit", NAME, "rate_limit.period_s=-1"), "notifications: rate_limit.period_s"),
    "weight 0": (("limit", NAME, "weights={critical=8, high=4, normal=2, low=0}"), "weights.low: should be greater"),
    "limit and reset": (("limit", NAME, "rate_limit=none", "--reset"), "give either KEY=VALUE or --reset"),
    "limit of no queue": (("limit", "nowhere"), 'has no queue "nowhere"'),
    "prioritise to no level": (("prioritise", "urgent", "a"), 'there is no priority "urgent"'),
    "prioritise nothing": (("prioritise", "high"), "KEY... is missing"),
    "prioritise what has ended": (("prioritise", "high", "a", "done"), "is done, it cannot be given a priority"),
    "clean age": (("clean", "--all", "--state", "done", "--older-than", "7"), '"7" is no length of time'),
    "clean without age": (("clean", "--all", "--state", "done"), "--older-than is missing"),
    "clean state": (("clean", "--all", "--state", "dne", "--older-than", "1s"), 'did you mean "done"?'),
    "recording": (("recording", "--all", "--keep", "1000000"), "1000000 attempts cannot be kept (2 to 100,000)"),
    "limit": (("retry-failed", "--limit", "0"), "--limit: 0 is too small"),
    "stats": (("stats", "nowhere"), 'has no queue "nowhere"'),
    "stats file": (("stats", "--out", "s.xlsx"), "what it should hold is told by its ending"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_done(case: str, do: Do[Any]) -> None:
    do(fill)
    arguments, reason = WRONG[case]
    done = saqkit(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr
    assert [job["key"] for job in answer("jobs")] == ["a", "b", "later"]


def test_a_limit_on_users_where_no_job_has_any_is_refused(do: Do[Any], tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("""name = "t"
entry = [{ job_type = "announce" }]
[queues.notifications]
[queues.mail]
[job_types.announce]
queue = "notifications"
fan_out = { to = "notify", on_complete = "tidy" }
[job_types.notify]
queue = "mail"
[job_types.tidy]
queue = "notifications"
""")
    for name in ("rate_limit", "tenant_rate_limit"):
        done = saqkit("limit", NAME, f'{name}={{limit = 5, unit = "users"}}', "--topology", str(path))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"queues.notifications.{name}.unit: limits users, but no job of this queue has any" in done.stderr
    assert answer("limit", NAME, "--topology", str(path))["configured"] == []
    assert answer("limit", "mail", 'rate_limit={limit = 5, unit = "users"}', "--topology", str(path))["configured"]


@pytest.mark.row("001.15")
def test_pause_and_resume(do: Do[Any]) -> None:
    assert answer("pause", NAME, "--reason", "move", "--by", "ada") == {
        "queues": {NAME: {"paused": True, "was_paused": False}}
    }
    assert "notifications is paused: by ada move" in saqkit("stats").stdout
    told = answer("stats")["queues"][NAME]["paused"]
    assert (told["by"], told["reason"]) == ("ada", "move")
    assert "it was already" in saqkit("pause", "--all").stdout
    assert do(lambda queue: queue.dequeue(timeout=0.2)) is None
    assert saqkit("resume", "--all").stdout == "notifications: resumed\n"
    assert saqkit("resume", "--all").stdout == "notifications: it was not paused\n"


REFUSED = {
    "clear": (("clear", NAME), "3 jobs would be cleared"),
    "clear some": (("clear", "--all", "--state", "waiting", "--json"), "2 jobs would be cleared"),
    "clear none": (("clear", NAME, "--tenant", "west"), "0 jobs would be cleared"),
    "cancel": (("cancel", "--tenant", "north"), "2 jobs would be cancelled"),
    "promote": (("promote", "--type", "notify", "--json"), "1 job would be promoted"),
    "clean": (("clean", NAME, "--state", "done", "--older-than", "0s"), "1 job would be forgotten"),
    "clean dead": (("clean", "--all", "--state", "dead", "--older-than", "0s"), "2 jobs would be forgotten"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_back_needs_a_yes(case: str, do: Do[Any]) -> None:
    do(fill)
    arguments, reason = REFUSED[case]
    done = saqkit(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{reason}, and nothing is done without a yes (add --yes to do it, or --dry-run" in done.stderr
    both = saqkit(*arguments, "--yes", "--dry-run")
    assert (both.returncode, both.stdout, both.stderr) == (2, "", "saqkit: give either --yes or --dry-run\n")
    assert saqkit(*arguments, "--dry-run").returncode == 0
    assert [(job["key"], job["state"]) for job in answer("jobs")] == [
        ("a", "waiting"), ("b", "waiting"), ("later", "delayed"),
    ]  # fmt: skip
    assert answer("stats")["queues"][NAME]["dead"] == 2
    assert do(lambda queue: queue.job("done")) is not None


def test_a_dry_run_of_keys_changes_nothing(do: Do[Any]) -> None:
    do(fill)
    assert {answer("cancel", "a", "later", "--dry-run")[name] for name in ("found", "dry_run")} == {2, True}
    assert saqkit("promote", "later", "--dry-run").stdout.endswith("1 would be promoted\n")
    assert saqkit("cancel", "a", "done", "--dry-run").returncode == 2
    assert [job["state"] for job in answer("jobs")] == ["waiting", "waiting", "delayed"]
    assert answer("cancel", "a", "--yes")["cancelled"] == 1


def test_clear_counts_in_a_dry_run_and_does_it_with_yes(do: Do[Any]) -> None:
    do(fill)
    rows = [
        {"queue": NAME, "state": "delayed", "function": "notify", "priority": 3, "jobs": 1},
        {"queue": NAME, "state": "waiting", "function": "announce", "priority": 3, "jobs": 1},
        {"queue": NAME, "state": "waiting", "function": "notify", "priority": 1, "jobs": 1},
    ]
    assert answer("clear", NAME, "--dry-run") == {"found": 3, "cleared": 0, "dry_run": True, "jobs": rows}
    shown = saqkit("clear", NAME, "--dry-run").stdout
    assert shown.endswith("3 would be cleared\n")
    assert "critical" in shown
    assert answer("clear", NAME, "--state", "delayed", "--yes")["cleared"] == 1
    assert answer("clear", "--all", "--yes") == {"found": 2, "cleared": 2, "dry_run": False, "jobs": rows[1:]}
    assert saqkit("clear", "--all", "--yes").stdout == "0 cleared\n"
    assert answer("stats")["queues"][NAME]["cancelled"] == 3


def test_cancel_and_promote(do: Do[Any]) -> None:
    do(fill)
    assert answer("promote", "later")["promoted"] == 1
    assert [(job["key"], job["state"]) for job in answer("jobs")] == [
        ("a", "waiting"), ("b", "waiting"), ("later", "waiting"),
    ]  # fmt: skip
    assert answer("cancel", "--tenant", "north", "--dry-run")["found"] == 2
    assert answer("cancel", "b", "--reason", "by mistake")["cancelled"] == 1
    assert saqkit("cancel", "--tenant", "north", "--priority", "critical", "--yes").stdout.endswith("1 cancelled\n")
    job = do(lambda queue: queue.job("b"))
    assert (job.status, job.error) == (Status.ABORTED, "by mistake")
    assert [job["key"] for job in answer("jobs")] == ["later"]
    assert answer("clean", NAME, "--state", "cancelled", "--older-than", "1h", "--yes")["forgotten"] == 0
    assert answer("clean", NAME, "--state", "cancelled", "--older-than", "0s", "--yes")["forgotten"] == 2


def test_waiting_and_delayed_jobs_get_another_priority(do: Do[Any]) -> None:
    do(fill)
    assert answer("prioritise", "low", "a", "later") == {"changed": 2, "priority": 4}
    assert {job["key"]: job["priority"] for job in answer("jobs")} == {"a": 4, "b": 3, "later": 4}
    assert [job["key"] for job in answer("jobs", "--state", "waiting")] == ["b", "a"]
    assert saqkit("prioritise", "1", "a").stdout == "1 have priority 1 now\n"


def test_limits_of_running_workers_are_shown_changed_and_reset(do: Do[Any]) -> None:
    rate = {"limit": 10, "period_s": 1.0, "unit": "jobs"}
    assert answer("limit", NAME)["settings"]["rate_limit"] == rate
    said = answer("limit", NAME, "rate_limit.limit=20", "fairness=tenants")
    assert (said["settings"]["rate_limit"], said["settings"]["fairness"]) == ({**rate, "limit": 20}, "tenants")
    assert said["configured"] == ["rate_limit", "fairness"]
    assert "rate_limit: none (set by an operator)" in saqkit("limit", NAME, "rate_limit=none").stdout
    assert answer("limit", NAME, "--reset")["settings"]["rate_limit"] == rate


SHOP = """name = "shop"
entry = [{ job_type = "order" }]
[queues.orders]
rate_limit = { limit = 7 }
[queues.mail]
[job_types.order]
queue = "orders"
[job_types.letter]
queue = "mail"
"""


@pytest.fixture
def shop(do: Do[Any], tmp_path: Path) -> tuple[str, str]:
    """The option that names a topology of two queues."""
    path = tmp_path / "shop.toml"
    path.write_text(SHOP)
    return "--topology", str(path)


def test_slots_and_limits_of_all_queues_are_changed_together(shop: tuple[str, str]) -> None:
    assert answer("concurrency", "--all", "7", *shop) == {"queues": {"orders": {"slots": 7}, "mail": {"slots": 7}}}
    assert answer("concurrency", "mail", "3", *shop) == {"queue": "mail", "slots": 3}
    assert saqkit("concurrency", "--all", *shop).stdout == (
        "orders: each worker process has 7 slots\nmail: each worker process has 3 slots\n"
    )
    assert answer("concurrency", "mail", "orders", "--reset", *shop)["queues"]["orders"] == {"slots": None}

    said = answer("limit", "--all", "fairness=tenants", "rate_limit.limit=20", *shop)["queues"]
    settings = [one["settings"] for one in said.values()]
    assert [(one["fairness"], one["rate_limit"]["limit"]) for one in settings] == [("tenants", 20)] * 2
    assert [one["configured"] for one in said.values()] == [["rate_limit", "fairness"]] * 2
    assert answer("limit", "orders", *shop)["settings"]["rate_limit"]["limit"] == 20
    assert "mail: fairness: tenants (set by an operator)" in saqkit("limit", "--all", *shop).stdout
    back = answer("limit", "--all", "--reset", *shop)["queues"]
    assert {name: one["settings"]["rate_limit"] for name, one in back.items()} == {
        "orders": {"limit": 7, "period_s": 1.0, "unit": "jobs"}, "mail": None,
    }  # fmt: skip
    # one of the queues has no provider to limit by: then none is changed
    for wrong in (("limit", "--all", 'running_limits=[{key="provider", limit=5}]'), ("limit", "--all", "weight=1"),
                  ("concurrency", "--all", "0"), ("concurrency", "--all", "1", "2"), ("concurrency", "3"),
                  ("limit", "fairness=tenants"), ("limit", "mail", "nowhere", "fairness=tenants"),
                  ("concurrency", "--all", "mail", "3")):  # fmt: skip
        done = saqkit(*wrong, *shop)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), wrong
    assert answer("limit", "--all", *shop)["queues"] == back
    assert {one["slots"] for one in answer("concurrency", "--all", *shop)["queues"].values()} == {None}


def test_what_running_workers_do_is_said_as_it_is() -> None:
    assert f"within {({5.0: 'five'})[FOLLOW_S]} seconds" in " ".join(saqkit("concurrency", "--help").stdout.split())


def test_retry_failed_with_a_limit_takes_those_that_died_first_of_all_queues(
    shop: tuple[str, str], redis_url: str
) -> None:
    async def die() -> None:
        queues = {name: Queue.from_url(redis_url, name=name) for name in ("orders", "mail")}
        for key, name in (("1", "mail"), ("2", "orders"), ("3", "mail"), ("4", "orders")):
            await queues[name].enqueue("f", key=key)
            job = await queues[name].dequeue(timeout=5)
            assert job is not None
            await queues[name].finish(job, Status.FAILED, error="ValueError: no")
        for queue in queues.values():
            await queue.disconnect()

    asyncio.run(die())
    assert answer("retry-failed", "--limit", "3", *shop)["retried"] == 3
    assert [letter["key"] for letter in answer("dlq", "list", *shop)] == ["4"]


@pytest.mark.row("001.15")
def test_retry_failed_with_a_limit_and_filters(do: Do[Any]) -> None:
    do(fill)
    would = {"found": 1, "retried": 0, "users_reopened": 0, "dry_run": True}
    assert answer("retry-failed", "--limit", "1", "--dry-run") == would
    assert answer("retry-failed", "--type", "announce")["retried"] == 0
    assert answer("retry-failed", "--limit", "1")["retried"] == 1
    assert answer("stats")["queues"][NAME]["dead"] == 1
    assert saqkit("retry-failed").stdout == "1 queued again, 0 users pending again\n"


@pytest.mark.row("001.10", "003.9")
def test_statistics_with_percentiles_and_tables(do: Do[Any], tmp_path: Path) -> None:
    assert answer("recording", NAME, "--keep", "50") == {"queues": {NAME: {"recording": 50}}}
    do(fill)
    found = answer("stats", "--tenants")["queues"][NAME]
    assert (found["attempts"], found["completed"], found["failed"], found["waiting"]) == (3, 1, 2, 2)
    assert found["service_p50_s"] >= 0
    assert {name: one["waiting"] for name, one in found["tenants"].items()} == {"": 0, "north": 1, "south": 1}
    assert found["priorities"]["1"]["waiting"] == 1
    shown = saqkit("stats", "--tenants").stdout
    assert "service p50" in shown
    assert "south" in shown
    for name, columns in (("stats", STATISTICS), ("jobs", JOBS), ("workers", WORKERS)):
        file = tmp_path / f"{name}.csv"
        written = answer(name, "--out", str(file))
        table = read_csv(file, columns)
        assert written == {"written": len(table), "file": str(file)}
        answer(name, "--out", str(tmp_path / "t.parquet"))
        if name != "stats":  # ages grow from one call to the next
            pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    answer("jobs", "--out", str(tmp_path / "jobs.json"))
    assert json.loads((tmp_path / "jobs.json").read_text()) == answer("jobs")
    assert "later" in saqkit("jobs", "--type", "notify", "--state", "delayed").stdout
    assert saqkit("jobs", "--type", "nothing").stdout == "none\n"
    answer("recording", "--all", "--off")
    assert "no percentiles of notifications: no attempts are recorded" in saqkit("stats").stdout


@pytest.mark.row("001.11", "001.15", "003.9")
def test_health_tells_monitors_how_it_is_and_when_it_cannot_tell(do: Do[Any], worker: None) -> None:
    def health(*arguments: str) -> tuple[int, str, list[str]]:
        done = saqkit("health", "--json", *arguments)
        said = json.loads(done.stdout)
        return done.returncode, said["status"], [f"{one['level']} {one['what']}" for one in said["problems"]]

    wait_until(lambda: health() == (0, "healthy", []))  # a process that is ready tells of itself a moment later
    assert saqkit("pause", "--all", "--by", "ada").returncode == 0
    do(lambda queue: queue.enqueue_each("notify", ({} for _ in range(100))))
    assert health() == (1, "degraded", ["warning waiting", "warning paused"])
    assert health("--waiting", "10,100") == (2, "unhealthy", ["unhealthy waiting", "warning paused"])
    assert health("--waiting", "none,none") == (1, "degraded", ["warning paused"])
    assert "warning: queue notifications: is paused (by ada)" in saqkit("health").stdout
    assert health("--redis", "redis://127.0.0.1:1")[:2] == (2, "unhealthy")
    for wrong in (("--waiting", "10"), ("--waiting", "100,10"), ("--wating", "1,2"), ("--topology", "school-event")):
        done = saqkit("health", *wrong)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), wrong
        assert done.stderr.startswith("saqkit: ")
    answer("clear", "--all", "--yes")
    answer("resume", "--all")


@pytest.mark.row("001.12", "004.16")
def test_health_tells_monitors_of_jobs_that_are_active_for_too_long(do: Do[Any]) -> None:
    said = {}

    def look() -> None:
        for pair in ("600,3600", "0.001,3600", "0.0001,0.001"):
            done = as_process("health", "--json", "--active", pair)
            told = [one for one in json.loads(done.stdout)["problems"] if one["what"] == "active"]
            said[pair] = [(done.returncode, one["level"], one["queue"], one["text"].partition(",")[0]) for one in told]

    async def stall(queue: Queue) -> None:  # a worker told of itself, took a job, and says no more
        await queue.worker_info("stalled", queue.name, metadata=None)
        await queue.enqueue("notify", key="stuck")
        assert await queue.dequeue(timeout=5) is not None
        await asyncio.to_thread(look)

    do(stall)
    text = "1 job has been active for 0.001 s or more"
    assert said == {
        "600,3600": [], "0.001,3600": [(1, "warning", NAME, text)], "0.0001,0.001": [(2, "unhealthy", NAME, text)],
    }  # fmt: skip
    assert "--active W,U" in saqkit("health", "--help").stdout
    wrong = saqkit("health", "--active", "10,1")
    assert (wrong.returncode, wrong.stderr.startswith("saqkit: threshold active_s")) == (3, True)


def test_the_concurrency_of_running_workers_is_changed(do: Do[Any], worker: None) -> None:
    def slots() -> list[int]:
        return [one["slots"] for one in answer("workers")]

    wait_until(lambda: slots() == [2])
    assert answer("concurrency", NAME) == {"queue": NAME, "slots": None}
    assert answer("concurrency", NAME, "7") == {"queue": NAME, "slots": 7}
    wait_until(lambda: slots() == [7])
    assert "notifications" in saqkit("workers").stdout
    assert "as it was started with" in saqkit("concurrency", NAME, "--reset").stdout
    wait_until(lambda: slots() == [2])
