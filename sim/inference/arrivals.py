"""How users arrived: all at once, as recorded, at random, or by the hours of the day."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.errors import UsageError
from saqkit.spec.workload import Poisson, Profile, Recorded, Workload

Kind = Literal["auto", "burst", "recorded", "poisson", "profile"]
KINDS = ("auto", "burst", "recorded", "poisson", "profile")
AT_ONCE = 0.02
"""Arrivals within this share of the time until everything was done are one burst."""
HOUR_S = 3600.0


def arrivals_of(events: pd.DataFrame, span_s: float, kind: Kind, epoch: float, one_event: bool) -> tuple[Workload, str]:
    """The workload of some events (columns `at_s`, `users`, `entry`), and what it is in words.

    `span_s` is the makespan, `epoch` the Unix time of second 0 (NaN: unknown), `one_event` whether a burst of several
    events is the same as one event to all their users (no fan-out among them). Raises `UsageError` where the kind that
    is asked for does not go with the data.
    """
    at, users = events["at_s"].to_numpy(float), events["users"].to_numpy(np.int64)
    order = np.argsort(at, kind="stable")
    at, users, entries = at[order] - at.min(), users[order], tuple(events["entry"].to_numpy()[order].tolist())
    lasts = float(at[-1])
    if kind == "burst" or (kind == "auto" and (len(at) == 1 or (one_event and lasts <= AT_ONCE * span_s))):
        return Workload.burst(int(users.sum())), f"a burst: {len(at)} within {lasts:.3g} s of {span_s:.3g} s"
    if kind == "profile":
        return _profile(at, users, epoch)
    if len(at) < 2 and kind == "poisson":
        raise UsageError("poisson: one arrival has no rate")
    rate, random = (len(at) - 1) / lasts if lasts else float("inf"), _random(np.diff(at))
    if kind == "poisson":
        each = max(1, round(float(users.mean())))
        return Workload(arrivals=Poisson(rate_per_s=rate, duration_s=lasts + 1 / rate, users_per_event=each)), random
    trace = Recorded(
        at_s=tuple(at.tolist()),
        users=tuple(users.tolist()) if (users != 1).any() else (),
        entries=entries if len(set(entries)) > 1 else (),
    )
    return Workload(arrivals=trace), f"as recorded: {len(at)} arrivals in {lasts:.4g} s, {rate:.3g}/s; {random}"


def _random(gaps: NDArray[np.float64]) -> str:
    """Whether the gaps are those of a Poisson process, in words."""
    from scipy.stats import kstest

    mean = float(gaps.mean()) if len(gaps) else 0.0
    if len(gaps) < 20 or mean <= 0:
        return f"{len(gaps)} gaps are too few to say whether they come at random"
    distance = float(kstest(gaps, "expon", args=(0, mean)).statistic)
    cv = float(gaps.std() / mean)
    fits = distance <= 1.08 / np.sqrt(len(gaps))  # Lilliefors (1969), 5 %
    return f"gaps vary by {cv:.2f} of their mean, {'as' if fits else 'not as'} those of a Poisson process"


def _profile(at: NDArray[np.float64], users: NDArray[np.int64], epoch: float) -> tuple[Workload, str]:
    known = epoch == epoch
    clock = at + (epoch % (24 * HOUR_S) if known else 0.0)
    days = float(at[-1]) / (24 * HOUR_S)
    if days < 0.9:
        raise UsageError(f"profile: the data last {days * 24:.1f} hours; a daily pattern takes a day at least")
    hours = (clock // HOUR_S).astype(int) % 24
    weights = np.bincount(hours, weights=users, minlength=24)
    each = max(1, round(float(users.mean())))
    arrivals = Profile(
        users_per_day=max(1, round(float(users.sum()) / max(1.0, days))),
        hourly=tuple(float(w) for w in weights),
        days=max(1, round(days)),
        users_per_event=each,
    )
    return Workload(arrivals=arrivals), "a daily pattern, hours " + ("of UTC" if known else "since the first arrival")
