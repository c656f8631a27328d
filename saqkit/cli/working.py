"""`saqkit worker`: supervised worker processes that serve a topology."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from saqkit.cli import options
from saqkit.cli.interrupting import SIGNALS, run
from saqkit.cli.options import Count, Slots, SlotsOfQueues
from saqkit.cli.output import emit
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.spec.topology import Topology
    from saqkit.worker.process import Configuration


@click.command()
@click.argument("topology", default="school-events", envvar="SAQKIT_TOPOLOGY")
@click.option("--queues", metavar="A,B", help="Serve these queues only (default: all).")
@click.option("--processes", type=Count(), default=1, show_default=True, help="How many; one that dies is restarted.")
@click.option("--concurrency", type=SlotsOfQueues(), metavar="C", help="Slots per process: 5, or email=5,sync=2.")
@options.assignments
@options.redis
@click.option("-v", "--verbose", is_flag=True, help="Log every job and, every 30 s, the counts of the queues.")
@options.as_json
def worker(
    topology: str,
    queues: str | None,
    processes: int,
    concurrency: Slots | None,
    assignments: Sequence[str],
    redis: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Serve the queues of TOPOLOGY.

    On SIGTERM or Ctrl-C running jobs are given 30 s to end. The broker is $REDIS_URL or the embedded one, the database
    $SAQKIT_DATABASE_URL or a SQLite file in the state folder, the SMTP server $SAQKIT_SMTP_URL. The exit status is 0
    after SIGTERM if every process ended well.
    """
    described = options.topology_of(topology, assignments)
    slots = _slots(described, queues, concurrency)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s saqkit %(levelname)s %(message)s"
    )
    caught, codes = run(_serve(described, slots, processes, redis, verbose))
    if as_json:
        emit({"topology": described.name, "queues": slots, "processes": processes, "exit_codes": codes})
    # A process that SIGTERM meets while it still starts ends by the signal: it held nothing.
    well = all(code in (0, -signal.SIGTERM) for code in codes)
    click.get_current_context().exit(130 if caught == signal.SIGINT else int(not well))


def _slots(topology: Topology, queues: str | None, concurrency: Slots | None) -> dict[str, int]:
    from saqkit.spec.base import did_you_mean
    from saqkit.spec.deployment import Deployment

    names = [name.strip() for name in queues.split(",")] if queues is not None else list(topology.queues)
    for name in names:
        if name not in topology.queues:
            hint = did_you_mean(name, topology.queues)
            raise UsageError(f'--queues: topology {topology.name} has no queue "{name}" ({hint})')
    deployment = Deployment(concurrency=concurrency)
    deployment.check(topology)
    return {name: deployment.slots(topology, name) for name in names}


async def _serve(
    topology: Topology, slots: dict[str, int], processes: int, redis: str | None, verbose: bool
) -> tuple[int, list[int]]:
    """Serve until a signal comes; returns it and the processes' exit codes."""
    from saqkit.worker.launcher import Launcher

    url, database = await _checked(topology, redis)
    launcher = Launcher(_configurations(topology, slots, processes, url, database, verbose))
    # They report here when they are ready.
    launcher.configurations = [replace(one, folder=str(launcher.folder)) for one in launcher.configurations]
    caught: list[int] = []
    ended = asyncio.Event()

    def end(number: int) -> None:
        if caught:  # asked twice: what runs is given up, and comes back when its leases expire
            for one in range(len(launcher.processes)):
                launcher.kill(one)
        caught.append(number)
        ended.set()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    try:
        await launcher.start()
        ready = asyncio.create_task(launcher.ready())
        stop = asyncio.create_task(ended.wait())
        await asyncio.wait([ready, stop], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            served = ", ".join(f"{name} ({number} slots)" for name, number in slots.items())
            word = "process serves" if processes == 1 else "processes serve"
            click.echo(f"ready: {processes} worker {word} {served} of {topology.name}; Ctrl-C ends", err=True)
            await stop
        ready.cancel()
    finally:
        codes = await launcher.stop()
    return caught[0], codes


async def _checked(topology: Topology, redis: str | None) -> tuple[str, str]:
    """The addresses of broker and database, once both answer and the providers can be made."""
    from saqkit import broker
    from saqkit.app.location import database_url
    from saqkit.app.mail import build_providers
    from saqkit.app.store import Store

    for provider in build_providers(topology, 0).values():
        await provider.close()
    url, database = await asyncio.to_thread(broker.resolve, redis), database_url()
    await asyncio.to_thread(broker.check, url)
    async with await Store.open(database):
        return url, database


def _configurations(
    topology: Topology, slots: dict[str, int], processes: int, url: str, database: str, verbose: bool
) -> list[Configuration]:
    from saqkit.worker.process import Configuration

    return [
        Configuration(
            topology=topology.to_dict(), broker=url, database=database, slots=slots,
            name=f"{socket.gethostname()}.{os.getpid()}.{number}", log_level="INFO" if verbose else "WARNING",
        )
        for number in range(processes)
    ]  # fmt: skip
