"""What workers log: lines from which one reads the way from an event by its batches to each email."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, answer, saqkit, wait_until

from saqkit.testing import SmtpSink

STORY = """
name = "story"
entry = [{ topic = "event.created" }]
[topics."event.created"]
starts = ["announce"]
[queues.notifications]
concurrency = 3
rate_limit = { limit = 50 }
[job_types.announce]
queue = "notifications"
fan_out = { to = "notify", batch_size = 2 }
[job_types.notify]
queue = "notifications"
retry = { max_attempts = 2, delay_s = 0.01 }
per_user = { database = "ledger", provider = "email" }
[providers.email]
kind = "smtp"
"""
SAQ = str(Path(sys.executable).with_name("saq"))
PEOPLE = ["ada", "bob", "cleo", "dan", "eve"]


@pytest.fixture
def story(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The topology's file; the five people of tenant north are in the database."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'data.db'}")
    path, users = tmp_path / "story.toml", tmp_path / "users.csv"
    path.write_text(STORY)
    users.write_text("email,name,role,tenant\n" + "".join(f"{one}@n.example,{one},student,north\n" for one in PEOPLE))
    answer("users", "import", str(users))
    return path


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpSink]:
    """Bob's address is refused for ever, Cleo's once."""
    with SmtpSink(refuse=["bob@n.example"], defer_once=["cleo@n.example"]) as found:
        monkeypatch.setenv("SAQKIT_SMTP_URL", found.url)
        yield found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a worker's standard error goes: a file does not hold lines back from who looks for one."""
    return tmp_path / "worker.log"


@contextmanager
def working(log: Path, *arguments: str, ready: str = "ready: ") -> Iterator[subprocess.Popen[bytes]]:
    """A worker (or `arguments` as they are, if they name a program) that is `ready`; told to stop, it stops well."""
    command = arguments if arguments[0] == SAQ else [*COMMAND, "worker", *arguments]
    with log.open("wb") as err:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
    try:
        tells(process, log, ready)
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.terminate()
        process.wait(60)


def tells(process: subprocess.Popen[bytes], log: Path, word: str) -> str:
    """The first line that holds `word`, waited for."""

    def found() -> list[str]:
        assert process.poll() is None, log.read_text()
        return [line for line in log.read_text().splitlines() if word in line]

    wait_until(found)
    return found()[0]


def announce(story: Path) -> None:
    """Announce an event and wait until all are served."""
    said = answer("announce", "--title", "Sports day", "--audience", "all", "--tenant", "north", "--wait",
                  "--topology", str(story))  # fmt: skip
    assert (said["sent"], said["failed"]) == (4, 1)


def worked(story: Path, log: Path, *options: str) -> list[str]:
    """The lines of a worker that serves one event from its announcement to its end."""
    with working(log, str(story), "--statistics", "0", *options):
        announce(story)
    return log.read_text().splitlines()


@pytest.mark.row("000.13", "004.16")
def test_ids_lead_from_the_event_by_its_batches_to_each_email(
    story: Path, sink: SmtpSink, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAQKIT_LOG", "json")
    lines = [json.loads(line) for line in worked(story, log, "-vv", "--concurrency", "1")]
    assert all({"timestamp", "level", "message"} <= set(line) for line in lines)
    (failed,) = [line for line in lines if " failed in attempt 1 of 2: " in line["message"]]
    assert {name: failed[name] for name in ("job", "attempt", "queue", "tenant", "level")} == {
        "job": "notify:1:2", "attempt": 1, "queue": "notifications", "tenant": "north", "level": "info"}  # fmt: skip
    own = [line for line in lines if "job" in line and line is not failed]
    assert {(line["event"], line["queue"], line["tenant"]) for line in own} == {(1, "notifications", "north")}
    told: dict[str, list[str]] = defaultdict(list)
    for line in own:
        told[line["job"]].append(line["message"])
    assert told.pop("announce:1") == [
        "processing job announce:1 for event 1",
        "event 1: found 5 users, 3 batches of 2; job announce:1 completed",
    ]
    assert sorted(told) == ["notify:1:0", "notify:1:2", "notify:1:4"]
    assert told["notify:1:4"] == [
        "processing job notify:1:4 for event 1: batch 3 (1 users)", "user 5 is served",
        "processed 1 of 1 users, 0 failed; job notify:1:4 completed"]  # fmt: skip
    second = [(line["attempt"], line["level"], line["message"].partition(": email")[0])
              for line in own if line["job"] == "notify:1:2"]  # fmt: skip
    assert second == [
        (1, "info", "processing job notify:1:2 for event 1: batch 2 (2 users)"),
        (1, "info", "user 3 is not served for now"),
        (1, "debug", "user 4 is served"),
        (2, "info", "processing job notify:1:2 for event 1: batch 2 (1 users)"),
        (2, "debug", "user 3 is served"),
        (2, "info", "processed 1 of 1 users, 0 failed; job notify:1:2 completed"),
    ]
    (refused,) = [line for line in own if "for good" in line["message"]]
    assert (refused["user"], refused["job"]) == (2, "notify:1:0")
    served = {line["message_id"]: line["user"] for line in own if line["message"].endswith("is served")}
    assert {PEOPLE[user - 1] for user in served.values()} == {"ada", "cleo", "dan", "eve"}
    assert set(served) == {message.message_id for message in sink.messages}
    assert len(sink.messages) == 4


def test_people_read_the_same_lines(story: Path, sink: SmtpSink, log: Path) -> None:
    lines = worked(story, log, "-v")
    (found,) = [line for line in lines if "found 5 users" in line]
    ids = "event=1 job=announce:1 attempt=1 queue=notifications tenant=north"
    assert re.fullmatch(r"\S+Z \[info +\] event 1: found 5 users, 3 batches of 2; job announce:1 completed \[saqkit\] "
                        rf"worker=\S+ {ids}", found)  # fmt: skip
    assert not any("is served" in line for line in lines), "single emails are told with -vv"
    assert not any("\x1b" in line for line in lines), "no colours where it is no terminal"


def test_under_saqs_own_command_lines_have_ids_too(
    story: Path, sink: SmtpSink, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAQKIT_LOG", "json")
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(story))
    with working(log, SAQ, "saqkit.settings", "-v", ready="Worker starting"):
        announce(story)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    own = {line["job"] for line in lines if "job" in line and line["logger"] == "saqkit"}
    assert own == {"announce:1", "notify:1:0", "notify:1:2", "notify:1:4"}


@pytest.mark.row("001.8", "000.13")
def test_the_start_says_what_is_served(story: Path, sink: SmtpSink, log: Path) -> None:
    with working(log, str(story), "-v", "--processes", "2"):
        said = log.read_text()
    assert re.search(r"connected to (valkey|redis) [\d.]+ at unix://", said)
    assert "queue notifications: 2 worker processes with 3 slots, at most 50 jobs in 1 s, serves announce" in said
    assert "ready: 2 worker processes serve notifications (3 slots) of story" in said


def test_what_a_worker_says_beside_its_log_is_json_too(
    story: Path, sink: SmtpSink, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAQKIT_LOG", "json")
    with working(log, str(story), "--statistics", "0.2") as process:
        tells(process, log, '"statistics"')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (ready,) = [line for line in lines if line["message"].startswith("ready: ")]
    assert (ready["level"], ready["logger"]) == ("info", "saqkit")
    block: dict[str, Any] = next(line for line in lines if line["message"] == "statistics")
    assert block["queues"]["notifications"]["waiting"] == 0


def test_a_style_that_does_not_exist_is_refused(story: Path) -> None:
    done = saqkit("worker", str(story), env={"SAQKIT_LOG": "jsno"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'saqkit: SAQKIT_LOG: there is no style "jsno" (did you mean "json"?)\n'


def test_nothing_is_loaded_to_write_lines_that_nobody_writes() -> None:
    code = ("import sys, saqkit, saqkit.log_lines as lines; lines.arrange('WARNING', 'w'); "
            "import saqkit.app.handlers, logging; logging.getLogger('saqkit').info('x'); "
            "assert 'structlog' not in sys.modules; logging.getLogger('saqkit').warning('y'); "
            "assert 'structlog' in sys.modules")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
