"""One job type as a table of attempts shows it: its times, its failures, its retries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from saqkit.spec.backoff import Retry
from saqkit.spec.distributions import Lognormal
from sim.fit.families import Fit, Z, fit_times, share
from sim.inference.delays import fit_retry

TOLD = 20
"""So many rows are enough to say that failed attempts take another time than the others."""
LONGEST_S = 1e9
"""A timeout that is none."""


@dataclass
class Found:
    """A number that was read off the table: of what, its 90 % interval, the size of its sample, and why."""

    of: str
    what: str
    value: float
    lo: float
    hi: float
    samples: int
    why: str = ""


@dataclass
class TypeFound:
    """One job type. Times in seconds of the host that ran it; `latency` is everything that a job or user waits for."""

    name: str
    retry: Retry
    timeout_s: float = LONGEST_S
    batch: bool = False
    latency: Fit | None = None
    cpu_job_s: float = 0.0
    cpu_user_s: float = 0.0
    other_s: float = 0.0
    lanes: int = 1
    temporary: float = 0.0
    permanent: float = 0.0
    found: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def type_of(
    name: str,
    rows: pd.DataFrame,
    steps: pd.DataFrame,
    *,
    fans_out: bool,
    batch: bool,
    tick_s: float | None,
    told: Mapping[str, Any],
) -> TypeFound:
    """Read one job type off its attempts (and provider steps, where there are any). `told` is what the queue knew."""
    attempts, policy, why = _retries(rows, tick_s, told)
    found = TypeFound(name, policy, batch=batch)
    if why:
        found.notes.append(f"{name}: {why}")
    sample = len(rows[rows["outcome"] == "retry"])
    for n, delay_s in enumerate(policy.schedule(), start=1):
        if sample:
            found.found.append(Found(name, f"delay {n} (s)", delay_s, delay_s, delay_s, sample, policy.backoff))
    late = rows[rows["error"] == "TimeoutError"]
    if told.get("timeout"):
        found.timeout_s = float(told["timeout"])
    elif len(late):
        found.timeout_s = float((late["finished_at"] - late["started_at"]).median())
    done = rows[rows["outcome"] == "done"]
    if not len(done):
        found.notes.append(f"{name}: no attempt of it was done, so its times are those of attempts that failed")
        done = rows
    if batch:
        _batches(found, rows, done, steps)
    else:
        _jobs(found, rows, done, attempts, fans_out)
    return found


def _retries(rows: pd.DataFrame, tick_s: float | None, told: Mapping[str, Any]) -> tuple[int, Retry, str]:
    """How often at most a job is tried, the policy, and a doubt."""
    dead = rows[rows["outcome"] == "dead"]["attempt"]
    again = rows[rows["outcome"] == "retry"]["attempt"]
    most, why = int(rows["attempt"].max()), ""
    if "retries" in told:
        most = max(1, int(told["retries"]))
    elif len(dead):
        most = int(dead.max())
    elif len(again):
        most = max(most, int(again.max()) + 1)
        why = f"no job has died, so that more than {most} attempts may be allowed"
    policy, how = fit_retry(dict(_delays(rows)), most, tick_s)
    if again.size:
        why = f"{how}; {why}" if why else how
    return most, policy, why


def _delays(rows: pd.DataFrame) -> Iterator[tuple[int, Any]]:
    """From the end of a failed attempt to the job's being ready again, by the number of the attempt that failed."""
    ordered = rows.sort_values(["job", "finished_at"], kind="stable")
    after = ordered.groupby("job", sort=False)["ready_at"].shift(-1)
    failed = ordered["outcome"].eq("retry") & after.notna()
    delays = (after - ordered["finished_at"])[failed]
    for n, part in delays.groupby(ordered["attempt"][failed]):
        yield int(str(n)), part.to_numpy(float)


def _jobs(found: TypeFound, rows: pd.DataFrame, done: pd.DataFrame, most: int, fans_out: bool) -> None:
    """A job as one piece: CPU in the middle, the rest of its time a wait."""
    name = found.name
    service = (done["finished_at"] - done["started_at"]).to_numpy(float)
    cpu = done["cpu_s"].fillna(0.0).to_numpy(float)
    found.cpu_job_s = float(cpu.mean())
    if found.cpu_job_s:
        half = Z * float(cpu.std(ddof=1)) / np.sqrt(len(cpu)) if len(cpu) > 1 else found.cpu_job_s
        low, high = max(0.0, found.cpu_job_s - half), found.cpu_job_s + half
        found.found.append(Found(name, "CPU per job (s)", found.cpu_job_s, low, high, len(cpu)))
    fit = fit_times(np.clip(service - cpu, 0, None))
    if fans_out:  # no provider of its own: what it waits for is its reading of the users
        found.other_s = float(np.median(np.clip(service - cpu, 0, None)))
    else:
        found.latency = fit
    mean = Found(name, "service beside CPU, mean (s)", fit.distribution.mean_s, fit.mean_lo, fit.mean_hi, fit.samples)
    mean.why = fit.why
    found.found.append(mean)
    ended = rows[rows["outcome"].isin(["done", "retry", "dead"])]
    early = (ended["outcome"] == "dead") & (ended["attempt"] < most)
    failed = ended["outcome"].isin(["retry", "dead"]) & ~early
    found.temporary, low, high = share(float(failed.sum()), len(ended))
    found.found.append(Found(name, "failed attempts, share", found.temporary, low, high, len(ended)))
    if early.any():
        found.permanent, low, high = share(float(early.sum()), len(ended))
        found.found.append(Found(name, "failed for good at once, share", found.permanent, low, high, len(ended)))
    if found.temporary and fans_out:
        found.notes.append(f"{name}: {found.temporary:.1%} of its attempts failed, and no fan-out fails in the model")
    _doubts(found, ended[failed | (ended["outcome"] == "done")], service)


def _doubts(found: TypeFound, ended: pd.DataFrame, service: Any) -> None:
    failed = ended[ended["outcome"] != "done"]
    if len(failed) < TOLD or len(service) < TOLD:
        return
    took = float((failed["finished_at"] - failed["started_at"]).median())
    usual = float(np.median(service))
    if abs(took - usual) > 0.25 * usual:
        found.notes.append(
            f"{found.name}: an attempt that fails takes {took:.3g} s in the middle, one that is done {usual:.3g} s; "
            "here both take the latter"
        )
    again = ended[ended["attempt"] > 1]
    if len(again) >= TOLD:
        p, low, high = share(float((again["outcome"] != "done").sum()), len(again))
        if not low <= found.temporary <= high:
            found.notes.append(
                f"{found.name}: of second and later attempts {p:.1%} fail, of all {found.temporary:.1%}; here every "
                "attempt fails alike"
            )


def _batches(found: TypeFound, rows: pd.DataFrame, done: pd.DataFrame, steps: pd.DataFrame) -> None:
    """A job of several users: CPU and waiting per user. The job's own database steps are shared out to its users: their
    times hold waiting for others' commits, so that they are no cost of the database.
    """
    name, served = found.name, done[done["users"] > 0]
    users = served["users"].to_numpy(float)
    cpu = served["cpu_s"].fillna(0.0).to_numpy(float)
    database = served["database_s"].fillna(0.0).to_numpy(float)
    service = (served["finished_at"] - served["started_at"]).to_numpy(float)
    found.cpu_job_s, found.cpu_user_s = _line(users, cpu)
    waits = served["provider_s"].fillna(0.0).to_numpy(float)
    if not waits.any():  # a table that does not tell: all that is no CPU and no database
        waits = np.clip(service - cpu - database, 0, None)
    left = np.clip(service - cpu - database, 1e-9, None)
    found.lanes = max(1, round(float(np.median(waits / left))))
    each = found.lanes * float(database.sum() / users.sum())
    if each:
        found.notes.append(f"{name}: its waits per user hold {each:.2g} s, their share of the job's database steps")
    took = steps.merge(served[["job", "attempt"]], on=["job", "attempt"])["took_s"].to_numpy(float)
    if len(took):
        found.latency = fit_times(took + each)
    elif waits.any():
        found.latency = _of_sums(users, waits + each * users)
    if (fit := found.latency) is not None:
        mean = Found(name, "wait per user, mean (s)", fit.distribution.mean_s, fit.mean_lo, fit.mean_hi, fit.samples)
        mean.why = fit.why
        found.found.append(mean)
    if found.cpu_user_s:
        found.found.append(Found(name, "CPU per user (s)", found.cpu_user_s, np.nan, np.nan, len(cpu)))
    ended = rows[rows["outcome"].isin(["done", "retry"])]
    sends = float(ended["users"].sum())
    put_off = float((ended["users"] - ended["users_done"] - ended["users_failed"]).clip(lower=0).sum())
    for what, count in (("temporary", put_off), ("permanent", float(ended["users_failed"].sum()))):
        p, low, high = share(count, sends)
        setattr(found, what, p)
        found.found.append(Found(name, f"users who failed ({what}), share", p, low, high, int(sends)))


def _line(users: Any, cpu: Any) -> tuple[float, float]:
    """CPU per job and per user; where all batches have one size, all of it is the users'."""
    if len(np.unique(users)) < 2:
        return 0.0, float(cpu.sum() / users.sum())
    from scipy.optimize import nnls

    (job, user), _ = nnls(np.column_stack([np.ones(len(users)), users]), cpu)
    return float(job), float(user)


def _of_sums(users: Any, waits: Any) -> Fit:
    """The wait of one user from the sums of batches: they tell mean and spread, and not the family."""
    mean = float(waits.sum() / users.sum())
    variance = float((((waits - mean * users) ** 2) / users).mean())
    half = Z * np.sqrt(variance / users.sum())
    cv = float(np.clip(np.sqrt(variance) / mean, 1e-3, 20)) if mean else 0.5
    why = "lognormal, which sums over batches cannot tell: they tell mean and spread"
    return Fit(Lognormal(mean_s=max(mean, 1e-9), cv=cv), len(users), max(0.0, mean - half), mean + half, why)
