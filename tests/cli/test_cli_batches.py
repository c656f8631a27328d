"""`saqkit batches` and `saqkit batch` on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from command_line import answer, saqkit
from saq.job import Job, Status

from saqkit.queue.queue import Queue

NAME = "notifications"
Do = Callable[[Callable[[Queue], Awaitable[Any]]], Any]


@pytest.fixture
def do(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Do:
    monkeypatch.setenv("REDIS_URL", redis_url)

    def carry_out(work: Callable[[Queue], Awaitable[Any]]) -> Any:
        async def on_a_queue() -> Any:
            queue = Queue.from_url(redis_url, name=NAME)
            try:
                return await work(queue)
            finally:
                await queue.disconnect()

        return asyncio.run(on_a_queue())

    return carry_out


async def fill(queue: Queue) -> None:
    """One batch that has succeeded, one of 10 users of which 9 have ended, and one that is open."""
    await queue.submit_batch([Job("f", key="s")], id="first", on_success="tidy")
    members = [Job("f", key=f"m{n}", kwargs={"users": list(range(users))}) for n, users in enumerate((4, 3, 2, 1))]
    await queue.submit_batch(members, id="second", on_complete="tidy", on_death=Job("tell", key="k"))
    await queue.open_batch("third")
    for status in (Status.COMPLETE, Status.COMPLETE, Status.FAILED):
        job = await queue.dequeue(timeout=5)
        assert job is not None
        await queue.finish(job, status, error="ValueError: no")
    await queue.cancel_keys(["m2"])


def test_batches_are_listed_with_what_became_of_their_members(do: Do) -> None:
    assert saqkit("batches").stdout == "none\n"
    assert answer("batches") == []
    do(fill)
    head, _, *rows = saqkit("batches", NAME).stdout.splitlines()
    assert " ".join(head.split()) == "batch queue jobs done dead gone pending ended state callbacks"
    assert [row.split() for row in rows] == [
        ["first", NAME, "1", "1", "0", "0", "0", "100", "%", "success", "success*"],
        ["second", NAME, "4", "1", "1", "1", "1", "90", "%", "running", "complete", "death*"],
        ["third", NAME, "0", "0", "0", "0", "0", "0", "%", "open", "-"],
    ]
    assert [batch["id"] for batch in answer("batches", "--limit", "1")] == ["third"]


def test_one_is_shown(do: Do) -> None:
    do(fill)
    told = answer("batch", "second")
    assert [told[f"{state}_users"] for state in ("pending", "done", "dead", "cancelled", "gone")] == [1, 4, 3, 2, 0]
    assert (told["id"], told["queue"], told["open"]) == ("second", NAME, False)
    assert (told["percent"], told["percent_done"]) == (90, 40)
    assert told["callbacks"] == {
        "complete": {"job": "tidy:second:complete", "enqueued": False}, "death": {"job": "k", "enqueued": True},
    }  # fmt: skip
    assert (told["complete_at"], told["death_at"][-1]) == ("", "Z")
    lines = saqkit("batch", "second", "--queue", NAME).stdout.splitlines()
    assert lines[0].startswith("batch second of queue notifications: running, opened 20")
    assert ["cancelled", "1", "2"] in [line.split() for line in lines]
    assert "90 % of the users have ended, 40 % are done" in lines
    assert lines[-2] == "on complete: job tidy:second:complete not yet"
    assert lines[-1].startswith("on death: job k enqueued 20")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("batch", "secnd"), 'there is no batch "secnd" in queue notifications (did you mean "second"?)'),
        (("batch",), "batch: ID is missing"),
        (("batch", "second", "--queue", "nowhere"), 'has no queue "nowhere"'),
        (("batches", "notification"), 'has no queue "notification" (did you mean "notifications"?)'),
        (("batches", "--limit", "0"), "--limit: 0 is too small"),
    ],
)
def test_bad_input_is_one_line_and_status_2(do: Do, arguments: tuple[str, ...], reason: str) -> None:
    do(fill)
    done = saqkit(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr


def test_an_id_of_two_queues_asks_for_the_queue(do: Do, redis_url: str, tmp_path: Any) -> None:
    path = tmp_path / "two.toml"
    path.write_text('name = "two"\n[[entry]]\njob_type = "f"\n[job_types.f]\nqueue = "notifications"\n'
                    "[queues.notifications]\n[queues.mail]\n")  # fmt: skip

    async def on_both(queue: Queue) -> None:
        other = Queue.from_url(redis_url, name="mail")
        await queue.open_batch("b")
        await other.open_batch("b")
        await other.disconnect()

    do(on_both)
    done = saqkit("batch", "b", "--topology", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert '"b" is a batch of several queues: notifications, mail (choose one with --queue)' in done.stderr
    assert answer("batch", "b", "--queue", "mail", "--topology", str(path))["queue"] == "mail"
