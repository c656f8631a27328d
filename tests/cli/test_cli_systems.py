"""The commands of capacity on each of the systems that ship."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from command_line import answer, saqkit, says, start, wait_until

from saqkit.spec.topology import load, shipped

PEOPLE = "email,name,role\n" + "".join(f"p{n}@school.example,P{n},student\n" for n in range(12))


@pytest.mark.parametrize("name", shipped())
def test_a_system_is_listed_shown_predicted_and_planned(name: str) -> None:
    [listed] = [one for one in answer("systems") if one["name"] == name]
    topology = load(name)
    assert listed == {
        "name": name, "title": topology.title, "queues": [*topology.queues], "job_types": [*topology.job_types],
    }  # fmt: skip
    shown = saqkit("show", name).stdout
    assert max(map(len, shown.splitlines())) <= 100
    assert all(word in shown for word in (*topology.queues, *topology.job_types, *topology.topics))
    asked = (name, "--users", "20", "--profile", "nominal", "--replications", "2")
    [predicted] = answer("predict", *asked, "--set", "providers.email.permanent_share=0")
    assert predicted["users_done"]["mean"] >= 20
    planned = answer("plan", *asked, "--target", "drain<=1h")
    assert (planned["feasible"], planned["workers"]) == (True, 1)


@pytest.mark.parametrize("name", [name for name in shipped() if name != "school-events"])
def test_a_system_is_measured(name: str) -> None:
    topology = load(name)
    quick = [f"providers.{provider}.latency.mean_s=0.005" for provider in topology.providers]
    quick += [f"providers.{provider}.{share}_share=0" for provider in topology.providers
              for share in ("temporary", "permanent")]  # fmt: skip
    said = answer("measure", name, "--users", "20", *(word for one in quick for word in ("--set", one)))
    assert said["users_done"] >= 20
    assert said["users_failed"] == said["dead"] == said["retries"] == 0


LEVELS = """
name = "levels"
[[entry]]
job_type = "f"
[job_types.f]
queue = "q"
[queues.q]
"""


def test_show_says_how_long_each_level_may_wait(tmp_path: Path) -> None:
    file = tmp_path / "levels.toml"
    for weights, bounds in (
        ("", {"": "levels are strict, so low has no bound on its wait while more important jobs keep coming"}),
        ("weights = { critical = 8, high = 4, normal = 2, low = 1 }", {
            f".{level}": f"of other levels at most {passed} jobs are taken while the first of level {level} waits "
            "and no limit holds it back" for level, passed in {"critical": 3, "high": 5, "normal": 9, "low": 17}.items()
        }),
    ):  # fmt: skip
        file.write_text(LEVELS + weights)
        bounding = [bound for bound in answer("show", str(file))["bounds"] if "weights" in bound["at"]]
        assert {bound["at"]: bound["text"] for bound in bounding} == {
            f"queues.q.weights{level}": f"queue q: {text}" for level, text in bounds.items()
        }
        shown = " ".join(saqkit("show", str(file)).stdout.split())  # it is wrapped
        assert all(f"queue q: {text}" in shown for text in bounds.values())
        assert ("levels are strict" in shown) == (not weights)


@pytest.fixture
def people(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker, and a database with twelve students."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'people.db'}")
    (tmp_path / "people.csv").write_text(PEOPLE)
    assert answer("users", "import", str(tmp_path / "people.csv"))["added"] == 12


@contextmanager
def worker(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A worker of a system whose providers answer at once; it is ended by SIGTERM and must end well."""
    quick = [f"providers.{provider}.{field}" for provider in load(name).providers
             for field in ("latency.mean_s=0.002", "temporary_share=0", "permanent_share=0")]  # fmt: skip
    process = start("worker", name, *(word for one in quick for word in ("--set", one)), *arguments)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.row("000.13", "001.8")
@pytest.mark.usefixtures("people")
def test_a_worker_logs_what_it_serves_and_what_it_does() -> None:
    with worker("school-events", "--verbose") as process:
        says(process, "serves 5 x notifications")
        event = answer("announce", "--title", "Sports day", "--audience", "all")["event"]
        for words in (
            f"processing job announce:{event} for event {event}",
            f"event {event}: found 12 users, 1 batches of 100",
            f"processed 12 of 12 users, 0 failed; job notify:{event}:0 completed",
        ):
            says(process, words)


@pytest.mark.row("003.10", "003.11")
@pytest.mark.usefixtures("people")
def test_orders_of_the_shop_are_paid_by_a_worker_and_their_customers_told_twice(tmp_path: Path) -> None:
    with worker("shop", "--processes", "2") as process:
        says(process, "ready:")
        for user in (1, 5, 12):
            said = answer("checkout", "--topology", "shop", "--user", str(user), "--amount", "12.50",
                          "--currency", "EUR", "--wait", "30")  # fmt: skip
            assert (said["new"], said["order"]["state"]) == (True, "paid")
        expected = [(user, channel, "sent") for user in (1, 5, 12) for channel in ("api.payment", "email", "sms")]
        wait_until(lambda: ledger(tmp_path) == expected)
        assert answer("orders") == {"paid": 3}


def ledger(folder: Path) -> list[tuple[int, str, str]]:
    """Who was to be served by which channel, and what became of it."""
    with closing(sqlite3.connect(folder / "people.db")) as database:
        query = "SELECT user_id, channel, status FROM notifications ORDER BY user_id, channel"
        return database.execute(query).fetchall()


@pytest.mark.usefixtures("people")
def test_an_event_has_no_orders_to_pay() -> None:
    done = saqkit("announce", "--topology", "shop", "--title", "Order", "--audience", "students")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "topology shop charges orders" in done.stderr
    assert "use `saqkit checkout --topology shop`" in done.stderr


def test_the_package_can_be_executed_too() -> None:
    done = subprocess.run([sys.executable, "-m", "saqkit", "systems"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "school-events" in done.stdout
