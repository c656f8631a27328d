"""`batches` and `batch`: how far jobs that belong together are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.choosing_jobs import Place, place
from saqkit.cli.interrupting import run
from saqkit.cli.options import Count
from saqkit.cli.output import emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.batches import Batch

_where = options.chain(options.topology, options.redis, options.as_json)


@click.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE]...")
@click.option("--limit", type=Count(), default=100, show_default=True, help="At most so many of each queue, the last.")
@_where
def batches(queues: Sequence[str], limit: int, topology: str, redis: str | None, as_json: bool) -> None:
    """List the batches of QUEUEs (default: all), those that have ended first.

    The percentage is how much has ended, by users. A callback that has been enqueued is marked with `*`.
    """
    found = [one for of_queue in _known(place(topology, redis, queues)).values() for one in of_queue[-limit:]]
    if as_json:
        emit([_told(batch) for batch in found])
    elif not found:
        click.echo("none")
    else:
        rows = [[one.id, one.queue, one.jobs, one.done, one.dead, one.cancelled + one.gone, one.pending,
                 f"{one.percent:.0f} %", _state(one), _calls(one)] for one in found]  # fmt: skip
        columns = ["batch", "queue", "jobs", "done", "dead", "gone", "pending", "ended", "state", "callbacks"]
        click.echo(table(columns, rows))


@click.command()
@click.argument("id")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Of this queue only; may be repeated.")
@_where
def batch(id: str, queues: Sequence[str], topology: str, redis: str | None, as_json: bool) -> None:
    """Show the batch of ID: what has become of its jobs and their users, and whom it has called back."""
    from saqkit.spec.base import did_you_mean

    known = _known(place(topology, redis, queues))
    found = [one for of_queue in known.values() for one in of_queue if one.id == id]
    if not found:
        hint = did_you_mean(id, {one.id for of_queue in known.values() for one in of_queue})
        raise UsageError(f'there is no batch "{id}" in queue{"s" * (len(known) > 1)} {", ".join(known)} ({hint})')
    if len(found) > 1:
        names = ", ".join(one.queue for one in found)
        raise UsageError(f'"{id}" is a batch of several queues: {names} (choose one with --queue)')
    (one,) = found
    if as_json:
        emit(_told(one))
        return
    click.echo(f"batch {one.id} of queue {one.queue}: {_state(one)}, opened {_utc(one.opened_at)}")
    counts = [(name, getattr(one, name), getattr(one, f"{name}_users"))
              for name in ("pending", "done", "dead", "cancelled", "gone")]  # fmt: skip
    click.echo(table(["", "jobs", "users"], [*counts, ("all", one.jobs, one.users)]))
    click.echo(f"{number(one.percent)} % of the users have ended, {number(one.percent_done)} % are done")
    for event, key in one.callbacks.items():
        at = _utc(getattr(one, f"{event}_at"))
        click.echo(f"on {event}: job {key} {f'enqueued {at}' if at else 'not yet'}")


def _known(where: Place) -> dict[str, list[Batch]]:
    from saqkit.operators import operate

    async def carry_out() -> dict[str, list[Batch]]:
        async with operate(where.topology, where.redis) as operator:
            return {name: await queue.batches() for name, queue in operator.chosen(where.names).items()}

    found: dict[str, list[Batch]] = run(carry_out())
    return found


def _state(one: Batch) -> str:
    if one.success:
        return "success"
    return "complete" if one.complete else "open" if one.open else "running"


def _calls(one: Batch) -> str:
    return " ".join(f"{event}*" if event in one.called_back else event for event in one.callbacks) or "-"


def _utc(at: float) -> str:
    return "" if at != at else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _told(one: Batch) -> dict[str, Any]:
    told = {name: value for name, value in asdict(one).items() if name not in ("refused", "callbacks")}
    times = {name: _utc(value) for name, value in told.items() if name.endswith("_at")}
    calls = {event: {"job": key, "enqueued": event in one.called_back} for event, key in one.callbacks.items()}
    return {**told, **times, "percent": one.percent, "percent_done": one.percent_done, "callbacks": calls}
