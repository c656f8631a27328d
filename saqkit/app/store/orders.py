"""Orders, and whether they are paid: each at most once, whoever says so and however often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, RowMapping, Select, literal_column, select, text

from saqkit.app.store.part import Part, now, storable
from saqkit.app.tables import orders
from saqkit.errors import UsageError

Payment = Literal["pending", "paid", "declined"]


@dataclass(frozen=True, slots=True)
class Order:
    """An order of `user`; `subject` is what was bought, in the shop's own words. `payment_reference` is the provider's.

    `amount_cents`: hundredths of `currency`. Times are seconds since the epoch.
    """

    id: int
    tenant: str
    key: str
    user_id: int
    subject: str
    amount_cents: int
    currency: str
    payment: Payment
    payment_reference: str
    payment_error: str
    created_at: float
    settled_at: float | None


class Orders(Part):
    """Orders of all tenants. Nothing of a tenant is read or changed without its name, but for the poller's list."""

    async def place(
        self,
        *,
        key: str,
        user: int,
        amount_cents: int,
        currency: str,
        tenant: str = "",
        subject: str = "",
        at: float | None = None,
    ) -> tuple[Order, bool]:
        """Save an order whose payment is pending, and say whether it is new.

        `key` is the customer's idempotency key: used again for the same purchase it returns the first order, whatever
        became of it. Raises `UsageError` if it was used for another purchase, or the order cannot be.
        """
        if amount_cents <= 0:
            raise UsageError(f"an order of {amount_cents} cents cannot be paid: at least 1")
        if not (len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()):
            raise UsageError(f'"{currency}" is no currency: three capital letters, such as EUR')
        if not key:
            raise UsageError("an order needs a key, so that asking twice does not buy twice")
        purchase = {"user_id": user, "subject": subject, "amount_cents": amount_cents, "currency": currency}
        values = {**purchase, "tenant": tenant, "key": key, "created_at": now(at)}

        def put(connection: Connection) -> tuple[Order, bool]:
            new = connection.execute(_PLACE, values).rowcount == 1
            known = select(orders).where(orders.c.tenant == tenant, orders.c.key == key)
            row = connection.execute(known).mappings().one()
            if different := [name for name, value in purchase.items() if row[name] != value]:
                raise UsageError(f'the key "{key}" belongs to order {row["id"]} with another {different[0]}')
            return Order(**row), new

        return await self._database.write(put)

    async def get(self, tenant: str, order_id: int) -> Order | None:
        """The order, if it is the tenant's."""
        found = await self._all(select(orders).where(orders.c.tenant == tenant, orders.c.id == order_id))
        return found[0] if found else None

    async def of_user(self, tenant: str, user: int, limit: int = 100) -> list[Order]:
        """The latest orders of a user, newest first."""
        own = select(orders).where(orders.c.tenant == tenant, orders.c.user_id == user)
        return await self._all(own.order_by(orders.c.id.desc()).limit(limit))

    async def settle(
        self,
        tenant: str,
        order_id: int,
        payment: Literal["paid", "declined"],
        *,
        reference: str = "",
        error: str = "",
        at: float | None = None,
    ) -> bool:
        """Write how the payment ended, and say whether this call was the one that did.

        So of the payment job, the webhook and the poller exactly one goes on to the receipt. What is paid stays paid. A
        payment overrides a refusal, because then money was taken; a refusal only ends what is pending. `reference` is
        the provider's name of a charge, and pays one order of the tenant: `StoreError` if another has it.
        """
        values = {
            "tenant": tenant,
            "id": order_id,
            "payment": payment,
            "reference": storable(reference),
            "error": storable(error),
            "at": now(at),
            "unless": "paid" if payment == "paid" else "declined",
        }
        return await self._database.write(lambda connection: connection.execute(_SETTLE, values).rowcount == 1)

    async def unsettled(self, before: float, limit: int = 100) -> list[Order]:
        """Of all tenants, orders placed before `before` whose payment is still pending, oldest first."""
        # Literal, so that the index over what is open is seen to serve.
        waiting = select(orders).where(orders.c.payment == literal_column("'pending'"), orders.c.created_at < before)
        return await self._all(waiting.order_by(orders.c.created_at).limit(limit))

    async def _all(self, wanted: Select[tuple[object, ...]]) -> list[Order]:
        def found(connection: Connection) -> list[RowMapping]:
            return list(connection.execute(wanted).mappings())

        return [Order(**row) for row in await self._database.read(found)]


_PLACE = text(
    "INSERT INTO orders (tenant, key, user_id, subject, amount_cents, currency,"
    " payment, payment_reference, payment_error, created_at)"
    " VALUES (:tenant, :key, :user_id, :subject, :amount_cents, :currency, 'pending', '', '', :created_at)"
    " ON CONFLICT (tenant, key) DO NOTHING"
)
_SETTLE = text(
    "UPDATE orders SET payment = :payment, payment_reference = :reference, payment_error = :error, settled_at = :at"
    " WHERE tenant = :tenant AND id = :id AND payment NOT IN ('paid', :unless)"
)
