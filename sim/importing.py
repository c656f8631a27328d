"""`sim.read_attempts`: what another queue's log, table or data frame says, as an attempts table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saqkit.errors import RunError, UsageError
from saqkit.spec import trace
from saqkit.spec.base import did_you_mean

if TYPE_CHECKING:
    Series = pd.Series[Any]

TIMES = ("enqueued", "started", "finished")
WORDS = ("job", "type", "queue", "parent", "worker", "host", "tenant", "error")
NUMBERS = ("attempt", "users", "priority")
COLUMNS = (*TIMES, "ready", *WORDS, *NUMBERS, "outcome")
"""What a column can be; the first three are needed."""
OURS = {"enqueued": "queued_at", "ready": "ready_at", "started": "started_at", "finished": "finished_at",
        "type": "job_type"}  # fmt: skip
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
PRIORITIES = {"critical": 1, "high": 2, "normal": 3, "low": 4}
SAID = {
    "done": "done success succeeded successful complete completed ok finished true",
    "failed": "failure fail failed error errored exception false",
    "retry": "retry retried retrying requeued",
    "dead": "dead discarded buried exhausted",
    "cancelled": "cancelled canceled aborted revoked killed terminated",
    "released": "released",
    "lost": "lost",
}
"""What other queues call an outcome; a failure is `retry` or `dead`, as the job was tried again or not."""
MEANT = {word: outcome for outcome, words in SAID.items() for word in words.split()}
LATEST_S = 1e11
"""Unix seconds beyond the year 5000 are no seconds."""
SAME_S = 0.005
"""Clocks of one system differ by so much without anybody's noticing."""


def read_attempts(
    source: str | Path | pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    clock: str | None = None,
    offsets: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """An attempts table from a CSV or Parquet file, or a data frame, with a row per execution of a job.

    `columns` names the columns of the source: `enqueued`, `started`, `finished` are needed; `ready` (could be taken,
    after a delay), `job`, `type`, `queue`, `parent`, `attempt`, `outcome`, `error`, `worker`, `host`, `priority`,
    `tenant` and `users` are taken where they are; a column that bears such a name needs no naming. Without `attempt`
    the executions of a job are counted in order; without `outcome` the last of them was done and the others failed.

    Times are ISO 8601 with a zone, or numbers. `clock` says what else they are: the unit of numbers (`s`, `ms`, `us`,
    `ns`; default seconds) or the zone of times without one (`UTC`, the default, `Europe/Berlin`). `offsets` are seconds
    to add to the times that a worker (or host) stamped, `started` and `finished`, where its clock is not the one that
    stamped `enqueued`.

    The table's times are seconds since the first job was enqueued; `attrs["epoch"]` is when that was (Unix seconds, NaN
    if unknown), `attrs["notes"]` what was left out. Rows that have not started or finished are left out.

    Raises `UsageError` for names that are none, `RunError` for a table that cannot be used: columns are missing, times
    are negative or not in order, two clocks, a job's attempt twice, nothing there.
    """
    frame, place = _read(source)
    data = _chosen(frame, columns or {}, place)
    if not len(data):
        raise RunError(f"{place}: there are no rows")
    notes: list[str] = []
    times, epoch_known = _times(data, clock, place)
    data = _complete(data, times, notes, place)
    _shift(data, offsets or {}, place)
    _check_order(data, place)
    table = _table(data, notes, place)
    first = float(table["queued_at"].min())
    for name in ("event_at", "queued_at", "ready_at", "taken_at", "started_at", "finished_at"):
        table[name] -= first
    table = trace.attempts_frame({str(name): column.to_numpy() for name, column in table.items()})
    table = table.sort_values("finished_at", kind="stable", ignore_index=True)
    table.attrs.update(epoch=first if epoch_known else float("nan"), notes=notes)
    return table


def _read(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, str]:
    if isinstance(source, pd.DataFrame):
        return source, "data frame"
    path = Path(source)
    try:
        if path.stat().st_size == 0:
            raise pd.errors.EmptyDataError
        if path.name.endswith((".parquet", ".pq")):
            return pd.read_parquet(path), str(path)
        return pd.read_csv(path, sep=None if ".csv" not in path.name else ",", engine=None
                           if ".csv" in path.name else "python"), str(path)  # fmt: skip
    except pd.errors.EmptyDataError:
        raise RunError(f"{path}: the file is empty") from None
    except (OSError, ValueError, csv.Error) as error:  # pandas' own errors are ValueErrors
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise RunError(f"{path}: no table can be read: {why} (CSV and Parquet can)") from error


def _chosen(frame: pd.DataFrame, columns: Mapping[str, str], place: str) -> pd.DataFrame:
    """The columns that are known, by our names."""
    for ours in columns:
        if ours not in COLUMNS:
            raise UsageError(f'columns: there is no "{ours}" ({did_you_mean(ours, COLUMNS)})')
    there = [str(name) for name in frame.columns]
    found: dict[str, Series] = {}
    for ours in COLUMNS:
        theirs = columns.get(ours, ours if ours in there else OURS.get(ours, ours))
        if theirs in there:
            found[ours] = frame[theirs]
        elif ours in columns:
            raise RunError(f'{place}: there is no column "{theirs}" for {ours} ({did_you_mean(theirs, there)})')
    if missing := [name for name in TIMES if name not in found]:
        free = [name for name in there if name not in set(columns.values())]
        raise RunError(
            f"{place}: column {missing[0]} is missing; name yours: columns={{'{missing[0]}': ...}}, or --column "
            f"{missing[0]}=... ({did_you_mean(missing[0], free)})"
        )
    return pd.DataFrame(found).reset_index(drop=True)


def _times(data: pd.DataFrame, clock: str | None, place: str) -> tuple[dict[str, Series], bool]:
    """Seconds of every column of times, and whether they are Unix seconds."""
    names = [name for name in (*TIMES, "ready") if name in data]
    kinds: dict[str, set[str]] = {name: set(_kinds(data[name])) for name in names}
    for name in names:
        if len(kinds[name]) > 1:
            raise RunError(f"{place}: {name}: two clocks: some times are {' and some are '.join(sorted(kinds[name]))}")
    used = {kind: name for name in reversed(names) for kind in kinds[name]}
    if len(used) > 1:
        told = ", ".join(f"{name} {kind}" for kind, name in used.items())
        raise RunError(f"{place}: two clocks: {told}; bring all times to one")
    kind = next(iter(used), "numbers")
    if kind == "numbers":
        if clock is not None and clock not in UNITS:
            raise UsageError(f'clock="{clock}": the times are numbers; their unit is one of {", ".join(UNITS)}')
        seconds = {name: data[name].astype(float) * UNITS[clock or "s"] for name in names}
    else:
        zone = _zone(clock) if kind == "without a zone" else None
        if kind == "with a zone" and clock is not None:
            raise UsageError(f'clock="{clock}": the times say their zone themselves')
        seconds = {name: _unix(data[name], zone, name, place) for name in names}
    for name, column in seconds.items():
        wrong = column.isin([np.inf, -np.inf]) | (column < 0)
        if wrong.any():
            row = int(np.argmax(wrong.to_numpy()))
            raise RunError(f"{place}: row {row}: {name} is {column[row]:g}: a time is at least 0")
        if kind == "numbers" and (column > LATEST_S).any():
            hint = "ms" if float(column.max()) < 1e14 else "us" if float(column.max()) < 1e17 else "ns"
            raise RunError(f'{place}: {name} up to {column.max():.4g} are no seconds; say clock="{hint}"?')
    return seconds, kind != "numbers" or float(seconds["enqueued"].min()) > 1e8


def _kinds(column: Series) -> Iterable[str]:
    """What times of a column are: numbers, or instants with or without a zone."""
    if pd.api.types.is_datetime64_any_dtype(column):
        yield "with a zone" if getattr(column.dt, "tz", None) is not None else "without a zone"
        return
    if pd.api.types.is_numeric_dtype(column):
        yield "numbers"
        return
    for value in column.dropna():
        if isinstance(value, int | float | np.number):
            yield "numbers"
        elif isinstance(value, str):
            text = value.strip()
            if text.replace(".", "", 1).replace("-", "", 1).isdigit():
                yield "numbers"
            else:
                yield "with a zone" if text.endswith(("Z", "z")) or _signed(text) else "without a zone"
        else:
            yield "with a zone" if getattr(value, "tzinfo", None) is not None else "without a zone"


def _signed(text: str) -> bool:
    """Whether an ISO time ends in an offset such as +02:00."""
    return any(mark in text[19:] for mark in "+-") or any(mark in text[16:] and ":" in text for mark in "+")


def _zone(clock: str | None) -> str:
    import zoneinfo

    if clock is None:
        return "UTC"
    try:
        return zoneinfo.ZoneInfo(clock).key
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        known = zoneinfo.available_timezones()
        raise UsageError(f'clock="{clock}" is no time zone ({did_you_mean(clock, known)})') from None


def _unix(column: Series, zone: str | None, name: str, place: str) -> Series:
    try:
        found = pd.to_datetime(column, format=None if column.dtype.kind == "M" else "ISO8601", utc=zone is None)
        if zone is not None:
            found = found.dt.tz_localize(zone, ambiguous="raise", nonexistent="raise").dt.tz_convert("UTC")
    except (ValueError, TypeError) as error:
        raise RunError(f"{place}: {name}: {str(error).splitlines()[0]} (ISO 8601 with a zone is sure)") from error
    stamps = (found - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return stamps.astype(float)


def _complete(data: pd.DataFrame, times: Mapping[str, Series], notes: list[str], place: str) -> pd.DataFrame:
    """Rows that have begun and ended; what is left out is noted."""
    data = data.assign(**times)
    unfinished = data["started"].isna() | data["finished"].isna()
    if unfinished.any():
        notes.append(f"{int(unfinished.sum())} of {len(data)} rows have not started or not finished: left out")
    data = data[~unfinished]
    if not len(data):
        raise RunError(f"{place}: none of {len(unfinished)} rows has started and finished")
    if data["enqueued"].isna().any():
        row = int(data.index[data["enqueued"].isna()][0])
        raise RunError(f"{place}: row {row}: it finished, but has no time of enqueueing")
    return data


def _shift(data: pd.DataFrame, offsets: Mapping[str, float], place: str) -> None:
    if not offsets:
        return
    who = "worker" if "worker" in data else "host"
    if who not in data:
        raise UsageError("offsets are by worker or host, and the table names neither")
    names = data[who].astype(str)
    if unknown := set(offsets) - set(names):
        hint = did_you_mean(min(unknown), set(names))
        raise UsageError(f'{place}: offsets: there is no {who} "{min(unknown)}" ({hint})')
    shift = names.map(offsets).fillna(0.0).astype(float)
    for name in ("started", "finished"):
        data[name] += shift


def _check_order(data: pd.DataFrame, place: str) -> None:
    took = data["finished"] - data["started"]
    if (took < 0).any():
        row = took.index[int(np.argmax((took < 0).to_numpy()))]
        raise RunError(f"{place}: row {row} finishes {-took[row]:.3g} s before it starts")
    wait = data["started"] - data["enqueued"]
    early = wait < -SAME_S
    if not early.any():
        return
    who = next((name for name in ("worker", "host") if name in data), None)
    count = f"{int(early.sum())} of {len(data)} rows start before they are enqueued"
    if who is None:
        row = wait.index[int(np.argmax(early.to_numpy()))]
        raise RunError(f"{place}: two clocks: {count}, row {row} by {-wait[row]:.3g} s: bring all times to one")
    worst = data.loc[early, who].astype(str).value_counts().index[0]
    by = -float(wait[early & (data[who].astype(str) == worst)].min())
    raise RunError(
        f"{place}: two clocks: {count}; those of {who} {worst} by up to {by:.3g} s: correct its clock, or say "
        f"offsets={{'{worst}': {by:.3g}}} or more"
    )


def _table(data: pd.DataFrame, notes: list[str], place: str) -> pd.DataFrame:
    """The columns of an attempts table; times still as they are."""
    text = {name: data[name].astype("string").fillna("").astype(str) for name in WORDS if name in data}
    blank = pd.Series("", index=data.index)
    table = pd.DataFrame(index=data.index)
    table["run"] = "imported"
    numbered = pd.Series([f"job-{n}" for n in range(1, len(data) + 1)], index=data.index)
    table["job"] = text["job"].where(text["job"] != "", numbered) if "job" in text else numbered
    table["event"] = ""
    for ours, theirs, default in (("job_type", "type", "job"), ("queue", "queue", "default")):
        table[ours] = text[theirs].where(text[theirs] != "", default) if theirs in text else default
    for name in ("parent", "worker", "host", "tenant", "error"):
        table[name] = text.get(name, blank)
    table["queued_at"] = np.minimum(data["enqueued"], data["started"])
    table["started_at"] = table["taken_at"] = data["started"]
    table["finished_at"] = data["finished"]
    table["attempt"] = _attempts(data, table, notes, place)
    again = table.duplicated(["job", "attempt"], keep=False)
    if again.any():
        row = table.index[int(np.argmax(table.duplicated(["job", "attempt"]).to_numpy()))]
        raise RunError(
            f"{place}: row {row} is attempt {table['attempt'][row]} of job {table['job'][row]} once more: every "
            "execution of a job is one row"
        )
    # Whoever logs an enqueueing per attempt tells when the job was ready again; the job itself was enqueued once.
    ready = data["ready"].fillna(data["enqueued"]) if "ready" in data else data["enqueued"]
    order = table.sort_values(["job", "attempt"])
    before = order.groupby("job", sort=False)["finished_at"].shift().reindex(table.index)
    table["ready_at"] = np.minimum(np.maximum(ready, before.fillna(-np.inf)), data["started"])
    table["queued_at"] = table.groupby("job")["queued_at"].transform("min")
    table["event_at"] = table["queued_at"]
    table["outcome"] = _outcomes(data, table, place)
    table["priority"] = _priorities(data, place)
    table["users"] = pd.to_numeric(data["users"], errors="coerce").fillna(1) if "users" in data else 1
    if (table["users"] < 0).any():
        raise RunError(f"{place}: there are negative numbers of users")
    table["users_done"] = table["users"].where(table["outcome"] == "done", 0)
    table["users_failed"] = table["users"].where(table["outcome"].isin(["dead", "cancelled"]), 0)
    table["cpu_s"] = table["provider_s"] = table["database_s"] = 0.0
    return table


def _attempts(data: pd.DataFrame, table: pd.DataFrame, notes: list[str], place: str) -> Series:
    if "attempt" in data:
        numbers = pd.to_numeric(data["attempt"], errors="coerce")
        wrong = ~(numbers >= 0) | (numbers > 32_000) | (numbers % 1 != 0)
        if wrong.any():
            row = wrong.index[int(np.argmax(wrong.to_numpy()))]
            raise RunError(f"{place}: row {row}: attempt is {data['attempt'][row]}: a whole number from 1 on")
        return numbers.astype("int16") + int(numbers.min() == 0)
    counted = table.sort_values("started_at", kind="stable").groupby("job").cumcount() + 1
    if (counted > 1).any():
        notes.append(f"{int((counted > 1).sum())} rows are further attempts of their jobs, by their order")
    return counted.reindex(table.index).astype("int16")


def _outcomes(data: pd.DataFrame, table: pd.DataFrame, place: str) -> Series:
    last = table["attempt"] == table.groupby("job")["attempt"].transform("max")
    if "outcome" not in data:
        return pd.Series(np.where(last, "done", "retry"), index=data.index)
    words = data["outcome"].astype(str).str.strip().str.lower()
    if unknown := sorted(set(words) - set(MEANT)):
        raise RunError(f'{place}: there is no outcome "{unknown[0]}" ({did_you_mean(unknown[0], MEANT)})')
    meant = words.map(MEANT)
    return meant.where(meant != "failed", pd.Series(np.where(last, "dead", "retry"), index=data.index))


def _priorities(data: pd.DataFrame, place: str) -> Series:
    if "priority" not in data:
        return pd.Series(3, index=data.index)
    given = data["priority"].fillna(3)
    levels = given.map(lambda value: PRIORITIES.get(str(value).strip().lower(), value))
    numbers = pd.to_numeric(levels, errors="coerce")
    if not numbers.isin([1, 2, 3, 4]).all():
        row = numbers.index[int(np.argmax(~numbers.isin([1, 2, 3, 4]).to_numpy()))]
        raise RunError(
            f"{place}: row {row}: priority is {data['priority'][row]}: 1 (first), 2, 3, 4, or {', '.join(PRIORITIES)}"
        )
    return numbers.astype("int8")
