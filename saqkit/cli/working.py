"""`saqkit worker`: supervised worker processes that serve a topology."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.interrupting import SIGNALS, run
from saqkit.cli.options import Amount, Count, Slots, SlotsOfQueues
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.app.store import Store
    from saqkit.spec.topology import Topology
    from saqkit.worker.launcher import Launcher
    from saqkit.worker.process import Configuration

logger = logging.getLogger("saqkit")


@dataclass(frozen=True)
class _Wanted:
    """What the command was asked for."""

    topology: Topology
    slots: dict[str, int]
    processes: int
    redis: str | None
    grace_s: float
    statistics_s: float
    level: str
    as_json: bool


@dataclass(frozen=True)
class _Ended:
    """The signals that came, the processes' exit codes (-n: by signal n) and how often one was started again."""

    signals: list[int]
    codes: list[int]
    restarted: int


@click.command()
@click.argument("topology", default="school-events", envvar="SAQKIT_TOPOLOGY")
@click.option("--queues", metavar="A,B", help="Serve these queues only (default: all).")
@click.option("--processes", type=Count(), default=1, show_default=True, help="How many; one that dies is restarted.")
@click.option("--concurrency", type=SlotsOfQueues(), metavar="C", help="Slots per process: 5, or email=5,sync=2.")
@click.option("--grace", type=Amount(), default=30.0, show_default="30", metavar="SECONDS",
              help="How long running jobs may go on once it is told to stop; then they are given back.")  # fmt: skip
@click.option("--statistics", type=Amount(), default=30.0, show_default="30", metavar="SECONDS",
              help="Print the counts of the queues so often; 0: never.")  # fmt: skip
@options.assignments
@options.redis
@click.option("-v", "--verbose", count=True, help="Log every job; -vv: every email too.")
@click.option("--json", "as_json", is_flag=True,
              help="Standard output gets a line of JSON per statistics block, and a last one at the end.")  # fmt: skip
def worker(
    topology: str,
    queues: str | None,
    processes: int,
    concurrency: Slots | None,
    grace: float,
    statistics: float,
    assignments: Sequence[str],
    redis: str | None,
    verbose: int,
    as_json: bool,
) -> None:
    """Serve the queues of TOPOLOGY.

    SIGTERM or Ctrl-C: no more jobs are taken, and it ends as soon as the running ones have, at most after the grace.
    The second time they are given back at once, without an attempt being counted; the third time all is killed.

    The broker is $REDIS_URL, $REDIS_HOST or the embedded one, the database $SAQKIT_DATABASE_URL or a SQLite file in
    the state folder, its replica for reading audiences $SAQKIT_REPLICA_URL, the SMTP server $SAQKIT_SMTP_URL.
    $SAQKIT_LOOP is asyncio, uvloop or auto (uvloop where it is installed), $SAQKIT_LOG console or json.
    $EMAIL_QUEUE_CONCURRENCY is the number of slots of queue `email`, and so on, unless --concurrency or --set gives
    another. All variables: docs/environment.md.

    The exit status is 0 after SIGTERM, 130 after Ctrl-C and 129 after SIGHUP if every process ended well; else that
    of the first one that did not: its own, or 128 + n if signal n ended it. It is 2 if a process cannot start.
    """
    from saqkit.log_lines import arrange
    from saqkit.worker.event_loop import loop_name

    level = ("WARNING", "INFO", "DEBUG")[min(verbose, 2)]
    arrange(level)
    described = options.topology_of(topology, assignments, served=True)
    slots = _slots(described, queues, concurrency)
    loop_name()
    ended = run(_serve(_Wanted(described, slots, processes, redis, grace, statistics, level, as_json)))
    if as_json:
        _line({"topology": described.name, "queues": slots, "processes": processes, "restarted": ended.restarted,
               "exit_codes": ended.codes})  # fmt: skip
    click.get_current_context().exit(_status(ended))


def _status(ended: _Ended) -> int:
    # A process that SIGTERM meets while it still starts ends by the signal: it held nothing.
    bad = [code for code in ended.codes if code not in (0, -signal.SIGTERM)]
    first = ended.signals[0]
    if bad and len(ended.signals) < 3:
        return 128 - bad[0] if bad[0] < 0 else bad[0]
    return 0 if first == signal.SIGTERM and not bad else 128 + first


def _line(said: dict[str, Any]) -> None:
    click.echo(json.dumps(said, ensure_ascii=False))


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


async def _serve(wanted: _Wanted) -> _Ended:
    """Serve until a signal comes."""
    from saqkit.log_lines import said
    from saqkit.worker.launcher import Launcher
    from saqkit.worker.process import HARD_STOP_S

    async with AsyncExitStack() as stack:
        url, database, store = await _checked(wanted, stack)
        launcher = Launcher(_configurations(wanted, url, database))
        # They report here when they are ready.
        launcher.configurations = [replace(one, folder=str(launcher.folder)) for one in launcher.configurations]
        caught: list[int] = []
        ended = asyncio.Event()

        def end(number: int) -> None:
            caught.append(number)
            ended.set()
            if len(caught) == 2:
                launcher.terminate()
            elif len(caught) > 2:  # what they hold comes back when its leases expire
                for one in range(len(launcher.processes)):
                    launcher.kill(one)

        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, end, number)
        telling: asyncio.Task[None] | None = None
        try:
            await launcher.start()
            ready = asyncio.create_task(launcher.ready())
            stop = asyncio.create_task(ended.wait())
            await asyncio.wait([ready, stop], return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                served = ", ".join(f"{name} ({number} slots)" for name, number in wanted.slots.items())
                word = "process serves" if wanted.processes == 1 else "processes serve"
                _log_queues(wanted)
                text = f"ready: {wanted.processes} worker {word} {served} of {wanted.topology.name}; Ctrl-C ends"
                click.echo(said(text), err=True)
                if wanted.statistics_s > 0:
                    telling = asyncio.create_task(_tell_statistics(wanted, url, store, launcher))
                await stop
            ready.cancel()
        finally:
            if telling is not None:
                telling.cancel()
                await asyncio.wait([telling])
            codes = await launcher.stop(wanted.grace_s + HARD_STOP_S)
        return _Ended(caught, codes, launcher.restarts)


def _log_queues(wanted: _Wanted) -> None:
    """What the queues are, one line each: those who start workers want to know what they have started."""
    for name, slots in wanted.slots.items():
        limit = wanted.topology.queues[name].rate_limit
        types = [kind for kind, job in wanted.topology.job_types.items() if job.queue == name]
        logger.info("queue %s: %d worker process%s with %d slots, %s, serves %s", name, wanted.processes,
                    "es" if wanted.processes > 1 else "", slots,
                    f"at most {limit.limit} {limit.unit} in {limit.period_s:g} s" if limit else "no rate limit",
                    ", ".join(types) or "nothing")  # fmt: skip


async def _tell_statistics(wanted: _Wanted, url: str, store: Store, launcher: Launcher) -> None:
    from saqkit.log_lines import chosen_style, said
    from saqkit.queue.building import build_queues
    from saqkit.worker.statistics import block, report_every, statistics

    queues = build_queues(wanted.topology, url)
    served = {name: queues[name] for name in wanted.slots}

    async def read() -> dict[str, Any]:
        alive = sum(process.poll() is None for process in launcher.processes)
        topics = wanted.topology.topics
        return await statistics(served, store, topics, alive=alive, restarted=launcher.restarts)

    def tell(counts: dict[str, Any]) -> None:
        if wanted.as_json:
            _line(counts)
        else:
            click.echo(block(counts) if chosen_style() == "console" else said("statistics", **counts), err=True)

    try:
        await report_every(wanted.statistics_s, read, tell)
    finally:
        for queue in queues.values():
            await queue.disconnect()


async def _checked(wanted: _Wanted, stack: AsyncExitStack) -> tuple[str, str, Store]:
    """The addresses of broker and database, and the database, once both answer and the providers can be made."""
    from saqkit import broker
    from saqkit.app.location import database_url, replica_url
    from saqkit.app.mail import build_providers
    from saqkit.app.store import Store
    from saqkit.log_lines import said
    from saqkit.worker.connections import check_room

    for provider in build_providers(wanted.topology, 0).values():
        await provider.close()
    url, database = await asyncio.to_thread(broker.resolve, wanted.redis), database_url()
    found = await asyncio.to_thread(broker.check, url)
    logger.info("connected to %s %s at %s", found["name"], found["version"], broker.redact(url))
    if warning := await asyncio.to_thread(check_room, url, len(wanted.slots), wanted.processes):
        click.echo(said(f"saqkit: warning: {warning}"), err=True)
    store = await Store.open(database, replica_url=replica_url())
    return url, database, await stack.enter_async_context(store)


def _configurations(wanted: _Wanted, url: str, database: str) -> list[Configuration]:
    from saqkit.app.location import replica_url
    from saqkit.worker.process import Configuration

    return [
        Configuration(
            topology=wanted.topology.to_dict(), broker=url, database=database, replica=replica_url(),
            slots=wanted.slots, name=f"{socket.gethostname()}.{os.getpid()}.{number}", grace_s=wanted.grace_s,
            log_level=wanted.level,
        )
        for number in range(wanted.processes)
    ]  # fmt: skip
