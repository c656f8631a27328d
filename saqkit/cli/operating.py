"""Operating what runs: `broker`, `users`, `stats`, `health`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from saqkit.cli import options
from saqkit.cli.interrupting import run
from saqkit.cli.options import Commands, OneOf
from saqkit.cli.output import bar, emit, table
from saqkit.errors import BrokerError, SaqkitError

if TYPE_CHECKING:
    from saqkit.broker import Broker
    from saqkit.queue.queue import Queue
    from saqkit.spec.topology import Topology

COUNTED = ("complete", "failed", "retried", "aborted", "lost")
"""What a queue has counted since it exists: jobs done, died, retried, aborted, and attempts lost with their worker."""

GONE = ("dead_dropped", "dead_expired")
"""Dead letters that nobody looked after: dropped by the cap, or past their retention. Only --json tells."""


@click.group(cls=Commands)
def broker() -> None:
    """The embedded broker, one per user and machine."""


@broker.command()
@options.as_json
def start(as_json: bool) -> None:
    """Start it, unless it runs already."""
    from saqkit.broker import embedded

    _show(embedded(), as_json)


@broker.command()
@options.as_json
def stop(as_json: bool) -> None:
    """Stop it; its data stay."""
    from saqkit import broker

    stopped = broker.stop()
    if as_json:
        emit({"stopped": stopped})
    else:
        click.echo("stopped; its data stay" if stopped else "it was not running")


@broker.command()
@options.as_json
def status(as_json: bool) -> None:
    """Say whether it runs, where, its name and its version."""
    from saqkit import broker

    _show(broker.status(), as_json)


def _show(found: Broker | None, as_json: bool) -> None:
    from saqkit.broker import redact

    if found is None:
        if as_json:
            emit({"running": False})
        else:
            click.echo("not running (start it with `saqkit broker start`)")
        return
    said = {"running": True, "url": redact(found.url), "name": found.name, "version": found.version,
            "pid": found.pid, "folder": str(found.folder), "binary": str(found.binary)}  # fmt: skip
    if as_json:
        emit(said)
    else:
        click.echo(f"{found.name} {found.version} runs at {said['url']} (process {found.pid})")


@click.group(cls=Commands)
def users() -> None:
    """The people whom events are for."""


@users.command(name="import")
@click.argument("file")
@click.option("--on-bad", type=OneOf(["skip", "refuse"]), default="skip", show_default=True,
              help="What to do about bad rows: leave them out, or import nothing at all.")  # fmt: skip
@options.as_json
def import_(file: str, on_bad: str, as_json: bool) -> None:
    """Import people from a CSV FILE.

    Its columns are email, name, role and tenant; who is known by tenant and email is updated.
    """
    from saqkit.app.location import database_url
    from saqkit.app.store import Store
    from saqkit.app.users import ImportReport, import_users

    async def carry_out() -> ImportReport:
        async with await Store.open(database_url()) as store:
            policy = cast("Literal['skip', 'refuse']", on_bad)
            return await import_users(store, file, on_bad=policy, progress=lambda share: tell(round(100 * share), 100))

    with bar("importing (%)", as_json) as tell:
        report = run(carry_out())
    if as_json:
        emit(asdict(report))
        return
    click.echo(f"{report.added:,} added, {report.updated:,} updated, {report.bad:,} bad rows left out")
    for row in report.skipped[:20]:
        click.echo(f"  {row}")
    if report.bad > 20:
        click.echo(f"  and {report.bad - 20:,} more (--json lists them)")


@click.command()
@options.topology
@options.redis
@options.as_json
def stats(topology: str, redis: str | None, as_json: bool) -> None:
    """Count the jobs of each queue."""

    async def carry_out() -> dict[str, dict[str, int]]:
        async with open_queues(options.topology_of(topology, ()), redis) as queues:
            return {name: await _counts(queue) for name, queue in queues.items()}

    found = run(carry_out())
    if as_json:
        emit({"queues": found})
        return
    columns = [name for name in next(iter(found.values())) if name not in GONE]
    rows = [[name, *(counts[column] for column in columns)] for name, counts in found.items()]
    click.echo(table(["queue", *columns], rows))


async def _counts(queue: Queue) -> dict[str, int]:
    counted = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]  # typed for both kinds of client
    return {
        "queued": await queue.count("queued"),
        "active": await queue.count("active"),
        "scheduled": await queue.count("scheduled"),
        "dead": await queue.count("dead"),
        "workers": len((await queue.info())["workers"]),
        **{name: int(counted.get(name.encode(), 0)) for name in (*COUNTED, *GONE)},
    }


@click.command()
@click.option("--audit", is_flag=True, help="Also check that every job is in exactly one place (reads all jobs).")
@options.topology
@options.redis
@options.as_json
def health(audit: bool, topology: str, redis: str | None, as_json: bool) -> None:
    """Look at broker, database and workers.

    The exit status is 1 if something is wrong.
    """
    described = options.topology_of(topology, ())
    found = run(_health(described, redis, audit))
    if as_json:
        emit(found)
    else:
        click.echo("healthy" if found["healthy"] else "not healthy")
        for problem in found["problems"]:
            click.echo(f"  {problem}")
    click.get_current_context().exit(0 if found["healthy"] else 1)


async def _health(topology: Topology, redis: str | None, audit: bool) -> dict[str, Any]:
    from saqkit import broker
    from saqkit.app.location import database_url
    from saqkit.app.store import Store
    from saqkit.queue.audit import audit as check

    problems: list[str] = []
    server: dict[str, Any] = {}
    counts: dict[str, dict[str, int]] = {}
    undelivered = None
    try:
        async with open_queues(topology, redis) as queues:
            server = await asyncio.to_thread(broker.check, _address(redis))
            for name, queue in queues.items():
                counts[name] = await _counts(queue)
                if not counts[name]["workers"]:
                    problems.append(f"queue {name}: no worker serves it (saqkit worker {topology.name})")
                if audit:
                    problems += [f"queue {name}: {problem}" for problem in (await check(queue)).problems]
        if server["maxmemory_policy"] not in ("noeviction", "unknown"):
            problems.append(
                f"broker: maxmemory-policy is {server['maxmemory_policy']}: jobs may vanish (use noeviction)"
            )
        if not server["appendonly"]:
            problems.append("broker: no append-only file: a crash loses jobs (use appendonly yes)")
    except BrokerError as error:
        problems.append(f"broker: {error}")
    try:
        async with await Store.open(database_url()) as store:
            undelivered = len(await store.undelivered())
    except SaqkitError as error:
        problems.append(f"database: {error}")
    return {"healthy": not problems, "problems": problems, "broker": server, "queues": counts,
            "undelivered_events": undelivered}  # fmt: skip


def _address(redis: str | None) -> str:
    """The broker that is there; looking at it never starts one."""
    from saqkit import broker

    if redis or os.environ.get("REDIS_URL"):
        return broker.resolve(redis)
    if found := broker.status():
        return found.url
    raise BrokerError("the embedded broker does not run (start it with `saqkit broker start`, or set REDIS_URL)")


@asynccontextmanager
async def open_queues(topology: Topology, redis: str | None) -> AsyncIterator[dict[str, Queue]]:
    """The queues of a topology, on a broker that is there."""
    from redis.exceptions import RedisError

    from saqkit import broker
    from saqkit.queue.building import build_queues

    url = await asyncio.to_thread(_address, redis)
    await asyncio.to_thread(broker.check, url)
    queues = build_queues(topology, url)
    try:
        yield queues
    except RedisError as error:
        raise BrokerError(f"{broker.redact(url)}: {' '.join(str(error).split())}") from error
    finally:
        for queue in queues.values():
            await queue.disconnect()
