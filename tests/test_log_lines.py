"""One line of a log: its ids, its extras, its stack, and what must not be seen."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from io import StringIO

import pytest
from saq.job import Job

from saqkit.log_lines import Lines, bound, chosen_style, said
from saqkit.queue.payload import Curtain, Payload
from saqkit.queue.queue import Queue


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
