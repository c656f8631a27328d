"""Operating all queues of a topology: `operate` opens them, `Operator` does to some or all what `Queue` does to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from saqkit import broker
from saqkit.broker_environment import named_broker
from saqkit.errors import BrokerError, SaqkitError, UsageError
from saqkit.judging_health import DEFAULT, UNHEALTHY, WARNING, Health, Problem, Thresholds, judge
from saqkit.queue import dead_letters as letters_of
from saqkit.queue.audit import audit as check
from saqkit.queue.batches import Batch
from saqkit.queue.building import build_queues
from saqkit.queue.configuring import QueueSettings
from saqkit.queue.counting import Statistics, statistics
from saqkit.queue.dead_letters import Chosen, DeadLetter, Filter, Group
from saqkit.queue.live_jobs import ALL, LIVE, Which
from saqkit.queue.operating import Picked, jobs_of_keys
from saqkit.queue.queue import Queue
from saqkit.spec.base import did_you_mean
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Retried(Chosen):
    """What became of dead letters that were `found`: `done` are queued again.

    `users_reopened`: so many users that they did not serve are pending again in the ledger.
    """

    users_reopened: int = 0


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

    async def set_slots(self, slots: int | None, *names: str) -> dict[str, int | None]:
        """`Queue.set_slots` of each; what was set before, by queue."""
        return {name: await queue.set_slots(slots) for name, queue in self.chosen(names).items()}

    async def slots(self, *names: str) -> dict[str, int | None]:
        """What `set_slots` has set, by queue; None where it is nothing."""
        return {name: await queue.slots() for name, queue in self.chosen(names).items()}

    async def configure(self, changes: Mapping[str, Any] | None, *names: str) -> dict[str, QueueSettings]:
        """`Queue.configure` of each; see `configure_each`."""
        return await self.configure_each(dict.fromkeys(self.chosen(names), changes))

    async def configure_each(self, changes: Mapping[str, Mapping[str, Any] | None]) -> dict[str, QueueSettings]:
        """`Queue.configure` by queue. Returns what holds then.

        All of it is checked, also against what else the topology says (a limit on users needs jobs that have some),
        before anything is changed: `DescriptionError`, `UsageError`.
        """
        queues, fields = self.chosen(changes) if changes else {}, dict[str, Any]()
        for name, queue in queues.items():
            if (given := changes[name]) is not None:
                plain = queue.checked(given).to_dict()
                fields |= {f"queues.{name}.{field}": plain[field] for field in given}
        override(self.topology, fields, self.topology.name)
        return {name: await queue.configure(changes[name]) for name, queue in queues.items()}

    async def settings(self, *names: str) -> dict[str, QueueSettings]:
        """`Queue.settings` of each."""
        return {name: await queue.settings() for name, queue in self.chosen(names).items()}

    async def record_attempts(self, *names: str, keep: int | None = 10_000) -> None:
        """`Queue.record_attempts` of each, one after the other."""
        for queue in self.chosen(names).values():
            await queue.record_attempts(keep)

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

    async def dead_letters(
        self, *names: str, limit: int | None = 100, where: Filter | None = None, offset: int = 0,
        newest_first: bool = False,
    ) -> list[DeadLetter]:  # fmt: skip
        """`saqkit.queue.dead_letters.dead_letters` of all of them together, the oldest first."""
        found = letters_of.dead_letters(self.chosen(names).values(), limit, where=where or Filter(), offset=offset,
                                        newest_first=newest_first)  # fmt: skip
        return [letter async for letter in found]

    async def dead_letter_groups(
        self, *names: str, by: Sequence[str] = ("error_class", "message"), where: Filter | None = None
    ) -> list[Group]:
        """`saqkit.queue.dead_letters.groups` of all of them together."""
        return await letters_of.groups(self.chosen(names).values(), by, where=where or Filter())

    async def retry_failed(
        self, *names: str, limit: int | None = None, where: Filter | None = None, dry_run: bool = False
    ) -> Retried:
        """Queue dead letters again with all their attempts before them, the oldest of all the queues first.

        At most `limit` (None: all). Before that, who was not served is pending again in the ledger, of which
        `Queue.retry_failed` knows nothing. `StoreError` if that cannot be opened.
        """
        from saqkit.app.reopening import reopen_users

        reopened = 0

        async def reopen(letters: list[DeadLetter]) -> None:
            nonlocal reopened
            reopened += await reopen_users(self.topology, letters, {})

        said = await letters_of.replay_all(self.chosen(names).values(), where or Filter(), before=reopen,
                                           dry_run=dry_run, limit=limit)  # fmt: skip
        return Retried(said.found, said.done, reopened)

    async def purge_dead_letters(
        self, *names: str, where: Filter | None = None, dry_run: bool = False
    ) -> dict[str, Chosen]:
        """`saqkit.queue.dead_letters.purge_all` of each: they are removed for good."""
        return {name: await letters_of.purge_all(queue, where or Filter(), dry_run=dry_run)
                for name, queue in self.chosen(names).items()}  # fmt: skip

    async def batches(self, *names: str) -> dict[str, list[Batch]]:
        """`Queue.batches` of each."""
        return {name: await queue.batches() for name, queue in self.chosen(names).items()}

    async def statistics(self, *names: str, tenants: bool = False) -> dict[str, Statistics]:
        """`saqkit.queue.counting.statistics` of each."""
        return {name: await statistics(queue, tenants=tenants) for name, queue in self.chosen(names).items()}

    async def jobs_frame(self, *names: str, which: Which = ALL, limit: int | None = None) -> pd.DataFrame:
        """The jobs that have not ended, as one table (`saqkit.queue.tables.JOBS`)."""
        from saqkit.queue.tables import jobs_frame

        return await jobs_frame(self.chosen(names).values(), which, limit)

    async def ended_frame(self, *names: str, states: Sequence[str] = ("done", "cancelled")) -> pd.DataFrame:
        """The jobs that are done or cancelled and still kept, as one table (`saqkit.queue.tables.ENDED`)."""
        from saqkit.queue.tables import ended_frame

        return await ended_frame(self.chosen(names).values(), states)

    async def workers_frame(self, *names: str) -> pd.DataFrame:
        """The worker processes that live, as one table (`saqkit.queue.tables.WORKERS`)."""
        from saqkit.queue.tables import workers_frame

        return await workers_frame(self.chosen(names).values())

    async def dead_letters_frame(
        self, *names: str, limit: int | None = None, where: Filter | None = None
    ) -> pd.DataFrame:
        """The dead letters, in order of death, as one table (`saqkit.queue.tables.DEAD_LETTERS`)."""
        return await letters_of.dead_letters_frame(self.chosen(names).values(), limit, where=where or Filter())

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
