"""`saqkit check`: does every connection work?"""

from __future__ import annotations

from dataclasses import asdict

import click

from saqkit.cli import options
from saqkit.cli.interrupting import run
from saqkit.cli.output import emit


@click.command()
@options.topology
@options.redis
@options.as_json
def check(topology: str, redis: str | None, as_json: bool) -> None:
    """Test the connections that a worker needs: broker, database, email servers.

    One line each, with the time until it had answered. Nothing is sent, and no broker is started. The exit status is 0
    if all work, and 1 if one does not.
    """
    from saqkit.checking import check_connections

    found = run(check_connections(options.topology_of(topology, (), served=True), redis))
    ok = all(one.ok for one in found)
    if as_json:
        emit({"ok": ok, "checks": [asdict(one) for one in found]})
    else:
        for one in found:
            click.echo(f"{one.part:<9} {'ok' if one.ok else 'FAILED':<6} {one.took_ms:>9,.1f} ms  {one.text}")
            for warning in one.warnings:
                click.echo(f"{'':<17} warning: {warning}")
    click.get_current_context().exit(0 if ok else 1)
