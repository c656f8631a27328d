"""The payment job: each of its orders is charged once, whatever dies or is lost on the way.

That an order is about to be charged is committed before the provider is asked; its answer after. So where an order is
found in between, its provider is first asked whether it has made the charge. And it charges one key once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.mail.gate import Gate
from saqkit.app.serving import channel_of
from saqkit.app.shop.charges import Charge
from saqkit.app.shop.orders import Order, Settled, Settlement
from saqkit.app.shop.payment_provider import PaymentProvider
from saqkit.app.work import burn
from saqkit.errors import PermanentFailure, TemporaryFailure
from saqkit.spec.topology import JobType

if TYPE_CHECKING:
    from saqkit.app.handlers import Application
    from saqkit.app.works import Task

logger = logging.getLogger("saqkit")


async def pay(application: Application, task: Task) -> list[int]:
    """Charge the orders of a job's users that are not settled yet; returns whose orders are paid now."""
    spec, attempt, orders = task.spec, task.attempt, application.orders
    burn(spec.cpu_us)
    with attempt.database():
        begun = await orders.begin(task.event, task.users, task.name, time.time())
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
                await orders.settle(paying.settled, channel_of(application.topology, spec))
            paid = sum(one.state == "paid" for one in paying.settled)
            attempt.served(done=paid, failed=len(paying.settled) - paid)
    if paying.put_off:
        count, reason = len(paying.put_off), paying.put_off[0]
        raise TemporaryFailure(f"{count} of {attempt.facts['users']} payments have no answer; the first: {reason}")
    return sorted([*begun.paid, *(one.order.user_id for one in paying.settled if one.state == "paid")])


class Paying:
    """The charges of one attempt (execution `number` of its job), `send_concurrency` at a time.

    `settled`: the answers that came; `put_off`: why there was none for the others.
    """

    def __init__(
        self, spec: JobType, number: int, provider: PaymentProvider, gate: Gate | None, attempt: Attempt
    ) -> None:
        self.settled: list[Settlement] = []
        self.put_off: list[TemporaryFailure] = []
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
            start = time.perf_counter()
            try:
                async with self._gate.passing() if self._gate else nullcontext():
                    charge = await self._ask(order, unsure)
                self.settled.append(settlement(order, charge, time.time()))
            except TemporaryFailure as failure:
                self.put_off.append(failure)
            except PermanentFailure as failure:
                self.settled.append(Settlement(order, "declined", "", str(failure), time.time()))
            except Exception as error:
                logger.exception("order %d cannot be charged", order.id)
                self.put_off.append(TemporaryFailure(f"{type(error).__name__}: {error}"))
            finally:
                took = time.perf_counter() - start
                attempt.provider_s += took
                if sampled:
                    attempt.step(order.user_id, "provider", took)

    async def _ask(self, order: Order, unsure: bool) -> Charge:
        known = await self._provider.find(order, self._number) if unsure else None
        if known is not None:
            logger.info("order %d had been charged; its answer was lost", order.id)
        return known or await self._provider.charge(order, self._number)


def settlement(order: Order, charge: Charge, at: float) -> Settlement:
    """What a charge means for its order. `TemporaryFailure` if it is of another amount: somebody has to look."""
    if charge.money != order.money:
        raise TemporaryFailure(f"order {order.id} is of {order.money}, and its charge {charge.id} of {charge.money}")
    state: Settled = "paid" if charge.paid else "declined"
    return Settlement(order, state, charge.id, charge.reason, at)
