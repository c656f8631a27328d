"""`publish` and `events`: an event on a topic of the event bus, and what has become of the events there."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.announcing import how_queued
from saqkit.cli.interrupting import run
from saqkit.cli.output import emit, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.spec.topology import Topology


@click.command()
@click.argument("topic")
@click.option("--data", default="{}", metavar="JSON", help="""What happened: '{"model": 7, "votes": 3}'.""")
@click.option("--user", default="", metavar="ID", help="Whom it concerns.")
@click.option("--tenant", default="", help="Whose event it is.")
@click.option("--institution", default="", help="Of that tenant.")
@click.option("--id", "identity", metavar="ID", help="Publish once: one that the tenant used before changes nothing.")
@click.option("--correlation-id", default="", metavar="ID", help="Of what began it all (default: the event's own).")
@options.topology
@options.redis
@options.as_json
def publish(
    topic: str,
    data: str,
    user: str,
    tenant: str,
    institution: str,
    identity: str | None,
    correlation_id: str,
    topology: str,
    redis: str | None,
    as_json: bool,
) -> None:
    """Publish an event on TOPIC: each of its subscribers gets it as a job of its own.

    Who subscribes stands in the topology, as what the topic starts: it sends emails or starts jobs. The event is saved
    with its outbox row; while the broker is away it is saved all the same, and the workers' relay publishes it later.
    """
    envelope: dict[str, Any] = {"user": int(user) if user.isdecimal() else user, "tenant": tenant,
                                "institution": institution, "correlation_id": correlation_id}  # fmt: skip
    if identity is not None:
        envelope["id"] = identity
    said = run(_publish(options.topology_of(topology, (), served=True), topic, _object(data), envelope, redis))
    if as_json:
        emit(said)
        return
    how = how_queued(said["enqueued"], "it") if said["new"] else " (published before under this id)"
    click.echo(f"event {said['id']} on {topic}: elapsed_ms {said['elapsed_ms']:.1f}{how}")
    if said["subscribers"] is not None:
        nobody = f"none yet (start `saqkit worker {topology}`)"
        click.echo(f"subscribers: {', '.join(said['subscribers']) or nobody}")


async def _publish(
    topology: Topology, topic: str, data: dict[str, Any], envelope: dict[str, Any], redis: str | None
) -> dict[str, Any]:
    from saqkit.app.client import Client
    from saqkit.queue.scripts_of_queue import AWAY

    # An application that publishes is connected already: what is measured is the call.
    async with Client(topology, redis=redis) as client:
        publisher = client.publisher
        sent = await publisher.publish(topic, data, **envelope)
        said = {"id": sent.event.id, "topic": topic, "correlation_id": sent.event.correlation_id, "event": sent.row,
                "new": sent.new, "enqueued": sent.enqueued, "elapsed_ms": sent.elapsed_ms}  # fmt: skip
        with suppress(*AWAY):
            return {**said, "subscribers": await publisher.subscribers(topic)}
        return {**said, "subscribers": None}


@click.command()
@click.option("--tenant", help="Its events only.")
@options.topology
@options.redis
@options.as_json
def events(tenant: str | None, topology: str, redis: str | None, as_json: bool) -> None:
    """Show what has become of published events, by topic and subscriber.

    Rows without a subscriber are of the events themselves: `completed` are those that were handed to their subscribers.
    """
    rows = run(_statistics(options.topology_of(topology, (), served=True), tenant, redis))
    if as_json:
        emit(rows)
        return
    click.echo(table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "nobody has subscribed yet")


async def _statistics(topology: Topology, tenant: str | None, redis: str | None) -> list[dict[str, Any]]:
    from saqkit import broker
    from saqkit.app.event_bus import bus_of
    from saqkit.queue.building import build_queues

    async with AsyncExitStack() as stack:
        queues = build_queues(topology, await asyncio.to_thread(broker.resolve, redis))
        for queue in queues.values():
            stack.push_async_callback(queue.disconnect)
        frame = await bus_of(topology, queues).statistics(tenant=tenant)
        return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--data: is no JSON ({error}); write '{{\"model\": 7}}'") from error
    if not isinstance(found, dict):
        raise UsageError(f"--data: is no JSON object but {json.dumps(found)[:40]}; write '{{\"model\": 7}}'")
    return found
