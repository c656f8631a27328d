"""What decides which waiting job is taken next, changed while workers run: `limit`, `prioritise`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from saqkit.cli import options
from saqkit.cli.choosing_jobs import Place, of_queues_and, place, told_by_queue
from saqkit.cli.interrupting import run
from saqkit.cli.output import emit, number
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.configuring import QueueSettings


@click.command()
@of_queues_and(r"[^=]*=.*", "QUEUE... [KEY=VALUE]...")
@click.option("--reset", is_flag=True, help="As the topology says again, all of it.")
def limit(where: Place, assignments: Sequence[str], reset: bool, as_json: bool) -> None:
    """Change what decides which waiting job of QUEUEs is taken next, in all running processes, at once, until --reset.

    \b
    saqkit limit mail rate_limit.limit=20             another number, the same period
    saqkit limit mail rate_limit=none                 no limit
    saqkit limit mail 'running_limits=[{key="tenant", limit=5}]'
    saqkit limit mail fairness=tenants
    saqkit limit --all rate_limit=none                of every queue; on a wrong value of none

    The keys are rate_limit, tenant_rate_limit, running_limits, weights and fairness, the values those of a topology.
    Without any it says what holds now.
    """
    from saqkit.operators import operate
    from saqkit.spec.overriding import override, parse_assignment
    from saqkit.spec.topology import Taking

    if assignments and reset:
        raise UsageError("give either KEY=VALUE or --reset")
    pairs = [parse_assignment(text) for text in assignments]

    async def carry_out() -> dict[str, QueueSettings]:
        async with operate(where.topology, where.redis) as operator:
            if reset:
                return await operator.configure(None, *where.names)
            found = await operator.settings(*where.names)
            if not pairs:
                return found
            changes = {}
            for queue, holds in found.items():
                now = Taking(**{name: getattr(holds, name) for name in Taking.model_fields})
                wanted = override(now, pairs, queue).to_dict()
                changes[queue] = {name: wanted[name] for name in (path.partition(".")[0] for path, _ in pairs)}
            return await operator.configure_each(changes)

    said = run(carry_out())
    plain = {queue: holds.to_dict() for queue, holds in said.items()}
    settings = {queue: {name: told[name] for name in Taking.model_fields} for queue, told in plain.items()}
    if as_json:
        emit(told_by_queue(where, {queue: {"settings": settings[queue], "configured": list(holds.configured)}
                                   for queue, holds in said.items()}))  # fmt: skip
        return
    for queue, holds in said.items():
        of = "" if len(where.names) == 1 else f"{queue}: "
        for name, value in settings[queue].items():
            shown = value if isinstance(value, str) else json.dumps(value) if value else "none"
            click.echo(f"{of}{name}: {shown}{' (set by an operator)' if name in holds.configured else ''}")


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
