"""`saqkit worker`: told to stop amid a backlog it loses, repeats and spends nothing; statistics; bad starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
import redis
from command_line import as_process, saqkit, says, start, wait_until

from saqkit import load
from saqkit.app.announcing import new_job
from saqkit.app.store import Store
from saqkit.cli.working import worker as worker_command
from saqkit.queue.audit import audit
from saqkit.queue.building import build_queues
from saqkit.testing import SmtpSink

SHORT = """
name = "short"
entry = [{ topic = "thing.happened" }]
[topics."thing.happened"]
starts = ["send"]
[queues.work]
concurrency = 10
lease_s = 30
[job_types.send]
queue = "work"
retry = { max_attempts = 1 }
per_user = { cpu_us = 3000, database = "none", provider = "email" }
[providers.email]
kind = "smtp"
"""
"""A job is one email by SMTP, a few milliseconds: what the receiving server counts is not what the queue says."""


class Backlog:
    """Jobs of one email each, by hand, and what became of them."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.path = folder / "short.toml"
        self.path.write_text(SHORT)
        self.topology = load(self.path)
        self.redis = redis.Redis.from_url(redis_url)
        self.redis_url, self.database = redis_url, f"sqlite:///{folder / 'data.db'}"

    async def enqueue(self, number: int) -> None:
        queues = build_queues(self.topology, self.redis_url)
        async with await Store.open(self.database) as store:
            await store.announce(title="x", body="", topic="thing.happened", audience=_everybody(), created_at=0.0)
            await store.mark_delivered([1])
            event = await store.event(1)
            assert event is not None
            jobs = [new_job(self.topology, "send", f"send:{user}", event, [user]) for user in range(1, number + 1)]
            assert all(await queues["work"].enqueue_many(jobs))
        await queues["work"].disconnect()

    @property
    def counts(self) -> dict[str, int]:
        found: Any = self.redis.hgetall("saq:{work}:counts")
        return {name.decode(): int(value) for name, value in found.items()}

    async def places(self) -> tuple[int, int, int, set[int]]:
        """How many are active, waiting, anywhere else; the attempts that those who wait have spent."""
        queue = build_queues(self.topology, self.redis_url)["work"]
        try:
            assert (await audit(queue)).problems == ()
            waiting = await queue.count("queued")
            other = await queue.count("scheduled") + await queue.count("dead")
            keys = [queue.key_of(job.key) async for job in queue.iter_jobs() if job.status == "queued"]
            spent = {int(self.redis.hget(key, "att") or 0) for key in keys}  # type: ignore[arg-type]
            return await queue.count("active"), waiting, other, spent
        finally:
            await queue.disconnect()

    def close(self) -> None:
        self.redis.close()


def _everybody() -> Any:
    from saqkit.app.audience import Audience

    return Audience()


@pytest.fixture
def backlog(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backlog]:
    made = Backlog(tmp_path, redis_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", made.database)
    monkeypatch.setenv("SAQKIT_SMTP_URL", "smtp://127.0.0.1:1")  # nobody, until `sink` says otherwise
    yield made
    made.close()


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpSink]:
    with SmtpSink() as server:
        monkeypatch.setenv("SAQKIT_SMTP_URL", server.url)
        yield server


def worker(*arguments: str) -> subprocess.Popen[str]:
    process = start("worker", *arguments)
    says(process, "ready:")
    return process


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command that is told to stop; none of its processes is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert psutil.wait_procs(family, 10)[1] == []
    return process.returncode, out, err


async def told_to_stop_in_the_middle(backlog: Backlog, sink: SmtpSink, jobs: int, processes: int) -> None:
    """C10: enqueue, start, SIGTERM at a third; then the rest."""
    await backlog.enqueue(jobs)
    sent_before = len(sink.messages)
    process = worker(str(backlog.path), "--processes", str(processes))
    wait_until(lambda: backlog.counts.get("complete", 0) >= jobs // 3, 60)
    assert end(process)[0] == 0
    active, waiting, other, spent = await backlog.places()
    counts = backlog.counts
    assert 0 < waiting < jobs, "it was in the middle"
    assert (active, other, counts["complete"] + waiting) == (0, 0, jobs), "nothing active, nothing lost"
    assert spent <= {0}, "no attempt spent"
    assert {name for name in counts if counts[name]} <= {"complete", "released"}, counts
    sent = Counter(message.recipients for message in sink.messages[sent_before:])
    assert (len(sent), set(sent.values())) == (counts["complete"], {1}), "what was done was done once"

    process = worker(str(backlog.path), "--processes", str(processes))
    wait_until(lambda: backlog.counts["complete"] == jobs, 60)
    assert end(process)[0] == 0
    assert await backlog.places() == (0, 0, 0, set())
    sent = Counter(message.recipients for message in sink.messages[sent_before:])
    assert (len(sent), set(sent.values())) == (jobs, {1}), "nothing ran twice"


@pytest.mark.row("C10")
@pytest.mark.row("001.6", "002.12", "004.16")
async def test_told_to_stop_amid_a_backlog_nothing_is_lost_repeated_or_spent(backlog: Backlog, sink: SmtpSink) -> None:
    await told_to_stop_in_the_middle(backlog, sink, jobs=1000, processes=2)


@pytest.mark.row("001.6", "001.8")
def test_it_connects_then_serves_and_closes_its_queues_before_its_database(backlog: Backlog) -> None:
    process = start("worker", str(backlog.path), "--verbose")
    for words in ("connected to", "serves 10 x work", "ready:"):  # each is waited for after the one before
        says(process, words)
    status, _, err = end(process)
    assert status == 0
    told = ["queues closed", "database closed"]
    assert [words for line in err.splitlines() for words in told if words in line] == told


@pytest.mark.chaos
@pytest.mark.row("C10")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("turn", range(6))
async def test_told_to_stop_amid_a_backlog_six_times(backlog: Backlog, sink: SmtpSink, turn: int) -> None:
    await told_to_stop_in_the_middle(backlog, sink, jobs=3000, processes=4)


@pytest.mark.row("C10")
async def test_killed_it_leaves_no_process_and_its_jobs_are_given_back(backlog: Backlog, sink: SmtpSink) -> None:
    await backlog.enqueue(600)
    process = worker(str(backlog.path), "--processes", "2")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    wait_until(lambda: backlog.counts.get("complete", 0) >= 50)
    process.kill()
    process.communicate()
    assert psutil.wait_procs(family, 20)[1] == []
    active, waiting, other, spent = await backlog.places()
    assert (active, other, backlog.counts["complete"] + waiting) == (0, 0, 600)
    assert spent <= {0}
    assert set(Counter(message.recipients for message in sink.messages).values()) == {1}
    assert len(sink.messages) == backlog.counts["complete"]


@pytest.mark.row("002.12", "002.13")
def test_the_statistics_are_lines_of_json_and_the_last_one_is_how_it_ended(backlog: Backlog) -> None:
    process = worker(str(backlog.path), "--statistics", "0.2", "--json", "--processes", "2")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert set(first) == {"at", "queues", "dead_letters", "events", "workers"}
    assert first["queues"] == {"work": {"waiting": 0, "active": 0, "delayed": 0, "completed": 0, "failed": 0}}
    assert first["dead_letters"] == {"work": 0}
    assert first["events"] == {"thing.happened": {"announced": 0, "waiting": 0}}
    assert (first["workers"]["alive"], first["workers"]["restarted"]) == (2, 0)
    child = psutil.Process(process.pid).children()[0]
    child.kill()
    while (now := json.loads(process.stdout.readline()))["workers"]["restarted"] == 0:
        pass
    wait_until(lambda: len(psutil.Process(process.pid).children()) == 2)
    assert now["workers"]["loop_lag_s"] >= 0
    status, out, err = end(process)
    assert status == 0
    assert "killed by SIGKILL" in err
    last = json.loads(out.splitlines()[-1])
    assert set(last.pop("exit_codes")) <= {0, -signal.SIGTERM}, "SIGTERM may meet the new process while it starts"
    assert last == {"topology": "short", "queues": {"work": 10}, "processes": 2, "restarted": 1}


@pytest.mark.row("002.13")
async def test_the_statistics_are_a_block_of_text(backlog: Backlog, sink: SmtpSink) -> None:
    await backlog.enqueue(30)
    process = worker(str(backlog.path), "--statistics", "0.3")
    says(process, "  work: waiting 0, active 0, delayed 0, completed 30, failed 0")
    assert says(process, "dead letters") == "  dead letters: work 0\n"
    assert says(process, "events") == "  events thing.happened: announced 1, waiting 0\n"
    assert says(process, "workers").startswith("  workers: alive 1, restarted 0, serving 1, loop lag ")
    assert end(process)[:2] == (0, "")


async def test_a_job_that_does_not_end_is_given_back_after_the_grace(
    backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAQKIT_SMTP_URL")
    text = backlog.path.read_text().replace('kind = "smtp"', 'latency = { kind = "constant", mean_s = 60 }')
    backlog.path.write_text(text)
    await backlog.enqueue(1)
    process = worker(str(backlog.path), "--grace", "0.5", "--statistics", "0")
    wait_until(lambda: backlog.redis.zcard("saq:{work}:leases"))
    assert end(process)[0] == 0
    assert await backlog.places() == (0, 1, 0, {0})


def test_the_status_is_that_of_the_first_process_that_did_not_end_well(backlog: Backlog) -> None:
    process = worker(str(backlog.path), "--processes", "2", "--grace", "0", "--json")
    first, second = psutil.Process(process.pid).children()
    for one in (first, second):
        one.suspend()
    process.send_signal(signal.SIGTERM)
    os.kill(second.pid, signal.SIGKILL)
    first.resume()
    out, _ = process.communicate(timeout=60)
    codes = json.loads(out.splitlines()[-1])["exit_codes"]
    assert sorted(codes) == [-9, 0]
    assert process.returncode == 128 + signal.SIGKILL


async def test_the_status_is_the_exit_code_of_a_process_that_ended_with_one(
    backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to stop, it ends with 70 as it is about to give its job back, which a fault site makes it do."""
    monkeypatch.delenv("SAQKIT_SMTP_URL")
    monkeypatch.setenv("SAQKIT_FAULTS", "rate=1,actions=exit,only=release.before")
    text = backlog.path.read_text().replace('kind = "smtp"', 'latency = { kind = "constant", mean_s = 60 }')
    backlog.path.write_text(text)
    await backlog.enqueue(1)
    process = worker(str(backlog.path), "--grace", "0.5", "--statistics", "0", "--json")
    wait_until(lambda: backlog.redis.zcard("saq:{work}:leases"))
    status, out, _ = end(process)
    assert json.loads(out.splitlines()[-1])["exit_codes"] == [70]
    assert status == 70


def test_the_statistics_come_every_30_seconds_if_nothing_else_is_said() -> None:
    (option,) = [one for one in worker_command.params if one.name == "statistics"]
    assert option.get_default(click.Context(worker_command)) == 30.0


def test_told_three_times_it_kills_what_does_not_end(backlog: Backlog) -> None:
    process = worker(str(backlog.path))
    (child,) = psutil.Process(process.pid).children()
    child.suspend()
    told = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # of each kind one, so that none melts into another
    for number in told:
        process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode in {128 + number for number in told}, "that of the first to arrive"
    assert psutil.wait_procs([child], 10)[1] == []


@pytest.mark.parametrize(
    ("arguments", "environ", "reason"),
    [
        (["--grace", "soon"], {}, '--grace: "soon" is not a number of at least 0'),
        (["--statistics", "-1"], {}, '--statistics: "-1" is not a number of at least 0'),
        ([], {"SAQKIT_LOOP": "trio"}, 'SAQKIT_LOOP: there is no event loop "trio" (one of asyncio, uvloop, auto)'),
        ([], {"SAQKIT_DATABASE_URL": "sqlite:////no/such/folder/x.db"}, "/no/such/folder"),
        (["--processes", "10000"], {}, "need about 60000 connections, maxclients is"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    redis_url: str, arguments: list[str], environ: dict[str, str], reason: str
) -> None:
    done = saqkit("worker", *arguments, "--redis", redis_url, env=environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr


def test_a_process_that_cannot_start_ends_the_command_with_its_words(redis_url: str, monkeypatch: Any) -> None:
    """Whoever may look at the server, but not run what a worker runs."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("looker", enabled=True, nopass=True, commands=["+info"], keys=["*"])
        try:
            separator = "&" if "?" in redis_url else "?"
            done = as_process("worker", "--redis", f"{redis_url}{separator}username=looker&password=x")
        finally:
            client.acl_deluser("looker")
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith("saqkit: worker ")
    assert "did not start" in said
    assert "no permissions" in said.lower()
