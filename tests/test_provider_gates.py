"""What stands before a provider in real runs: its rate over all processes, its connections, its circuit breaker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from measured import lab
from redis.exceptions import RedisError
from test_handlers import attempts_on, system

from saqkit import Queue
from saqkit.app.mail import Email, build_providers
from saqkit.app.mail.gate import Gate, build_gates
from saqkit.app.mail.turns import Turns
from saqkit.broker import PrivateBroker
from saqkit.errors import CircuitOpen, PermanentFailure, TemporaryFailure
from saqkit.spec.topology import Provider, SendRate
from saqkit.testing import RecordingProvider, SmtpSink

PERIOD_S = 0.2

SENDER = """
import asyncio, json, random, sys, time
from saqkit import Queue
from saqkit.app.mail.turns import Turns
from saqkit.spec.topology import SendRate

url, lanes, sends, limit, period_s, blocks_s = sys.argv[1], *map(float, sys.argv[2:])
read = 0.0

def clock():
    global read
    read = time.monotonic()
    return read

async def main():
    queue = Queue.from_url(url, name="mail")
    turns = Turns(SendRate(limit=int(limit), period_s=period_s), queue, "email", clock)
    begins = []
    print("ready", flush=True)
    sys.stdin.readline()

    async def lane():
        for _ in range(int(sends)):
            await turns.wait()
            begins.append(read)  # the reading on which the send was let through
            if random.random() < 0.2:
                time.sleep(blocks_s)

    await asyncio.gather(*(lane() for _ in range(int(lanes))))
    await turns.close()
    await queue.disconnect()
    print(json.dumps(begins))

asyncio.run(main())
"""


def heaviest_window(begins: list[float], period_s: float) -> int:
    return max(sum(at <= other < at + period_s for other in begins) for at in begins)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    with ExitStack() as stack:

        def sender(url: str, *arguments: float) -> subprocess.Popen[str]:
            words = [sys.executable, "-c", SENDER, url, *map(str, arguments)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield sender


def test_no_window_sees_more_than_the_limit_over_processes_however_late_their_loops(
    redis_url: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    limit = 10
    # Two that are quick, and one whose loop is blocked for longer than any slack it begins with.
    senders = [start(redis_url, 4, 8, limit, PERIOD_S, blocks_s) for blocks_s in (0.0, 0.001, 0.03)]
    for sender in senders:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
    begins: list[list[float]] = []
    for sender in senders:
        assert sender.stdin is not None
        sender.stdin.write("go\n")
        sender.stdin.flush()
    for sender in senders:
        assert sender.stdout is not None
        begins.append(json.loads(sender.stdout.readline()))
        assert sender.wait(20) == 0
    together = sorted(at for each in begins for at in each)
    assert [len(each) for each in begins] == [32, 32, 32]
    # 0.1 %: the server's clock may be slewed against ours.
    assert limit // 2 < heaviest_window(together, 0.999 * PERIOD_S) <= limit
    assert together[-1] - together[0] < 30


async def test_turns_come_in_the_order_of_asking_over_processes(
    make_queue: Callable[..., Queue], until: Callable[..., Awaitable[float]]
) -> None:
    queues = [make_queue("mail"), make_queue("mail")]
    # A clock that stands still: nobody is late for a turn, however busy the machine is.
    turns = [Turns(SendRate(limit=1, period_s=0.05), queue, "email", lambda: 0.0) for queue in queues]
    order: list[int] = []

    async def send(n: int) -> None:
        await turns[n % 2].wait()
        order.append(n)

    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(send(n))

            async def reserved(number: int = n + 1) -> bool:
                return int(await queues[0].redis.get("saq:{mail}:provider:email:number") or 0) >= number

            await until(reserved, 5)
    assert order == list(range(8))


async def test_sends_that_wait_together_share_a_call_and_what_is_cancelled_asks_for_nothing(
    make_queue: Callable[..., Queue],
) -> None:
    queue = make_queue("mail")
    turns = Turns(SendRate(limit=100), queue, "email", lambda: 0.0)  # nobody is late
    before = int((await queue.redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0))
    waiting = [asyncio.create_task(turns.wait()) for _ in range(60)]
    await asyncio.sleep(0)  # all of them have asked, and the call is not made yet
    for task in waiting[40:]:
        task.cancel()
    await asyncio.gather(*waiting[:40])
    after = (await queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert 1 <= after - before <= 3
    assert int(await queue.redis.get("saq:{mail}:provider:email:number") or 0) in (40, 60)
    await turns.close()


async def test_what_has_left_the_window_is_forgotten(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue("mail")
    long, short = (
        Turns(SendRate(limit=3, period_s=period_s), queue, name, lambda: 0.0)  # nobody is late
        for name, period_s in (("long", 10.0), ("short", 0.02))
    )
    for _ in range(3):
        await long.wait()
    for _ in range(20):
        await short.wait()
    for what in ("turns", "number"):
        assert 5_000 < await queue.redis.pttl(queue.namespace(f"provider:long:{what}")) <= 20_300
    assert await queue.redis.zcard(queue.namespace("provider:long:turns")) == 3
    assert await queue.redis.zcard(queue.namespace("provider:short:turns")) <= 4


async def test_while_the_broker_is_away_sends_wait_for_it(until: Callable[..., Awaitable[float]]) -> None:
    server = PrivateBroker()
    queue = Queue.from_url((await asyncio.to_thread(server.start)).url, name="mail")
    try:
        turns = Turns(SendRate(limit=5), queue, "email")
        await turns.wait()
        restarted = asyncio.create_task(asyncio.to_thread(server.restart, 0.5))

        async def away() -> bool:
            try:
                return not await queue.redis.ping()  # type: ignore[misc]
            except (ConnectionError, OSError, RedisError):
                return True

        await until(away, 20)
        await asyncio.wait_for(asyncio.gather(*(turns.wait() for _ in range(3))), 20)
        await restarted
        await turns.close()
    finally:
        await queue.disconnect()
        await asyncio.to_thread(server.stop)


# --- connections and circuit, on a gate alone


class Busy(RecordingProvider):
    """Notes how many are sent at once, and in which order sends begin."""

    def __init__(self, took_s: float = 0.01) -> None:
        super().__init__()
        self.took_s, self.at_once, self.most = took_s, 0, 0

    async def send(self, email: Email) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await super().send(email)
            await asyncio.sleep(self.took_s)
        finally:
            self.at_once -= 1


def email(user: int) -> Email:
    address = f"user{user}@users.example"
    return Email(1, user, 1, address, "", "subject", "text", None, f"<{user}@x>", "no-reply@saqkit.example")


async def through(gate: Gate, provider: RecordingProvider, user: int) -> str:
    try:
        async with gate.passing():
            await provider.send(email(user))
    except (TemporaryFailure, PermanentFailure) as failure:
        return type(failure).__name__
    return "sent"


async def test_connections_are_had_first_in_first_out(make_queue: Callable[..., Queue]) -> None:
    gate, provider = Gate("email", Provider(connections=2), make_queue()), Busy()
    assert await asyncio.gather(*(through(gate, provider, n) for n in range(1, 12))) == ["sent"] * 11
    assert provider.most == 2
    assert [sent.user for sent in provider.tried] == list(range(1, 12))


async def test_a_circuit_opens_is_tried_once_and_closes(
    make_queue: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    spec = Provider.parse({"breaker": {"failures": 3, "reset_s": 10}})
    gate, provider = Gate("email", spec, make_queue(), clock=lambda: now), Busy()
    provider.refuse.add("user99@users.example")
    provider.fail_next(2)
    users = [1, 2, 99]  # a refusal for ever is an answer
    assert [await through(gate, provider, n) for n in users] == ["TemporaryFailure"] * 2 + ["PermanentFailure"]
    provider.fail_next(100)
    said = [await through(gate, provider, n) for n in range(6)]
    assert said == ["TemporaryFailure"] * 3 + ["CircuitOpen"] * 3
    assert len(provider.tried) == 6
    now = 109.9
    assert await through(gate, provider, 1) == "CircuitOpen"
    now = 110.0
    assert [await through(gate, provider, n) for n in range(2)] == ["TemporaryFailure", "CircuitOpen"]
    provider.fail_next(0)
    now = 119.9
    assert await through(gate, provider, 1) == "CircuitOpen"
    now = 120.1
    said = await asyncio.gather(*(through(gate, provider, n) for n in range(4)))
    assert said == ["sent", "CircuitOpen", "CircuitOpen", "CircuitOpen"], "one trial at a time"
    assert [await through(gate, provider, n) for n in range(3)] == ["sent"] * 3
    assert [record.getMessage() for record in caplog.records if record.name == "saqkit"] == [
        "provider email failed 3 times in a row: left alone for 10 s",
        "provider email answers again",
    ]


async def test_it_is_told_once_however_many_were_under_way(
    make_queue: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Busy):
        async def send(self, email: Email) -> None:
            await asyncio.sleep(0)
            raise TemporaryFailure("421 not now")

    gate = Gate("email", Provider.parse({"breaker": {"failures": 2}}), make_queue())
    assert await asyncio.gather(*(through(gate, Failing(), n) for n in range(6))) == ["TemporaryFailure"] * 6
    assert sum("left alone for 30 s" in record.getMessage() for record in caplog.records) == 1


async def test_a_trial_that_is_cancelled_leaves_the_place_and_the_connection_to_another(
    make_queue: Callable[..., Queue],
) -> None:
    now = 0.0
    spec = Provider.parse({"breaker": {"failures": 1, "reset_s": 1}, "connections": 1})
    gate, provider = Gate("email", spec, make_queue(), clock=lambda: now), Busy(took_s=30)
    provider.fail_next()
    assert await through(gate, provider, 1) == "TemporaryFailure"
    now = 2.0
    trial = asyncio.create_task(through(gate, provider, 2))
    while not provider.sent:
        await asyncio.sleep(0)
    trial.cancel()
    await asyncio.wait([trial])
    provider.took_s = 0.0
    assert await through(gate, provider, 3) == "sent"


async def test_who_waits_for_a_connection_is_told_when_the_circuit_opens(make_queue: Callable[..., Queue]) -> None:
    spec = Provider.parse({"breaker": {"failures": 2}, "connections": 1})
    gate, provider = Gate("email", spec, make_queue()), Busy()
    provider.fail_next(100)
    said = await asyncio.gather(*(through(gate, provider, n) for n in range(6)))
    assert said == ["TemporaryFailure"] * 2 + ["CircuitOpen"] * 4
    assert len(provider.tried) == 2
    with pytest.raises(CircuitOpen, match="email: not tried"):
        async with gate.passing():
            pytest.fail("nothing may pass")


# --- as part of the application


def test_a_provider_without_any_of_them_has_no_gate(make_queue: Callable[..., Queue]) -> None:
    queues = {"notifications": make_queue("notifications")}
    assert build_gates(lab(), queues) == {}
    assert list(build_gates(lab(providers__email__connections=3), queues)) == ["email"]


async def test_a_job_waits_for_connections_and_turns_and_its_books_say_so(redis_url: str, tmp_path: Path) -> None:
    provider = Busy(took_s=0.002)
    fields: dict[str, Any] = {
        "providers__email__connections": 2,
        "providers__email__rate": {"limit": 4, "period_s": 0.2},
        "job_types__notify__send_concurrency": 5,
    }
    async with system(lab(**fields), redis_url, tmp_path, 13) as made:
        (row,) = await attempts_on(made, range(1, 14), email=provider)
    assert provider.most == 2
    assert sorted(sent.user for sent in provider.sent) == list(range(1, 14))
    assert (row["outcome"], row["users_done"]) == ("done", 13)
    assert row["finished_at"] - row["started_at"] > 3 * 0.2
    assert row["provider_s"] > 5 * 3 * 0.2 * 0.5, "five wait at once"


@pytest.mark.row("004.12")
async def test_an_open_circuit_puts_users_off_at_once_and_the_next_attempt_serves_them(
    redis_url: str, tmp_path: Path
) -> None:
    provider = Busy(took_s=0.0)
    provider.fail_next(3)
    fields: dict[str, Any] = {
        "providers__email__breaker": {"failures": 3, "reset_s": 0.3},
        "job_types__notify__retry": {"max_attempts": 2, "backoff": "fixed", "delay_s": 0.5},
    }
    async with system(lab(**fields), redis_url, tmp_path, 20) as made:
        rows = await attempts_on(made, range(1, 21), email=provider)
    assert [(row["outcome"], row["users_done"]) for row in rows] == [("retry", 0), ("done", 20)]
    assert len(provider.tried) == 3 + 20
    assert "20 of 20 users failed for now" in rows[0]["error"] or rows[0]["error"].endswith("TemporaryFailure")


async def test_a_timed_out_attempt_gives_its_connection_back(redis_url: str, tmp_path: Path) -> None:
    class Slow(Busy):
        async def send(self, email: Email) -> None:
            self.took_s = 30 if email.attempt == 1 else 0
            await super().send(email)

    fields: dict[str, Any] = {
        "providers__email__connections": 1,
        "job_types__notify__send_concurrency": 3,
        "job_types__notify__timeout_s": 0.3,
        "job_types__notify__retry": {"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
    }
    slow = Slow()
    async with system(lab(**fields), redis_url, tmp_path, 5) as made:
        rows = await attempts_on(made, range(1, 6), email=slow)
    assert [(row["outcome"], row["users_done"]) for row in rows] == [("retry", 0), ("done", 5)]
    assert slow.most == 1


async def test_emails_over_smtp_keep_the_rate(redis_url: str, tmp_path: Path) -> None:
    topology = lab(
        providers__email__rate={"limit": 5, "period_s": 0.3}, providers__email__connections=3,
        job_types__notify__send_concurrency=10,
    )  # fmt: skip
    with SmtpSink(max_connections=3) as sink:
        smtp = build_providers(topology, 0, {"SAQKIT_SMTP_URL": sink.url})["email"]
        async with system(topology, redis_url, tmp_path, 20) as made:
            (row,) = await attempts_on(made, range(1, 21), email=smtp)
        assert len({message.message_id for message in sink.messages}) == len(sink.messages) == 20
        assert sink.connections <= 3
    assert row["users_done"] == 20
    assert row["finished_at"] - row["started_at"] > 3 * 0.3
