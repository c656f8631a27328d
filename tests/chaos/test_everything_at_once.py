"""All features of the queue at once, an operator in a loop, and workers that are killed: every promise is kept.

Weights, turns of tenants, limits, unique and delayed jobs, schedules, batches with callbacks, jobs that follow others
here and elsewhere, sealed fields; somebody pauses, changes limits, cancels, promotes and replays all the time. Answers
are lost to producers and operator too. When it has drained, `judging.py` compares what happened with the pages in docs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import judging
import pytest
from a_worker_of_chaos import Order, insist
from accounting import Promise, Tell, account, actions, hits, sound
from crowd import Crowd, Nursery
from everything import ALONE, EACH, KEPT, TENANTS, UNWANTED, ZONED, secret_of
from judging import Asked
from operator_of_chaos import Operator, Reign
from saq.job import Job
from seeds import seeds
from storm import LEASE_S, SLOTS, SWEEP_S, WORKERS, Plan, calm, produce, storm

from saqkit.broker import PrivateBroker
from saqkit.queue import fault_sites
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.queue.unique import Unique
from saqkit.spec.lifecycle import State

SHORT = Plan(jobs=400, safety_s=3.0, kill_every_s=0.5, rate=0.002, drain_s=30.0, stop_every=3)
LONG = Plan(jobs=3_000, safety_s=20.0, kill_every_s=1.2, rate=0.001, drain_s=60.0, stop_every=3)
CREWS = {"saqkit": ("saqkit",) * 4, "saq": ("saq", "saq", "saq", "saq there"), "both": ("saqkit", "saq")}
"""Who serves: ours serves both queues, SAQ's one of them."""
OF_A_BATCH = 8
UNIQUE = (Unique("ended"), Unique("begun", until="start"), Unique("late", until=None, for_s=0.7),
          Unique("both", until="end", for_s=0.4))  # fmt: skip


@dataclass
class Books:
    """What was asked for, by job key, and what was said to that."""

    promises: dict[str, Promise] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    recovered: int = 0
    sealed: int = 0

    def job(self, key: str, random: Random, kinds: dict[str, float]) -> Job:
        """A job of one of some kinds, and what is promised of it."""
        promise = self.promises[key] = Promise()
        kwargs: dict[str, Any] = {"ms": random.choice([2, 10, 30]), "users": list(range(random.randint(0, 4)))}
        function, scheduled, timeout = "work", 0.0, 30
        kind = random.choices(list(kinds), list(kinds.values()))[0]
        tenant = random.choices(TENANTS, [5, 2, 1, 1, 1])[0]
        if kind == "once":
            kwargs["fails"] = 1
        elif kind == "late":
            scheduled = random.uniform(0.2, 3.0)
        elif kind == "dies":
            kwargs["fails"], promise.dies = 99, True
        elif kind == "unknown":
            function, promise.dies = "nobody_has_this", True
        elif kind == "held":
            function, promise.cancelled, timeout = "hold", True, 0
        elif kind == "parent":
            function, kwargs["fails"] = "parent", random.choice([0, 0, 1])
        elif kind == "unwanted":
            tenant, promise.cancelled = UNWANTED, True
        promise.cancelled |= random.random() < 0.1
        if random.random() < 0.15:
            kwargs["customer"] = random.randint(1, 10)
        if function == "work" and random.random() < 0.5:
            kwargs["secret"] = secret_of(key)
            self.sealed += 1
        return Job(function, key=key, kwargs=kwargs, retries=3, retry_delay=0.1, timeout=timeout, ttl=0,
                   priority=random.randint(0, 4), scheduled=scheduled,
                   meta={"tenant": tenant, **KEPT})  # fmt: skip


KINDS = {"plain": 66.0, "once": 6, "late": 12, "dies": 3, "unknown": 1, "held": 1, "parent": 8, "unwanted": 2}
"""Shares of the jobs that come one by one, and of members of batches."""
MEMBERS = {"plain": 80.0, "once": 8, "late": 4, "dies": 1.5, "parent": 6}


async def single_jobs(queue: Queue, books: Books, plan: Plan, seed: int) -> None:
    """Jobs of all kinds, evenly."""
    random = Random(f"{seed} jobs")
    jobs = [books.job(f"j{n}", random, KINDS) for n in range(plan.jobs)]
    books.recovered = await produce(queue, jobs, plan.safety_s)
    books.due.update({job.key: job.scheduled for job in jobs if job.scheduled})


async def batches(queue: Queue, there: Queue, books: Books, plan: Plan, seed: int) -> None:
    """Batches, one after another, every other left open for a while; what is not answered is said again."""
    random, number = Random(f"{seed} batches"), plan.jobs // 50
    for n in range(number):
        id = f"b{n}"
        jobs = [books.job(f"{id}:{m}", random, {"dies": 1.0} if n == m == 0 else MEMBERS) for m in range(OF_A_BATCH)]
        for job in jobs:
            job.scheduled += time.time() if job.scheduled else 0
        books.members[id] = [job.key for job in jobs]
        back: dict[str, Any] = {f"on_{event}": Job("work", key=f"{event}:{id}", ttl=0, retries=3, queue=at)
                for event, at in (("complete", queue), ("success", queue), ("death", there))}  # fmt: skip
        if n % 2:
            await insist(lambda: queue.submit_batch(jobs, id=id, **back))  # noqa: B023  # it is over before they change
        else:
            await insist(lambda: queue.open_batch(id, **back))  # noqa: B023
            for some in (jobs[:3], jobs[3:]):
                assert all(await insist(queue.add_to_batch, id, some)), "a member of a new key is refused"
                await asyncio.sleep(random.uniform(0.0, 0.3))
                left_open = await insist(queue.get_batch, id)
                assert (left_open.open, left_open.complete, left_open.success) == (True, False, False)
            await insist(queue.close_batch, id)
        await asyncio.sleep(random.uniform(0.0, 2 * plan.safety_s / number))


async def unique_jobs(queue: Queue, books: Books, plan: Plan, seed: int) -> None:
    """Ask for unique jobs, of which many are refused."""
    random, until = Random(f"{seed} unique"), time.monotonic() + plan.safety_s
    for n in count():
        if time.monotonic() > until:
            return
        key, unique = f"u{n}", random.choice(UNIQUE)
        kwargs = {"ms": random.choice([5, 50, 200, 700]), "fails": random.choice([0, 0, 1]), "unique": unique.id}
        since, twin = time.time(), ""
        try:
            said = await queue.submit("work", kwargs, key=key, unique=unique, ttl=0, retries=3, retry_delay=0.05,
                                      priority=random.randint(1, 4), meta={"tenant": "b", **KEPT})  # fmt: skip
            accepted, twin = said.accepted, "" if said.accepted else said.key
        except AWAY:
            accepted = await insist(queue.job, key) is not None
        if accepted:
            books.promises[key] = Promise(cancelled=random.random() < 0.5)
        if accepted or twin:
            books.asked.append(Asked(unique, key, twin, since, time.time()))
        await asyncio.sleep(random.uniform(0.0, 0.06))


@dataclass
class Chaos:
    """A run that has drained: its queues, its books, and what its operator noted."""

    queue: Queue
    there: Queue
    books: Books
    operator: Operator
    crowd: Crowd
    effects: Path
    log: Path
    calm_at: float = 0.0
    drain_s: float = 0.0


Run = Callable[[Plan, str, int], Awaitable[Chaos]]


@pytest.fixture
async def run(nursery: Nursery, server: PrivateBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a plan be carried out by a crew, with a seed; the server is there until the test is over."""
    made: list[Chaos] = []

    async def carry_out(plan: Plan, crew: str, seed: int) -> Chaos:
        url = (await asyncio.to_thread(server.start)).url
        effects, log = tmp_path / "effects", tmp_path / "faults"
        faults = f"seed={seed},rate={plan.rate},sleep_s={1.5 * LEASE_S},log={log}"
        order = Order("saqkit", url, str(effects), slots=SLOTS, lease_s=LEASE_S, sweep_s=SWEEP_S, faults=faults,
                      grace_s=0.5, everything=True, fires=True)  # fmt: skip
        orders = [order.of(kind) for kind in CREWS[crew]]
        queue, there, operated = (Order.connect(one) for one in (order, order.there(), order))
        books = Books()
        chaos = Chaos(queue, there, books, Operator(operated, books.promises, seed),
                      Crowd(nursery, *orders, workers=WORKERS, seed=seed), effects, log)  # fmt: skip
        made.append(chaos)
        for one in (queue, there):
            await one.record_attempts(100_000)
        await chaos.operator.begin()
        monkeypatch.setattr(fault_sites, "armed", fault_sites.parse(
            f"seed={seed},process=1000,rate=0.01,actions=lose,log={log}"))  # fmt: skip
        chaos.crowd.tend()
        coming = [asyncio.create_task(one) for one in (
            single_jobs(queue, books, plan, seed), batches(queue, there, books, plan, seed),
            unique_jobs(queue, books, plan, seed), chaos.operator.all_done())]  # fmt: skip
        operating = asyncio.create_task(chaos.operator.run())
        try:
            await storm(plan, chaos.crowd, server, [queue, there], [*coming])
            await asyncio.gather(*coming)
        finally:
            monkeypatch.setattr(fault_sites, "armed", None)
            chaos.operator.stop()
            chaos.calm_at = time.time()
            await operating

        async def left() -> int:
            await chaos.operator.clear_up()
            outgoing = await queue.redis.zcard(queue.namespace("outgoing"))
            return int(await queue.count("incomplete") + outgoing + await there.count("incomplete"))

        chaos.drain_s = await calm(plan, chaos.crowd, left)
        await asyncio.to_thread(chaos.crowd.stop)
        return chaos

    yield carry_out
    for chaos in made:
        chaos.crowd.kill(all_of_them=True)
        await asyncio.gather(chaos.queue.disconnect(), chaos.there.disconnect(), chaos.operator.queue.disconnect())


async def judge(chaos: Chaos, plan: Plan, folder: Path, nursery: Nursery, tell: Tell) -> None:
    queue, there, books, operator = chaos.queue, chaos.there, chaos.books, chaos.operator
    await sound(queue)
    await sound(there)
    promises, elsewhere = books.promises, dict[str, Promise]()
    jobs = await judging.known(queue, [key for key, promise in promises.items() if promise.swept])
    others = await judging.known(there)
    for id in books.members:
        for event, place in (("complete", promises), ("success", promises), ("death", elsewhere)):
            if f"{event}:{id}" in (jobs if place is promises else others):
                place.setdefault(f"{event}:{id}", Promise())
    for key in jobs:
        if key.startswith(("work:", f"{EACH}@", f"{ALONE}@", f"{ZONED}@")):
            promises.setdefault(key, Promise())
    elsewhere.update({key: Promise() for key in others if key.startswith("work:")})
    judged = await account(queue, promises, chaos.effects, books.recovered)
    judged += await account(there, elsewhere, Path(f"{chaos.effects}.there"))
    ran = judging.spans(Path(f"{chaos.effects}.spans"))
    started_with = [Reign(await there.settings(), 0.0)]
    aof = [file for file in (folder / "server").rglob("*.aof") if file.is_file()]
    wrong = {
        "ended in one way": [*judging.in_one_way(jobs, await _counts(queue)),
                             *judging.in_one_way(others, await _counts(there))],
        "windows": [*judging.windows(jobs, operator.reigns), *judging.windows(others, started_with)],
        "running": [*judging.running(jobs, operator.reigns), *judging.running(others, started_with)],
        "pauses": [*judging.paused(jobs, operator.pauses)],
        "early": [*judging.early(jobs, books.due, operator.promoted)],
        "unique": [*judging.unique(jobs, books.asked, ran)],
        "at once": [*judging.at_once(jobs, ran, ["ended", "both", ALONE])],
        "firings": [*judging.firings(jobs, chaos.calm_at)],
        "followers": [*judging.followers(jobs, others)],
        "batches": [one async for one in judging.batches(queue, books.members, jobs, others)],
        "seen": [one async for one in judging.seen(queue, nursery.log, *aof)],
        "lost": judged.lost,
        "unexpected": judged.unexpected,
        "jobs that nobody asked for": sorted(jobs.keys() - promises.keys()) + sorted(others.keys() - elsewhere.keys()),
    }  # fmt: skip
    faults, crowd = actions(chaos.log), chaos.crowd
    seen = {"kills": crowd.kills, "stops": crowd.stops, "faults": faults.total(), "poison": judged.poison,
            "drained s": round(chaos.drain_s, 1)}  # fmt: skip
    tell(judged.row(**seen), hits(chaos.log))
    print(f"operator: {dict(operator.did)}; asked {len(books.asked)}, attempts {len(judging.attempts_of(jobs))}")
    print(f"in the end: {operator.reigns[-1].settings}, slots {await queue.slots()}")
    assert {what: problems[:10] for what, problems in wrong.items() if problems} == {}
    assert judged.accepted == judged.done + judged.dead + judged.cancelled + judged.forgotten
    assert judged.doubled <= judged.counts.get("lost", 0), "a job ran twice although its lease had not expired"
    assert aof, "there is no file in which to look for what was sealed"
    assert faults.total() >= 1, "a run without faults shows nothing"
    assert crowd.kills >= plan.safety_s / plan.kill_every_s / 2
    assert len(books.asked) > plan.safety_s
    done = [job for job in jobs.values() if job.state == State.DONE]
    acted = {
        **dict.fromkeys(operator.acts, 0),
        **dict.fromkeys(("rate_limit", "tenant_rate_limit", "weights", "fairness"), 0),
        **{f"running limit of a {key}": 0 for key in ("tenant", "job_type", "customer", "provider")},
        **operator.did,
        **Counter(judging.acted(jobs, operator.reigns)),
        **{f"refused: {one.id}": sum(asked.unique == one and bool(asked.twin) for asked in books.asked)
           for one in UNIQUE},
        **{f"fired: {name}": sum(key.startswith(f"{name}@") for key in jobs) for name in (EACH, ALONE, ZONED)},
        **{f"called back: {event}": sum(key.startswith(f"{event}:") for key in (*jobs, *others))
           for event in ("complete", "success", "death")},
        **{f"followed {name}": sum(key.startswith("work:") for key in place)
           for name, place in (("here", jobs), ("there", others))},
        "delayed": sum(job.key in books.due for job in done),
        "retried": sum(attempt.outcome == "retry" for attempt in judging.attempts_of(jobs)),
        "replayed": (await _counts(queue)).get("dead_replayed", 0),
        "swept": judged.forgotten,
        "sealed": books.sealed,
    }  # fmt: skip
    print(f"acted: {acted}")
    assert [what for what, times in acted.items() if not times] == []
    dead = [key for key, job in jobs.items() if job.state == State.DEAD]
    assert (await queue.clean("dead")).done == len(dead) > 0
    await sound(queue)
    assert await queue.jobs(dead) == [None] * len(dead)


async def _counts(queue: Queue) -> dict[str, int]:
    found: Any = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
    return {name.decode(): int(number) for name, number in found.items()}


@seeds(1)
@pytest.mark.parametrize("crew", ["both"])
async def test_with_everything_at_once_every_promise_is_kept(
    crew: str, seed: int, run: Run, nursery: Nursery, tmp_path: Path, tell: Tell
) -> None:
    await judge(await run(SHORT, crew, seed), SHORT, tmp_path, nursery, tell)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@seeds(1, 2, 3)
@pytest.mark.parametrize("crew", ["saqkit", "saq"])
async def test_with_everything_at_once_thousands_of_jobs_keep_every_promise(
    crew: str, seed: int, run: Run, nursery: Nursery, tmp_path: Path, tell: Tell
) -> None:
    await judge(await run(LONG, crew, seed), LONG, tmp_path, nursery, tell)
