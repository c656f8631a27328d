"""Operating all queues of a topology: `operate` opens them, `Operator` does to some or all what `Queue` does to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from saqkit import broker
from saqkit.broker_environment import named_broker
from saqkit.errors import BrokerError, SaqkitError, UsageError
from saqkit.judging_health import DEFAULT, UNHEALTHY, WARNING, Health, Problem, Thresholds, judge
from saqkit.queue.audit import audit as check
from saqkit.queue.building import build_queues
from saqkit.queue.counting import Statistics, statistics
from saqkit.queue.live_jobs import ALL, LIVE, Which
from saqkit.queue.operating import Picked, jobs_of_keys
from saqkit.queue.queue import Queue
from saqkit.spec.base import did_you_mean
from saqkit.spec.topology import Topology, load

if TYPE_CHECKING:
    import pandas as pd


class Operator:
    """What operators do to the queues of a topology. `names` are those that are meant, none: all.

    `UsageError`, before anything is done, for a queue that does not exist.
    """

    def __init__(self, topology: Topology, queues: Mapping[str, Queue]) -> None:
        self.topology, self.queues = topology, dict(queues)

    def chosen(self, names: Iterable[str] = ()) -> dict[str, Queue]:
        """The queues of these names, all without any."""
        wanted = list(dict.fromkeys(names)) or list(self.queues)
        for name in wanted:
            if name not in self.queues:
                raise UsageError(f'topology {self.topology.name} has no queue "{name}" '
                                 f"({did_you_mean(name, self.queues)})")  # fmt: skip
        return {name: self.queues[name] for name in wanted}

    async def pause(self, *names: str, reason: str = "", by: str = "") -> dict[str, bool]:
        """`Queue.pause` of each; whether it was paused, by queue."""
        return {name: await queue.pause(reason, by) for name, queue in self.chosen(names).items()}

    async def resume(self, *names: str) -> dict[str, bool]:
        """`Queue.resume` of each; whether it was paused, by queue."""
        return {name: await queue.resume() for name, queue in self.chosen(names).items()}

    async def clear(self, *names: str, which: Which = ALL, dry_run: bool = False) -> dict[str, Picked]:
        """`Queue.clear` of each."""
        return {name: await queue.clear(which, dry_run=dry_run) for name, queue in self.chosen(names).items()}

    async def clean(
        self, *names: str, state: str, older_than_s: float = 0.0, dry_run: bool = False
    ) -> dict[str, Picked]:
        """`Queue.clean` of each."""
        return {name: await queue.clean(state, older_than_s, dry_run=dry_run)
                for name, queue in self.chosen(names).items()}  # fmt: skip

    async def cancel_jobs(
        self, *names: str, which: Which = ALL, reason: str = "cancelled", dry_run: bool = False
    ) -> dict[str, Picked]:
        """`Queue.cancel_jobs` of each."""
        return {name: await queue.cancel_jobs(which, reason=reason, dry_run=dry_run)
                for name, queue in self.chosen(names).items()}  # fmt: skip

    async def cancel_keys(
        self, keys: Iterable[str], *names: str, reason: str = "cancelled", dry_run: bool = False
    ) -> dict[str, Picked]:
        """`Queue.cancel_keys`, wherever the jobs are; nothing is done if there is an error."""
        jobs = await jobs_of_keys(list(self.chosen(names).values()), keys, LIVE, "cancelled")
        if dry_run:
            return {name: Picked.of(those) for name, those in jobs.items()}
        return {name: await self.queues[name].cancel_these(those, reason, 5.0) for name, those in jobs.items()}

    async def hasten_keys(self, keys: Iterable[str], *names: str, dry_run: bool = False) -> dict[str, Picked]:
        """`Queue.hasten_keys`, wherever the jobs are; nothing is done if there is an error."""
        jobs = await jobs_of_keys(list(self.chosen(names).values()), keys, ("delayed",), "promoted")
        if dry_run:
            return {name: Picked.of(those) for name, those in jobs.items()}
        return {name: await self.queues[name].hasten_these(those) for name, those in jobs.items()}

    async def set_priority(self, keys: Iterable[str], level: int | str, *names: str) -> int:
        """`Queue.set_priority`, wherever the jobs are; returns of how many. One that was just taken is an error."""
        jobs = await jobs_of_keys(list(self.chosen(names).values()), keys, ("waiting", "delayed"), "given a priority")
        for name, those in jobs.items():
            for job in those:
                await self.queues[name].set_priority(job.key, level)
        return sum(map(len, jobs.values()))

    async def hasten_jobs(self, *names: str, which: Which = ALL, dry_run: bool = False) -> dict[str, Picked]:
        """`Queue.hasten_jobs` of each."""
        return {name: await queue.hasten_jobs(which, dry_run=dry_run) for name, queue in self.chosen(names).items()}

    async def statistics(self, *names: str, tenants: bool = False) -> dict[str, Statistics]:
        """`saqkit.queue.counting.statistics` of each."""
        return {name: await statistics(queue, tenants=tenants) for name, queue in self.chosen(names).items()}

    async def jobs_frame(self, *names: str, which: Which = ALL, limit: int | None = None) -> pd.DataFrame:
        """The jobs that have not ended, as one table (`saqkit.queue.tables.JOBS`)."""
        from saqkit.queue.tables import jobs_frame

        return await jobs_frame(self.chosen(names).values(), which, limit)

    async def workers_frame(self, *names: str) -> pd.DataFrame:
        """The worker processes that live, as one table (`saqkit.queue.tables.WORKERS`)."""
        from saqkit.queue.tables import workers_frame

        return await workers_frame(self.chosen(names).values())

    async def statistics_frame(self, *names: str, tenants: bool = False) -> pd.DataFrame:
        """The statistics as one table (`saqkit.queue.tables.STATISTICS`)."""
        from saqkit.queue.tables import frame_of

        return frame_of((await self.statistics(*names, tenants=tenants)).values())

    async def problems(self, thresholds: Thresholds = DEFAULT, *, audit: bool = False) -> Health:
        """What is wrong with the queues. With `audit` every job is looked at: is it in exactly one place?"""
        counted = {name: await statistics(queue, times=False) for name, queue in self.queues.items()}
        found = judge(counted.values(), thresholds)
        if audit:
            found += [Problem(UNHEALTHY, "audit", name, problem)
                      for name, queue in self.queues.items() for problem in (await check(queue)).problems]  # fmt: skip
        return Health(found, queues=counted)


@asynccontextmanager
async def operate(
    topology: Topology | str | Path = "school-events", redis: str | None = None
) -> AsyncIterator[Operator]:
    """The queues of a topology on a broker that is there: `redis`, else the environment's, else the embedded one if it
    runs.

    `BrokerError` if there is none.
    """
    described = topology if isinstance(topology, Topology) else load(topology)
    url = await asyncio.to_thread(address, redis)
    await asyncio.to_thread(broker.check, url)
    queues = build_queues(described, url)
    try:
        yield Operator(described, queues)
    except RedisError as error:
        raise BrokerError(f"{broker.redact(url)}: {' '.join(str(error).split())}") from error
    finally:
        for queue in queues.values():
            await queue.disconnect()


async def health(
    topology: Topology | str | Path = "school-events",
    redis: str | None = None,
    *,
    thresholds: Thresholds = DEFAULT,
    audit: bool = False,
) -> Health:
    """Look at broker, queues, workers and database. What cannot be reached is a problem, not an error."""
    from saqkit.app.location import database_url
    from saqkit.app.store import Store

    seen, server, problems, undelivered = Health([]), dict[str, Any](), list[Problem](), None
    described = topology if isinstance(topology, Topology) else load(topology)
    try:
        async with operate(described, redis) as operator:
            server = await asyncio.to_thread(broker.check, address(redis))
            seen = await operator.problems(thresholds, audit=audit)
        problems += unsafe(server)
    except BrokerError as error:
        problems.append(Problem(UNHEALTHY, "broker", "", str(error)))
    try:
        async with await Store.open(database_url()) as store:
            undelivered = len(await store.undelivered())
    except SaqkitError as error:
        problems.append(Problem(UNHEALTHY, "database", "", str(error)))
    worst_first = sorted([*problems, *seen.problems], key=lambda problem: problem.level != UNHEALTHY)
    return Health(worst_first, server, seen.queues, undelivered)


def unsafe(server: Mapping[str, Any]) -> list[Problem]:
    """What of a server's settings (`broker.check`) puts jobs at risk."""
    found = []
    if (policy := server["maxmemory_policy"]) not in ("noeviction", "unknown"):
        text = f"maxmemory-policy is {policy}: jobs may vanish (use noeviction)"
        found.append(Problem(UNHEALTHY, "broker", "", text))
    if not server["appendonly"]:
        found.append(Problem(WARNING, "broker", "", "no append-only file: a crash loses jobs (use appendonly yes)"))
    return found


def address(redis: str | None) -> str:
    """The broker that is there; looking at it never starts one."""
    if redis or named_broker():
        return broker.resolve(redis)
    if found := broker.status():
        return found.url
    raise BrokerError("the embedded broker does not run (start it with `saqkit broker start`, or set REDIS_URL)")
