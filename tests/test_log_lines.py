"""One line of a log: its ids, its extras, its stack, and what must not be seen."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from saq.job import Job

from saqkit import Topology
from saqkit.app.emails.calls import Emails
from saqkit.app.handlers import Application
from saqkit.app.store import Store, UserRow
from saqkit.log_lines import Lines, bound, chosen_style, said
from saqkit.queue.building import build_queues
from saqkit.queue.payload import Curtain, Payload
from saqkit.queue.queue import Queue
from saqkit.testing import RecordingProvider, drain


@pytest.fixture
def logger() -> logging.Logger:
    """A logger whose lines go to its `out` alone."""
    one = logging.Logger("story")
    one.addHandler(logging.StreamHandler(StringIO()))
    return one


def lines(logger: logging.Logger, style: str) -> StringIO:
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setFormatter(Lines(style, "w1"))
    out = handler.stream
    assert isinstance(out, StringIO)
    return out


def test_a_line_has_the_ids_that_are_bound_and_those_alone(logger: logging.Logger) -> None:
    out = lines(logger, "json")
    with bound(event=7, job="notify:7:0", tenant=""):
        with bound(user=3):
            logger.warning("one %d", 1, extra={"message_id": "<a@b>"})
        logger.warning("two")
    logger.warning("three")
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    for line in found:
        assert line.pop("timestamp").endswith("Z")
        assert (line.pop("level"), line.pop("logger"), line.pop("worker")) == ("warning", "story", "w1")
    assert found == [
        {"message": "one 1", "event": 7, "job": "notify:7:0", "user": 3, "message_id": "<a@b>"},
        {"message": "two", "event": 7, "job": "notify:7:0"},
        {"message": "three"},
    ]


async def test_tasks_that_run_at_once_do_not_mix_their_ids(logger: logging.Logger) -> None:
    out = lines(logger, "json")

    async def work(number: int) -> None:
        with bound(job=number):
            for _ in range(3):
                await asyncio.sleep(0)
                logger.warning("%d", number)

    await asyncio.gather(*map(work, range(5)))
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(found) == 15
    assert all(line["message"] == str(line["job"]) for line in found)


@pytest.mark.parametrize("style", ["console", "json"])
def test_what_somebody_sent_stays_in_its_line(logger: logging.Logger, style: str) -> None:
    out = lines(logger, style)
    with bound(tenant='north\n2026 [error] forged "x"'):
        logger.warning("refused")
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_stack_is_told_without_the_values_of_its_frames(logger: logging.Logger, style: str) -> None:
    out, secret = lines(logger, style), "open-" + "sesame"
    try:
        assert secret
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    text = out.getvalue()
    assert "ValueError: no" in text
    assert "Traceback" in text
    assert secret not in text
    assert style == "console" or json.loads(text)["exception"].endswith("ValueError: no")


@pytest.mark.parametrize("style", ["console", "json"])
async def test_what_a_curtain_hides_stays_hidden(
    logger: logging.Logger, style: str, make_queue: Callable[..., Queue]
) -> None:
    """SAQ's worker logs a failed job with the stack of what it raised, which may quote the arguments."""
    out = lines(logger, style)
    logger.addFilter(Curtain())
    job = Job("pay", kwargs={"card": "4111-1111"})
    job.queue = make_queue(payload=Payload(redact={"pay": ["card"]}))
    try:
        raise ValueError("refused for 4111-1111")
    except ValueError:
        logger.exception("Error processing job %s", job.key)
        shown = out.getvalue()
        logger.error("Error processing job %s", job, exc_info=True)
    hidden = out.getvalue()[len(shown) :].partition("Traceback")[2]
    assert "4111" in shown, "the test sees what is not hidden"
    assert "refused for" in hidden
    assert "4111" not in hidden


def test_what_a_command_says_follows_the_style(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (chosen_style({}), chosen_style({"SAQKIT_LOG": ""}), said("ready", n=1)) == ("console", "console", "ready")
    monkeypatch.setenv("SAQKIT_LOG", "json")
    line = json.loads(said("100 % ready", n=1))
    assert (line["message"], line["n"], line["level"]) == ("100 % ready", 1, "info")


@pytest.fixture
def kit_lines() -> Iterator[StringIO]:
    """What the kit's own logger writes as JSON, from INFO on."""
    kit, out = logging.getLogger("saqkit"), StringIO()
    handler, level = logging.StreamHandler(out), kit.level
    handler.setFormatter(Lines("json", "w1"))
    kit.addHandler(handler)
    kit.setLevel(logging.INFO)
    yield out
    kit.removeHandler(handler)
    kit.setLevel(level)


async def test_a_failure_is_told_with_the_ids_of_its_job(make_queue: Callable[..., Queue], kit_lines: StringIO) -> None:
    queue = make_queue("pays", tick_s=0.05)

    async def pay(_context: Any) -> None:
        raise ValueError("no")

    for key, meta in (("pay:1", {"tenant": "north"}), ("pay:2", {})):
        await queue.enqueue("pay", key=key, retries=1, meta=meta)
    await drain(queue, {"pay": pay})
    lines = [json.loads(line) for line in kit_lines.getvalue().splitlines() if "failed in attempt" in line]
    found = {line["job"]: line for line in lines}
    assert found.keys() == {"pay:1", "pay:2"}
    ids = {key: {name: line.get(name) for name in ("queue", "attempt", "tenant")} for key, line in found.items()}
    assert ids == {"pay:1": {"queue": "pays", "attempt": 1, "tenant": "north"},
                   "pay:2": {"queue": "pays", "attempt": 1, "tenant": None}}  # fmt: skip
    assert found["pay:2"]["message"] == "job pay:2 failed in attempt 1 of 1: ValueError: no"


async def test_nothing_is_made_of_a_failure_that_is_not_told(
    make_queue: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("saqkit.worker.worker.tenant_of", asked.append)
    queue = make_queue()

    async def pay(_context: Any) -> None:
        raise ValueError("no")

    for level, times in ((logging.WARNING, 0), (logging.INFO, 1)):
        caplog.set_level(level, logger="saqkit")
        await queue.enqueue("pay", retries=1)
        await drain(queue, {"pay": pay})
        assert len(asked) == times


async def test_what_is_told_of_an_email_has_the_ids_of_its_job_and_its_own(
    redis_url: str, tmp_path: Path, kit_lines: StringIO
) -> None:
    welcome = {"queue": "email", "retry": {"max_attempts": 1}, "per_user": {"provider": "email"}}
    described = Topology.parse({"name": "post", "entry": [{"job_type": "welcome"}], "queues": {"email": {}},
                                "job_types": {"welcome": welcome}, "providers": {"email": {}}})  # fmt: skip
    store = await Store.open(f"sqlite:///{tmp_path}/data.db")
    await store.add_users([UserRow("ann@n.example", "Ann", tenant="north")])
    queues = build_queues(described, redis_url)
    provider = RecordingProvider(sender="School <no-reply@n.example>")
    application = Application(described, store, queues, {"email": provider})
    async with Emails.open(described, redis_url) as emails:
        told = await emails.send_welcome_email(1, 12, tenant="north")
    await drain(queues["email"], application.functions(), context={"application": application})
    await application.close()
    await queues["email"].disconnect()
    (line,) = [json.loads(line) for line in kit_lines.getvalue().splitlines() if "email welcome sent" in line]
    (email,) = provider.sent
    ids = {"job": told.key, "attempt": 1, "queue": "email", "tenant": "north", "user": 1,
           "message_id": email.message_id}  # fmt: skip
    assert {name: line.get(name) for name in ids} == ids
