"""Watching queues: `stats`, `health`, `workers`, `jobs`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.choosing_jobs import all_of, of_jobs, place
from saqkit.cli.interrupting import run
from saqkit.cli.options import Count, ParamType, explain
from saqkit.cli.output import emit, number, table
from saqkit.errors import SaqkitError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from saqkit.judging_health import Thresholds
    from saqkit.queue.counting import Statistics
    from saqkit.queue.live_jobs import Which

STATUS = {"healthy": 0, "degraded": 1, "unhealthy": 2}
"""Exit statuses of `health`, those of the monitoring plugins of Nagios and its kin."""
CANNOT_TELL = 3

_FILES = (".csv", ".parquet", ".json")
_SHOWN = ("waiting", "active", "delayed", "completed", "failed", "dead", "workers", "oldest_s")

_queues = click.argument("queues", nargs=-1, metavar="[QUEUE]...")
_where = options.chain(options.topology, options.redis, options.as_json)
_out = click.option("--out", metavar="FILE", help="Write it to a .csv, .parquet or .json file instead.")


@click.command()
@_queues
@click.option("--tenants", is_flag=True, help="Also by tenant (reads every job that has not ended).")
@_out
@_where
def stats(
    queues: Sequence[str], tenants: bool, out: str | None, topology: str, redis: str | None, as_json: bool
) -> None:
    """Count the jobs of QUEUEs (default: all), and say how long they wait and take.

    Percentiles stand on the attempts that are recorded, see `saqkit recording`; without, only the counters are known.
    """
    from saqkit.operators import operate

    where = place(topology, redis, queues)
    target = _target(out)

    async def carry_out() -> dict[str, Statistics]:
        async with operate(where.topology, where.redis) as operator:
            return await operator.statistics(*where.names, tenants=tenants)

    found = run(carry_out())
    if target is not None:
        from saqkit.queue.tables import frame_of

        _write(frame_of(found.values()), target, as_json)
    elif as_json:
        emit({"queues": {name: one.to_dict() for name, one in found.items()}})
    else:
        _show(found)


def _show(found: dict[str, Statistics]) -> None:
    rows = [[name, *(getattr(one, column) for column in _SHOWN)] for name, one in found.items()]
    click.echo(table(["queue", *_SHOWN], rows))
    for name, one in found.items():
        if one.paused is not None:
            said = " ".join(filter(None, (one.paused.by and f"by {one.paused.by}", one.paused.reason)))
            click.echo(f"{name} is paused{said and f': {said}'}")
    timed = [[name, by, of, waiting, attempts, *times.values()]
             for name, one in found.items() for by, of, waiting, attempts, times in _timed(one)]  # fmt: skip
    if timed:
        heads = ["queue", "by", "of", "waiting", "attempts", "wait p50", "p95", "p99", "service p50", "p95", "p99"]
        click.echo("\n" + table(heads, timed))
    if silent := [name for name, one in found.items() if not one.attempts]:
        click.echo(f"no percentiles of {', '.join(silent)}: no attempts are recorded (`saqkit recording` begins)")


def _timed(one: Statistics) -> list[tuple[str, str, int, int, dict[str, float]]]:
    """The queue, and those of its levels and tenants that have jobs or recorded attempts; in seconds."""
    words = {1: "critical", 2: "high", 3: "normal", 4: "low"}
    groups = [("priority", words[level], group) for level, group in one.priorities.items()]
    groups += [("tenant", name or "-", group) for name, group in (one.tenants or {}).items()]
    told = [(by, of, group.waiting, group.attempts, group.times) for by, of, group in groups
            if group.attempts or (by == "tenant" and group.waiting)]  # fmt: skip
    return [("queue", "", one.waiting, one.attempts, one.times), *told] if one.attempts or told else []


class ForMonitors(click.Command):
    """A command whose exit statuses 0 to 2 say how things are, so that 3 has to say that it cannot tell."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        # _told returns whatever it is given to call: here click's own context
        return _told(lambda: super(ForMonitors, self).make_context(*args, **kwargs))  # type: ignore[no-any-return]

    def invoke(self, ctx: click.Context) -> Any:
        return _told(lambda: super(ForMonitors, self).invoke(ctx))


def _told(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except click.ClickException as error:
        reason = explain(error)
    except (SaqkitError, OSError) as error:
        reason = str(error)
    click.echo(f"saqkit: {' '.join(reason.split())}", err=True)
    raise click.exceptions.Exit(CANNOT_TELL)


class Pair(ParamType):
    """Two numbers, from which on it is a warning, and from which on unhealthy; `none` for never."""

    name = "W,U"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            warning, unhealthy = (math.inf if part == "none" else float(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f'"{value}" is no pair of thresholds (write 10,100, or none,none)') from None
        return warning, unhealthy


@click.command(cls=ForMonitors)
@click.option("--dead", type=Pair(), help="Dead letters of a queue (default: 10,100).")
@click.option("--waiting", type=Pair(), help="Waiting jobs of a queue (default: 100,1000).")
@click.option("--oldest", type=Pair(), help="Seconds that a job has waited for (default: 300,3600).")
@click.option("--active", type=Pair(), help="Seconds that a job has been active for (default: 600,3600).")
@click.option("--audit", is_flag=True, help="Also check that every job is in exactly one place (reads all jobs).")
@_where
def health(
    dead: tuple[float, float] | None, waiting: tuple[float, float] | None, oldest: tuple[float, float] | None,
    active: tuple[float, float] | None, audit: bool, topology: str, redis: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Look at broker, queues, workers and database, and say what is wrong.

    The exit status is 0 healthy, 1 degraded (there are warnings), 2 unhealthy, and 3 if this cannot tell: wrong
    options, an unknown topology. Thresholds are W,U: a warning from W on, unhealthy from U on.
    """
    from saqkit.operators import health as look

    thresholds = _thresholds(dead=dead, waiting=waiting, oldest_s=oldest, active_s=active)
    found = run(look(options.topology_of(topology, ()), redis, thresholds=thresholds, audit=audit))
    if as_json:
        emit({
            "status": found.status,
            "healthy": found.status == "healthy",
            "problems": [asdict(problem) for problem in found.problems],
            "broker": found.broker,
            "queues": {name: one.to_dict() for name, one in found.queues.items()},
            "undelivered_events": found.undelivered,
        })  # fmt: skip
    else:
        click.echo(found.status)
        for problem in found.problems:
            of = f"queue {problem.queue}" if problem.queue else problem.what
            click.echo(f"  {problem.level}: {of}: {problem.text}")
    click.get_current_context().exit(STATUS[found.status])


def _thresholds(**given: tuple[float, float] | None) -> Thresholds:
    from saqkit.judging_health import Thresholds

    return Thresholds(**{name: pair for name, pair in given.items() if pair is not None})


@click.command()
@_queues
@_out
@_where
def workers(queues: Sequence[str], out: str | None, topology: str, redis: str | None, as_json: bool) -> None:
    """List the worker processes that serve QUEUEs (default: all), as heard of in the last 30 s."""
    from saqkit.operators import operate

    where, target = place(topology, redis, queues), _target(out)

    async def carry_out() -> pd.DataFrame:
        async with operate(where.topology, where.redis) as operator:
            return await operator.workers_frame(*where.names)

    _tell(run(carry_out()), target, as_json, ["worker", "queue", "slots", "running", "completed", "failed", "uptime_s",
                                              "loop_lag_s"])  # fmt: skip


@click.command()
@_queues
@of_jobs(("waiting", "delayed", "active"))
@click.option("--limit", type=Count(), default=100, show_default=True, help="At most so many of each queue.")
@_out
@_where
def jobs(
    queues: Sequence[str], which: Which | None, limit: int, out: str | None, topology: str, redis: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List the jobs of QUEUEs (default: all) that have not ended: running, then waiting, then delayed ones."""
    from saqkit.operators import operate

    where, target = place(topology, redis, queues), _target(out)
    meant = which or all_of(("active", "waiting", "delayed"))

    async def carry_out() -> pd.DataFrame:
        async with operate(where.topology, where.redis) as operator:
            return await operator.jobs_frame(*where.names, which=meant, limit=limit)

    _tell(run(carry_out()), target, as_json, ["key", "queue", "function", "state", "priority", "tenant", "attempts",
                                              "ready_at"])  # fmt: skip


def _target(out: str | None) -> Any:
    target = options.writable_file(out)
    if target is not None and target.suffix not in _FILES:
        raise UsageError(f"--out {out}: what it should hold is told by its ending (use {', '.join(_FILES)})")
    return target


def _tell(frame: pd.DataFrame, target: Any, as_json: bool, columns: list[str]) -> None:
    if target is not None:
        _write(frame, target, as_json)
    elif as_json:
        emit(_records(frame))
    elif frame.empty:
        click.echo("none")
    else:
        rows = [[_shown(value) for value in row] for row in frame[columns].itertuples(index=False)]
        click.echo(table(columns, rows))


def _shown(value: Any) -> Any:
    import pandas as pd

    if value is pd.NA or value is pd.NaT:
        return "-"
    return value.strftime("%m-%d %H:%M:%S") if isinstance(value, pd.Timestamp) else value if value != "" else "-"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return list(json.loads(frame.to_json(orient="records", date_format="iso", date_unit="us")))


def _write(frame: pd.DataFrame, target: Any, as_json: bool) -> None:
    if target.suffix == ".json":
        text = json.dumps(_records(frame), indent=2, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8")
    elif target.suffix == ".csv":
        frame.to_csv(target, index=False)
    else:
        frame.to_parquet(target, index=False)
    if as_json:
        emit({"written": len(frame), "file": str(target)})
    else:
        click.echo(f"{number(len(frame))} rows written to {target}")
