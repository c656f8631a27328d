"""Measuring and predicting: `demo`, `measure`, `probe`, `calibrate`, `predict`, `compare`, `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saqkit.cli import options
from saqkit.cli.interrupting import run
from saqkit.cli.options import Amount, Count, Counts, Slots, SlotsOfQueues
from saqkit.cli.output import Tell, bar, emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from sim import Profile

PLAN = ("feasible", "workers", "concurrency", "batch_size", "cost_per_hour", "probability", "headroom", "bottleneck",
        "next_bottleneck", "reason")  # fmt: skip
COMPARED = ("measured", "predicted", "lo", "hi", "error", "inside")


@click.command()
@click.argument("topology", default="school-events")
@click.option("--users", type=Count(), default=1000, show_default=True, help="Of the run that is predicted.")
@click.option("--folder", default=".", metavar="DIR", help="Where picture and report go (default: here).")
@options.seed
@options.as_json
def demo(topology: str, users: int, folder: str, seed: int, as_json: bool) -> None:
    """Tell the whole story in a minute.

    A small real run is fitted, a larger one is predicted, carried out and compared; picture and report are written.
    """
    from saqkit.spec.topology import load

    place = Path(folder)
    if not place.is_dir():
        raise UsageError(f"--folder {folder}: is no folder (make it first)")
    options.writable_file(str(place / "report.html"), "--folder")
    described = load(topology)
    from saqkit.cli.demonstration import demonstrate

    def echo(text: str) -> None:
        if not as_json:
            click.echo(text)

    with bar("demo", as_json) as tell:
        result = run(demonstrate(described, users=users, folder=place, seed=seed, echo=echo, progress=tell))
    if as_json:
        emit(result.to_dict())


@click.command()
@click.argument("topology")
@click.option("--users", type=Count(), metavar="N", help="One burst of N users.")
@click.option("--workers", type=Count(), metavar="W", help="Worker processes (default 1).")
@click.option("--concurrency", type=SlotsOfQueues(), metavar="C", help="Slots per process: 5, or email=5,sync=2.")
@click.option("--batch-size", type=Count(), metavar="B", help="Users per batch (default: the topology's).")
@options.files
@click.option("--redis", metavar="URL", help="A broker to use instead of a private one ($REDIS_URL is not used here).")
@click.option("--out", metavar="F", help="Save the run there (Parquet): for calibrate and compare.")
@options.as_json
def measure(
    topology: str,
    users: int | None,
    workers: int | None,
    concurrency: Slots | None,
    batch_size: int | None,
    workload_file: str | None,
    deployment_file: str | None,
    assignments: Sequence[str],
    seed: int,
    redis: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Run TOPOLOGY for real and say how long everything took.

    The run is drained; its broker and database are private, and nothing is left of them.
    """
    target = options.writable_file(out)
    what = options.described(
        topology, assignments, users=None if users is None else [users], workload_file=workload_file,
        deployment_file=deployment_file, batch_sizes=[batch_size] if batch_size else None,
    )  # fmt: skip
    from saqkit.measuring import measure as carry_out

    with bar("starting", as_json) as tell:
        done = run(
            carry_out(
                what.topology, workload=what.workloads[0], deployment=what.deployment, workers=workers,
                concurrency=concurrency, batch_size=batch_size, seed=seed, redis=redis, out=target, progress=tell,
            )
        )  # fmt: skip
    measures = done.measures()
    if as_json:
        emit({**measures, "disturbed": bool(done.disturbed), "disturbed_by": list(done.disturbed)})
        return
    click.echo(f"{done.topology.name}: {measures['users_done']:,.0f} users served, {measures['users_failed']:,.0f} not")
    click.echo(table(["measure", "value"], [[name, value] for name, value in measures.items()]))
    for reason in done.disturbed:
        click.echo(f"disturbed: {reason}")
    if target:
        click.echo(f"saved: {target}")


@click.command()
@click.option("--seconds", type=Amount(), default=2.0, show_default=True, help="How long to measure, at least 0.5.")
@click.option("--redis", metavar="URL", help="The broker whose round trips to measure (default: a private one).")
@options.as_json
def probe(seconds: float, redis: str | None, as_json: bool) -> None:
    """Measure this host alone: cores, speed, timers, broker."""
    from saqkit.probing_host import probe as take

    found = run(take(redis, seconds=seconds)).to_dict()
    if as_json:
        emit(found)
    else:
        click.echo(table(["of this host", "value"], [[name, _cell(value)] for name, value in found.items()]))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", required=True, metavar="PROFILE.json", help="Where the profile goes.")
@options.as_json
def calibrate(runs: Sequence[str], out: str, as_json: bool) -> None:
    """Fit a profile of this host to measured RUNs.

    A RUN is a file that `saqkit measure --out` wrote.
    """
    target = options.writable_file(out)
    assert target is not None
    import sim

    fitted = sim.calibrate(list(runs))
    fitted.save(target)
    if as_json:
        emit(
            {"profile": str(target), "host": fitted.host.host, "fitted_on": fitted.fitted_on,
             "runs": list(fitted.runs), "job_types": list(fitted.job_types), "residual": fitted.residual,
             "diagnostics": list(fitted.diagnostics)}
        )  # fmt: skip
        return
    click.echo(str(fitted))
    for note in fitted.diagnostics:
        click.echo(f"  {note}")
    click.echo(f"saved: {target}")


@click.command()
@click.argument("topology")
@click.option("--users", type=Counts(), metavar="N,...", help="Bursts of N users.")
@click.option("--workers", type=Counts(), metavar="W,...", help="Worker processes (default 1).")
@click.option("--concurrency", type=SlotsOfQueues(many=True), metavar="C,...", help="Slots: 5,10, or email=5,sync=2.")
@click.option("--batch-size", type=Counts(), metavar="B,...", help="Users per batch (default: the topology's).")
@options.files
@options.profile
@options.replications
@options.as_json
def predict(
    topology: str,
    users: list[int] | None,
    workers: list[int] | None,
    concurrency: list[Slots] | None,
    batch_size: list[int] | None,
    workload_file: str | None,
    deployment_file: str | None,
    assignments: Sequence[str],
    seed: int,
    profile: str,
    replications: int | None,
    as_json: bool,
) -> None:
    """Predict TOPOLOGY with 90 % intervals.

    Users, workers, concurrency and batch size may be lists with commas: every combination is predicted.
    """
    what = options.described(
        topology, assignments, users=users, workload_file=workload_file, deployment_file=deployment_file,
        batch_sizes=batch_size,
    )  # fmt: skip
    import sim

    known = _profile(profile)
    found: list[dict[str, Any]] = []
    with bar("predicting", as_json) as tell:
        for workload in what.workloads:
            before = len(found)
            tell(before)
            prediction = sim.predict(
                what.topology, workload=workload, deployment=what.deployment, workers=workers, concurrency=concurrency,
                batch_size=batch_size, profile=known, replications=replications, seed=seed,
                progress=partial(_told, tell, before, len(what.workloads)),
            )  # fmt: skip
            found += prediction.to_dicts()
    if as_json:
        emit(found)
        return
    for note in _unknown(known, what.topology):
        click.echo(note, err=True)
    columns = ["users", "workers", "slots", "batch", "makespan s", "90 % of runs", "users/s", "p95 s", "bottleneck"]
    click.echo(table(columns, [_row(cell) for cell in found]))


def _told(tell: Tell, before: int, workloads: int, done: int, of: int) -> None:
    tell(before + done, of * workloads)


def _row(cell: Mapping[str, Any]) -> list[Any]:
    span = cell["makespan_s"]
    between = f"{number(span['lo'])} to {number(span['hi'])}"
    slots = cell["concurrency"]
    shown = slots if isinstance(slots, int) else ",".join(map(str, slots.values()))
    numbers = [cell[name]["mean"] for name in ("throughput_users_per_s", "latency_p95_s")]
    numbers = [float("nan") if value is None else value for value in numbers]
    return [cell["users"], cell["workers"], shown, cell["batch_size"], span["mean"], between, *numbers,
            cell["bottleneck"]]  # fmt: skip


@click.command()
@click.argument("run", metavar="RUN")
@options.profile
@options.replications
@options.as_json
def compare(run: str, profile: str, replications: int | None, as_json: bool) -> None:
    """Lay a measured RUN beside its prediction.

    Per measure the error, and whether the measured value lies in the 90 % interval of one run.
    """
    import sim

    found = sim.compare(run, _profile(profile), replications)
    everything = found.to_dict()
    in_sample, warning = everything.pop("in_sample"), everything.pop("warning")
    metrics = {name: {key: row[key] for key in COMPARED} for name, row in everything.items()}
    if warning:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        emit({**metrics, "in_sample": in_sample})
        return
    rows = []
    for name, row in metrics.items():
        measured, predicted, low, high = (
            float("nan") if row[key] is None else float(row[key]) for key in ("measured", "predicted", "lo", "hi")
        )
        error = "-" if row["error"] is None else f"{row['error']:+.1%}"
        rows.append([name, measured, predicted, f"{number(low)} to {number(high)}", error,
                     "inside" if row["inside"] else "OUTSIDE"])  # fmt: skip
    click.echo(table(["measure", "measured", "predicted", "90 % of runs", "error", "measured is"], rows))


@click.command()
@click.argument("topology")
@click.option("--users", type=Count(), metavar="N", help="One burst of N users.")
@click.option("--target", required=True, metavar="T", help="E.g. 'p95<=60s @ 0.9': drain, p50, p95, p99 or wait_p95.")
@options.files
@options.profile
@click.option("--price", type=Amount(), default=0.0, metavar="X", help="Of a worker process per hour.")
@click.option("--max-workers", type=Count(), default=64, show_default=True, help="The most worker processes per host.")
@click.option("--replications", type=Count(), default=10, show_default=True, metavar="R", help="Simulated runs each.")
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
    values = found.to_dict()
    if as_json:
        emit({name: values[name] for name in PLAN})
    else:
        click.echo(table(["plan", found.target], [[name, _cell(values[name])] for name in PLAN]))


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)


def _profile(name: str) -> Profile:
    import sim

    return sim.Profile.nominal() if name == "nominal" else sim.Profile.load(name)


def _unknown(profile: Profile, topology: Any) -> list[str]:
    names = profile.unknown(topology)
    return (
        [f"warning: the profile has no numbers for {', '.join(names)}: a similar job type's are used"] if names else []
    )
