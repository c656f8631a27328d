"""`dlq`: looking at dead letters, replaying, removing and exporting them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.choosing_letters import Wanted, choosing, of_keys, one_choice
from saqkit.cli.consenting import Consent, asks_consent
from saqkit.cli.interrupting import run
from saqkit.cli.operating import open_queues
from saqkit.cli.options import Commands, Count, OneOf
from saqkit.cli.output import emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.dead_letters import Chosen, DeadLetter
    from saqkit.queue.queue import Queue

_BY = {"error": ("error_class", "message"), "class": ("error_class",), "type": ("function",), "queue": ("queue",),
       "tenant": ("tenant",)}  # fmt: skip
_FILES = (".csv", ".parquet", ".json")


@click.group(cls=Commands)
def dlq() -> None:
    """Dead letters: jobs that are not tried again by themselves."""


@dlq.command(name="list")
@click.option("--limit", type=Count(), default=100, show_default=True, help="At most so many.")
@click.option("--offset", type=Count(0), default=0, help="Leave out the first of them.")
@click.option("--newest", is_flag=True, help="The newest first, not the oldest.")
@choosing
def list_(wanted: Wanted, limit: int, offset: int, newest: bool, as_json: bool) -> None:
    """List them, oldest first."""
    from saqkit.queue.dead_letters import dead_letters

    async def carry_out() -> tuple[list[DeadLetter], str]:
        async with open_queues(wanted.topology, wanted.redis) as every:
            queues = wanted.queues(every)
            chosen = dead_letters(queues, limit, where=await wanted.now(queues), offset=offset, newest_first=newest)
            return [letter async for letter in chosen], await _gone(queues)

    found, gone = run(carry_out())
    if as_json:
        emit([_told(letter) for letter in found])
        return
    rows = [[one.key, one.queue[:14], one.function[:14], one.attempts, _minute(one.died_at), _short(one.reason)]
            for one in found]  # fmt: skip
    click.echo(_fitted(["key", "queue", "type", "attempts", "died (UTC)", "why"], rows, 5) if rows else "none")
    if gone:
        click.echo(gone)


@dlq.command()
@click.option("--by", multiple=True, type=OneOf(list(_BY)), default=["error"], show_default=True,
              help=f"What they have in common, of {', '.join(_BY)}; may be repeated.")  # fmt: skip
@choosing
def groups(wanted: Wanted, by: Sequence[str], as_json: bool) -> None:
    """Count them by error: the class, and the message without what varies. The largest group first."""
    from saqkit.queue.dead_letters import Group
    from saqkit.queue.dead_letters import groups as grouped

    async def carry_out() -> list[Group]:
        async with open_queues(wanted.topology, wanted.redis) as every:
            queues = wanted.queues(every)
            names = list(dict.fromkeys(name for word in by for name in _BY[word]))
            return await grouped(queues, names, where=await wanted.now(queues))

    found = run(carry_out())
    if as_json:
        emit([{"by": group.by, "count": group.count, "first_died_at": _utc(group.first_died_at),
               "last_died_at": _utc(group.last_died_at), "example": group.example} for group in found])  # fmt: skip
        return
    rows = [[group.count, _minute(group.first_died_at), _minute(group.last_died_at),
             _short(": ".join(filter(None, group.by.values()))), group.example] for group in found]  # fmt: skip
    click.echo(_fitted(["count", "first (UTC)", "last", ", ".join(by), "latest key"], rows, 3) if rows else "none")


@dlq.command()
@click.argument("key")
@choosing
def show(wanted: Wanted, key: str, as_json: bool) -> None:
    """Show all that is known of the one of KEY: arguments, stack, attempts, times, worker."""

    async def carry_out() -> DeadLetter:
        async with open_queues(wanted.topology, wanted.redis) as every:
            found = [letter for letters in (await of_keys(wanted.queues(every), [key])).values() for letter in letters]
            if len(found) > 1:
                names = ", ".join(letter.queue for letter in found)
                raise UsageError(f'"{key}" is a dead letter of several queues: {names} (choose one with --queue)')
            return found[0]

    told = _told(run(carry_out()))
    if as_json:
        emit(told)
        return
    for name, value in told.items():
        if name != "error":
            shown = json.dumps(value, ensure_ascii=False, default=repr) if isinstance(value, dict) else value
            click.echo(f"{name:<13}{'-' if shown in ('', None) else shown}")
    click.echo(f"error\n{told['error']}")


_chosen = options.chain(
    click.argument("keys", nargs=-1, metavar="KEY..."),
    click.option("--all", "everything", is_flag=True, help="All of them."),
)


@dlq.command()
@_chosen
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@click.option("--kwargs", "arguments", metavar="JSON", help='Merged into the arguments of each: {"limit": 10}.')
@click.option("--to", metavar="QUEUE", help="Into this queue instead of the one where it died.")
@choosing
def replay(
    wanted: Wanted, keys: Sequence[str], everything: bool, dry_run: bool, arguments: str | None, to: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Queue KEYs, all, or those of a filter again, with all their attempts before them.

    It happens once, whoever asks at the same time. Who was not served is pending again in the ledger.
    """
    from saqkit.app.reopening import reopen_users
    from saqkit.queue import dead_letters
    from saqkit.spec.base import did_you_mean

    one_choice(wanted, keys, everything)
    merged = _object(arguments)
    if to is not None and to not in wanted.topology.queues:
        raise UsageError(f'--to: there is no queue "{to}" ({did_you_mean(to, wanted.topology.queues)})')
    reopened = 0

    async def reopen(letters: list[DeadLetter]) -> None:
        nonlocal reopened
        reopened += await reopen_users(wanted.topology, letters, merged)

    async def carry_out() -> list[Chosen]:
        async with open_queues(wanted.topology, wanted.redis) as every:
            queues, other = wanted.queues(every), None if to is None else every[to]
            if not keys:
                where = await wanted.now(queues)
                how: dict[str, Any] = {"kwargs": merged, "to": other, "before": reopen, "dry_run": dry_run}
                return [await dead_letters.replay_all(queue, where, **how) for queue in queues]
            said = []
            for name, letters in (await of_keys(queues, keys)).items():
                done = 0
                if not dry_run:
                    await reopen(letters)
                    done = sum(await dead_letters.replay(every[name], letters, kwargs=merged, to=other))
                said.append(dead_letters.Chosen(len(letters), done))
            return said

    said = run(carry_out())
    found, done = sum(one.found for one in said), sum(one.done for one in said)
    if as_json:
        emit({"found": found, "replayed": done, "users_reopened": reopened})
    elif dry_run:
        click.echo(f"{number(found)} would be queued again")
    else:
        click.echo(f"{number(done)} queued again, {number(reopened)} users pending again")
        if done < found:
            click.echo(f"{number(found - done)} not: somebody else was first, a job of that key lives in the other "
                       "queue, or the job cannot be read")  # fmt: skip


@dlq.command()
@_chosen
@asks_consent
@choosing
def purge(wanted: Wanted, keys: Sequence[str], everything: bool, consent: Consent, as_json: bool) -> None:
    """Remove KEYs, all, or those of a filter for good. It needs --yes."""
    from saqkit.queue import dead_letters

    one_choice(wanted, keys, everything)

    async def carry_out() -> list[Chosen]:
        async with open_queues(wanted.topology, wanted.redis) as every:
            queues = wanted.queues(every)
            if not keys:
                where = await wanted.now(queues)
                return [await dead_letters.purge_all(queue, where, dry_run=not consent.yes) for queue in queues]
            return [
                dead_letters.Chosen(len(those), await dead_letters.purge(every[name], those) if consent.yes else 0)
                for name, those in (await of_keys(queues, keys)).items()
            ]

    said = run(carry_out())
    found, done = sum(one.found for one in said), sum(one.done for one in said)
    consent.require(found, "dead letter", "removed for good")
    if as_json:
        emit({"found": found, "purged": done})
    else:
        click.echo(f"{number(done)} removed" if consent.yes else f"{number(found)} would be removed")


@dlq.command()
@click.argument("file")
@click.option("--limit", type=Count(), default=None, help="At most so many, the oldest (default: all).")
@choosing
def export(wanted: Wanted, file: str, limit: int | None, as_json: bool) -> None:
    """Write them to FILE: .csv and .parquet as a table, .json as `list --json` shows them."""
    from saqkit.queue.dead_letters import dead_letters, dead_letters_frame

    target = options.writable_file(file, "FILE")
    if target is None or target.suffix not in _FILES:
        raise UsageError(f"FILE {file}: what it should hold is told by its ending (use {', '.join(_FILES)})")

    async def carry_out() -> int:
        async with open_queues(wanted.topology, wanted.redis) as every:
            queues = wanted.queues(every)
            where = await wanted.now(queues)
            if target.suffix == ".json":
                told = [_told(letter) async for letter in dead_letters(queues, limit, where=where)]
                target.write_text(json.dumps(told, indent=2, ensure_ascii=False, default=repr) + "\n", encoding="utf-8")
                return len(told)
            frame = await dead_letters_frame(queues, limit, where=where)
            partial(frame.to_csv if target.suffix == ".csv" else frame.to_parquet, index=False)(target)
            return len(frame)

    written = run(carry_out())
    if as_json:
        emit({"written": written, "file": file})
    else:
        click.echo(f"{number(written)} written to {file}")


def _utc(at: float) -> str:
    """An epoch time as people and programs read it; empty where there is none."""
    return "" if at != at else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _minute(at: float) -> str:
    """A time of the last days, short."""
    return _utc(at)[5:16].replace("T", " ")


def _short(reason: str) -> str:
    """A reason without the module of its class."""
    head, colon, message = reason.partition(":")
    return head.rsplit(".", 1)[-1] + colon + message if " " not in head else reason


def _fitted(columns: list[str], rows: list[list[Any]], elastic: int) -> str:
    """A table of at most 100 columns if keys allow it: one column is cut to what the others leave, or to 12."""
    others = [max(len(str(cell)) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    room = max(12, 100 - sum(others) + others[elastic] - 2 * (len(columns) - 1))
    return table(columns, [[*row[:elastic], row[elastic][:room], *row[elastic + 1 :]] for row in rows])


def _told(letter: DeadLetter) -> dict[str, Any]:
    known = {"key": letter.key, "queue": letter.queue, "function": letter.function, "tenant": letter.tenant,
             "error_class": letter.error_class, "reason": letter.reason}  # fmt: skip
    times = {name: _utc(getattr(letter, name)) for name in ("queued_at", "started_at", "died_at")}
    return {**known, **{name: value for name, value in asdict(letter).items() if name not in known}, **times}


async def _gone(queues: Iterable[Queue]) -> str:
    """What a list cannot show any more, in words; empty if nothing."""
    dropped = expired = 0
    for queue in queues:
        # redis-py types it for both kinds of client
        said = await queue.redis.hmget(queue.namespace("counts"), ["dead_dropped", "dead_expired"])  # type: ignore[misc]
        dropped, expired = dropped + int(said[0] or 0), expired + int(said[1] or 0)
    if not dropped and not expired:
        return ""
    return f"gone before: {number(dropped)} dropped by the cap, {number(expired)} past their retention"


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text is not None else {}
    except ValueError as error:
        raise UsageError(f'--kwargs: is not JSON: {error} (write {{"limit": 10}})') from None
    if not isinstance(found, dict):
        raise UsageError(f'--kwargs: {text} is not an object of arguments (write {{"limit": 10}})')
    return found
