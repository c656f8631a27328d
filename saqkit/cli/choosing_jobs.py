"""Which queues and which jobs a command means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.choosing_letters import UNITS
from saqkit.cli.options import OneOf, ParamType
from saqkit.cli.output import emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.live_jobs import Which
    from saqkit.queue.operating import Picked
    from saqkit.spec.topology import Topology


class Age(ParamType):
    """A length of time: 90s, 30m, 12h, 7d, 2w; in seconds."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value):
            return float(found[1]) * UNITS[found[2]]
        raise click.BadParameter(f'"{value}" is no length of time (write 90s, 30m, 12h, 7d or 2w)')


@dataclass(frozen=True)
class Place:
    """Where the queues are, and which of them are meant (none: all)."""

    topology: Topology
    redis: str | None
    names: Sequence[str] = ()


def of_queues(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command that changes queues the names of those it means, or `--all`, as its first argument `place`."""

    @wraps(function)
    def command(where: Place, words: Sequence[str], **rest: Any) -> None:
        function(where, **rest)

    return of_queues_and("(?!)", "QUEUE...")(command)


def of_queues_and(pattern: str, metavar: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `of_queues`; what is written among the queues and matches `pattern` whole is the second argument, `words`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(given: Sequence[str], everything: bool, topology: str, redis: str | None, **rest: Any) -> None:
            words = [word for word in given if re.fullmatch(pattern, word, re.DOTALL)]
            queues = [word for word in given if word not in words]
            if bool(queues) == everything:
                raise UsageError("give either the names of QUEUEs, or --all")
            function(place(topology, redis, queues), words, **rest)

        return options.chain(
            click.argument("given", nargs=-1, metavar=metavar),
            click.option("--all", "everything", is_flag=True, help="All queues of the topology."),
            options.topology,
            options.redis,
            options.as_json,
        )(command)

    return decorate


def told_by_queue(where: Place, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of queues for --json: of one that was named by itself, or, where several can be meant, by queue."""
    if len(where.names) == 1:
        return {"queue": where.names[0], **facts[where.names[0]]}
    return {"queues": dict(facts)}


def place(topology: str, redis: str | None, names: Sequence[str]) -> Place:
    """The queues of these names; `UsageError` if one does not exist."""
    from saqkit.spec.base import did_you_mean

    described = options.topology_of(topology, ())
    for name in names:
        if name not in described.queues:
            hint = did_you_mean(name, described.queues)
            raise UsageError(f'topology {described.name} has no queue "{name}" ({hint})')
    return Place(described, redis, names)


def of_jobs(states: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that choose among jobs in `states`, as its argument `which` (None: none given)."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(
            *args: Any,
            type_: str | None,
            tenant: str | None,
            priority: str | None,
            state: Sequence[str] = (),
            **rest: Any,
        ) -> None:
            from saqkit.queue.live_jobs import Which

            given = any(option is not None for option in (type_, tenant, priority)) or bool(state)
            which = Which(type_, tenant, priority, tuple(dict.fromkeys(state)) or tuple(states)) if given else None
            function(*args, which=which, **rest)

        chosen = [
            click.option("--type", "type_", metavar="NAME", help="Of this job type (the job's function)."),
            click.option("--tenant", metavar="NAME", help='Of this tenant (the job\'s meta["tenant"]).'),
            click.option("--priority", metavar="LEVEL", help="Of this level: critical, high, normal, low, or 1 to 4."),
        ]
        if len(states) > 1:
            help_ = f"Only those that are {', '.join(states[:-1])} or {states[-1]}; may be repeated."
            chosen.append(click.option("--state", multiple=True, type=OneOf(list(states)), help=help_))
        return options.chain(*chosen)(command)

    return decorate


def all_of(states: Sequence[str]) -> Which:
    """All jobs in these states."""
    from saqkit.queue.live_jobs import Which

    return Which(states=tuple(states))


def tell(said: Mapping[str, Picked], what: str, done: bool, as_json: bool) -> None:
    """Show what was done to jobs (`what`: "cleared", …), or, if it is not `done`, what would be."""
    found, changed = sum(one.found for one in said.values()), sum(one.done for one in said.values())
    rows = [{"queue": name, **row} for name, one in said.items() for row in one.rows()]
    if as_json:
        emit({"found": found, what: changed, "dry_run": not done, "jobs": rows})
        return
    if rows:
        levels = {1: "critical", 2: "high", 3: "normal", 4: "low"}
        shown = [[row["jobs"], row["queue"], row["state"], row["function"] or "-", levels.get(row["priority"], "-")]
                 for row in rows]  # fmt: skip
        click.echo(table(["jobs", "queue", "state", "type", "priority"], shown))
    if not done:
        click.echo(f"{number(found)} would be {what}")
    else:
        click.echo(f"{number(changed)} {what}")
        if changed < found:
            click.echo(f"{number(found - changed)} not: they went on meanwhile")
