"""Operating what stands beside the queues: `broker`, `users`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, cast

import click

from saqkit.cli import options
from saqkit.cli.interrupting import run
from saqkit.cli.options import Commands, OneOf
from saqkit.cli.output import bar, emit

if TYPE_CHECKING:
    from saqkit.broker import Broker
    from saqkit.queue.queue import Queue
    from saqkit.spec.topology import Topology


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

    Its columns are email, name, role, tenant and institution (of that tenant); who is known by tenant and email is
    updated.
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


@asynccontextmanager
async def open_queues(topology: Topology, redis: str | None) -> AsyncIterator[dict[str, Queue]]:
    """The queues of a topology, on a broker that is there."""
    from saqkit.operators import operate

    async with operate(topology, redis) as operator:
        yield operator.queues
