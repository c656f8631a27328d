"""The job that polls: it asks providers for payments whose answer was lost, and nobody has confirmed."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saq.job import Status

from saqkit.app.attempt import Attempt
from saqkit.app.serving import channel_of
from saqkit.app.shop.checkout import Checkout
from saqkit.app.shop.payments import asking
from saqkit.errors import SaqkitError

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
    """The work of a job that polls: it serves nobody, and whatever follows it is for all of its users."""
    checked = await check_payments(
        application, patience_s=PATIENCE_S, within_s=task.spec.timeout_s, attempt=task.attempt
    )
    logger.info("job %s: %s", task.job.key, checked)
    return task.users


async def check_payments(
    application: Application, *, patience_s: float, within_s: float = float("inf"), attempt: Attempt | None = None
) -> Checked:
    """Ask for the charges of orders that have waited for an answer for `patience_s`, and complete those that are made.

    An order without a charge stays as it is: its job, or whoever replays its dead letter, charges it. A payment that
    was confirmed while its job was dying is told of as well. Asking begins in the first half of `within_s`, so that
    whoever is slow leaves time for the others; times are added to `attempt`.
    """
    began, attempt, checked = time.monotonic(), attempt or Attempt({}), Checked()
    checkout, orders = Checkout(application.announcer), application.orders
    with attempt.database():
        late = await orders.unsettled(time.time() - patience_s, MOST)
    for order in late:
        if time.monotonic() - began > within_s / 2:
            logger.warning("%d orders are left to the next poll: the providers are slow", len(late) - checked.asked)
            break
        checked.asked += 1
        try:
            checked.settled += await _ask(application, checkout, order, attempt)
        except SaqkitError as error:
            logger.warning("order %d: %s", order.id, error)
        except Exception:  # the orders behind it are not to wait for this one
            logger.exception("order %d cannot be asked for", order.id)
    since, last = time.time() - LOOK_BACK_S, None
    while time.monotonic() - began < within_s * 0.8:
        with attempt.database():
            page = await orders.confirmed(since, MOST, last)
            for order in await _untold(application, page):
                await checkout.tell_again(order)
                checked.told_again += 1
        if len(page) < MOST:
            break
        last = page[-1]
    return checked


async def _ask(application: Application, checkout: Checkout, order: Order, attempt: Attempt) -> bool:
    with attempt.database():  # before it is asked for: if that does not end, the others are first in the next poll
        await application.orders.asked(order, time.time())
    spec = application.topology.job_types.get(order.job_type)
    name = (spec.per_user.provider if spec else None) or ""
    provider = application.payments.get(name)
    if provider is None:
        return False
    async with asking(application.gates.get(name), attempt, order.user_id):
        charge = await provider.find(order, time.time_ns() // 1_000_000)  # a number that no other poll has
    if charge is None:
        return False
    with attempt.database():
        return (await checkout.confirm(order, charge)).state != "charging"


async def _untold(application: Application, paid: Sequence[Order]) -> list[Order]:
    """Those of paid orders whose customers nobody will tell: their job is dead, or gone without a trace of its end."""
    found: list[Order] = []
    for order in paid:
        spec = application.topology.job_types.get(order.job_type)
        if spec is None:
            continue
        key = f"{order.job_type}:{order.event_id}:{order.user_id}"
        job = await application.queues[spec.queue].job(key)
        if job is None and await _followed(application, order, key):
            continue
        if job is None or job.status == Status.FAILED:
            found.append(order)
    return found


async def _followed(application: Application, order: Order, key: str) -> bool:
    """Whether what follows a payment is queued, or in the ledger; so it is where no ledger would know."""
    topology, known = application.topology, application.topology.job_types
    for edge in known[order.job_type].follow_up:
        spec = known[edge.to]
        if spec.per_user.database != "ledger" or spec.fan_out is not None:
            continue
        if await application.queues[spec.queue].job(f"{edge.to}:{key}") is not None:
            continue
        if not await application.store.ended(order.event_id, [order.user_id], channel_of(topology, spec)):
            return False
    return True
