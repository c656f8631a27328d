"""A shop for tests: its topology, its workers, and the audit that compares its orders with its provider's books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from saqkit import Queue, Topology
from saqkit.app.announcing import Announcer
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import build_providers
from saqkit.app.shop.charges import Charges, Entry
from saqkit.app.shop.checkout import CheckedOut, Checkout
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import Order
from saqkit.app.store import Store
from saqkit.queue.building import build_queues
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
from saqkit.worker.recording import Row, read
from saqkit.worker.worker import Worker

_QUICK = {"concurrency": 4, "lease_s": 1.0, "sweep_s": 0.5, "tick_s": 0.05}
_LEDGER: dict[str, Any] = {"database": "ledger"}
SHOP: dict[str, Any] = {
    "name": "shop",
    "entry": [{"topic": "checkout"}],
    "topics": {"checkout": {"starts": ["payment"]}},
    "queues": {"payments": _QUICK, "notifications": _QUICK},
    "job_types": {
        "payment": {
            "queue": "payments", "work": "payment", "priority": "high", "timeout_s": 20,
            "retry": {"max_attempts": 3, "backoff": "fixed", "delay_s": 0.1},
            "per_user": {**_LEDGER, "provider": "payments"}, "follow_up": [{"to": "receipt"}],
        },
        "receipt": {"queue": "notifications", "per_user": {**_LEDGER, "provider": "email"}},
        "check-payments": {"queue": "payments", "work": "payment-check"},
    },
    "providers": {
        "payments": {"channel": "sms", "latency": {"kind": "constant", "mean_s": 0.01}},
        "email": {"latency": {"kind": "constant", "mean_s": 0.002}},
    },
}  # fmt: skip


def shop(**changes: Any) -> Topology:
    """The shop; `a__b=value` sets `a.b`."""
    data = Topology.parse(SHOP).to_dict()
    for path, value in changes.items():
        *places, name = path.split("__")
        part = data
        for place in places:
            part = part[place]
        part[name] = value
    return Topology.parse(data, "shop")


class Shop:
    """A topology's store, queues and checkout, as a web application has them."""

    def __init__(self, topology: Topology, url: str, folder: Path, store: Store, queues: dict[str, Queue]) -> None:
        self.topology, self.url, self.store, self.queues, self.folder = topology, url, store, queues, folder
        self.database = f"sqlite:///{folder}/data.db"
        self.announcer = Announcer(topology, store, queues)
        self.checkout = Checkout(self.announcer)
        self.orders = self.checkout.orders
        self.charges = Charges(Path(f"{folder}/data.db.charges"))

    async def buys(self, user: int, cents: int = 1250, **more: Any) -> CheckedOut:
        """A user checks out."""
        return await self.checkout.check_out(user=user, money=Money(cents, "EUR"), patience_s=5, **more)

    async def order(self, identity: int) -> Order:
        """The order as it is now."""
        found = await self.orders.order(identity)
        assert found is not None
        return found

    async def drained(self, timeout_s: float = 60.0) -> None:
        """Wait until no job is left, and no event is on its way into the broker."""

        async def over() -> bool:
            if await self.store.undelivered():
                return False
            for queue in self.queues.values():  # what follows a payment is outgoing there before it is a job elsewhere
                if await queue.count("incomplete") or await queue.redis.zcard(queue.namespace("outgoing")):
                    return False
            return True

        await until(over, timeout_s)

    async def receipts(self) -> dict[tuple[int, int], str]:
        """The ledger's status of every receipt, by event and user."""
        return await self._ledger("email")

    async def _ledger(self, channel: str) -> dict[tuple[int, int], str]:
        query = text("SELECT event_id, user_id, status FROM notifications WHERE channel = :channel")
        rows = await self.store.database.read(lambda c: c.execute(query, {"channel": channel}).all())
        return {(event, user): status for event, user, status in rows}

    async def rows(self, queue: str) -> list[Row]:
        """The attempts of a queue."""
        one = self.queues[queue]
        found = await one.redis.lrange(one.namespace("trace"), 0, -1)  # type: ignore[misc]
        return [read(record, one.name, "run") for record in found]

    async def audit(self, orders: list[Order]) -> list[Entry]:
        """Every order is settled as its one charge says, in the ledger too, and those who paid have their receipt."""
        entries = await self.charges.entries()
        by_key = {entry.charge.key: entry.charge for entry in entries}
        assert len(by_key) == len(entries)
        assert set(by_key) == {order.charge_key for order in orders}, "orders and charges, each once"
        payments, receipts = await self._ledger("sms"), await self.receipts()
        for order in [await self.order(one.id) for one in orders]:
            charge, place = by_key[order.charge_key], (order.event_id, order.user_id)
            assert (order.state, order.charge_id) == ("paid" if charge.paid else "declined", charge.id), order
            assert charge.money == order.money
            assert payments.pop(place) == ("sent" if charge.paid else "failed")
            assert receipts.pop(place, "none") == ("sent" if charge.paid else "none")
        assert (payments, receipts) == ({}, {}), "nothing of anybody else"
        return entries

    @asynccontextmanager
    async def processes(self, count: int, seed: int = 0) -> AsyncIterator[Launcher]:
        """Worker processes of their own."""
        slots = {name: queue.concurrency for name, queue in self.topology.queues.items()}
        launcher = Launcher(
            [
                Configuration(topology=self.topology.to_dict(), broker=self.url, database=self.database, slots=slots,
                              name=f"worker-{n}", folder=str(self.folder), grace_s=5.0, seed=seed)
                for n in range(count)
            ],
            self.folder,
        )  # fmt: skip
        await launcher.start()
        try:
            await launcher.ready()
            yield launcher
        finally:
            await launcher.stop(10)

    @asynccontextmanager
    async def application(self, seed: int = 0) -> AsyncIterator[Application]:
        """What a worker process has."""
        store = await Store.open(self.database)
        application = Application(self.topology, store, self.queues, build_providers(self.topology, seed))
        try:
            yield application
        finally:
            await application.close()

    @asynccontextmanager
    async def worker(self, seed: int = 0) -> AsyncIterator[Application]:
        """A worker in this process."""
        async with self.application(seed) as application:
            worker = Worker(self.queues, dict(application.functions()), dict.fromkeys(self.queues, 4), name="w",
                            context={"application": application}, after_process=after_process)  # fmt: skip
            tasks = [asyncio.create_task(worker.run()), asyncio.create_task(application.relay.run())]
            try:
                yield application
            finally:
                worker.stop()
                await asyncio.wait_for(tasks[0], 20)
                tasks[1].cancel()
                await asyncio.wait(tasks)


@asynccontextmanager
async def open_shop(topology: Topology, url: str, folder: Path, users: int = 50) -> AsyncIterator[Shop]:
    """A shop with so many users."""
    async with AsyncExitStack() as stack:
        queues = build_queues(topology, url)
        for queue in queues.values():
            stack.push_async_callback(queue.disconnect)
            await queue.redis.set(queue.namespace("recording"), 1)
        store = await stack.enter_async_context(await Store.open(f"sqlite:///{folder}/data.db"))
        if users:
            await store.add_numbered_users(users)
        made = Shop(topology, url, folder, store, queues)
        stack.push_async_callback(made.charges.close)
        yield made


async def until(holds: Callable[[], Awaitable[object]], timeout_s: float = 30.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.01)
