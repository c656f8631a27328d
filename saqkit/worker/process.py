"""One worker process: `python -m saqkit.worker.process FILE`, FILE being the JSON of a `Configuration`.

It removes the file once it has read it, because addresses in it may have passwords.

It stops on SIGTERM, on SIGINT, and when its standard input ends, which is how it learns that its launcher has died.
Exit status: 0 stopped as told, 2 it could not start or go on (broker, database, settings), 1 anything else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saqkit.spec.topology import Topology
from saqkit.worker.event_loop import loop_factory, loop_name

logger = logging.getLogger("saqkit")

HARD_STOP_S = 15.0
"""What a process may take beyond the grace to give jobs back and disconnect, before it is ended hard."""


@dataclass(frozen=True)
class Configuration:
    """What a worker process is told.

    `slots`: by queue; only these queues are served. `folder`: where it reports (`NAME.PID.ready`, `NAME.PID.done`,
    `NAME.PID.failed` with its last words, and `NAME.PID.steps` of every `sample_every`-th user); empty: nowhere.
    `cores`: the only cores it may use (Linux). `environ` is laid over what the application reads of the environment.
    `relay`: whether it may deliver what was announced while the broker was away. `fires`: whether the topology's
    schedules fire here. `events`: whether the bus has its subscribers here, if the queue of events is served. `loop`:
    see `event_loop`. `again`: it takes the place of one that died, so it waits for a broker that is away at its start.
    `replica`: of the database, from which audiences are read.
    """

    topology: dict[str, Any]
    broker: str
    database: str
    slots: dict[str, int]
    name: str
    seed: int = 0
    prefix: str = ""
    folder: str = ""
    sample_every: int = 0
    grace_s: float = 30.0
    log_level: str = "WARNING"
    cores: tuple[int, ...] = ()
    relay: bool = True
    fires: bool = True
    events: bool = True
    environ: dict[str, str] = field(default_factory=dict)
    loop: str = "auto"
    again: bool = False
    replica: str | None = None

    def to_json(self) -> str:
        """The configuration as JSON."""
        return json.dumps(asdict(self))

    def report(self, kind: str) -> Path | None:
        """The file in which this process reports `kind`, None if it reports nothing."""
        return Path(self.folder) / f"{self.name}.{os.getpid()}.{kind}" if self.folder else None


async def serve(config: Configuration) -> None:
    """Serve the configured queues until told to stop.

    Told once, running jobs may go on for the grace; told again, they are given back at once.
    """
    from saqkit.app.event_bus import event_queue
    from saqkit.app.handlers import Application, after_process
    from saqkit.app.mail import build_providers
    from saqkit.app.store import Store
    from saqkit.app.subscribers.subscribing import subscribed
    from saqkit.queue.building import build_queues
    from saqkit.worker.loop_lag import LoopLag
    from saqkit.worker.worker import Worker

    if config.cores:
        os.sched_setaffinity(0, config.cores)
    topology = Topology.parse(config.topology)
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (again if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    if os.environ.get("SAQKIT_GUARDED") == "1":
        patience_s = config.grace_s + HARD_STOP_S
        threading.Thread(target=_follow_launcher, args=(loop, stop, patience_s), name="guard", daemon=True).start()
    queues = build_queues(topology, config.broker, seed=config.seed, prefix=config.prefix)
    environ = {**os.environ, **config.environ}
    application = Application(
        topology,
        await Store.open(config.database, replica_url=config.replica),
        queues,
        build_providers(topology, config.seed, environ),
        environ=environ,
        sample_every=config.sample_every,
        steps_file=config.report("steps"),
    )
    served = {name: queues[name] for name in config.slots}
    on_bus = config.events and event_queue(topology) in served
    bus = subscribed(topology, queues, environ) if on_bus else None
    functions = dict([*application.functions(), *(bus.functions() if bus else ())])
    worker = Worker(served, functions, config.slots, context={"application": application},
                    after_process=after_process, name=config.name, grace_s=config.grace_s)  # fmt: skip
    lag = LoopLag(worker.running, worker.metadata)
    worker.metadata["loop"] = loop_name(config.loop)
    tasks = [asyncio.create_task(lag.run(), name="lag")]
    if config.relay:
        tasks.append(asyncio.create_task(application.relay.run(), name="relay"))
    if config.folder:
        outages = Path(config.folder) / "outages.json"
        tasks.append(asyncio.create_task(application.follow_outages(outages), name="outages"))
    try:
        if not config.again:
            await next(iter(served.values())).redis.ping()  # type: ignore[misc]  # typed for both clients
        if bus is not None:
            await bus.start()
        running = asyncio.create_task(worker.run(), name="worker")
        tasks.append(running)
        if config.fires:
            application.timetable.start()
        began, cpu, loop_cpu = time.time(), time.process_time(), time.thread_time()
        for name, subscription in bus.here.items() if bus is not None else ():
            logger.info("subscriber %s listens to %s", name, ", ".join(subscription.topics))
        logger.info("worker %s serves %s", config.name, ", ".join(f"{n} x {q}" for q, n in config.slots.items()))
        _report(config.report("ready"), {"pid": os.getpid(), "ready_at": began, "loop": worker.metadata["loop"]})
        await _first(running, stop.wait())
        worker.stop()
        await _first(running, again.wait())
        running.cancel()  # no more patience: its slots give back what they run
        await asyncio.wait([running])
        if not running.cancelled():
            running.result()
        offset = next(iter(served.values())).clock_offset_s
        _report(
            config.report("done"),
            {"pid": os.getpid(), "ready_at": began, "stopped_at": time.time(), "jobs": worker.jobs,
             "cpu_s": time.process_time() - cpu, "loop_cpu_s": time.thread_time() - loop_cpu,
             "clock_offset_s": offset},
        )  # fmt: skip
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await application.timetable.stop()
        if bus is not None:
            await bus.stop()
        await asyncio.gather(*(queue.disconnect() for queue in queues.values()))
        logger.info("queues closed")
        await application.close()
        logger.info("database closed")


async def _first(task: asyncio.Task[None], other: Coroutine[Any, Any, Any]) -> None:
    """Wait until `task` or `other` is done."""
    waiting = asyncio.create_task(other)
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _follow_launcher(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, patience_s: float) -> None:
    """Stop when standard input ends, which is the launcher's pipe; a process that cannot stop ends hard."""
    while os.read(0, 1):
        pass
    logger.warning("the launcher is gone, this worker stops")
    with suppress(RuntimeError):  # its loop is closed already
        loop.call_soon_threadsafe(stop.set)
    time.sleep(patience_s)
    os._exit(1)


def _report(path: Path | None, facts: dict[str, Any]) -> None:
    if path is None:
        return
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(facts), encoding="utf-8")
    unfinished.rename(path)


def main() -> int:
    """Read the configuration that is named on the command line, and serve."""
    from redis.exceptions import RedisError

    from saqkit.errors import SaqkitError
    from saqkit.log_lines import arrange

    file = Path(sys.argv[1])
    config = Configuration(**json.loads(file.read_text(encoding="utf-8")))
    file.unlink()
    try:
        arrange(config.log_level, worker=config.name)
        logging.getLogger("saq").setLevel(max(logging.WARNING, logging.getLevelName(config.log_level)))
        with asyncio.Runner(loop_factory=loop_factory(loop_name(config.loop))) as runner:
            runner.run(serve(config))
    except (SaqkitError, RedisError) as error:
        words = f"{config.name}: {' '.join(str(error).split())}"
        if (failed := config.report("failed")) is not None:
            failed.write_text(words, encoding="utf-8")  # the launcher says it
        else:
            print(words, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
