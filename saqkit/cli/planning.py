"""What to deploy and what would be: `plan`, `what-if`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.options import Amount, Count, Slots, SlotsOfQueues
from saqkit.cli.output import bar, emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from sim import Profile

PLAN = ("feasible", "workers", "concurrency", "batch_size", "cost_per_hour", "probability", "headroom", "bottleneck",
        "next_bottleneck", "reason")  # fmt: skip
DETAILS = ("cost_per_million_users", "oldest_age_s", "low_wait_s", "trigger")
SHOWN = ("makespan_s", "latency_p95_s", "users_failed")


@click.command()
@click.argument("topology")
@click.option("--users", type=Count(), metavar="N", help="One burst of N users.")
@click.option("--target", required=True, metavar="T", help="E.g. 'p95<=60s @ 0.9': drain, p50, p95, p99 or wait_p95.")
@options.files
@options.profile
@click.option("--price", type=Amount(), default=0.0, metavar="X", help="Of a worker process per hour.")
@click.option("--max-workers", type=Count(), default=64, show_default=True, help="The most worker processes per host.")
@click.option("--replications", type=Count(), default=10, show_default=True, metavar="R", help="Simulated runs each.")
@click.option("--details", is_flag=True, help="Also in JSON: cost of a million users, oldest job, low, trigger.")
@click.option("--frontier", is_flag=True, help="Also the deployments that no cheaper one beats (takes longer).")
@options.as_json
def plan(
    topology: str,
    users: int | None,
    target: str,
    workload_file: str | None,
    deployment_file: str | None,
    assignments: Sequence[str],
    seed: int,
    profile: str,
    price: float,
    max_workers: int,
    replications: int,
    details: bool,
    frontier: bool,
    as_json: bool,
) -> None:
    """Find the smallest deployment that meets a target."""
    what = options.described(
        topology, assignments, users=None if users is None else [users], workload_file=workload_file,
        deployment_file=deployment_file,
    )  # fmt: skip
    import sim

    with bar("planning", as_json) as tell:
        found = sim.plan(
            what.topology, target=target, workload=what.workloads[0], profile=_profile(profile),
            deployment=what.deployment, price_per_worker_hour=price, max_workers=max_workers,
            replications=replications, seed=seed, progress=lambda workers: tell(0, 0, f"trying {workers} workers"),
        )  # fmt: skip
        rows = [dict(row) for row in found.frontier.to_dict("records")] if frontier else []
    values = found.to_dict()
    if as_json:
        names = PLAN + DETAILS if details else PLAN
        emit({**{name: values[name] for name in names}, **({"frontier": rows} if frontier else {})})
        return
    shown = [[name, _cell(values[name])] for name in PLAN]
    oldest, low, trigger = values["oldest_age_s"], values["low_wait_s"], values["trigger"]
    shown += [
        ["cost_per_million_users", _cell(values["cost_per_million_users"])],
        ["oldest job's age", f"{number(oldest['mean'])} s ({number(oldest['lo'])} to {number(oldest['hi'])})"],
        ["low waits", "no low jobs" if low is None else ", ".join(f"{k} {number(v)} s" for k, v in low.items())],
        ["autoscaler", trigger["reason"] if trigger else "-"],
    ]
    click.echo(table(["plan", found.target], shown))
    if frontier and rows:
        click.echo("\nno cheaper deployment is as fast:")
        click.echo(table([str(name) for name in rows[0]], [[_cell(value) for value in row.values()] for row in rows]))


@click.command(name="what-if")
@click.argument("topology")
@click.option("--users", type=Count(), metavar="N", help="One burst of N users.")
@click.option("--workers", type=Count(), metavar="W", help="Worker processes (default 1).")
@click.option("--concurrency", type=SlotsOfQueues(), metavar="C", help="Slots per process: 5, or email=5,sync=2.")
@click.option("--batch-size", type=Count(), metavar="B", help="Users per batch (default: the topology's).")
@click.option(
    "--change", "changes", multiple=True, metavar="NAME:KEY=VALUE",
    help="A scenario's override, as of --set; several with one NAME go together. NAME alone: a built-in one, such as "
    "'double the users'. Default: all built-in ones.",
)  # fmt: skip
@options.files
@options.profile
@click.option("--replications", type=Count(2), default=10, show_default=True, metavar="R", help="Simulated runs each.")
@options.as_json
def what_if(
    topology: str,
    users: int | None,
    workers: int | None,
    concurrency: Slots | None,
    batch_size: int | None,
    changes: Sequence[str],
    workload_file: str | None,
    deployment_file: str | None,
    assignments: Sequence[str],
    seed: int,
    profile: str,
    replications: int,
    as_json: bool,
) -> None:
    """Lay scenarios side by side.

    Each change is simulated on the same draws as the base; differences carry the 90 % interval of their mean.
    """
    what = options.described(
        topology, assignments, users=None if users is None else [users], workload_file=workload_file,
        deployment_file=deployment_file, batch_sizes=[batch_size] if batch_size else None,
    )  # fmt: skip
    import sim

    with bar("simulating", as_json) as tell:
        found = sim.what_if(
            what.topology, _changes(changes), workload=what.workloads[0], workers=workers, concurrency=concurrency,
            batch_size=batch_size, deployment=what.deployment, profile=_profile(profile), replications=replications,
            seed=seed, progress=tell,
        )  # fmt: skip
    said = found.to_dict()
    if as_json:
        emit(said)
        return
    rows: list[list[Any]] = [["base", *(number(said["base"][m]) for m in SHOWN), said["base"]["bottleneck"]]]
    rows += [
        [name, *(_difference(measures[m]) for m in SHOWN), measures["bottleneck"]]
        for name, measures in said["scenarios"].items()
    ]
    click.echo(table(["scenario", "makespan s", "p95 s", "users failed", "bottleneck"], rows))
    for name, why in said["left_out"].items():
        click.echo(f"left out: {name}: {why}")


def _changes(given: Sequence[str]) -> dict[str, Any] | None:
    """`NAME:KEY=VALUE` and `NAME` as `sim.what_if` takes them."""
    from saqkit.spec.overriding import parse_assignment

    found: dict[str, Any] = {}
    for text in given:
        name, colon, assignment = (part.strip() for part in text.partition(":"))
        if not name or (colon and not assignment):
            raise UsageError(f'--change: "{text}" is no change (write NAME:KEY=VALUE, e.g. more:deployment.workers=4)')
        if not colon and "=" in name:
            raise UsageError(f'--change: "{text}" has no name (write NAME:{text})')
        if colon and isinstance(found.setdefault(name, {}), dict):
            found[name].update([parse_assignment(assignment)])
        elif not colon and name not in found:
            found[name] = name
        else:
            raise UsageError(f'--change: "{name}" is given both alone and with overrides')
    return found or None


def _difference(found: Mapping[str, Any]) -> str:
    if found["difference"] is None:
        return "-"
    low, high = (f"{found[key]:+.2g}" for key in ("lo", "hi"))
    return f"{found['difference']:+.3g} [{low}, {high}]" if low != high else f"{found['difference']:+.3g}"


def _cell(value: Any) -> str:
    return "-" if value is None else number(value) if isinstance(value, int | float) else str(value)


def _profile(name: str) -> Profile:
    import sim

    return sim.Profile.nominal() if name == "nominal" else sim.Profile.load(name)
