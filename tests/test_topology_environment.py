"""Slots and retries that the environment gives to a topology that is served, and to no other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import saqkit
from saqkit.cli import main
from saqkit.errors import DescriptionError
from saqkit.spec.topology import Topology
from saqkit.topology_environment import variable_of, with_environment

COURSES = """
name = "courses"
entry = [{ job_type = "welcome" }]
[queues.email]
concurrency = 9
[queues.sync-moodle]
[job_types.welcome]
queue = "email"
[job_types.report]
queue = "email"
retry = { max_attempts = 5 }
[job_types.pull]
queue = "sync-moodle"
retry = { backoff = "list", delays_s = [5, 25, 125] }
[job_types.push]
queue = "sync-moodle"
retry = { max_attempts = 1, delay_s = 7 }
"""


@pytest.fixture
def courses(tmp_path: Path) -> Path:
    path = tmp_path / "courses.toml"
    path.write_text(COURSES)
    return path


def tried(topology: Topology) -> dict[str, tuple[int, list[float]]]:
    return {name: (job.retry.max_attempts, job.retry.schedule()) for name, job in topology.job_types.items()}


def test_nothing_said_changes_nothing(courses: Path) -> None:
    topology = saqkit.load(courses)
    assert with_environment(topology, {"EMAIL_QUEUE_CONCURRENCY": "", "JOB_MAX_RETRIES": " "}) is topology


@pytest.mark.row("001.2")
def test_slots_by_queue(courses: Path) -> None:
    given = {"EMAIL_QUEUE_CONCURRENCY": "5", variable_of("sync-moodle"): "2"}
    assert variable_of("sync-moodle") == "SYNC_MOODLE_QUEUE_CONCURRENCY"
    served = with_environment(saqkit.load(courses), given)
    assert {name: queue.concurrency for name, queue in served.queues.items()} == {"email": 5, "sync-moodle": 2}


@pytest.mark.row("001.3")
def test_retries_for_those_that_say_nothing(courses: Path) -> None:
    served = with_environment(saqkit.load(courses), {"JOB_MAX_RETRIES": "4", "JOB_RETRY_DELAY": "500"})
    assert tried(served) == {
        "welcome": (4, [0.5, 1.0, 2.0]),
        "report": (5, [0.5, 1.0, 2.0, 4.0]),
        "pull": (4, [5, 25, 125]),
        "push": (1, []),
    }
    assert served.job_types["push"].retry.delay_s == 7


def test_a_variable_for_no_queue_is_warned_of(courses: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="saqkit"):
        with_environment(saqkit.load(courses), {"EMIAL_QUEUE_CONCURRENCY": "5"})
    assert caplog.messages == ["EMIAL_QUEUE_CONCURRENCY is for no queue of topology courses (did you mean "
                               '"EMAIL_QUEUE_CONCURRENCY"?)']  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("EMAIL_QUEUE_CONCURRENCY", "0", '"0" is not a whole number from 1 to 100000 (slots per worker process)'),
        ("EMAIL_QUEUE_CONCURRENCY", "five", '"five" is not a whole number'),
        ("JOB_MAX_RETRIES", "0", '"0" is not a whole number from 1 to 10000 (executions in all)'),
        ("JOB_MAX_RETRIES", "3.5", '"3.5" is not a whole number'),
        ("JOB_RETRY_DELAY", "2s", '"2s" is not a whole number from 0 to 604800000 (milliseconds)'),
        ("JOB_RETRY_DELAY", "-1", '"-1" is not a whole number'),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(
    courses: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, why: str
) -> None:
    with pytest.raises(DescriptionError) as caught:
        with_environment(saqkit.load(courses), {name: value})
    assert str(caught.value).startswith(f"{name}: {why}")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    for command in (["worker", str(courses)], ["announce", "--title", "x", "--audience", "all", "--topology",
                                               str(courses)]):  # fmt: skip
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"saqkit: {name}: ")
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(courses))
    with pytest.raises(DescriptionError, match=name):
        saqkit.settings()


def test_saq_gets_the_slots_and_set_goes_before_the_environment(
    courses: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saqkit.cli.options import topology_of

    monkeypatch.setenv("EMAIL_QUEUE_CONCURRENCY", "5")
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(courses))
    monkeypatch.setenv("REDIS_URL", redis_url)
    assert saqkit.settings()["concurrency"] == 5
    assert topology_of(str(courses), ["queues.email.concurrency=7"], served=True).queues["email"].concurrency == 7
    assert topology_of(str(courses), []).queues["email"].concurrency == 9, "what is shown is the description"
