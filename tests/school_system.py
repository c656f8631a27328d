"""Schools for tests: two tenants with people and institutions, the queues of `school-erp`, workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

from saqkit import Event, Queue, Topology
from saqkit.app.event_bus import bus_of
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import build_providers
from saqkit.app.school.calls import School
from saqkit.app.store import Store, UserRow
from saqkit.app.subscribers.subscribing import subscribed
from saqkit.queue.building import build_queues
from saqkit.queue.dead_letters import dead_letters
from saqkit.spec.overriding import override
from saqkit.spec.topology import load
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
from saqkit.worker.worker import Worker

MONDAY = date(2026, 3, 2)
QUICK = {"lease_s": 1.0, "sweep_s": 0.5, "tick_s": 0.05}
SURE = {"latency.mean_s": 0.002, "temporary_share": 0, "permanent_share": 0}


def school_erp(changes: dict[str, Any] | None = None) -> Topology:
    """The shipped topology with quick leases and emails that never fail; `changes` are by path."""
    topology = load("school-erp")
    values = {f"queues.{queue}.{name}": value for queue in topology.queues for name, value in QUICK.items()}
    values |= {f"providers.email.{name}": value for name, value in SURE.items()}
    return override(topology, {**values, **(changes or {})})


class Schools:
    """What the web application of all tenants has."""

    def __init__(self, topology: Topology, url: str, database: str, store: Store, queues: dict[str, Queue]) -> None:
        self.topology, self.url, self.database, self.store, self.queues = topology, url, database, store, queues
        self.calls = School(topology, store, queues)

    async def drained(self, timeout_s: float = 60.0) -> None:
        """Wait until no job is left."""

        async def over() -> bool:
            return not sum([await queue.count("incomplete") for queue in self.queues.values()])

        await until(over, timeout_s)

    async def dead(self, queue: str = "attendance") -> list[tuple[str, int]]:
        """Why jobs have died (the last line), and after how many attempts."""
        letters = [letter async for letter in dead_letters(self.queues[queue])]
        return [(letter.error.strip().rsplit("\n", 1)[-1], letter.attempts) for letter in letters]

    async def events(self) -> list[Event]:
        """What was published, as the history of the bus has it."""
        return [event async for event in bus_of(self.topology, self.queues).history()]

    async def told(self) -> Counter[int]:
        """How many emails were queued for whom, by user id."""
        emails = [job.kwargs or {} async for job in self.queues["notifications"].iter_jobs()]
        return Counter(one["to"] for one in emails if "to" in one)

    async def audited(self, tenant: str) -> list[tuple[str, str, str]]:
        """(who, what, where) of a tenant's audit entries, oldest first."""
        found = await self.store.audit.of_tenant(tenant)
        return [(entry.actor, entry.action, entry.target) for entry in reversed(found)]

    @asynccontextmanager
    async def worker(self, **environ: str) -> AsyncIterator[Application]:
        """A worker in this process."""
        store = await Store.open(self.database)
        application = Application(self.topology, store, self.queues, build_providers(self.topology, 0), environ=environ)
        bus = subscribed(self.topology, self.queues, environ)
        assert bus
        functions = dict([*application.functions(), *bus.functions()])
        worker = Worker(self.queues, functions, dict.fromkeys(self.queues, 4), name="w",
                        context={"application": application}, after_process=after_process)  # fmt: skip
        await bus.start()
        task = asyncio.create_task(worker.run())
        try:
            yield application
        finally:
            worker.stop()
            await asyncio.wait_for(task, 20)
            await bus.stop()
            await application.close()

    @asynccontextmanager
    async def processes(self, count: int, folder: Path, **environ: str) -> AsyncIterator[Launcher]:
        """Worker processes of their own."""
        slots = {name: queue.concurrency for name, queue in self.topology.queues.items()}
        launcher = Launcher(
            [
                Configuration(topology=self.topology.to_dict(), broker=self.url, database=self.database, slots=slots,
                              name=f"worker-{n}", folder=str(folder), grace_s=5.0, environ=environ)
                for n in range(count)
            ],
            folder,
        )  # fmt: skip
        await launcher.start()
        try:
            await launcher.ready()
            yield launcher
        finally:
            await launcher.stop(10)


@asynccontextmanager
async def open_schools(
    topology: Topology, url: str, database: str, north: int = 6, south: int = 2
) -> AsyncIterator[Schools]:
    """North has pupils 1, 2, … and two institutions; south those after them, and one."""
    async with AsyncExitStack() as stack:
        queues = build_queues(topology, url)
        for queue in queues.values():
            stack.push_async_callback(queue.disconnect)
        store = await stack.enter_async_context(await Store.open(database))
        people = [UserRow(f"n{n}@x.example", f"North {n}", tenant="north") for n in range(north)]
        await store.add_users([*people, *(UserRow(f"s{n}@x.example", "=1+1", tenant="south") for n in range(south))])
        for tenant, name in (("north", "main"), ("north", "annexe"), ("south", "main")):
            await store.tenants.add_institution(tenant, name)
        yield Schools(topology, url, database, store, queues)


async def until(holds: Callable[[], Awaitable[object]], timeout_s: float = 30.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.01)
