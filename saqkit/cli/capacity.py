"""Measuring and predicting: `demo`, `measure`, `probe`, `calibrate`, `predict`, `compare`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from saqkit.cli import options
from saqkit.cli.interrupting import run
from saqkit.cli.options import Amount, Count, Counts, Slots, SlotsOfQueues
from saqkit.cli.output import bar, emit, number, table
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from sim import Profile

COMPARED = ("measured", "predicted", "lo", "hi", "error", "inside")


@click.command()
@click.argument("topology", default="school-events")
@click.option("--users", type=Count(), default=1000, show_default=True, help="Of the run that is predicted.")
@click.option("--folder", default=".", metavar="DIR", help="Where picture and report go (default: here).")
@options.seed
@options.as_json
def demo(topology: str, users: int, folder: str, seed: int, as_json: bool) -> None:
    """Tell the whole story, shortened.

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
@click.option("--queue/--no-queue", default=True, show_default=True, help="Also what the queue costs here (15 s).")
@options.as_json
def probe(seconds: float, redis: str | None, queue: bool, as_json: bool) -> None:
    """Measure this host alone: cores, speed, timers, broker, and what the queue costs on it."""
    from saqkit.probing_queue import probe as take

    found = run(take(redis, seconds=seconds, queue=queue)).to_dict()
    if as_json:
        emit(found)
        return
    inner = found.pop("queue") or {}
    rows = [*found.items(), *((f"queue: {name}", value) for name, value in inner.items())]
    click.echo(table(["of this host", "value"], [[name, _cell(value)] for name, value in rows]))


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
@click.option(
    "--queue",
    type=click.Choice(["saqkit", "stock"]),
    default="saqkit",
    show_default=True,
    help="Whose queue and worker: ours, or stock SAQ's.",
)
@options.engine
@options.files
@options.profile
@options.replications
@click.option(
    "--precision",
    type=Amount(),
    default=0.01,
    show_default=True,
    metavar="X",
    help="Enough runs: half-width of the mean's interval over the mean.",
)
@click.option(
    "--seconds",
    type=Amount(),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Begin no further run of a combination after S seconds, if it has two; 0: no limit.",
)
@click.option("--n-jobs", type=int, metavar="N", help="Combinations at once (default 1; -1: one per core).")
@click.option("--yes", is_flag=True, help="Start a sweep of more than 10,000 combinations without asking.")
@options.as_json
def predict(
    topology: str,
    users: list[int] | None,
    workers: list[int] | None,
    concurrency: list[Slots] | None,
    batch_size: list[int] | None,
    queue: Literal["saqkit", "stock"],
    engine: Literal["auto", "simpy", "fast"],
    workload_file: str | None,
    deployment_file: str | None,
    assignments: Sequence[str],
    seed: int,
    profile: str,
    replications: int | None,
    precision: float,
    seconds: float,
    n_jobs: int | None,
    yes: bool,
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

    known, stopped = _profile(profile), False
    with bar("predicting", as_json) as tell:
        try:
            prediction = sim.predict(
                what.topology, workload=what.workloads, deployment=what.deployment, workers=workers,
                concurrency=concurrency, batch_size=batch_size, profile=known, replications=replications, seed=seed,
                queue=queue, engine=engine, precision=precision, max_seconds=seconds or None, n_jobs=n_jobs,
                keep="summary", bottlenecks=True, confirm=yes or _agreed, progress=tell,
            )  # fmt: skip
        except sim.Interrupted as interrupted:
            prediction, stopped = interrupted.partial, True
            click.echo(f"interrupted: {len(prediction):,} of {interrupted.of:,} combinations are done", err=True)
    for note in prediction.warnings:
        click.echo(f"warning: {note}", err=True)
    if ": " in prediction.engine:
        click.echo(f"note: simulated by {prediction.engine}", err=True)
    for n, cell in enumerate(prediction, start=1):
        if cell.missed and (reached := cell.half_width) > precision:
            row = f"row {n}: " if len(prediction) > 1 else ""
            click.echo(
                f"note: {row}after {cell.settings['replications']} runs the mean of {cell.missed} is known to "
                f"{reached:.1%}, not to {precision:.1%} (--replications R and --seconds S allow more, --precision X "
                "asks for less)",
                err=True,
            )
    found = prediction.to_dicts()
    if as_json:
        emit(found)
    else:
        _show(found)
    if stopped:
        raise KeyboardInterrupt


def _agreed(cost: str) -> bool:
    """Whether who sits at the terminal wants to wait that long; nobody can be asked where the output is piped."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"predict: {cost} (--yes starts them, --n-jobs -1 shares them out, shorter lists save time)")
    if not click.confirm(f"{cost}. Start?", err=True):
        raise click.Abort
    return True


def _show(found: Sequence[Mapping[str, Any]]) -> None:
    """A row per combination; of streams also whether they can be served, and how long users wait once it is steady."""
    columns = ["users", "workers", "slots", "batch", "makespan s", "90 % of runs", "users/s", "p95 s", "bottleneck"]
    click.echo(table(columns, [_row(cell) for cell in found]))
    for n, cell in enumerate(found, start=1):
        if "verdict" not in cell:
            continue
        click.echo(f"{f'row {n}: ' if len(found) > 1 else ''}{cell['verdict']}")
        if steady := cell["steady"]:
            shown = ", ".join(
                f"{name} {number(_mean(steady[f'latency_{name}_s']))} s" for name in ("mean", "p50", "p95", "p99")
            )
            click.echo(f"  latency from {steady['from_s']:.0f} s to {steady['to_s']:.0f} s, once steady: {shown}")


def _mean(span: Mapping[str, float | None]) -> float:
    return float("nan") if span["mean"] is None else span["mean"]


def _row(cell: Mapping[str, Any]) -> list[Any]:
    span = cell["makespan_s"]
    between = "-" if span["mean"] is None else f"{number(span['lo'])} to {number(span['hi'])}"
    slots = cell["concurrency"]
    shown = slots if isinstance(slots, int) else ",".join(map(str, slots.values()))
    numbers = [_mean(cell[name]) for name in ("throughput_users_per_s", "latency_p95_s")]
    return [cell["users"], cell["workers"], shown, cell["batch_size"], _mean(span), between, *numbers,
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
        emit({**metrics, "in_sample": in_sample, **({"steady": found.counted._asdict()} if found.counted else {})})
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
    if found.counted:
        span = f"{number(found.counted.from_s)} s to {number(found.counted.to_s)} s"
        click.echo(f"latency, wait and throughput of both: of users who came from {span}, once it is steady")


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else str(value)


def _profile(name: str) -> Profile:
    import sim

    return sim.Profile.nominal() if name == "nominal" else sim.Profile.load(name)
