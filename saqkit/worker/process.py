"""One worker process: `python -m saqkit.worker.process FILE`, FILE being the JSON of a `Configuration`.

It removes the file once it has read it, because addresses in it may have passwords.

It stops on SIGTERM, on SIGINT, and when its standard input ends, which is how it learns that its launcher has died.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saqkit.spec.topology import Topology

logger = logging.getLogger("saqkit")


@dataclass(frozen=True)
class Configuration:
    """What a worker process is told.

    `slots`: by queue; only these queues are served. `folder`: where it reports (`NAME.PID.ready`, `NAME.PID.done`, and
    `NAME.PID.steps` of every `sample_every`-th user); empty: nowhere. `cores`: the only cores it may use (Linux).
    `environ` is laid over the environment's settings of mail. `relay`: whether it may deliver what was announced while
    the broker was away.
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
    statistics_s: float = 30.0
    log_level: str = "WARNING"
    cores: tuple[int, ...] = ()
    relay: bool = True
    environ: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The configuration as JSON."""
        return json.dumps(asdict(self))


async def serve(config: Configuration) -> None:
    """Serve the configured queues until told to stop."""
    from saqkit.app.handlers import Application, after_process
    from saqkit.app.mail import build_providers
    from saqkit.app.store import Store
    from saqkit.queue.building import build_queues
    from saqkit.worker.worker import Worker

    if config.cores:
        os.sched_setaffinity(0, config.cores)
    topology = Topology.parse(config.topology)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    folder = Path(config.folder) if config.folder else None
    queues = build_queues(topology, config.broker, seed=config.seed, prefix=config.prefix)
    application = Application(
        topology,
        await Store.open(config.database),
        queues,
        build_providers(topology, config.seed, {**os.environ, **config.environ}),
        sample_every=config.sample_every,
        steps_file=folder / f"{config.name}.{os.getpid()}.steps" if folder else None,
    )
    served = {name: queues[name] for name in config.slots}
    worker = Worker(served, dict(application.functions()), config.slots, context={"application": application},
                    after_process=after_process, name=config.name, grace_s=config.grace_s)  # fmt: skip
    tasks = [asyncio.create_task(_statistics(config, served), name="statistics")]
    if config.relay:
        tasks.append(asyncio.create_task(application.relay.run(), name="relay"))
    if folder:
        tasks.append(asyncio.create_task(application.follow_outages(folder / "outages.json"), name="outages"))
    guard = asyncio.create_task(_launcher_lives(stop), name="guard")
    running = asyncio.create_task(worker.run(), name="worker")
    try:
        await queues[next(iter(queues))].redis.ping()  # type: ignore[misc]
        began, cpu = time.time(), time.process_time()
        logger.info("worker %s serves %s", config.name, ", ".join(f"{n} x {q}" for q, n in config.slots.items()))
        if folder:
            _report(folder / f"{config.name}.{os.getpid()}.ready", {"pid": os.getpid(), "ready_at": began})
        await asyncio.wait([running, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
        worker.stop()
        await running
        if folder:
            offset = next(iter(served.values())).clock_offset_s
            _report(
                folder / f"{config.name}.{os.getpid()}.done",
                {"pid": os.getpid(), "ready_at": began, "stopped_at": time.time(), "jobs": worker.jobs,
                 "cpu_s": time.process_time() - cpu, "clock_offset_s": offset},
            )  # fmt: skip
    finally:
        for task in (*tasks, guard):
            task.cancel()
        await asyncio.wait([*tasks, guard])
        for queue in queues.values():
            await queue.disconnect()
        await application.close()


async def _launcher_lives(stop: asyncio.Event) -> None:
    """Stop when standard input ends, if it is the launcher's pipe."""
    if os.environ.get("SAQKIT_GUARDED") != "1":
        return
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    logger.warning("the launcher is gone, this worker stops")
    stop.set()


async def _statistics(config: Configuration, queues: dict[str, Any]) -> None:
    """Log a block of counts every `statistics_s` seconds."""
    while True:
        await asyncio.sleep(config.statistics_s)
        for name, queue in queues.items():
            try:
                counts = {kind: await queue.count(kind) for kind in ("queued", "active", "scheduled", "dead")}
                logger.info("%s: waiting %d, active %d, delayed %d, dead %d, done here %d", name, counts["queued"],
                            counts["active"], counts["scheduled"], counts["dead"], queue.complete)  # fmt: skip
            except Exception as error:
                logger.warning("%s: no statistics: %s", name, error)


def _report(path: Path, facts: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(facts), encoding="utf-8")
    unfinished.rename(path)


def main() -> int:
    """Read the configuration that is named on the command line, and serve."""
    from redis.exceptions import RedisError

    from saqkit.errors import SaqkitError

    file = Path(sys.argv[1])
    config = Configuration(**json.loads(file.read_text(encoding="utf-8")))
    file.unlink()
    logging.basicConfig(level=config.log_level, format=f"%(asctime)s {config.name} %(levelname)s %(message)s")
    logging.getLogger("saq").setLevel(max(logging.WARNING, logging.getLevelName(config.log_level)))
    try:
        asyncio.run(serve(config))
    except (SaqkitError, RedisError) as error:
        print(f"{config.name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
