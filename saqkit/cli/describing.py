"""`saqkit systems` and `saqkit show`: what ships, and what a topology is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from saqkit.cli import options
from saqkit.cli.output import emit, table


@click.command()
@options.as_json
def systems(as_json: bool) -> None:
    """List the topologies that ship with saqkit."""
    from saqkit.spec.topology import load, shipped

    found = [load(name) for name in shipped()]
    if as_json:
        emit(
            [
                {"name": t.name, "title": t.title, "queues": list(t.queues), "job_types": list(t.job_types)}
                for t in found
            ]
        )
        return
    rows = [[t.name, t.title, len(t.queues), len(t.job_types)] for t in found]
    click.echo(table(["name", "title", "queues", "job types"], rows))


@click.command()
@click.argument("topology")
@options.assignments
@options.as_json
def show(topology: str, assignments: Sequence[str], as_json: bool) -> None:
    """Draw TOPOLOGY with its retry schedules, the next firings of its schedules, and its bounds."""
    from saqkit.spec.showing import describe, to_json

    found = options.topology_of(topology, assignments)
    if as_json:
        emit(to_json(found))
    else:
        for line in describe(found).splitlines():
            indent = " " * (len(line) - len(line.lstrip(" │")) + 2)
            click.echo(textwrap.fill(line, 100, subsequent_indent=indent))
