"""What a shop's web application calls: checking out, and the provider's word that a payment has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass

from saqkit.app.announcing import Announcer, topic_of
from saqkit.app.serving import channel_of
from saqkit.app.shop.charges import Charge
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import NewOrder, Order, Orders
from saqkit.app.shop.payments import settlement
from saqkit.errors import DescriptionError, TemporaryFailure, UsageError
from saqkit.spec.topology import Entry, Topology

LONGEST_KEY = 200


@dataclass(frozen=True)
class CheckedOut:
    """An order; `new` is False if its key was known. `enqueued`: its payment is queued already. `elapsed_ms`: what the
    caller has waited."""

    order: Order
    new: bool
    enqueued: bool
    elapsed_ms: float


class Checkout:
    """Takes orders in, and starts their payment."""

    def __init__(self, announcer: Announcer) -> None:
        self.orders = Orders(announcer.store.database)
        self._announcer = announcer
        self._topology = announcer.topology

    async def check_out(
        self,
        *,
        user: int,
        money: Money,
        tenant: str = "",
        key: str | None = None,
        title: str = "",
        course: int | None = None,
        patience_s: float = 0.05,
    ) -> CheckedOut:
        """Save an order of a user, and enqueue its payment if the broker takes it within `patience_s`.

        Order and outbox row are one transaction: with the broker away the workers' relay enqueues the payment later. A
        `key` that the tenant has used before returns the first order, and charges nothing more. `title`: the subject
        of what the customer is told. `course`: the order gives a place in it, which is kept from now on and completed
        by the payment. `UsageError` for no such user or course, a place that the user has already, a key of another
        order, a title of two lines.
        """
        started = time.perf_counter()
        if not title.isprintable() or (key is not None and not (key.isprintable() and 0 < len(key) <= LONGEST_KEY)):
            raise UsageError(f"a title is one line, and a key one of 1 to {LONGEST_KEY} characters without any breaks")
        job_type, entry = paying_entry(self._topology)
        body = f"We have received your payment of {money}. Thank you!"
        new = NewOrder(user, money, job_type, topic_of(entry), title or f"Your payment of {money}", body,
                       tenant or entry.tenant, key, course)  # fmt: skip
        order, is_new = await self.orders.add(new, time.time())
        enqueued = is_new and await self._announcer.deliver_soon(order.event_id, patience_s)
        return CheckedOut(order, is_new, enqueued, (time.perf_counter() - started) * 1000)

    async def payment_confirmed(
        self, charge_key: str, charge_id: str, money: Money, *, paid: bool = True, reason: str = ""
    ) -> Order:
        """The provider says, unasked, how a payment has ended (a webhook); may be called again. Returns the order.

        An order whose answer was lost is completed, and its customer told: also where its job has died. Whoever calls
        has made sure that the provider is the one who speaks. `UsageError` for a payment of no order, or of another
        amount.
        """
        order = await self.orders.of_charge(charge_key)
        if order is None:
            raise UsageError(f'no order has the charge key "{charge_key}"')
        return await self.confirm(order, Charge(charge_key, charge_id, money, paid, reason))

    async def confirm(self, order: Order, charge: Charge, patience_s: float = 0.05) -> Order:
        """Complete an order by an answer that did not come to its job; nothing if it is complete."""
        try:
            ended = settlement(order, charge, time.time())._replace(by="confirmation")
        except TemporaryFailure as failure:
            raise UsageError(str(failure)) from failure
        if await self.orders.confirm(ended, self.channel_of(order)) and charge.paid:
            await self._announcer.deliver_soon(order.event_id, patience_s)
        found = await self.orders.order(order.id)
        assert found is not None
        return found

    async def tell_again(self, order: Order) -> None:
        """Bring the payment job of a paid order that died without its answer back, so that the customer is told."""
        await self._announcer.deliver(order.event_id)

    def channel_of(self, order: Order) -> str:
        """Under which channel the ledger has an order's payment."""
        spec = self._topology.job_types.get(order.job_type)
        if spec is None:
            raise UsageError(f'order {order.id} is paid by jobs of type "{order.job_type}", which topology '
                             f"{self._topology.name} does not have")  # fmt: skip
        return channel_of(self._topology, spec)


def paying_entry(topology: Topology) -> tuple[str, Entry]:
    """The job type that charges, and how orders come to it: the first entry or topic that starts it, else directly."""
    paying = [name for name, spec in topology.job_types.items() if spec.work == "payment"]
    if not paying:
        raise DescriptionError(f'no job type of topology {topology.name} has work = "payment"', key="job_types",
                               hint='say work = "payment" where orders are charged')  # fmt: skip
    entries = [*topology.entry, *(Entry(topic=name) for name in topology.topics)]
    for entry in entries:
        for name in topology.starts(entry):
            if name in paying:
                return name, entry
    return paying[0], Entry(job_type=paying[0])
