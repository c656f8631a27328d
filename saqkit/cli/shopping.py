"""`checkout` and `orders`: a customer's order, as the shop's web application takes it in, and what has become of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.announcing import how_queued, tell_if_nobody_serves
from saqkit.cli.interrupting import run
from saqkit.cli.options import Amount, Count
from saqkit.cli.output import emit, table
from saqkit.errors import DescriptionError, UsageError

if TYPE_CHECKING:
    from saqkit.app.shop.money import Money
    from saqkit.app.shop.orders import Order
    from saqkit.spec.topology import Topology

POLL_S = 0.02
UNPAID = ("new", "charging")


@click.command()
@click.option("--user", type=Count(), required=True, help="Whose order it is, by id.")
@click.option("--amount", required=True, metavar="X", help="E.g. 12.50.")
@click.option("--currency", required=True, metavar="CODE", help="E.g. EUR.")
@click.option("--tenant", default="", help="Only if the user is of this tenant.")
@click.option("--key", help="Order once: a key that the tenant used before returns its order (default: a new one).")
@click.option("--wait", type=Amount(), default=0.0, metavar="SECONDS", help="Wait so long for the payment to end.")
@options.topology
@options.redis
@options.as_json
def checkout(
    user: int,
    amount: str,
    currency: str,
    tenant: str,
    key: str | None,
    wait: float,
    topology: str,
    redis: str | None,
    as_json: bool,
) -> None:
    """Check an order out, as a shop's web application does.

    The order, its event and the event's outbox row are one transaction; then the payment is queued. `elapsed_ms` is
    what the customer waits. While the broker does not answer the order is saved all the same, and the workers' relay
    queues the payment later. The exit status is 0 for any order that is saved, paid or not: `state` tells.
    """
    from saqkit.app.shop.money import Money

    money = Money.of(amount, currency)
    said = run(_check_out(options.topology_of(topology, (), served=True), user, money, tenant, key, wait, redis))
    if as_json:
        emit(said)
        return
    order = said["order"]
    known = " (checked out before with this key)"
    if said["new"]:
        known = how_queued(said["enqueued"], "its payment") if order["state"] == "new" else ""
    click.echo(f"order {order['id']} of {order['amount']}: {_state(order)}; elapsed_ms {said['elapsed_ms']:.1f}{known}")


async def _check_out(
    topology: Topology, user: int, money: Money, tenant: str, key: str | None, wait_s: float, redis: str | None
) -> dict[str, Any]:
    from saqkit.app.client import Client
    from saqkit.app.shop.orders import as_json
    from saqkit.queue.cancelling import heed_cancellation

    key = secrets.token_hex(8) if key is None else key
    # An application that takes orders in is connected already: what is measured is the call.
    async with Client(topology, redis=redis) as client:
        shop = client.checkout
        try:
            done = await shop.check_out(user=user, money=money, tenant=tenant, key=key)
        except (UsageError, DescriptionError):
            raise
        except BaseException:
            click.echo(f"the order may be saved already: with --key {key} it is charged once", err=True)
            raise
        order: Order | None = done.order
        ends = time.monotonic() + wait_s
        if wait_s and done.order.state in UNPAID:
            click.echo(f"order {done.order.id} is saved (--key {key}); waiting for its payment", err=True)
            await tell_if_nobody_serves(topology, client.queues)
        while order is not None and order.state in UNPAID and time.monotonic() < ends:
            heed_cancellation()
            await asyncio.sleep(POLL_S)
            order = await shop.orders.order(order.id)
        assert order is not None
        return {"order": as_json(order), "new": done.new, "enqueued": done.enqueued, "elapsed_ms": done.elapsed_ms}


@click.command()
@click.argument("id", type=Count(), required=False)
@options.as_json
def orders(id: int | None, as_json: bool) -> None:
    """Show the order of ID, or how many orders are in each state."""
    found = run(_orders(id))
    if as_json:
        emit(found)
    elif id is not None:
        click.echo(f"order {id} of user {found['user_id']}, {found['amount']}: {_state(found)}")
    else:
        click.echo(table(["state", "orders"], list(found.items())) if found else "none")


async def _orders(identity: int | None) -> dict[str, Any]:
    from saqkit.app.location import database_url
    from saqkit.app.shop.orders import Orders, as_json
    from saqkit.app.store import Store

    async with await Store.open(database_url()) as store:
        known = Orders(store.database)
        if identity is None:
            return dict(await known.counts())
        order = await known.order(identity)
        if order is None:
            raise UsageError(f"there is no order {identity} in this database (`saqkit orders` counts them)")
        return as_json(order)


def _state(order: dict[str, Any]) -> str:
    state = str(order["state"])
    return f"{state} ({order['error']})" if order["error"] else state
