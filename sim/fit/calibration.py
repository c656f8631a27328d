"""`sim.calibrate`: a profile from measured runs. It only fits; the host was probed when the runs were made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

from saqkit.errors import ProfileError
from saqkit.spec import trace
from saqkit.spec.interpreter import SWITCH_S
from saqkit.spec.runs import Run
from sim.fit.families import FEWEST, fit_times
from sim.fit.matching import matched
from sim.fit.observations import Observed, fingerprint, tick_phase_s
from sim.fit.profile import (
    Estimate,
    HostProfile,
    Profile,
    ProviderProfile,
    TypeProfile,
    nominal_type,
    yardstick_of,
)
from sim.fit.regression import CERTAINTY, fit, middle
from sim.prediction import Scenario

FLOOR = 0.02  # away from its own runs no model of a real host is trusted to better than 2 %
CROWDED = 2.0  # two busy threads of one core run at half speed each: a probe that says more was disturbed
# What is usual, in CPU seconds on a host of nominal speed. A process wakes to serve one user when little goes on, and
# to serve many when it is busy; code that runs hot takes the same everywhere, so that its cost is trusted more.
USER_TASK_S, USER_LOOP_S, HOT = 2e-5, 3e-5, 0.2  # per user, in the job's own task and outside it, and how sure
COLD_TASK_S, COLD_LOOP_S = 1e-4, 1.5e-4  # per wake of a sleeping loop
LOOP_JOB_S = 3e-4  # per job, outside its task
WAKES = 3  # of an attempt besides those of its users: its start and its database steps
BUSY = 0.7  # of the time; a loop that computes longer keeps those waiting who come back to it
HANDING = 0.25  # of the client's part of a call to the broker: handing a transaction to a thread, and being told of it
IDLE_CPU = 0.02  # per second and process, whatever happens


def calibrate(runs: Run | str | Path | Sequence[Run | str | Path]) -> Profile:
    """Fit a profile to one or several measured runs of one host (runs, or the files of runs).

    Small runs do: 300 users in batches of 100 on one worker with five slots are enough for an I/O-bound system; what
    they cannot tell apart is shared out by what is usual, and the profile says so. Raises `ProfileError` where runs
    cannot be fitted: no probe, nobody served, two hosts.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    if not given:
        raise ProfileError("calibrate needs at least one run")
    seen = [Observed.of(run if isinstance(run, Run) else Run.load(run)) for run in given]
    if len(hosts := {one.probe.host for one in seen}) > 1:
        raise ProfileError(
            f"the runs are from {len(hosts)} hosts ({', '.join(sorted(hosts))}): one profile describes one host"
        )
    profile = _fitted(seen)
    # How often loops wake depends on what they cost: once more, with what was found.
    profile = matched(_fitted([replace(one, believed=profile) for one in seen]), seen)
    errors = [_own_error(one.run, profile) for one in seen]
    notes = [
        f"{one.run.name}: makespan {error:+.1%} of the measured one, with its own draws"
        for one, error in zip(seen, errors, strict=True)
    ]
    residual = max(FLOOR, float(np.sqrt(np.mean(np.square(errors)))))
    return profile.model_copy(update={"residual": residual, "diagnostics": (*profile.diagnostics, *notes)})


def _fitted(seen: Sequence[Observed]) -> Profile:
    notes = [f"{one.run.name} was disturbed: {reason}" for one in seen for reason in one.run.disturbed]
    named: dict[str, bool] = {
        name: job.fan_out is not None for one in seen for name, job in one.run.topology.job_types.items()
    }
    types, scales, colds = {}, [], []
    for name, fan_out in named.items():
        types[name], scale, cold = _type(name, fan_out, seen, notes)
        scales.append(scale)
        colds.append(cold)
    queue, loop_user, loop_cold = _loop(seen, notes)
    for name, fitted in types.items():
        if not fitted.fan_out:
            types[name] = fitted.model_copy(update={"user_cpu_s": _sum(fitted.user_cpu_s, loop_user)})
    cold = _sum(max(colds, key=lambda estimate: estimate.samples), loop_cold)
    host = _host(seen, max(scales, key=lambda estimate: estimate.samples), queue, cold)
    assumed = [name for name, value in host if isinstance(value, Estimate) and value.source == "assumed"]
    if assumed:
        notes.append(f"assumed, since no run shows it: {', '.join(assumed)}")
    return Profile(
        fitted_on=datetime.now(UTC).date().isoformat(),
        host=host,
        job_types=types,
        providers=_providers(seen, notes),
        residual=FLOOR,
        runs=tuple(fingerprint(one.run) for one in seen),
        versions=_versions(seen),
        diagnostics=tuple(notes),
    )


def _type(
    name: str, fan_out: bool, seen: Sequence[Observed], notes: list[str]
) -> tuple[TypeProfile, Estimate, Estimate]:
    """One job type's costs; the host's speed as its described work shows it; its tasks' part of a cold wake."""
    usual, probed = nominal_type(fan_out), float(np.median([one.probe.cpu_scale for one in seen]))
    frames, work, slow, woken = [], [], [], []
    for one in seen:
        if name in one.run.topology.job_types:
            rows = one.attempts_of(name)
            frames.append(_found(rows, one, name) if fan_out else rows.assign(served=rows["users"]))
            work.append(one.described_cpu_s(name, frames[-1]["served"].to_numpy(float)))
            slow.append(np.full(len(rows), one.slowdown))
            woken.append(one.wakes_per_step * (WAKES + (0.0 if fan_out else 1.0) * frames[-1]["served"]))
    rows, factor = pd.concat(frames), np.concatenate(slow)
    users, described = rows["served"].to_numpy(float), np.concatenate(work)
    scaled = [usual.job_cpu_s.value * probed, COLD_TASK_S * probed, probed]
    columns = [factor, factor * np.concatenate(woken), factor * described]
    doubts = [1.0, HOT if fan_out else 1.0, 0.1]
    if fan_out:
        columns += [factor * users, factor * rows["pages"].to_numpy(float), factor * rows["batches"].to_numpy(float)]
        scaled += [n.value * probed for n in (usual.user_cpu_s, usual.page_cpu_s, usual.batch_cpu_s)]
        doubts += [1.0, 1.0, 1.0]
    else:
        columns, scaled, doubts = [*columns, factor * users], [*scaled, USER_TASK_S * probed], [*doubts, HOT]
    per_job, cold, scale, per_user, *paged = fit(columns, rows["cpu_s"], scaled, doubts)
    if fan_out:
        cold = cold.model_copy(update={"samples": 0})  # too few wakes to learn from
    if not described.sum():
        scale = Estimate(value=probed, samples=0)
    if not fan_out and len(rows) and len(np.unique(users)) == 1:
        notes.append(
            f"{name}: all batches have {users[0]:g} users: costs per job and per user are told apart by what is usual"
        )
    if not len(rows):
        notes.append(f"{name}: no attempt of this type ran to its end, so its costs are assumed")
    steps = pd.concat(
        [one.database_steps(name).assign(run=n) for n, one in enumerate(seen) if name in one.run.topology.job_types]
    )
    if fan_out:
        # The cursor is read, then pages are read and the cursor stored by turns.
        page = _database(
            steps[steps["place"] % 2 == 1],
            usual.page_s,
            usual.page_user_s,
            users=min(1000.0, float(np.median(users))) if len(users) else 0.0,
        )
        flush = _database(steps[(steps["place"] % 2 == 0) & (steps["place"] > 0)], usual.flush_s, usual.flush_user_s)
        opened = usual.open_s, usual.open_user_s
    else:
        opened = _database(steps[(steps["place"] == 0) & (steps["back"] > 0)], usual.open_s, usual.open_user_s)
        flush = _database(
            steps[(steps["back"] == 0) & (steps["place"] > 0)], usual.flush_s, usual.flush_user_s, users=1.0
        )
        page = opened[0], usual.page_user_s  # looking an event up, which is no step of its own
    return (
        TypeProfile(
            fan_out=fan_out,
            job_cpu_s=per_job,
            user_cpu_s=per_user,
            **dict(zip(("page_cpu_s", "batch_cpu_s"), paged, strict=False)),
            open_s=opened[0],
            open_user_s=opened[1],
            flush_s=flush[0],
            flush_user_s=flush[1],
            page_s=page[0],
            page_user_s=page[1],
        ),
        scale,
        cold,
    )


def _found(rows: pd.DataFrame, one: Observed, name: str) -> pd.DataFrame:
    """Fan-out attempts with the users whom each found (`served`), and its `batches` and `pages`."""
    fan_out = one.run.topology.job_types[name].fan_out
    assert fan_out is not None
    children = one.run.attempts[one.run.attempts["attempt"] == 1].groupby("parent")["users"].agg(["sum", "size"])
    found = rows.assign(
        served=rows["job"].map(children["sum"]).fillna(0.0).astype(float),
        batches=rows["job"].map(children["size"]).fillna(0.0).astype(float),
    )
    size = max(1, fan_out.page_size // fan_out.batch_size) * fan_out.batch_size
    return found.assign(pages=1.0 + found["served"] // size)


def _database(
    steps: pd.DataFrame, fixed: Estimate, each: Estimate, users: float | None = None
) -> tuple[Estimate, Estimate]:
    """A transaction's fixed part and its part per user.

    Callers queue for the single writer, and for their loop, and the model makes them queue again: so of the steps of
    one size the quick ones count, and of the runs the one that was quickest. `users` replaces the steps' own number
    where a step concerns others than the job's.
    """
    steps = steps.assign(users=steps["users"] if users is None else users)
    sizes = steps.groupby(["run", "users"])["took_s"].quantile(0.1).groupby("users").min()
    found = fit([1.0, sizes.index.to_numpy(float)], sizes.to_numpy(float), [fixed.value, each.value])
    return found[0].model_copy(update={"samples": len(steps)}), found[1].model_copy(update={"samples": len(steps)})


def _loop(seen: Sequence[Observed], notes: list[str]) -> tuple[Estimate, Estimate, Estimate]:
    """CPU of a process outside its jobs' tasks: per job, per user, and per wake of a sleeping loop."""
    usable = [one for one in seen if one.loops_cpu_s == one.loops_cpu_s]
    scale = float(np.median([one.probe.cpu_scale for one in seen]))
    other = [max(0.0, one.loops_cpu_s - float(one.run.attempts["cpu_s"].sum())) / one.slowdown for one in usable]
    jobs = [len(one.run.attempts) for one in usable]
    users = [float(one.run.attempts["users"].sum()) for one in usable]
    wakes = [float(one.wakes) for one in usable]
    idle = [one.processes_s for one in usable]
    if not usable:
        notes.append("the runs do not say how much CPU the worker processes took: the loop's own cost is assumed")
    per_job, per_user, cold, _ = fit(
        [jobs, users, wakes, idle],
        other,
        [LOOP_JOB_S * scale, USER_LOOP_S * scale, COLD_LOOP_S * scale, IDLE_CPU],
        [1.0, HOT, 1.0, 1.0],
    )
    client_s = float(np.median([one.probe.client_cpu_s for one in seen]))
    # Taking and finishing are calls of their own, and a batch has two transactions: charged apart in the model.
    rest = max(per_job.value - 2 * (1 + HANDING) * client_s, per_job.value / 4)
    return per_job.model_copy(update={"value": rest}), per_user, cold


def _host(seen: Sequence[Observed], scale: Estimate, queue: Estimate, cold: Estimate) -> HostProfile:
    calm = [one for one in seen if not one.run.disturbed] or seen
    probe = calm[-1].probe

    def probed(name: str) -> Estimate:
        found = [float(getattr(one.probe, name)) for one in calm]
        error = max(float(np.std(found)), CERTAINTY * float(np.median(found))) / np.sqrt(len(found))
        return Estimate(value=float(np.median(found)), error=error, samples=len(found), source="probe")

    crowded = float(np.median([one.probe.cpu_scale_crowded / one.probe.cpu_scale for one in calm]))
    broker, client, trip = probed("broker_cpu_s"), probed("client_cpu_s"), probed("broker_round_trip_s")
    wire = trip.model_copy(update={"value": max(1e-5, trip.value - broker.value - client.value)})
    late = np.concatenate([one.timer_lateness_s() for one in seen])
    overshoot = probed("timer_overshoot_s")
    if len(late) >= 20:
        # Rounding up adds half the resolution on average, which the model does itself.
        found = middle(late - probe.timer_resolution_s / 2)
        if found.value < 5 * max(overshoot.value, probe.timer_resolution_s):
            overshoot = found
    wakes = np.concatenate([one.wakes_s() for one in seen]) - broker.value
    announcing = np.concatenate([one.announcing_s() for one in seen]) - (broker.value + wire.value / 2)
    enqueueing = np.concatenate([one.enqueueing_s() for one in seen])
    restarts = [x for one in seen for x in one.restarts_s()]
    usual = Profile.nominal().host
    return HostProfile(
        host=probe.host,
        cores=probe.cores,
        cpu_scale=scale if scale.samples else probed("cpu_scale"),
        crowded=Estimate(value=min(max(1.0, crowded), CROWDED), error=CERTAINTY, samples=len(calm), source="probe"),
        timer_resolution_s=probe.timer_resolution_s,
        timer_overshoot_s=overshoot,
        broker_wire_s=wire,
        broker_cpu_s=broker,
        broker_job_cpu_s=Estimate(value=broker.value / 2, error=broker.value / 4),
        client_cpu_s=client,
        cold_s=cold,
        queue_cpu_s=queue,
        wake_s=_shrunk(wakes, usual.wake_s.value),
        announce_s=_shrunk(announcing, usual.announce_s.value),
        enqueue_s=_shrunk(enqueueing, usual.enqueue_s.value),
        restart_s=_shrunk(np.asarray(restarts), usual.restart_s.value),
        handing_s=Estimate(value=HANDING * client.value, error=HANDING * client.value / 2),
        switch_s=SWITCH_S,
        spread=float(np.median([one.probe.spread for one in calm])),
        yardstick=float(np.median([yardstick_of(one.run) for one in seen])),
    )


def _shrunk(sample: np.ndarray[tuple[int], np.dtype[np.float64]], usual: float) -> Estimate:
    """The median of a sample that may be empty."""
    return middle(sample) if len(sample) else Estimate(value=usual, error=usual / 3)


def _providers(seen: Sequence[Observed], notes: list[str]) -> dict[str, ProviderProfile]:
    """Providers that are not simulated: their measured latencies and failure shares.

    A send that comes back to a busy loop waits for it, so that only runs whose loops had time tell how long sends take.
    """
    found: dict[str, ProviderProfile] = {}
    for name in {name: None for one in seen for name in one.run.topology.providers}:
        using = [one for one in seen if name in one.run.topology.providers]
        if using[-1].run.topology.providers[name].kind == "simulated":
            continue
        calm = [one for one in using if not one.loops_busy > BUSY]
        if not calm:
            least = min(one.loops_busy for one in using)
            raise ProfileError(
                f'provider "{name}" cannot be fitted: event loops were busy for {least:.0%} of the time or more, and '
                "sends waited for them; measure with fewer slots, or with less CPU per user"
            )
        took = pd.concat([one.provider_steps(name) for one in calm])["took_s"].to_numpy(float)
        if len(took) < FEWEST:
            raise ProfileError(
                f'{len(took)} sends to provider "{name}" were sampled: at least {FEWEST} are needed to fit it'
            )
        fitted = fit_times(took)
        notes.append(f"provider {name}: {fitted.why}; {fitted.samples} sends")
        sends = done = refused = 0.0
        for one in using:
            types = [t for t, job in one.run.topology.job_types.items() if job.per_user.provider == name]
            rows = one.run.attempts[one.run.attempts["job_type"].isin(types)]
            rows = rows[rows["outcome"].isin(["done", "retry"])]
            sends += float(rows["users"].sum())
            done += float(rows["users_done"].sum())
            refused += float(rows["users_failed"].sum())
        found[name] = ProviderProfile(
            latency=fitted.distribution,
            temporary_share=max(0.0, 1 - (done + refused) / sends) if sends else 0.0,
            permanent_share=refused / sends if sends else 0.0,
            samples=len(took),
        )
    return found


def _sum(one: Estimate, other: Estimate) -> Estimate:
    return one.model_copy(update={"value": one.value + other.value, "error": float(np.hypot(one.error, other.error))})


def _own_error(run: Run, profile: Profile) -> float:
    """Relative error of the makespan of a run that is predicted with its own draws."""
    scenario = Scenario(run.topology, run.deployment, run.workload, profile, run.seed, True, tick_phase_s(run))
    measured = trace.makespan_s(run.attempts)
    return trace.makespan_s(scenario.run().attempts()) / measured - 1


def _versions(seen: Sequence[Observed]) -> dict[str, str]:
    probe = seen[-1].probe
    found = {"python": platform.python_version(), "probed_python": probe.python, "broker": probe.broker}
    for name in ("saqkit", "simpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
