"""Which dead letters a `dlq` command means: by key, or by queue, job type, tenant, error, time and attempts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.options import Count, ParamType
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.dead_letters import DeadLetter, Filter
    from saqkit.queue.queue import Queue
    from saqkit.spec.topology import Topology

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Moment(ParamType):
    """A time in epoch seconds, or, below zero, so long ago."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value):
            return -float(ago[1]) * UNITS[ago[2]]
        try:
            at = datetime.fromisoformat(value)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise click.BadParameter(f'"{value}" is no time (write 2h or 3d for so long ago, or 2026-11-22T08:00, '
                                     "which is UTC)") from None  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """Which dead letters of which queues are meant, and where they are."""

    topology: Topology
    redis: str | None
    only: Sequence[str]
    where: Filter
    given: bool
    """Whether any filter but the queue was given."""

    def queues(self, every: Mapping[str, Queue]) -> list[Queue]:
        """Those of the queues that are meant."""
        return [queue for name, queue in every.items() if name in (self.only or every)]

    async def now(self, queues: Sequence[Queue]) -> Filter:
        """The filter with its times on the broker's clock, and with nobody who dies from now on."""
        seconds, micros = await queues[0].redis.time()
        at = seconds + micros / 1e6
        since, until = (
            at + moment if moment is not None and moment < 0 else moment
            for moment in (self.where.since, self.where.until)
        )
        return replace(self.where, since=since, until=min(at, at if until is None else until))


def choosing(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose dead letters, as its first argument."""

    @wraps(function)
    def command(
        queue: Sequence[str], function_: str | None, tenant: str | None, error: str | None, text: str | None,
        since: float | None, until: float | None, attempts: int, topology: str, redis: str | None, **rest: Any,
    ) -> None:  # fmt: skip
        from saqkit.queue.letter import Filter
        from saqkit.spec.base import did_you_mean

        described = options.topology_of(topology, ())
        for name in queue:
            if name not in described.queues:
                raise UsageError(f'--queue: there is no queue "{name}" ({did_you_mean(name, described.queues)})')
        where = Filter(function_, tenant, error, text, since, until, attempts)
        function(Wanted(described, redis, queue, where, where != Filter()), **rest)

    return options.chain(
        click.option("--queue", multiple=True, metavar="NAME", help="Of this queue only; may be repeated."),
        click.option("--type", "function_", metavar="NAME", help="Of this job type (the job's function)."),
        click.option("--tenant", metavar="NAME", help='Of this tenant (the job\'s meta["tenant"]).'),
        click.option("--error", metavar="CLASS", help="Died of this class of error, with or without its module."),
        click.option("--text", metavar="TEXT", help="With this text somewhere in the error, in any case."),
        click.option("--since", type=Moment(), help="Died since then: 2h (ago), 3d, 2026-11-22T08:00 (UTC)."),
        click.option("--until", type=Moment(), help="Died until then."),
        click.option("--attempts", type=Count(0), default=0, help="After at least so many attempts."),
        options.topology,
        options.redis,
        options.as_json,
    )(command)


def one_choice(wanted: Wanted, keys: Sequence[str], everything: bool) -> None:
    """Refuse a command that says nothing of which dead letters it means, or says it twice."""
    if bool(keys) + (everything or wanted.given) != 1:
        raise UsageError("give either the KEYs of dead letters (`saqkit dlq list` shows them), or --all, or a filter "
                         "such as --type, --error, --since")  # fmt: skip


async def of_keys(queues: Sequence[Queue], keys: Sequence[str]) -> dict[str, list[DeadLetter]]:
    """The dead letters of keys, by queue; a key that is none is refused before anything is done."""
    from saqkit.queue.dead_letters import get_all
    from saqkit.spec.base import did_you_mean

    distinct = list(dict.fromkeys(keys))
    found = {queue.name: [one for one in await get_all(queue, distinct) if one] for queue in queues}
    missing = set(distinct) - {letter.key for letters in found.values() for letter in letters}
    if missing:
        key = min(missing)
        rows = [await queue.redis.zrevrange(queue.namespace("dead"), 0, 999) for queue in queues]
        near = did_you_mean(key, {name.decode() for row in rows for name in row})
        raise UsageError(f'there is no dead letter "{key}" ({near})')
    return {name: letters for name, letters in found.items() if letters}
