"""The payment job: each of its orders is charged once, whatever dies or is lost on the way.

That an order is about to be charged is committed before the provider is asked; its answer after. So where an order is
found in between, its provider is first asked whether it has made the charge. And it charges one key once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.mail.gate import Gate
from saqkit.app.serving import channel_of
from saqkit.app.shop.charges import Charge
from saqkit.app.shop.orders import Order, Settled, Settlement
from saqkit.app.shop.payment_provider import PaymentProvider
from saqkit.app.work import burn
from saqkit.errors import TemporaryFailure
from saqkit.spec.topology import JobType

if TYPE_CHECKING:
    from saqkit.app.handlers import Application
    from saqkit.app.works import Task

logger = logging.getLogger("saqkit")


async def pay(application: Application, task: Task) -> list[int]:
    """Charge the orders of a job's users that are not settled yet; returns whose orders are paid now."""
    spec, attempt, orders = task.spec, task.attempt, application.orders
    channel = channel_of(application.topology, spec)
    burn(spec.cpu_us)
    with attempt.database():
        begun = await orders.begin(task.event, task.users, task.name, channel, time.time())
    if begun.unknown:
        logger.error("job %s: users %s have no order of event %d", task.job.key, begun.unknown, task.event.id)
    attempt.facts["users"] = len(begun.fresh) + len(begun.unsure) + len(begun.unknown)
    attempt.served(failed=len(begun.unknown))
    provider = str(spec.per_user.provider)
    paying = Paying(spec, task.job.attempts, application.payments[provider], application.gates.get(provider), attempt)
    try:
        await paying.pay([*((order, True) for order in begun.unsure), *((order, False) for order in begun.fresh)])
    finally:  # also when the attempt is cancelled: what is known is known
        if paying.settled:
            with attempt.database():
                await orders.settle(paying.settled, channel)
            paid = sum(one.state == "paid" for one in paying.settled)
            attempt.served(done=paid, failed=len(paying.settled) - paid)
    confirmed: list[int] = []
    if paying.put_off:
        with attempt.database():  # the provider may have said meanwhile, another way, how they have ended
            now = await orders.among(list(paying.put_off))
        confirmed = [order.user_id for order in now if order.state == "paid"]
        attempt.served(done=len(confirmed), failed=sum(order.state == "declined" for order in now))
        if late := [paying.put_off[order.id] for order in now if order.state == "charging"]:
            count = f"{len(late)} of {attempt.facts['users']}"
            raise TemporaryFailure(f"{count} payments have no answer; the first: {late[0]}")
    return sorted([*begun.paid, *confirmed, *(one.order.user_id for one in paying.settled if one.state == "paid")])


class Paying:
    """The charges of one attempt (execution `number` of its job), `send_concurrency` at a time.

    `settled`: the answers that came; `put_off`: why there was none for the others, by id of the order.
    """

    def __init__(
        self, spec: JobType, number: int, provider: PaymentProvider, gate: Gate | None, attempt: Attempt
    ) -> None:
        self.settled: list[Settlement] = []
        self.put_off: dict[int, TemporaryFailure] = {}
        self._spec, self._number, self._provider, self._gate, self._attempt = spec, number, provider, gate, attempt

    async def pay(self, orders: list[tuple[Order, bool]]) -> None:
        """Try each order once; `True` beside it: it may have been charged before. None stops the others."""
        lanes, remaining = min(self._spec.send_concurrency, len(orders)), iter(orders)
        if lanes <= 1:
            await self._lane(remaining)
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(self._measured(remaining))

    async def _measured(self, orders: Iterator[tuple[Order, bool]]) -> None:
        await Stopwatch(self._attempt, self._lane(orders))

    async def _lane(self, orders: Iterator[tuple[Order, bool]]) -> None:
        for order, unsure in orders:
            attempt, sampled, began = self._attempt, self._attempt.samples(order.user_id), time.thread_time()
            burn(self._spec.per_user.cpu_us)
            if sampled:
                attempt.step(order.user_id, "cpu", time.thread_time() - began)
            try:
                async with asking(self._gate, attempt, order.user_id):
                    charge = await self._ask(order, unsure)
                self.settled.append(settlement(order, charge, time.time()))
            except TemporaryFailure as failure:
                self.put_off[order.id] = failure
            except Exception as error:  # a PermanentFailure too: only a charge says that no money has moved
                logger.exception("order %d cannot be charged", order.id)
                self.put_off[order.id] = TemporaryFailure(f"{type(error).__name__}: {error}")

    async def _ask(self, order: Order, unsure: bool) -> Charge:
        known = await self._provider.find(order, self._number) if unsure else None
        if known is not None:
            logger.info("order %d had been charged; its answer was lost", order.id)
        return known or await self._provider.charge(order, self._number)


@asynccontextmanager
async def asking(gate: Gate | None, attempt: Attempt, user: int) -> AsyncIterator[None]:
    """Pass a provider's gate, if it has one, and ask within; the time that takes is added to `attempt`."""
    start, begins = time.perf_counter(), 0.0
    try:
        async with gate.passing() if gate else nullcontext():
            begins = time.perf_counter()
            yield
    finally:
        ended = time.perf_counter()
        attempt.provider_s += ended - start
        if attempt.samples(user) and begins:  # what never began says nothing about the provider's times
            attempt.step(user, "provider", ended - begins, begins - start)


def settlement(order: Order, charge: Charge, at: float) -> Settlement:
    """What a charge means for its order. `TemporaryFailure` if it is of another amount: somebody has to look."""
    if charge.money != order.money:
        raise TemporaryFailure(f"order {order.id} is of {order.money}, and its charge {charge.id} of {charge.money}")
    state: Settled = "paid" if charge.paid else "declined"
    return Settlement(order, state, charge.id, charge.reason, at)
