"""The last chapter of `saqkit demo school-erp`: two tenants' schools mark a morning, and have it reported, for real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path

from saqkit import broker
from saqkit.app.school.calls import ACADEMIC, BULK, MARK, REPORT, School
from saqkit.app.store import Store, UserRow
from saqkit.app.store.attendance import Status
from saqkit.cli.output import table
from saqkit.errors import RunError, UsageError
from saqkit.firing import in_thread
from saqkit.measuring import UNSAID
from saqkit.queue.building import build_queues
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.submitting import Submitted
from saqkit.spec.topology import Topology
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration

PUPILS: Mapping[str, int] = {"north": 60, "south": 30}
BY = "the demo"
PATIENCE_S = 30.0
_POLL_S = 0.02


def has_schools(topology: Topology) -> bool:
    """Whether all of a school's jobs are among the topology's."""
    return {MARK, BULK, REPORT, ACADEMIC} <= topology.job_types.keys()


async def school_day(topology: Topology, folder: Path, day: date) -> str:
    """Mark and report `day` at two schools that share a database, a broker and one worker process, made for it.

    Returns what happened, read back from the database; the reports stay in `folder`. Raises `RunError` if it takes
    longer than half a minute.
    """
    private = broker.PrivateBroker()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(in_thread, private.stop)
        server = await in_thread(private.start)
        run = server.folder / "school"
        run.mkdir(mode=0o700)
        database = f"sqlite:///{run / 'school.db'}"
        store = await stack.enter_async_context(await Store.open(database))
        queues = build_queues(topology, server.url)
        for queue in queues.values():
            stack.push_async_callback(queue.disconnect)
        pupils, first = dict[str, range](), 1
        for tenant, count in PUPILS.items():
            await store.add_users(UserRow(f"pupil{n}@{tenant}.example", f"Pupil {n}", tenant=tenant)
                                  for n in range(1, count + 1))  # fmt: skip
            await store.tenants.add_institution(tenant, "main")
            pupils[tenant], first = range(first, first + count), first + count
        slots = {name: queue.concurrency for name, queue in topology.queues.items()}
        environ = {**UNSAID, "SAQKIT_REPORTS": str(folder.absolute())}
        worker = Configuration(topology=topology.to_dict(), broker=server.url, database=database, slots=slots,
                               name="school", folder=str(run), grace_s=2.0, environ=environ)  # fmt: skip
        launcher = Launcher([worker], run)
        stack.push_async_callback(launcher.stop, 5.0)
        await launcher.start()
        await launcher.ready()
        return await _morning(School(topology, store, queues), store, pupils, day)


async def _morning(school: School, store: Store, pupils: Mapping[str, range], day: date) -> str:
    began = time.monotonic()
    asked: dict[str, Submitted] = {}
    for tenant, whom in pupils.items():
        marks: dict[int, Status] = {n: "absent" if n % 10 == 0 else "present" for n in whom}
        asked[tenant] = await school.bulk_mark(tenant, "main", day, marks, by=BY, key="demo")
    for tenant, job in asked.items():
        await _done(school, tenant, job)
    late = pupils["north"][9]
    await _done(school, "north", await school.mark("north", "main", day, {late: "late"}, by=BY, key="demo"))
    try:
        await school.mark("north", "main", day, {pupils["south"][0]: "present"}, by=BY)
        refused = ""
    except UsageError as error:
        refused = str(error)
    rows: list[list[object]] = []
    reports: list[str] = []
    for tenant in pupils:
        wanted = await school.report(tenant, "main", day, day, by=BY, key="demo")
        path = (await _done(school, tenant, wanted))["path"]
        found = list((await store.attendance.of_day(tenant, "main", day)).values())
        audited = len(await store.audit.of_tenant(tenant))
        rows.append([tenant, len(found), *(found.count(status) for status in ("present", "absent", "late")), audited])
        reports.append(f"{tenant}'s report: {path}")
    head = ["tenant", "pupils marked", "present", "absent", "late", "audit entries"]
    lines = [table(head, rows), f"North marks a pupil of south: refused ({refused}).", *reports,
             f"{time.monotonic() - began:.1f} s"]  # fmt: skip
    return "\n".join(lines)


async def _done(school: School, tenant: str, job: Submitted) -> dict[str, object]:
    ends = time.monotonic() + PATIENCE_S
    while (found := await school.done(tenant, job.key)) is None:
        heed_cancellation()
        if time.monotonic() > ends:
            raise RunError(f"job {job.key} was not done within {PATIENCE_S:.0f} s")
        await asyncio.sleep(_POLL_S)
    return found.result
