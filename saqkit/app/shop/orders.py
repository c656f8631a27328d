"""Orders in the database: saved with their outbox row, charged by intent and result, settled once."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from saqkit.app.audience import Audience
from saqkit.app.courses.enrolments import course_of_order, reserve
from saqkit.app.database import Database
from saqkit.app.shop.money import Money
from saqkit.app.store import EventRow
from saqkit.app.tables import events, orders, outbox, users
from saqkit.errors import UsageError

logger = logging.getLogger("saqkit")

ARRIVING = Money(1000, "EUR")
"""In a measured run nobody checks out: each arriving user is an order of this much."""

Settled = Literal["paid", "declined"]


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it is stored; times in seconds since the epoch.

    `state`: new, charging (the provider may have been asked, the answer is not recorded), paid, declined. `charge_key`
    is what the provider knows the payment by. `asked_at`: when the provider was last about to be asked. `settled_by`:
    `job`, or `confirmation` where the answer came another way.
    """

    id: int
    tenant: str
    key: str | None
    event_id: int
    user_id: int
    job_type: str
    amount_minor: int
    currency: str
    state: Literal["new", "charging", "paid", "declined"]
    charge_key: str
    charge_id: str
    error: str
    created_at: float
    asked_at: float | None
    settled_at: float | None
    settled_by: str

    @property
    def money(self) -> Money:
        """How much it is."""
        return Money(self.amount_minor, self.currency)


@dataclass(frozen=True, slots=True)
class NewOrder:
    """What a checkout saves: whose order, of what, started by which job type through which `topic` of events.

    `title` and `body` become the subject and the text of what the customer is told. `course`: which one the order gives
    a place in, once it is paid.
    """

    user: int
    money: Money
    job_type: str
    topic: str
    title: str
    body: str
    tenant: str = ""
    key: str | None = None
    course: int | None = None


class Begun(NamedTuple):
    """The orders of a payment job: `fresh` ones, `unsure` ones whose charge may have been made before, users whose
    orders are `paid` or `declined`, and users who have `unknown` ones: no order, as the ledger says from now on."""

    fresh: list[Order]
    unsure: list[Order]
    paid: list[int]
    declined: list[int]
    unknown: list[int]


class Settlement(NamedTuple):
    """How a payment has ended, for good."""

    order: Order
    state: Settled
    charge_id: str
    error: str
    at: float
    by: Literal["job", "confirmation"] = "job"


class Orders:
    """The orders of a database; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = sqlite.insert if database.dialect == "sqlite" else postgresql.insert

    async def add(self, new: NewOrder, at: float) -> tuple[Order, bool]:
        """Save an order, its event and the event's outbox row in one transaction; the order, and whether it is new.

        A `key` that the tenant has used returns the first order with it. `UsageError` if that is another one, or if
        there is no such active user.
        """
        return await self._database.write(lambda connection: self._add(connection, new, at))

    def _add(self, connection: Connection, new: NewOrder, at: float) -> tuple[Order, bool]:
        customer = select(users.c.id).where(users.c.id == new.user, users.c.active)
        of_tenant = f" of tenant {new.tenant}" if new.tenant else ""
        if new.tenant:
            customer = customer.where(users.c.tenant == new.tenant)
        if connection.execute(customer).scalar() is None:
            raise UsageError(f"there is no active user {new.user}{of_tenant}: nobody has checked this out")
        audience = Audience(users=(new.user,), tenant=new.tenant)
        values = {"key": None if new.key is None else f"order {new.key}", "topic": new.topic, "title": new.title,
                  "body": new.body, "audience": audience.to_json(), "tenant": new.tenant, "created_at": at}  # fmt: skip
        save = self._insert(events).values(values).on_conflict_do_nothing(index_elements=["tenant", "key"])
        event = connection.execute(save.returning(events.c.id)).scalar()
        if event is None:
            return _same(connection, new), False
        connection.execute(insert(outbox).values(event_id=event, created_at=at))
        made = {"tenant": new.tenant, "key": new.key, "event_id": event, "user_id": new.user, "job_type": new.job_type,
                "created_at": at, **_unpaid(new.money)}  # fmt: skip
        identity = connection.execute(insert(orders).values(made).returning(orders.c.id)).scalar_one()
        if new.course is not None:
            reserve(connection, new.user, new.course, event, identity, at)
        return _one(connection, select(orders).where(orders.c.id == identity)), True

    async def begin(self, event: EventRow, whose: Sequence[int], job_type: str, channel: str, at: float) -> Begun:
        """Record that the orders of an event's users are about to be charged: this is committed before anybody is.

        Users without a charge to come have failed by the ledger, also where a replay has made their rows pending again.
        """
        return await self._database.write(lambda c: self._begin(c, event, whose, job_type, channel, at))

    def _begin(
        self, connection: Connection, event: EventRow, whose: Sequence[int], job_type: str, channel: str, at: float
    ) -> Begun:
        if event.audience.first_n is not None and whose:
            made = [{"tenant": event.tenant, "key": None, "event_id": event.id, "user_id": user, "job_type": job_type,
                     "created_at": event.created_at, **_unpaid(ARRIVING)} for user in sorted(whose)]  # fmt: skip
            connection.execute(self._insert(orders).on_conflict_do_nothing(), made)
        ours = select(orders).where(orders.c.event_id == event.id, orders.c.user_id.in_(list(whose)))
        # Locked on PostgreSQL: an answer that is being recorded just now is waited for, and then read.
        found = [_order(row) for row in connection.execute(ours.order_by(orders.c.id).with_for_update()).mappings()]
        by_state: dict[str, list[Order]] = {}
        for order in found:
            by_state.setdefault(order.state, []).append(order)
        if begins := [order.id for state in ("new", "charging") for order in by_state.get(state, ())]:
            open_ = update(orders).where(orders.c.id.in_(begins), orders.c.state.in_(_OPEN))
            connection.execute(open_.values(state="charging", asked_at=at))
        lost = [(o.user_id, o.charge_id, o.error, o.settled_at) for o in by_state.get("declined", ())]
        known = {order.user_id for order in found}
        none = [(user, "", f"user {user} has no order of event {event.id}", at) for user in whose if user not in known]
        failed = set[int]()
        for user, charge, error, when in sorted([*lost, *none]):
            row = {"event": event.id, "user": user, "channel": channel, "status": "failed", "charge": charge,
                   "error": error, "at": when, "unless": "failed"}  # fmt: skip
            if connection.execute(_LEDGER, row).rowcount:
                failed.add(user)
        return Begun(
            by_state.get("new", []),
            by_state.get("charging", []),
            [order.user_id for order in by_state.get("paid", ())],
            [order.user_id for order in by_state.get("declined", ())],
            [user for user, *_ in none if user in failed],
        )

    async def settle(self, settlements: Sequence[Settlement], channel: str) -> int:
        """Record answers, with their rows in the ledger; what is settled stays as it is. How many were new."""
        # In the order of ids, so that two processes cannot wait for each other on PostgreSQL.
        ordered = sorted(settlements, key=lambda one: one.order.id)

        def write(connection: Connection) -> int:
            return sum([_settle(connection, one, channel) for one in ordered])

        return await self._database.write(write)

    async def confirm(self, settlement: Settlement, channel: str) -> bool:
        """The same for an answer that did not come to the job; whether it was new.

        The event of an order that is now paid is undelivered again, in the same transaction: a job that died without
        the answer comes back to life and tells the customer.
        """
        again = update(outbox).where(outbox.c.event_id == settlement.order.event_id).values(delivered_at=None)

        def write(connection: Connection) -> bool:
            changed = _settle(connection, settlement, channel)
            if changed and settlement.state == "paid":
                connection.execute(again)
            return changed

        return await self._database.write(write)

    async def order(self, identity: int, tenant: str | None = None) -> Order | None:
        """The order of this id; with `tenant`, only if it is theirs."""
        known = select(orders).where(orders.c.id == identity)
        return await self._find(known if tenant is None else known.where(orders.c.tenant == tenant))

    async def among(self, identities: Sequence[int]) -> list[Order]:
        """The orders of these ids, as they are now."""
        return await self._list(select(orders).where(orders.c.id.in_(identities)).order_by(orders.c.id))

    async def of_charge(self, charge_key: str) -> Order | None:
        """The order whose payment the provider knows by this key."""
        return await self._find(select(orders).where(orders.c.charge_key == charge_key))

    async def unsettled(self, before: float, limit: int) -> list[Order]:
        """Orders that nobody has asked for since `before` and whose answer is missing, longest first."""
        late = select(orders).where(orders.c.state == "charging", orders.c.asked_at < before)
        return await self._list(late.order_by(orders.c.asked_at).limit(limit))

    async def asked(self, order: Order, at: float) -> None:
        """The provider is about to be asked for the charge of this order: the others are first, next time."""
        which = update(orders).where(orders.c.id == order.id, orders.c.state == "charging")
        await self._database.write(lambda connection: connection.execute(which.values(asked_at=at)))

    async def confirmed(self, since: float, limit: int, before: Order | None = None) -> list[Order]:
        """Orders that are paid, as a confirmation since then has said, the latest first: the first `limit` of them, or
        those that come after the order `before`."""
        late = select(orders).where(orders.c.settled_by == "confirmation", orders.c.settled_at >= since)
        if before is not None:
            late = late.where(tuple_(orders.c.settled_at, orders.c.id) < (before.settled_at, before.id))
        latest = late.where(orders.c.state == "paid").order_by(orders.c.settled_at.desc(), orders.c.id.desc())
        return await self._list(latest.limit(limit))

    async def counts(self, tenant: str | None = None) -> dict[str, int]:
        """How many orders are in each state, of one tenant or of all."""
        counted = select(orders.c.state, func.count()).group_by(orders.c.state)
        if tenant is not None:
            counted = counted.where(orders.c.tenant == tenant)
        rows = await self._database.read(lambda connection: connection.execute(counted).all())
        return {row[0]: row[1] for row in rows}

    async def _find(self, wanted: Select[Any]) -> Order | None:
        found = await self._list(wanted)
        return found[0] if found else None

    async def _list(self, wanted: Select[Any]) -> list[Order]:
        rows = await self._database.read(lambda connection: connection.execute(wanted).mappings().all())
        return [_order(row) for row in rows]


_LEDGER = text(
    "INSERT INTO notifications (event_id, user_id, channel, status, message_id, error, sent_at)"
    " VALUES (:event, :user, :channel, :status, :charge, :error, :at)"
    " ON CONFLICT (event_id, user_id, channel) DO UPDATE SET status = excluded.status,"
    " message_id = excluded.message_id, error = excluded.error, sent_at = excluded.sent_at"
    " WHERE notifications.status NOT IN ('sent', :unless)"
)
_OPEN = ("new", "charging")


def _settle(connection: Connection, one: Settlement, channel: str) -> bool:
    open_ = update(orders).where(orders.c.id == one.order.id, orders.c.state.in_(_OPEN))
    values = {"state": one.state, "charge_id": one.charge_id, "error": one.error, "settled_at": one.at,
              "settled_by": one.by}  # fmt: skip
    if not connection.execute(open_.values(values)).rowcount:
        ended = _one(connection, select(orders).where(orders.c.id == one.order.id))
        if (ended.state, ended.charge_id) != (one.state, one.charge_id):
            logger.error('order %d is %s by charge "%s", and now said to be %s by charge "%s": it stays as it is, and'
                         " somebody has to look", ended.id, ended.state, ended.charge_id, one.state,
                         one.charge_id)  # fmt: skip
        return False
    status = "sent" if one.state == "paid" else "failed"
    row = {"event": one.order.event_id, "user": one.order.user_id, "channel": channel, "status": status,
           "charge": one.charge_id, "error": one.error, "at": one.at, "unless": "sent"}  # fmt: skip
    connection.execute(_LEDGER, row)
    return True


def _unpaid(money: Money) -> Mapping[str, Any]:
    return {"amount_minor": money.minor, "currency": money.currency, "state": "new", "error": "", "settled_by": "",
            "charge_key": secrets.token_hex(16), "charge_id": ""}  # fmt: skip


def _same(connection: Connection, new: NewOrder) -> Order:
    """The order that was checked out with the key of this one."""
    known = select(orders).where(orders.c.tenant == new.tenant, orders.c.key == new.key)
    row = connection.execute(known).mappings().one_or_none()
    if row is None:
        raise UsageError(f'the key "{new.key}" belongs to an event that is no order (use another key)')
    order = _order(row)
    if (order.user_id, order.money) != (new.user, new.money):
        raise UsageError(f'the key "{new.key}" belongs to order {order.id} of user {order.user_id}, {order.money} '
                         "(use a new key for a new order)")  # fmt: skip
    if (course := course_of_order(connection, order.id)) != new.course:
        raise UsageError(f'the key "{new.key}" belongs to order {order.id} of course {course} (use a new key for a new'
                         " order)")  # fmt: skip
    return order


def _one(connection: Connection, wanted: Select[Any]) -> Order:
    return _order(connection.execute(wanted).mappings().one())


def _order(row: RowMapping) -> Order:
    return Order(**row)


def as_json(order: Order) -> dict[str, Any]:
    """An order as a table of JSON, with its amount as people write it."""
    return {**asdict(order), "amount": str(order.money)}
