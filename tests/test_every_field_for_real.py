"""Every field of a description acts in real runs, in the same direction as in the model."""

from __future__ import annotations

import ast
import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from every_field import REAL_ONLY, ROWS, SEED, acts_in_real_only, described, fields
from measured import lab, run
from redis import asyncio as aioredis
from saq.job import Status
from test_handlers import system

from saqkit import Deployment, Queue
from saqkit.app.announcing import KEEP_KEYS_S
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import build_providers
from saqkit.app.store import Store
from saqkit.clients import Clients
from saqkit.producing import Producer
from saqkit.queue.building import build_queues
from saqkit.spec.topology import Topology
from saqkit.spec.workload import ClosedLoop
from saqkit.worker.recording import Row, attempts_of, read
from saqkit.worker.worker import Worker

ROOT = Path(__file__).parent.parent
RUNS = itertools.count(1)
HERE = [name for name, row in ROWS.items() if not row.real]
DONE: dict[str, pd.DataFrame] = {}


@asynccontextmanager
async def queues_of(topology: Topology, url: str) -> AsyncIterator[dict[str, Queue]]:
    """Queues of their own on a server that others use."""
    queues = build_queues(topology, url, seed=SEED, prefix=f"run{next(RUNS)}.")
    try:
        yield queues
    finally:
        for queue in queues.values():
            await queue.disconnect()


async def real(settings: dict[str, Any], url: str, folder: Path) -> pd.DataFrame:
    """The attempts of a real run as `measure` makes it, but for its one worker, which is in this process."""
    topology, deployment, workload = described(settings)
    events = list(workload.events(topology, SEED))
    slots = {name: deployment.slots(topology, name) for name in topology.queues}
    rows: list[Row] = []
    async with queues_of(topology, url) as queues, await Store.open(f"sqlite:///{folder}/{next(RUNS)}.db") as store:
        await store.add_numbered_users(max(event.users for event in events))
        for queue in queues.values():
            await queue.redis.set(queue.namespace("recording"), 1)
        application = Application(topology, store, queues, build_providers(topology, SEED, {}))
        worker = Worker(queues, dict(application.functions()), slots, name="w",
                        context={"application": application}, after_process=after_process)  # fmt: skip

        async def news() -> list[Row]:
            new: list[Row] = []
            for name, queue in queues.items():
                known = sum(row["queue"] == name for row in rows)
                found = await queue.redis.lrange(queue.namespace("trace"), known, -1)  # type: ignore[misc]
                new += [read(record, name, "real") for record in found]
            rows.extend(new)
            return new

        working = asyncio.create_task(worker.run())
        producer = Producer(topology, store, queues, relayed=False)
        if isinstance(workload.arrivals, ClosedLoop):
            await Clients(workload.arrivals, topology, SEED, producer).send(time.time(), news)
        else:
            await producer.follow(events, time.time())
        async with asyncio.timeout(60):
            while any([await queue.count("incomplete") for queue in queues.values()]):
                await asyncio.sleep(0.005)
        worker.stop()
        await asyncio.wait_for(working, 20)
        await news()
        for gate in application.gates.values():
            await gate.close()
        await application.ledger.close()
    return attempts_of(rows)


@pytest.mark.parametrize("name", HERE)
async def test_the_field_acts_in_the_stated_direction(name: str, redis_url: str, tmp_path: Path) -> None:
    row = ROWS[name]
    if (base := repr(row.base)) not in DONE:  # rows that share a base share its run
        DONE[base] = await real(dict(row.base), redis_url, tmp_path)
    before, after = DONE[base], await real({**row.base, **row.change}, redis_url, tmp_path)
    assert row.holds(before, after), (row.measure(before), row.measure(after))


def named_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_field_acts_here_or_in_a_test_that_exists() -> None:
    named = {name: row.real for name, row in ROWS.items() if row.real} | REAL_ONLY
    assert {*HERE, *named} >= {name for name, found in fields().items() if acts_in_real_only(found)}
    missing = {}
    for name, test in named.items():
        path, _, function = test.partition("::")
        if function not in named_in(ROOT / path):
            missing[name] = test
    assert missing == {}


async def test_how_long_a_finished_job_can_be_looked_up(redis_url: str, tmp_path: Path) -> None:
    left_s = {}
    for kept_s in (600.0, 3 * KEEP_KEYS_S):
        data = lab(queues__notifications__done_retention_s=kept_s)
        async with system(data, redis_url, tmp_path, 5) as made, made.worker():
            await made.announcer.announce(title="x", key=str(kept_s), patience_s=5)
            await made.drained()
            last = (await made.rows())[-1]["job"]
            job = await made.queue.job(last)
            assert job is not None
            assert job.status == Status.COMPLETE
            left_s[kept_s] = await made.queue.redis.ttl(made.queue.key_of(last))
    # The application keeps its keys for a day, so that nothing is doubled: a shorter time is no shorter than that.
    assert KEEP_KEYS_S - 60 <= left_s[600.0] <= KEEP_KEYS_S
    assert 3 * KEEP_KEYS_S - 60 <= left_s[3 * KEEP_KEYS_S] <= 3 * KEEP_KEYS_S


async def test_a_measured_run_of_groups_on_a_given_broker(redis_url: str) -> None:
    deployment = Deployment.parse({"broker": redis_url, "groups": [{"queues": ["notifications"], "processes": 2}]})
    async with aioredis.Redis.from_url(redis_url) as client:
        before = (await client.info("stats"))["total_connections_received"]
        topology = lab(providers__email__latency__mean_s=0.05, providers__email__rate={"limit": 1000})
        done = await run(topology, users=60, batch_size=5, deployment=deployment)
        assert (await client.info("stats"))["total_connections_received"] >= before + 2
        assert await client.keys() == [], "the window of the provider's rate goes too"
    assert set(done.attempts["worker"]) == {"worker-0", "worker-1"}
    assert done.measures()["users_done"] == 60
