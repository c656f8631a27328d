"""`saqkit infer`: from a log, a recording or a run to a topology and a workload."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from saqkit.cli import options
from saqkit.cli.options import OneOf
from saqkit.cli.output import emit, number, table
from saqkit.errors import RunError, UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

    from saqkit.spec.base import Part
    from saqkit.spec.recorded import Recording
    from saqkit.spec.runs import Run
    from sim import Inferred

TABLES = (".csv", ".tsv", ".txt")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
PARQUET = (".parquet", ".pq")
WRITTEN = {"topology": ".toml", "workload": ".toml", "deployment": ".toml", "profile": ".json"}
DIGITS = 9
"""What is written of a number: more than any sample can tell, and times to 10 µs over a day."""
KINDS = {"topology": "what exists", "workload": "what arrived", "deployment": "what was at work",
         "profile": "a host on which everything takes what was recorded"}  # fmt: skip


def _out(part: str) -> Callable[..., Any]:
    text = f"Where the {part} goes ({WRITTEN[part][1:].upper()}): {KINDS[part]}."
    return click.option(f"--out-{part}", f"out_{part}", metavar=f"FILE{WRITTEN[part]}", help=text)


@click.command()
@click.argument("file")
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS",
    help="What a column of a table is: enqueued, started, finished (needed), ready, job, type, queue, parent, attempt, "
    "outcome, error, worker, host, priority, tenant, users.",
)  # fmt: skip
@click.option("--clock", metavar="C", help="Unit of times that are numbers (s, ms, us, ns), or zone of times without.")
@click.option(
    "--offset", "offsets", multiple=True, metavar="WORKER=S", help="Seconds to add to what a worker's clock stamped."
)
@click.option(
    "--arrivals", type=OneOf(["auto", "burst", "recorded", "poisson", "profile"]), default="auto", show_default=True,
    help="How users arrive; auto: a burst where all came at once, else as recorded.",
)  # fmt: skip
@click.option("--name", default="inferred", show_default=True, help="What the topology is called.")
@_out("topology")
@_out("workload")
@_out("deployment")
@_out("profile")
@options.as_json
def infer(
    file: str,
    columns: Sequence[str],
    clock: str | None,
    offsets: Sequence[str],
    arrivals: Literal["auto", "burst", "recorded", "poisson", "profile"],
    name: str,
    as_json: bool,
    **out: str | None,
) -> None:
    """Describe a system by what it did.

    FILE is a log with a row per execution of a job (CSV or Parquet), the folder that saqkit.record wrote, or a run of
    `saqkit measure`. The files that are written go into show, predict, plan and what-if; predict with the profile from
    here, because the recorded times hold whatever your host and queue cost.
    """
    targets = {part: _target(part, out[f"out_{part}"]) for part in WRITTEN}
    given = _read(file, _pairs("--column", columns), clock, _offsets(offsets))
    import sim

    found = sim.infer(given, arrivals=arrivals, name=name)
    saved = {part: target for part, target in targets.items() if target}
    for part, target in saved.items():
        target.write_text(_text(getattr(found, part), target), encoding="utf-8")
    if as_json:
        emit({"attempts": len(found.attempts), **{part: getattr(found, part).to_dict() for part in
              ("topology", "workload", "deployment")}, "numbers": found.numbers.to_dict("records"),
              "notes": list(found.notes), "saved": {part: str(target) for part, target in saved.items()}})  # fmt: skip
        return
    _show(file, found)
    for part, target in saved.items():
        click.echo(f"saved: {target} ({part})")
    if len(saved) == len(WRITTEN):
        click.echo(f"next: saqkit predict {saved['topology']} --workload {saved['workload']} --deployment "
                   f"{saved['deployment']} --profile {saved['profile']}")  # fmt: skip


def _target(part: str, path: str | None) -> Path | None:
    if path is not None and not path.endswith(WRITTEN[part]):
        raise UsageError(f"--out-{part} {path}: its name ends in {WRITTEN[part]}, as who reads it expects")
    return options.writable_file(path, f"--out-{part}")


def _text(part: Part, target: Path) -> str:
    from saqkit.spec.as_toml import as_toml

    return as_toml(part, DIGITS) if target.suffix == ".toml" else json.dumps(part.to_dict(), indent=2) + "\n"


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        ours, equals, theirs = (part.strip() for part in text.partition("="))
        if not (ours and equals and theirs):
            example = "enqueued=created_at" if option == "--column" else "worker-3=2.5"
            raise UsageError(f'{option}: "{text}" is no pair (write {example}, for instance)')
        if ours in pairs:
            raise UsageError(f'{option}: "{ours}" is given twice')
        pairs[ours] = theirs
    return pairs


def _offsets(given: Sequence[str]) -> dict[str, float]:
    found = {}
    for worker, text in _pairs("--offset", given).items():
        try:
            found[worker] = float(text)
        except ValueError:
            raise UsageError(f'--offset: {worker}: "{text}" is no number of seconds') from None
    return found


def _read(
    file: str, columns: Mapping[str, str], clock: str | None, offsets: Mapping[str, float]
) -> DataFrame | Run | Recording:
    """What the file holds, by its kind."""
    path = Path(file)
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in PACKED:
        endings.pop()
    kind = endings[-1] if endings else ""
    if not path.exists():
        raise RunError(f"{file}: there is no such file or folder")
    own = path.is_dir() or (kind in PARQUET and _is_run(path))
    if own and (columns or clock or offsets):
        raise UsageError(f"{file}: its columns and clock are known (--column, --clock and --offset are for logs)")
    if path.is_dir():
        from saqkit.spec.recorded import read_recording

        return read_recording(path)
    if own:
        from saqkit.spec.runs import Run

        return Run.load(path)
    if kind == ".jsonl":
        raise UsageError(f"{file}: one process's part of a recording: name the folder, {path.parent}")
    if kind not in (*TABLES, *PARQUET):
        named = f"the format {kind}" if kind else "the format of a file without ending"
        raise RunError(f"{file}: {named} is not known (CSV, TSV, Parquet, or the folder that saqkit.record wrote)")
    import sim

    return sim.read_attempts(path, columns, clock, offsets)


def _is_run(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"saqkit" in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: no Parquet file that can be read: {str(error).splitlines()[0]}") from error


def _show(file: str, found: Inferred) -> None:
    topology, attempts = found.topology, found.attempts
    span_s = float(attempts["finished_at"].max() - attempts["queued_at"].min())
    click.echo(f"{file}: {len(attempts):,} attempts of {attempts['job'].nunique():,} jobs in {number(span_s)} s\n")
    jobs = attempts.groupby("queue")["job"].nunique()
    served = found.deployment.processes(topology)
    rows = [[name, sum(name in queues for queues in served), found.deployment.slots(topology, name), int(jobs[name])]
            for name in topology.queues]  # fmt: skip
    click.echo(table(["queue", "workers", "slots of each", "jobs"], rows) + "\n")
    types = [_type(found, name) for name in found.types]
    click.echo(table(["job type", "queue", "priority", "family", "tries"], types) + "\n")
    numbers = [[one.of, one.what, number(one.value), _between(one.lo, one.hi), one.samples] for one in found.found]
    click.echo(table(["of", "number", "value", "90 % interval", "sample"], numbers) + "\n")
    users = sum(number for _, number in found.workload.times(topology, 0))
    click.echo(f"arrivals: {found.workload.arrivals.kind}, {users:,} users")
    for one in found.found:
        if one.why:
            click.echo(f"why: {one.of}: {one.what}: {one.why}")
    for note in found.notes:
        click.echo(f"note: {note}")


def _type(found: Inferred, name: str) -> list[Any]:
    job, fit = found.topology.job_types[name], found.types[name].latency
    leads = f"fans out to {job.fan_out.to}" if job.fan_out else fit.distribution.kind if fit else "no wait"
    return [name, job.queue, job.priority.name.lower(), leads, job.retry.describe()]


def _between(low: float, high: float) -> str:
    return "-" if low != low else f"{number(low)} to {number(high)}"
