"""`saqkit announce`: an event to everybody in an audience, and (on request) the wait until all are served."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.interrupting import run
from saqkit.cli.output import Tell, bar, emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.app.audience import Audience
    from saqkit.app.store import Store
    from saqkit.queue.queue import Queue
    from saqkit.spec.topology import Topology

FAILURES = 100
"""How many failures are listed one by one; all are counted by reason."""


@click.command()
@click.option("--title", required=True, help="Becomes the subject of the emails: one line.")
@click.option("--audience", required=True, metavar="ROLES", help="E.g. students,parents; or all.")
@click.option("--body", default="", help="The text (default: the title).")
@click.option("--tenant", default="", help="Only people of this tenant.")
@click.option("--institution", default="", help="Only people of this institution of the tenant's.")
@click.option("--key", help="Announce once: a key that the tenant used before returns the first event.")
@click.option("--wait", is_flag=True, help="Wait until everybody is served, and say how it ended.")
@options.topology
@options.redis
@options.as_json
def announce(
    title: str,
    audience: str,
    body: str,
    tenant: str,
    institution: str,
    key: str | None,
    wait: bool,
    topology: str,
    redis: str | None,
    as_json: bool,
) -> None:
    """Announce an event to an audience.

    It is saved and its first job is queued, in the same time for 100 users or for a million; `elapsed_ms` is what an
    application waits that makes this call. While the broker is away the event is saved all the same, and the workers'
    relay queues it later.
    """
    from saqkit.app.audience import Audience

    if not title.strip():
        raise UsageError("--title: is empty (it becomes the subject of the emails)")
    if institution and not tenant:
        raise UsageError(f'--institution: "{institution}" is one of a tenant (add --tenant)')
    described, people = options.topology_of(topology, (), served=True), Audience.of(audience, tenant, institution)
    paying = [name for name in _reached(described) if described.job_types[name].work == "payment"]
    if paying:
        raise UsageError(f"topology {described.name} charges orders ({paying[0]}), and the users of an event have "
                         f"none: use `saqkit checkout --topology {topology}`")  # fmt: skip
    if wait and not _channels(described):
        raise UsageError(f"--wait: topology {described.name} keeps no ledger that says who is served (leave it out)")
    with bar("sending", as_json) as tell:
        said = run(_announce(described, title, body, people, tenant, key or None, wait, redis, tell))
    if as_json:
        emit(said)
        return
    how = how_queued(said["enqueued"], "its first job") if said["new"] else " (announced before with this key)"
    click.echo(f"event {said['event']}: elapsed_ms {said['elapsed_ms']:.1f}{how}")
    if wait:
        counted = ", ".join(f"{name} {said[name]:,}" for name in ("rows", "sent", "failed", "pending"))
        click.echo(f"{counted} after {number(said['waited_s'])} s")
        if said["reasons"]:
            click.echo(table(["users", "why not"], [[count, why[:90]] for why, count in said["reasons"].items()]))


async def _announce(
    topology: Topology,
    title: str,
    body: str,
    audience: Audience,
    tenant: str,
    key: str | None,
    wait: bool,
    redis: str | None,
    tell: Tell,
) -> dict[str, Any]:
    from saqkit.app.client import Client
    from saqkit.spec.base import did_you_mean

    # An application that announces is connected already: what is measured is the call.
    async with Client(topology, redis=redis) as client:
        store = client.store
        if tenant and await store.tenants.get(tenant) is None:
            known = [one.name for one in await store.tenants.all()]
            hint = did_you_mean(tenant, known) if known else "saqkit users import makes tenants known"
            raise UsageError(f'there is no tenant "{tenant}" in this database ({hint})')
        if audience.institution:
            await store.tenants.check_institution(tenant, audience.institution)
        users = await store.count_users(audience)
        start = time.monotonic()
        announced = await client.announcer.announce(title=title, body=body, audience=audience, tenant=tenant, key=key)
        said = asdict(announced)
        if wait:
            await tell_if_nobody_serves(topology, client.queues)
            said |= await served(
                topology, store, client.queues, announced.event, users * len(_channels(topology)), tell
            )
            said["waited_s"] = round(time.monotonic() - start, 3)
        return said


def how_queued(enqueued: bool, what: str) -> str:
    """What has become of the first job of what was saved."""
    return f"; {what} is queued" if enqueued else f"; {what} is queued once the broker is back"


async def tell_if_nobody_serves(topology: Topology, queues: Mapping[str, Queue]) -> None:
    """Say it when no worker is there: the wait is then for somebody to start one."""
    with suppress(Exception):
        idle = [name for name, queue in queues.items() if not (await queue.info())["workers"]]
        if idle:
            click.echo(f"no worker serves {', '.join(idle)} now: start `saqkit worker {topology.name}`", err=True)


async def served(
    topology: Topology, store: Store, queues: Mapping[str, Queue], event: int, expected: int, tell: Tell
) -> dict[str, Any]:
    """Wait until all `expected` ledger rows have ended, or nothing is left that could serve the others."""
    from saqkit.queue.cancelling import heed_cancellation
    from saqkit.queue.scripts_of_queue import AWAY

    idle = 0
    while True:
        heed_cancellation()
        found = await store.progress(event)
        ended = found.sent + found.failed
        tell(ended, max(expected, found.users))
        if found.pending == 0 and ended >= expected:
            break
        try:
            left = sum([await queue.count("incomplete") for queue in queues.values()])
            idle = idle + 1 if left == 0 and not await store.undelivered(1) else 0
        except AWAY:
            idle = 0
        if idle >= 3:  # a job is in no line for a moment while it hands over to the next
            break
        await asyncio.sleep(0.1)
    failures = await store.failures(event, max(FAILURES, found.failed))
    reasons = Counter(failure.error for failure in failures)
    return {
        "rows": found.sent + found.failed + found.pending,
        "sent": found.sent,
        "failed": found.failed,
        "pending": found.pending,
        "reasons": dict(reasons.most_common()),
        "failures": [asdict(failure) for failure in failures[:FAILURES]],
    }


def _channels(topology: Topology) -> set[str]:
    """The channels by which every user of an event is served, as the ledger names them."""
    found = set[str]()
    for name in _reached(topology):
        job = topology.job_types[name]
        if job.per_user.database == "ledger":
            provider = job.per_user.provider
            found.add(topology.providers[provider].channel if provider else "none")
    return found


def _reached(topology: Topology) -> list[str]:
    """The job types to which the users of an event come."""
    reached = [*topology.starts(topology.entry[0])]
    for name in reached:
        edges = topology.job_types[name].edges()
        served = [target for key, target in edges if not key.startswith("fan_out.on_")]  # those have no users
        reached += [target for target in served if target not in reached]
    return reached
