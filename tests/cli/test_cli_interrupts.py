"""Ctrl-C ends any command with status 130, without a traceback, and leaves no process, file or key behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from command_line import QUICK, answer, saqkit, says, start, wait_until

SLOW = ("--set", "providers.email.latency.mean_s=5", "--set", "queues.notifications.rate_limit=none")


@pytest.fixture
def temporary(tmp_state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command's temporary files go; short, because of the socket's path."""
    folder = tmp_state / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.chdir(tmp_state)
    return folder


def interrupt(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """Ctrl-C, which a terminal sends to the whole group; returns status and standard error once all is over."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=40)
    _, alive = psutil.wait_procs(family, 10)
    assert alive == []
    assert out == ""
    return process.returncode, err


def works(process: subprocess.Popen[str], what: str, number: int = 1) -> Callable[[], bool]:
    """Whether the command has `number` descendants whose command line holds `what`."""

    def look() -> bool:
        assert process.poll() is None, process.communicate()
        found = 0
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                found += what in " ".join(child.cmdline())
            except psutil.Error:
                continue
        return found >= number

    return look


@pytest.mark.parametrize("what", ["saqkit-broker", "saqkit.probing_host", "saqkit.worker.process"])
def test_measure(temporary: Path, what: str) -> None:
    process = start("measure", "school-events", "--users", "1000", "--workers", "2", *SLOW, "--out", "run.parquet")
    wait_until(works(process, what))
    assert interrupt(process) == (130, "")
    wait_until(lambda: list(temporary.iterdir()) == [], 10)
    assert not Path("run.parquet").exists()


def test_measure_on_a_given_broker_while_jobs_run(temporary: Path, redis_url: str) -> None:
    process = start("measure", "school-events", "--users", "1000", *SLOW, "--redis", redis_url, "--json")
    with redis.Redis.from_url(redis_url) as client:
        wait_until(lambda: next(client.scan_iter("*:leases"), None))
        assert interrupt(process) == (130, "")
        assert client.keys() == []
    assert list(temporary.iterdir()) == []


def test_sigterm_cleans_up_as_well(temporary: Path) -> None:
    process = start("measure", "school-events", "--users", "1000", *SLOW)
    wait_until(works(process, "saqkit.worker.process"))
    assert interrupt(process, signal.SIGTERM) == (143, "")
    wait_until(lambda: list(temporary.iterdir()) == [], 10)


def test_demo(temporary: Path) -> None:
    process = start("demo", "--json")
    wait_until(works(process, "saqkit.worker.process"))
    assert interrupt(process) == (130, "")
    wait_until(lambda: list(temporary.iterdir()) == [], 10)
    assert [path.name for path in Path().iterdir() if path.suffix in (".png", ".html")] == []


def test_predict_and_plan(temporary: Path) -> None:
    common = ("school-events", "--users", "200000", "--profile", "nominal")
    for arguments in (("predict", *common), ("plan", *common, "--target", "p95<=1s")):
        process = start(*arguments)
        used = psutil.Process(process.pid)
        wait_until(lambda used=used: used.cpu_times().user > 1.5)  # type: ignore[misc]
        assert interrupt(process) == (130, "")


def test_worker_gives_back_what_it_cannot_finish_when_asked_twice(
    temporary: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    Path("people.csv").write_text("email\n" + "".join(f"p{n}@school.example\n" for n in range(20)))
    assert answer("users", "import", "people.csv")["added"] == 20
    assert answer("announce", "--title", "x", "--audience", "all")["enqueued"]
    process = start("worker", "school-events", *SLOW)
    says(process, "ready:")
    with redis.Redis.from_url(redis_url) as client:  # the batch is active, not the fan-out before it
        wait_until(lambda: client.hget("saq:job:{notifications}:notify:1:0", "state") == b"3")
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)  # it waits for the job, which takes 100 s
    assert interrupt(process)[0] == 130
    assert psutil.wait_procs(children, 10)[1] == []
    assert list(temporary.iterdir()) == []


def test_an_idle_worker(temporary: Path, redis_url: str) -> None:
    process = start("worker", "school-events", "--redis", redis_url)
    says(process, "ready:")
    assert interrupt(process) == (130, "")
    assert list(temporary.iterdir()) == []


def test_announce_that_waits(temporary: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event stays announced."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    Path("people.csv").write_text("email\nann@school.example\n")
    assert saqkit("users", "import", "people.csv").returncode == 0
    process = start("announce", "--title", "x", "--audience", "all", "--wait")
    assert "start `saqkit worker school-events`" in says(process, "no worker serves notifications")
    assert interrupt(process) == (130, "")
    worker = start("worker", "school-events", *QUICK)
    says(worker, "ready:")
    wait_until(lambda: answer("stats")["queues"]["notifications"]["completed"] == 2)
    assert interrupt(worker)[0] == 130
