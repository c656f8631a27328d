"""The job that polls: it asks providers for payments whose answer was lost, and nobody has confirmed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saq.job import Status

from saqkit.app.shop.checkout import Checkout
from saqkit.errors import SaqkitError
from saqkit.queue.queue import Queue

if TYPE_CHECKING:
    from saqkit.app.handlers import Application
    from saqkit.app.shop.orders import Order
    from saqkit.app.works import Task

logger = logging.getLogger("saqkit")

PATIENCE_S = 60.0
"""For so long the answer may come to the job itself."""
MOST = 100
"""So many orders are asked for in one go, those first that were not for the longest time."""
LOOK_BACK_S = 86_400.0


@dataclass
class Checked:
    """What a poll found: orders it asked for, those that were complete, and customers it had told again."""

    asked: int = 0
    settled: int = 0
    told_again: int = 0


async def check(application: Application, task: Task) -> list[int]:
    """The work of a job that polls."""
    with task.attempt.database():
        checked = await check_payments(application, patience_s=PATIENCE_S, number=task.job.attempts)
    logger.info("job %s: %s", task.job.key, checked)
    return []


async def check_payments(application: Application, *, patience_s: float, number: int = 1) -> Checked:
    """Ask for the charges of orders that have waited for an answer for `patience_s`, and complete those that are made.

    An order without a charge stays as it is: its job, or whoever replays its dead letter, charges it. A payment that
    was confirmed while its job was dying is told of as well.
    """
    checkout, orders, checked = Checkout(application.announcer), application.orders, Checked()
    late = await orders.unsettled(time.time() - patience_s, MOST)
    for order in late:
        checked.asked += 1
        try:
            checked.settled += await _ask(application, checkout, order, number)
        except SaqkitError as error:
            logger.warning("order %d: %s", order.id, error)
    await orders.asked(late, time.time())
    for order in await orders.confirmed(time.time() - LOOK_BACK_S, MOST):
        if await _died(application, order):
            await checkout.tell_again(order)
            checked.told_again += 1
    return checked


async def _ask(application: Application, checkout: Checkout, order: Order, number: int) -> bool:
    spec = application.topology.job_types.get(order.job_type)
    provider = application.payments.get(spec.per_user.provider or "") if spec else None
    if provider is None:
        return False
    charge = await provider.find(order, number)
    return charge is not None and (await checkout.confirm(order, charge)).state != "charging"


async def _died(application: Application, order: Order) -> bool:
    spec = application.topology.job_types.get(order.job_type)
    if spec is None:
        return False
    queue: Queue = application.queues[spec.queue]
    job = await queue.job(f"{order.job_type}:{order.event_id}:{order.user_id}")
    return job is not None and job.status == Status.FAILED
