"""`school`: what a school's web application asks for, from a shell: marks, reports, academic operations."""

from __future__ import annotations

import asyncio
import csv
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import click

from saqkit.cli import options
from saqkit.cli.announcing import tell_if_nobody_serves
from saqkit.cli.interrupting import run
from saqkit.cli.options import Amount, Commands, OneOf
from saqkit.cli.output import emit
from saqkit.errors import BrokerError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from saqkit.app.school.arguments import Format
    from saqkit.app.school.calls import School
    from saqkit.queue.queue import Queue
    from saqkit.queue.submitting import Submitted
    from saqkit.spec.topology import Topology

    Ask = Callable[[School, dict[str, Any]], Awaitable[Submitted]]

POLL_S = 0.02

_topology = click.option(
    "--topology", default="school-erp", envvar="SAQKIT_TOPOLOGY", show_default=True, metavar="TOPOLOGY",
    help="A shipped name or a TOML file; $SAQKIT_TOPOLOGY is the default if set.",
)  # fmt: skip
_tenant = click.option("--tenant", required=True, help="Whose school it is.")
_asked = options.chain(
    _tenant,
    click.option("--institution", required=True, help="The school, by its name among the tenant's institutions."),
    click.option("--by", required=True, metavar="WHO", help="Who asks for it, as the audit log is to say."),
    click.option("--key", help="Do it once: a key that the tenant used before is that job (default: a new one)."),
    click.option(
        "--priority", type=OneOf(["critical", "high", "normal", "low"]), help="Default: as the topology says."
    ),
    click.option("--delay", type=Amount(), metavar="SECONDS", help="Not before so many seconds from now."),
    click.option("--correlation-id", metavar="ID", help="Of what began it all (default: one of the job's own)."),
    click.option("--wait", type=Amount(), default=0.0, metavar="SECONDS", help="Wait so long for it to be done."),
    _topology,
    options.redis,
    options.as_json,
)


@click.group(cls=Commands)
def school() -> None:
    """Mark pupils, report their attendance, keep academic records: each a job of school-erp, done once.

    What cannot be (an institution that the tenant does not have, a pupil of somebody else) is refused, and nothing is
    queued. The exit status is 0 for any job that is queued, or was asked for before: `state` tells what has become of
    it.
    """


@school.command()
@click.argument("marks", nargs=-1, required=True, metavar="USER=STATUS...")
@click.option("--day", required=True, metavar="DATE", help="YYYY-MM-DD.")
@_asked
def mark(marks: tuple[str, ...], day: str, **common: Any) -> None:
    """Mark pupils, by id, at most 100: `7=late 8=present` (or absent, excused)."""
    found = _marks(marks)
    _do(common, lambda calls, said: calls.mark(day=day, marks=found, **said))


@school.command()
@click.argument("marks", nargs=-1, metavar="USER=STATUS...")
@click.option("--file", metavar="CSV", help="With the columns user and status, in place of marks here.")
@click.option("--day", required=True, metavar="DATE", help="YYYY-MM-DD.")
@_asked
def bulk_mark(marks: tuple[str, ...], file: str | None, day: str, **common: Any) -> None:
    """Mark a whole school, at most 5,000 pupils; none of them if one cannot be."""
    if bool(marks) == bool(file):
        raise UsageError("bulk-mark: give marks, as 7=late, or --file with them (one of the two)")
    found = _marks_of(file) if file else _marks(marks)
    _do(common, lambda calls, said: calls.bulk_mark(day=day, marks=found, **said))


@school.command()
@click.option("--first", required=True, metavar="DATE", help="The first day, YYYY-MM-DD.")
@click.option("--last", required=True, metavar="DATE", help="The last day.")
@click.option("--format", "how", type=OneOf(["csv", "pdf"]), default="csv", show_default=True)
@_asked
def report(first: str, last: str, how: str, **common: Any) -> None:
    """Write the attendance of at most 366 days to a file in SAQKIT_REPORTS; `path` says where it is."""
    kind = cast("Format", how)
    _do(common, lambda calls, said: calls.report(first=first, last=last, format=kind, **said))


@school.command()
@click.argument("operation")
@click.argument("data", nargs=-1, metavar="NAME=VALUE...")
@_asked
def academic(operation: str, data: tuple[str, ...], **common: Any) -> None:
    """Do an academic OPERATION: `enrol class_name=1a user=7`.

    Operations: create-class, enrol, withdraw, assign-subject, create-exam, grade, publish-results.
    """
    given = _pairs(data, "is no NAME=VALUE (such as class_name=1a)")
    values = {name: int(value) if name == "user" and value.isdecimal() else value for name, value in given}
    _do(common, lambda calls, said: calls.academic(operation=operation, data=values, **said))


@school.command()
@click.argument("job")
@_tenant
@_topology
@options.redis
@options.as_json
def done(job: str, tenant: str, topology: str, redis: str | None, as_json: bool) -> None:
    """Say what has become of a JOB, by the key that the other commands print."""

    async def look() -> dict[str, Any]:
        async with _open(options.topology_of(topology, (), served=True), redis) as (calls, queues):
            found = await _state(calls, queues, tenant, job)
            if found["state"] == "unknown":
                raise UsageError(f'tenant "{tenant}" has no job {job} (its key is what `saqkit school mark` prints)')
            return found

    _show({"job": job, **run(look())}, as_json)


def _do(common: dict[str, Any], ask: Ask) -> None:
    topology = options.topology_of(common.pop("topology"), (), served=True)
    redis, as_json, wait_s = common.pop("redis"), common.pop("as_json"), common.pop("wait")
    said = {{"delay": "delay_s"}.get(name, name): value for name, value in common.items() if value is not None}
    said.setdefault("key", secrets.token_hex(8))
    _show(run(_submit(topology, said, ask, wait_s, redis)), as_json)


async def _submit(
    topology: Topology, said: dict[str, Any], ask: Ask, wait_s: float, redis: str | None
) -> dict[str, Any]:
    from saqkit.queue.cancelling import heed_cancellation
    from saqkit.queue.scripts_of_queue import AWAY

    async with _open(topology, redis) as (calls, queues):
        began = time.monotonic()
        try:
            asked = await ask(calls, said)
        except AWAY as error:
            raise BrokerError(f"the job may not be queued: {' '.join(str(error).split())} (ask again with --key "
                              f"{said['key']}: it is done once)") from error  # fmt: skip
        answer = {"job": asked.key, "new": asked.accepted, "elapsed_ms": (time.monotonic() - began) * 1000}
        ends = time.monotonic() + wait_s
        found = await _state(calls, queues, said["tenant"], asked.key)
        if wait_s and found["state"] == "waiting":
            click.echo(f"job {asked.key} is queued; waiting for it", err=True)
            await tell_if_nobody_serves(topology, queues)
        while found["state"] == "waiting" and time.monotonic() < ends:
            heed_cancellation()
            await asyncio.sleep(POLL_S)
            found = await _state(calls, queues, said["tenant"], asked.key)
        return {**answer, **found}


async def _state(calls: School, queues: Mapping[str, Queue], tenant: str, key: str) -> dict[str, Any]:
    """`waiting`, `done`, `failed` or `unknown`; the database is asked first, for what is done stays there."""
    from saq.job import Status

    from saqkit.queue.letter import tenant_of

    if (ended := await calls.done(tenant, key)) is not None:
        return {"state": "done", "result": ended.result, "error": ""}
    for queue in queues.values():
        job = await queue.job(key)
        if job is not None and tenant_of(job.meta) == tenant:
            dead = job.status in (Status.FAILED, Status.ABORTED)
            reason = (job.error or "cancelled").strip().rsplit("\n", 1)[-1] if dead else ""
            return {"state": "failed" if dead else "waiting", "result": None, "error": reason}
    if (ended := await calls.done(tenant, key)) is not None:  # it has ended in between
        return {"state": "done", "result": ended.result, "error": ""}
    return {"state": "unknown", "result": None, "error": ""}


@asynccontextmanager
async def _open(topology: Topology, redis: str | None) -> AsyncIterator[tuple[School, Mapping[str, Queue]]]:
    from saqkit.app.client import Client
    from saqkit.queue.scripts_of_queue import AWAY

    async with Client(topology, redis=redis) as client:
        try:
            yield client.school, client.queues
        except AWAY as error:
            raise BrokerError(f"{client.where}: {' '.join(str(error).split())}") from error


def _show(said: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(said)
        return
    ms = f"; elapsed_ms {said['elapsed_ms']:.1f}" if "elapsed_ms" in said else ""
    before = " (asked for before with this key)" if said.get("new") is False else ""
    told = said["error"] or ", ".join(f"{name} {value}" for name, value in (said["result"] or {}).items())
    click.echo(f"job {said['job']}: {said['state']}{f' ({told})' if told else ''}{ms}{before}")


def _marks(given: Sequence[str]) -> dict[int, Any]:
    return _by_user(_pairs(given, "is no mark (write USER=STATUS, such as 7=late)"), "")


def _marks_of(path: str) -> dict[int, Any]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [name for name in ("user", "status") if name not in (rows.fieldnames or ())]:
                raise UsageError(f'--file {path}: line 1: there is no column "{missing[0]}" (give user,status)')
            return _by_user(((row["user"] or "", row["status"] or "") for row in rows), f"--file {path}: ")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--file {path}: is no CSV file in UTF-8 ({error})") from error
    except OSError as error:
        raise UsageError(f"--file {path}: cannot be read: {error.strerror}") from error


def _by_user(pairs: Iterable[tuple[str, str]], where: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for user, status in pairs:
        if not user.strip().isdecimal():
            raise UsageError(f'{where}"{user}" is no id of a user (give a whole number from 1)')
        if int(user) in found:
            raise UsageError(f"{where}user {int(user)} is marked twice")
        found[int(user)] = status.strip()
    return found


def _pairs(given: Sequence[str], why: str) -> list[tuple[str, str]]:
    split = [(text, *text.partition("=")) for text in given]
    if wrong := [text for text, name, _, value in split if not (name and value)]:
        raise UsageError(f'"{wrong[0]}" {why}')
    if twice := [name for n, (_, name, _, _) in enumerate(split) if name in {one[1] for one in split[:n]}]:
        raise UsageError(f'"{twice[0]}" is given twice')
    return [(name, value) for _, name, _, value in split]
