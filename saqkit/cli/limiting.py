"""What decides which waiting job is taken next, changed while workers run: `limit`, `prioritise`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.choosing_jobs import place
from saqkit.cli.interrupting import run
from saqkit.cli.output import emit, number
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.configuring import QueueSettings


@click.command()
@click.argument("queue")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--reset", is_flag=True, help="As the topology says again, all of it.")
@options.topology
@options.redis
@options.as_json
def limit(queue: str, assignments: Sequence[str], reset: bool, topology: str, redis: str | None, as_json: bool) -> None:
    """Change what decides which waiting job of QUEUE is taken next, in all running processes, at once, until --reset.

    \b
    saqkit limit mail rate_limit.limit=20             another number, the same period
    saqkit limit mail rate_limit=none                 no limit
    saqkit limit mail 'running_limits=[{key="tenant", limit=5}]'
    saqkit limit mail fairness=tenants

    The keys are rate_limit, tenant_rate_limit, running_limits, weights and fairness, the values those of a topology.
    Without any it says what holds now.
    """
    from saqkit.operators import operate
    from saqkit.spec.overriding import override, parse_assignment
    from saqkit.spec.topology import Taking

    if assignments and reset:
        raise UsageError("give either KEY=VALUE or --reset")
    pairs = [parse_assignment(text) for text in assignments]
    where = place(topology, redis, [queue])

    async def carry_out() -> QueueSettings:
        async with operate(where.topology, where.redis) as operator:
            chosen = operator.queues[queue]
            if reset:
                return await chosen.configure(None)
            found = await chosen.settings()
            if not pairs:
                return found
            now = Taking(**{name: getattr(found, name) for name in Taking.model_fields})
            wanted = override(now, pairs, queue).to_dict()
            changed = {name: wanted[name] for name in (path.partition(".")[0] for path, _ in pairs)}
            override(where.topology, {f"queues.{queue}.{name}": value for name, value in changed.items()}, queue)
            return await chosen.configure(changed)

    said = run(carry_out())
    plain = said.to_dict()
    settings: dict[str, Any] = {name: plain[name] for name in Taking.model_fields}
    if as_json:
        emit({"queue": queue, "settings": settings, "configured": list(said.configured)})
        return
    for name, value in settings.items():
        shown = value if isinstance(value, str) else json.dumps(value) if value else "none"
        click.echo(f"{name}: {shown}{' (set by an operator)' if name in said.configured else ''}")


@click.command()
@click.argument("level")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Of this queue only; may be repeated.")
@options.topology
@options.redis
@options.as_json
def prioritise(
    level: str, keys: Sequence[str], queues: Sequence[str], topology: str, redis: str | None, as_json: bool
) -> None:
    """Give the waiting or delayed jobs of KEYs another LEVEL: critical, high, normal, low, or 1 to 4.

    They join the end of its line. A job that runs or has ended is an error, and nothing is done.
    """
    from saqkit.operators import operate
    from saqkit.queue.live_jobs import level_of

    wanted, where = level_of(level), place(topology, redis, queues)

    async def carry_out() -> int:
        async with operate(where.topology, where.redis) as operator:
            return await operator.set_priority(keys, wanted, *where.names)

    changed = run(carry_out())
    if as_json:
        emit({"changed": changed, "priority": wanted})
    else:
        click.echo(f"{number(changed)} have priority {wanted} now")
