"""Steering queues: `pause`, `resume`, `concurrency`, `clear`, `cancel`, `promote`, `retry-failed`, `clean`, …"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.choosing_jobs import (
    Age,
    Place,
    all_of,
    of_jobs,
    of_queues,
    of_queues_and,
    place,
    tell,
    told_by_queue,
)
from saqkit.cli.choosing_letters import Wanted, choosing
from saqkit.cli.consenting import Consent, asks_consent
from saqkit.cli.interrupting import run
from saqkit.cli.options import Count, OneOf
from saqkit.cli.output import emit, number
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.operators import Operator, Retried
    from saqkit.queue.live_jobs import Which
    from saqkit.queue.operating import Picked

_WAITING, _LIVE = ("waiting", "delayed"), ("waiting", "delayed", "active")


def _operate(where: Place, work: Callable[[Operator], Any]) -> Any:
    from saqkit.operators import operate

    async def carry_out() -> Any:
        async with operate(where.topology, where.redis) as operator:
            return await work(operator)

    return run(carry_out())


@click.command()
@click.option("--reason", default="", metavar="TEXT", help="Why; `stats` and `health` show it.")
@click.option("--by", metavar="NAME", help="Who asks for it (default: the user of this shell).")
@of_queues
def pause(where: Place, reason: str, by: str | None, as_json: bool) -> None:
    """Let nothing be taken from QUEUEs.

    Jobs that run end as usual, and more can be enqueued. It lasts until `resume`, whatever restarts.
    """
    asked_by = by if by is not None else getpass.getuser()
    _say(_operate(where, lambda operator: operator.pause(*where.names, reason=reason, by=asked_by)), True, as_json)


@click.command()
@of_queues
def resume(where: Place, as_json: bool) -> None:
    """Let jobs be taken from QUEUEs again, at once."""
    _say(_operate(where, lambda operator: operator.resume(*where.names)), False, as_json)


def _say(was: dict[str, bool], paused: bool, as_json: bool) -> None:
    if as_json:
        emit({"queues": {name: {"paused": paused, "was_paused": before} for name, before in was.items()}})
        return
    for name, before in was.items():
        click.echo(f"{name}: {'paused' if paused else 'resumed' if before else 'it was not paused'}"
                   f"{' (it was already)' if paused and before else ''}")  # fmt: skip


@click.command()
@of_queues_and(r"[\d.,+]+", "QUEUE... [N]")
@click.option("--reset", is_flag=True, help="As many again as each process was started with.")
def concurrency(where: Place, words: Sequence[str], reset: bool, as_json: bool) -> None:
    """Let every `saqkit worker` process have N slots for each of QUEUEs.

    Running processes follow within five seconds, and those that start later have them from the beginning, until
    --reset. Where more jobs run than there are slots, those end first. Without N it says what is set.
    """
    if len(words) + reset > 1:
        raise UsageError("give either N or --reset, and one N")
    try:
        slots = Count().convert(words[0], None, None) if words else None
    except click.BadParameter as error:
        raise UsageError(f"concurrency: [N]: {error.message}") from None

    async def carry_out(operator: Operator) -> dict[str, int | None]:
        if slots is not None or reset:
            await operator.set_slots(slots, *where.names)
        return await operator.slots(*where.names)

    found = _operate(where, carry_out)
    if as_json:
        emit(told_by_queue(where, {name: {"slots": number_of} for name, number_of in found.items()}))
        return
    for name, number_of in found.items():
        each = "as many slots as it was started with" if number_of is None else f"{number_of} slots"
        click.echo(f"{name}: each worker process has {each}")


@click.command()
@of_jobs(_WAITING)
@asks_consent
@of_queues
def clear(where: Place, which: Which | None, consent: Consent, as_json: bool) -> None:
    """Cancel and forget the waiting and delayed jobs of QUEUEs.

    Jobs that run are left alone, and so are those that are enqueued meanwhile. What is cleared cannot be brought back:
    it needs --yes. With --dry-run this counts, by type and priority.
    """
    meant = which or all_of(_WAITING)
    said = _operate(where, lambda operator: operator.clear(*where.names, which=meant, dry_run=not consent.yes))
    _agreed(consent, said, "cleared")
    tell(said, "cleared", consent.yes, as_json)


_keys = options.chain(
    click.argument("keys", nargs=-1, metavar="KEY..."),
    click.option("--queue", "queues", multiple=True, metavar="NAME", help="Of this queue only; may be repeated."),
)
_where = options.chain(options.topology, options.redis, options.as_json)


@click.command()
@_keys
@of_jobs(_LIVE)
@click.option("--reason", default="cancelled", show_default=True, metavar="TEXT", help="What the job's error will say.")
@asks_consent
@_where
def cancel(
    keys: Sequence[str], queues: Sequence[str], which: Which | None, reason: str, consent: Consent, topology: str,
    redis: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Cancel the jobs of KEYs, or those of a filter: waiting, delayed or running.

    A worker stops a job that runs when it next renews its lease. A job that has ended cannot be cancelled: that is an
    error, and nothing is done. A filter needs --yes.
    """
    _one_choice(keys, which)
    do = consent.yes or (bool(keys) and not consent.dry_run)

    async def carry_out(operator: Operator) -> dict[str, Picked]:
        if keys:
            return await operator.cancel_keys(keys, *queues, reason=reason, dry_run=not do)
        assert which is not None
        return await operator.cancel_jobs(*queues, which=which, reason=reason, dry_run=not do)

    said = _operate(place(topology, redis, queues), carry_out)
    if do and keys:
        _all_of_keys(keys, said, "cancelled")
    elif not keys:
        _agreed(consent, said, "cancelled")
    tell(said, "cancelled", do, as_json)


@click.command()
@_keys
@of_jobs(("delayed",))
@asks_consent
@_where
def promote(
    keys: Sequence[str], queues: Sequence[str], which: Which | None, consent: Consent, topology: str,
    redis: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Let the delayed jobs of KEYs, or those of a filter, join their lines now, also retries that wait for their delay.

    A filter needs --yes.
    """
    _one_choice(keys, which)
    do = consent.yes or (bool(keys) and not consent.dry_run)

    async def carry_out(operator: Operator) -> dict[str, Picked]:
        if keys:
            return await operator.hasten_keys(keys, *queues, dry_run=not do)
        assert which is not None
        return await operator.hasten_jobs(*queues, which=which, dry_run=not do)

    said = _operate(place(topology, redis, queues), carry_out)
    if do and keys:
        _all_of_keys(keys, said, "promoted")
    elif not keys:
        _agreed(consent, said, "promoted")
    tell(said, "promoted", do, as_json)


def _one_choice(keys: Sequence[str], which: Which | None) -> None:
    if bool(keys) == (which is not None):
        raise UsageError("give either the KEYs of jobs (`saqkit jobs` shows them), or a filter such as --type, "
                         "--tenant, --priority")  # fmt: skip


def _all_of_keys(keys: Sequence[str], said: dict[str, Picked], what: str) -> None:
    late = sum(one.found - one.done for one in said.values())
    if late:
        raise UsageError(f"{late} of {len(set(keys))} jobs went on meanwhile and could not be {what} (the others are)")


def _agreed(consent: Consent, said: dict[str, Picked], what: str) -> None:
    consent.require(sum(one.found for one in said.values()), "job", what)


@click.command(name="retry-failed")
@click.option(
    "--limit", type=Count(), default=None, help="At most so many, the oldest of all QUEUEs first (default: all)."
)
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@choosing
def retry_failed(wanted: Wanted, limit: int | None, dry_run: bool, as_json: bool) -> None:
    """Queue dead letters again, the oldest first, with all their attempts before them.

    Who was not served is pending again in the ledger. `dlq replay` can do more: keys, other arguments, another queue.
    """

    async def carry_out(operator: Operator) -> Retried:
        where = await wanted.now(wanted.queues(operator.queues))
        return await operator.retry_failed(*wanted.only, where=where, limit=limit, dry_run=dry_run)

    said: Retried = _operate(Place(wanted.topology, wanted.redis), carry_out)
    if as_json:
        emit({"found": said.found, "retried": said.done, "users_reopened": said.users_reopened, "dry_run": dry_run})
    elif dry_run:
        click.echo(f"{number(said.found)} would be queued again")
    else:
        click.echo(f"{number(said.done)} queued again, {number(said.users_reopened)} users pending again")


@click.command()
@click.option("--state", type=OneOf(["done", "cancelled", "dead"]), required=True, help="Done, cancelled or dead jobs.")
@click.option("--older-than", type=Age(), required=True, help="Those that ended longer ago than this: 90s, 12h, 7d.")
@asks_consent
@of_queues
def clean(where: Place, state: str, older_than: float, consent: Consent, as_json: bool) -> None:
    """Forget jobs of QUEUEs that ended a while ago.

    Done and cancelled jobs are forgotten by themselves as well, after their time to live. A job whose key stays taken
    is kept for as long. It needs --yes.
    """

    async def carry_out(operator: Operator) -> dict[str, Picked]:
        return await operator.clean(*where.names, state=state, older_than_s=older_than, dry_run=not consent.yes)

    said = _operate(where, carry_out)
    _agreed(consent, said, "forgotten")
    tell(said, "forgotten", consent.yes, as_json)


@click.command()
@click.option("--keep", type=Count(2), default=10_000, show_default=True, help="The last so many attempts, to 100000.")
@click.option("--off", is_flag=True, help="Record no longer, and forget what is recorded.")
@of_queues
def recording(where: Place, keep: int, off: bool, as_json: bool) -> None:
    """Record the attempts that end, so that `stats` can tell percentiles of how long jobs wait and take."""

    async def carry_out(operator: Operator) -> list[str]:
        await operator.record_attempts(*where.names, keep=None if off else keep)
        return list(operator.chosen(where.names))

    names = _operate(where, carry_out)
    if as_json:
        emit({"queues": {name: {"recording": 0 if off else keep} for name in names}})
    else:
        for name in names:
            click.echo(f"{name}: {'no attempts are recorded' if off else f'the last {keep:,} attempts are kept'}")
