"""One connection for all calls: answers find their calls, a loss is told to all, what blocks does not hold up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from saqkit.queue import line as module
from saqkit.queue.line import Line
from saqkit.queue.queue import Queue


@pytest.fixture
def line(make_queue: Callable[..., Queue]) -> Line:
    return make_queue().line


async def test_answers_find_their_calls_however_many_there_are_at_once(line: Line) -> None:
    said = await asyncio.gather(*(line.call("ECHO", str(n)) for n in range(500)))
    assert said == [b"%d" % n for n in range(500)]
    assert await line.run(("SET", "k", 1), ("INCR", "k"), ("GET", "k")) == [b"OK", 2, b"2"]


async def test_an_error_reply_is_the_answer_of_its_own_call_only(line: Line) -> None:
    first, wrong, last = await line.run(("ECHO", "a"), ("LPUSH", "k"), ("ECHO", "b"))
    assert (first, last) == (b"a", b"b")
    assert isinstance(wrong, ResponseError)
    with pytest.raises(ResponseError, match="wrong number"):
        await line.call("LPUSH", "k")


async def test_all_calls_use_one_connection(line: Line, make_queue: Callable[..., Queue]) -> None:
    looking = make_queue("other")
    await asyncio.gather(*(line.call("ECHO", str(n)) for n in range(50)))
    assert len(await looking.redis.client_list()) == 2


async def test_a_caller_that_gives_up_takes_nobody_elses_answer(line: Line) -> None:
    slow = asyncio.create_task(line.call("EVAL", "for _ = 1, 3e6 do end return 'slow'", 0))
    await asyncio.sleep(0)
    after = asyncio.create_task(line.call("ECHO", "after"))
    await asyncio.sleep(0.001)
    slow.cancel()
    assert await after == b"after"


async def test_a_lost_connection_is_told_to_all_and_the_next_call_has_a_new_one(
    line: Line, make_queue: Callable[..., Queue]
) -> None:
    number = await line.call("CLIENT", "ID")
    waiting = [asyncio.create_task(line.call("BLPOP", "nothing", 10)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await make_queue("other").redis.client_kill_filter(_id=number)
    said = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in said] == [ConnectionError] * 3
    assert await line.call("CLIENT", "ID") != number


async def test_a_server_that_does_not_answer_counts_as_away(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    await line.call("PING")
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    line._watch.cancel()  # type: ignore[union-attr]  # the first call has set it
    line._watch = None
    with pytest.raises(TimeoutError, match="no answer within"):
        await line.call("BLPOP", "nothing", 10)
    monkeypatch.undo()
    assert await line.call("ECHO", "a") == b"a"


async def test_a_line_that_is_not_used_for_long_stays(make_queue: Callable[..., Queue], redis_url: str) -> None:
    line = make_queue(url=f"{redis_url}?socket_timeout=0.2").line
    number = await line.call("CLIENT", "ID")
    await asyncio.sleep(0.5)
    assert await line.call("CLIENT", "ID") == number
    assert await line.call("BLPOP", "nothing", 0.4) is None
    assert await line.call("CLIENT", "ID") == number


async def test_a_closed_line_opens_again(line: Line) -> None:
    await line.call("PING")
    await line.close()
    await line.close()
    assert await line.call("ECHO", "a") == b"a"
