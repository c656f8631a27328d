"""`sim.infer`: a description of a system from a table of what it did."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from saqkit.errors import RunError, UsageError
from saqkit.spec import trace
from saqkit.spec.base import did_you_mean
from saqkit.spec.deployment import Deployment, Group
from saqkit.spec.recorded import Recording
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.fit.profile import Estimate, Profile, TypeProfile, nominal_type
from sim.inference.arrivals import KINDS, Kind, arrivals_of
from sim.inference.edges import Edges, edges_of
from sim.inference.machine import IDLE_S, held_back, processes_of, slots_of, waits_beside_free_slots
from sim.inference.types import LONGEST_S, Found, TypeFound, type_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STOCK = {"RedisQueue": {"tick_s": 1.0, "sweep_s": 60.0}, "PostgresQueue": {"tick_s": 1.0, "sweep_s": 60.0}}
"""What SAQ's own queues do: delayed jobs are looked for once a second, stuck ones once a minute."""
FINE_TICK_S = 0.01
"""Where the grid of a queue is unknown: measured delays hold it already."""
FEW = 30
SURE = 0.02  # as in calibration: no model of a real host is trusted to better than 2 %
BUSY = 0.7
MOST_TENANTS = 20


@dataclass(frozen=True, eq=False)
class Inferred:
    """What a table of attempts says of the system that made it; unpacks into `topology, workload`.

    `deployment` is what was at work. `profile` is a host on which everything takes what was recorded and nothing more:
    predict with it, since the recorded times hold whatever the real host and queue cost. `found` lists the numbers with
    their 90 % intervals, `notes` what a reader should know or doubt.
    """

    topology: Topology
    workload: Workload
    deployment: Deployment
    profile: Profile
    found: tuple[Found, ...]
    notes: tuple[str, ...]
    types: Mapping[str, TypeFound]
    attempts: pd.DataFrame
    given: pd.DataFrame | Run | Recording

    def __iter__(self) -> Iterator[Any]:
        yield self.topology
        yield self.workload

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """A row per number: columns `of`, `what`, `value`, `lo`, `hi` (90 %), `samples`, `why`."""
        return pd.DataFrame([vars(one) for one in self.found])

    def report(self) -> str:
        """All of it in words: what was found, from how many, and what to doubt."""
        table = self.numbers.drop(columns="why").to_string(index=False, float_format="{:.4g}".format, na_rep="-")
        reasons = [f"{one.of}: {one.what}: {one.why}" for one in self.found if one.why]
        return "\n".join([repr(self), table, *("  " + line for line in [*reasons, *self.notes])])

    def run(self, probe: Mapping[str, Any] | None = None, seed: int = 0) -> Run:
        """The recording as a run, for `sim.calibrate`; `probe` is what `saqkit.probe()` found on its host.

        Raises `UsageError` where there is no recording, but only a table.
        """
        if isinstance(self.given, Run):
            return self.given
        if not isinstance(self.given, Recording):
            raise UsageError("a table of attempts is no run: record the application with saqkit.record")
        attempts = self.attempts.assign(event=pd.factorize(self.attempts["event"])[0] + 1)
        attempts["event"] = attempts["event"].astype(str)
        return Run(
            self.topology, self.deployment, self.workload, seed, attempts, self.given.steps,
            dict(probe or {}), self.given.workers, {"recorded": True}, name="recording",
        )  # fmt: skip

    def plot(self, job_type: str | None = None, ax: Axes | None = None) -> Axes:
        """The times of a job type (default: that of most attempts) and the curve fitted to them; returns the Axes."""
        from sim.inference.picture import fit_picture

        rows = self.attempts[self.attempts["outcome"] == "done"]
        name = job_type if job_type is not None else str(rows["job_type"].mode().iloc[0])
        if name not in self.types:
            raise UsageError(f'there is no job type "{name}" ({did_you_mean(name, self.types)})')
        return fit_picture(self.types[name], rows[rows["job_type"] == name], ax)

    def __repr__(self) -> str:
        topology, arrivals = self.topology, self.workload.arrivals
        return (
            f"Inferred({len(self.attempts):,} attempts: {_count(len(topology.queues), 'queue')}, "
            f"{_count(len(topology.job_types), 'job type')}, {len(self.deployment.processes(topology))} x "
            f"{'/'.join(str(self.deployment.slots(topology, queue)) for queue in topology.queues)} slots, "
            f"arrivals: {arrivals.kind})"
        )

    def _repr_html_(self) -> str:
        import html

        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = self.numbers.to_html(index=False, float_format="{:.4g}".format, na_rep="")
        return f"<p><code>{html.escape(repr(self))}</code></p>{table}<ul>{notes}</ul>"


def infer(attempts: pd.DataFrame | Run | Recording, *, arrivals: Kind = "auto", name: str = "inferred") -> Inferred:
    """Infer topology, workload, deployment and profile from what happened.

    `attempts` is an attempts table (of `sim.read_attempts`, for instance), a run, or a recording of `saqkit.record`.
    `arrivals`: `auto` takes a burst where all came at once, else the recorded trace; `poisson` and `profile` (hours of
    the day) fit one. What a table cannot show is a default and is said so in `notes`: rate limits, jobs that waited for
    each other, limits of providers.

    Raises `RunError` for a table that is none or in which nothing ended, `UsageError` for arrivals that do not fit.
    """
    if arrivals not in KINDS:
        raise UsageError(f'there is no kind of arrivals "{arrivals}" ({did_you_mean(str(arrivals), KINDS)})')
    return _Inference(attempts, name).carry_out(arrivals)


class _Inference:
    """The steps, and what each leaves for the next."""

    def __init__(self, given: pd.DataFrame | Run | Recording, name: str) -> None:
        self.given, self.name = given, name
        frame = given if isinstance(given, pd.DataFrame) else given.attempts
        trace.check(frame)
        self.notes: list[str] = [*frame.attrs.get("notes", []), *(getattr(given, "notes", ()))]
        frame = frame[frame["outcome"].notna() & frame["finished_at"].notna()]
        if not (frame["outcome"] == "done").any():
            raise RunError(f"{len(frame)} attempts, and none of them done: nothing to infer from")
        self.epoch = float(frame.attrs.get("epoch", getattr(given, "epoch", np.nan)))
        self.frame = self._named(frame)
        self.workers = given.workers if isinstance(given, Recording) else ()
        self.steps = given.steps if isinstance(given, Run) else trace.steps_frame([])
        self.ticks = self._ticks()
        if len(frame) < FEW:
            self.notes.append(f"{len(frame)} attempts are few: trust no percentile")

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Names that a description can hold, priorities from 1 to 4, tenants only where they are few."""
        frame = frame.copy()
        frame["started_at"] = frame["started_at"].fillna(frame["taken_at"])
        for column in ("job_type", "queue"):
            names = {old: new for old, new in _names(frame[column].unique()).items() if old != new}
            if names:
                frame[column] = frame[column].replace(names)
                self.notes += [f'{column} "{old}" is called {new} here' for old, new in list(names.items())[:5]]
        places = frame.groupby("job_type")["queue"].nunique()
        for job_type in places[places > 1].index:
            of_type = frame["job_type"] == job_type
            usual = frame.loc[of_type, "queue"].mode().iloc[0]
            elsewhere = of_type & (frame["queue"] != usual)
            frame.loc[elsewhere, "job_type"] += "." + frame.loc[elsewhere, "queue"]
            self.notes.append(f"{job_type} runs in several queues: elsewhere than in {usual} it is a type of its own")
        levels = sorted(frame["priority"].unique())
        if not set(levels) <= {1, 2, 3, 4}:
            ranks = [3] if len(levels) == 1 else [1 + n * 4 // max(4, len(levels)) for n in range(len(levels))]
            frame["priority"] = frame["priority"].map(dict(zip(levels, ranks, strict=True)))
            if len(levels) > 1:
                self.notes.append(f"{len(levels)} priorities became levels 1 to {max(ranks)}, the lowest number first")
        if frame["tenant"].nunique() > MOST_TENANTS:
            self.notes.append(f"{frame['tenant'].nunique()} tenants are too many to describe: they are left out")
            frame["tenant"] = ""
        return frame

    def _ticks(self) -> dict[str, float]:
        if isinstance(self.given, Run):
            return {name: queue.tick_s for name, queue in self.given.topology.queues.items()}
        names = _names([worker["queue"] for worker in self.workers])
        known = {names[w["queue"]]: w.get("tick_s", STOCK.get(w["kind"], {}).get("tick_s")) for w in self.workers}
        return {name: tick_s for name, tick_s in known.items() if tick_s}

    def carry_out(self, kind: Kind) -> Inferred:
        edges = edges_of(self.frame)
        self.notes += edges.notes
        types = self._types(edges)
        topology = Topology.parse(self._topology(edges, types), self.name)
        deployment = self._deployment(topology)
        events = self._events(edges)
        plain = not self._roots(edges)["job_type"].isin(edges.fan_out).any()
        workload, how = arrivals_of(events, trace.makespan_s(self.frame), kind, self.epoch, plain)
        if len(topology.entry) > 1 and workload.arrivals.kind in ("poisson", "profile"):
            how += f"; which of the {len(topology.entry)} entries an arrival takes is drawn by their shares"
        self.notes.append(how)
        self._look_for_limits(topology, deployment)
        found = tuple(one for of_type in types.values() for one in of_type.found)
        profile = self._profile(topology, deployment, types)
        notes = (*self.notes, *(note for of_type in types.values() for note in of_type.notes))
        return Inferred(topology, workload, deployment, profile, found, notes, types, self.frame, self.given)

    def _types(self, edges: Edges) -> dict[str, TypeFound]:
        targets = set(edges.fan_out.values())
        told = {}
        if isinstance(self.given, Recording):
            names = _names(self.given.attempts["job_type"].unique())
            told = {names.get(old, old): facts for old, facts in self.given.types.items()}
        steps = self.steps[self.steps["step"] == "provider"][["job", "attempt", "took_s"]]
        found = {}
        for name, rows in self.frame.groupby("job_type"):
            batch = name in targets and bool((rows["users"] > 1).any())
            if not batch and name not in edges.fan_out and (rows["users"] > 1).any():
                self.notes.append(f"{name}: its jobs of several users are each taken as a whole, as one user")
            found[str(name)] = type_of(
                str(name), rows, steps, fans_out=name in edges.fan_out, batch=batch,
                tick_s=self.ticks.get(str(rows["queue"].iloc[0])), told=told.get(str(name), {}),
            )  # fmt: skip
        return found

    def _topology(self, edges: Edges, types: Mapping[str, TypeFound]) -> dict[str, Any]:
        facts = {_names([w["queue"]])[w["queue"]]: w for w in self.workers}
        queues: dict[str, Any] = {}
        for name, rows in self.frame.groupby("queue"):
            known = facts.get(str(name), {})
            both = {**STOCK.get(known.get("kind", ""), {}), **known}
            tick_s = self.ticks.get(str(name))
            queues[str(name)] = {
                "concurrency": known.get("concurrency") or slots_of(rows),
                "tick_s": FINE_TICK_S if tick_s is None else tick_s,
                **{key: both[key] for key in ("sweep_s", "lease_s") if key in both},
            }
        job_types: dict[str, Any] = {}
        providers: dict[str, Any] = {}
        for name, found in types.items():
            rows = self.frame[self.frame["job_type"] == name]
            job: dict[str, Any] = {
                "queue": str(rows["queue"].iloc[0]),
                "priority": int(rows["priority"].mode().iloc[0]),
                "retry": found.retry.to_dict(),
                "timeout_s": found.timeout_s,
                "cpu_us": found.cpu_job_s * 1e6,
            }
            if name in edges.fan_out:
                job["fan_out"] = {"to": edges.fan_out[name], "batch_size": edges.batch_size[name]}
            else:
                job["follow_up"] = [{"to": target} for target in edges.follow_up.get(name, [])]
                per_user: dict[str, Any] = {"database": "none", "cpu_us": found.cpu_user_s * 1e6}
                if found.latency is not None:
                    per_user["provider"] = name
                    providers[name] = {
                        "latency": found.latency.distribution.to_dict(),
                        "temporary_share": found.temporary,
                        "permanent_share": found.permanent,
                        "timeout_s": LONGEST_S,
                    }
                job |= {"per_user": per_user, "send_concurrency": found.lanes}
            job_types[name] = job
        entry, topics = self._entries(edges)
        return {"name": self.name, "queues": queues, "job_types": job_types, "providers": providers,
                "topics": topics, "entry": entry}  # fmt: skip

    def _roots(self, edges: Edges) -> pd.DataFrame:
        return edges.jobs[edges.jobs["root"] == edges.jobs.index]

    def _entries(self, edges: Edges) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What events begin with: a job type, or a topic that starts several, by level and tenant; their shares."""
        roots = self._roots(edges)
        begun = roots.groupby("event").agg(
            starts=("job_type", lambda types: tuple(sorted(set(types)))), priority=("priority", "first"),
            tenant=("tenant", "first"), level=("priority", "nunique"),
        )  # fmt: skip
        usual = self.frame.groupby("job_type")["priority"].agg(lambda levels: levels.mode().iloc[0])
        counts = begun.groupby(["starts", "priority", "tenant"], sort=True).size()
        entries: list[dict[str, Any]] = []
        topics: dict[str, Any] = {}
        for key, count in counts.items():
            starts, priority, tenant = cast("tuple[tuple[str, ...], int, str]", key)
            entry: dict[str, Any] = {"share": float(count / counts.sum()), "tenant": tenant}
            if len(starts) == 1:
                entry["job_type"] = starts[0]
                if priority != usual[starts[0]]:
                    entry["priority"] = int(priority)
            else:
                entry["topic"] = _topic(starts)
                topics[entry["topic"]] = {"starts": list(starts)}
            entries.append(entry)
        entries[-1]["share"] = 1.0 - sum(entry["share"] for entry in entries[:-1])
        return entries, topics

    def _events(self, edges: Edges) -> pd.DataFrame:
        """A row per event: when it came, and its users (of a fan-out: those of its jobs; else one for each job)."""
        jobs, roots = edges.jobs, self._roots(edges)
        below = jobs[jobs["parent"].isin(roots.index) & jobs["job_type"].isin(set(edges.fan_out.values()))]
        fanned = below.groupby("parent")["users"].sum()
        plain = (~roots["job_type"].isin(set(edges.fan_out))).astype(int)
        users = plain + fanned.reindex(roots.index).fillna(0)
        each = pd.DataFrame({"event": roots["event"], "type": roots["job_type"], "users": users.clip(lower=1),
                             "at_s": roots["event_at"]})  # fmt: skip
        by_type = each.groupby(["event", "type"]).agg(users=("users", "sum"), at_s=("at_s", "min")).reset_index("type")
        return by_type.groupby("event").agg(users=("users", "max"), at_s=("at_s", "min"), entry=("type", _topic))

    def _deployment(self, topology: Topology) -> Deployment:
        groups, names = processes_of(self.frame), list(topology.queues)
        if (self.frame["worker"] == "").all():
            groups = {tuple(sorted(names)): 1}
            self.notes.append("the table names no workers: all slots are those of one process here")
        if len(groups) == 1 and set(next(iter(groups))) == set(names):
            return Deployment(workers=next(iter(groups.values())))
        return Deployment(groups=tuple(Group(queues=queues, processes=n) for queues, n in sorted(groups.items())))

    def _total_slots(self, topology: Topology, deployment: Deployment, queue: str) -> int:
        served = sum(queue in queues for queues in deployment.processes(topology))
        return max(1, served * deployment.slots(topology, queue))

    def _look_for_limits(self, topology: Topology, deployment: Deployment) -> None:
        """Doubts: slots that stood idle while jobs waited, slots that were never all busy, loops that were full."""
        recorded = {_names([w["queue"]])[w["queue"]] for w in self.workers}
        for queue in topology.queues:
            rows = self.frame[self.frame["queue"] == queue]
            held = held_back(rows, self._total_slots(topology, deployment, queue))
            if held > max(5, 0.05 * len(rows)):
                self.notes.append(
                    f"{queue}: {held} of {len(rows)} jobs waited beside free slots: a rate limit, a pause, slow "
                    "polling or fewer workers at times, which is not inferred"
                )
            elif queue not in recorded and (rows["started_at"] - rows["ready_at"]).quantile(0.95) < IDLE_S:
                self.notes.append(f"{queue}: hardly a job waited, so there may be more slots than were used at once")
        span_s, processes = trace.makespan_s(self.frame), len(deployment.processes(topology))
        busy = float(self.frame["cpu_s"].fillna(0).sum()) / (span_s * processes) if span_s else 0.0
        if busy > BUSY:
            self.notes.append(
                f"the event loops were {busy:.0%} busy: the times that were recorded hold waiting for the loop, "
                "which the model adds once more"
            )

    def _profile(self, topology: Topology, deployment: Deployment, types: Mapping[str, TypeFound]) -> Profile:
        nominal, nothing = Profile.nominal(), Estimate(value=0.0, source="assumed")
        waits = np.concatenate(
            [
                waits_beside_free_slots(
                    self.frame[self.frame["queue"] == queue], self._total_slots(topology, deployment, queue)
                )
                for queue in topology.queues
            ]
        )
        wake_s = max(0.0, float(np.median(waits))) if len(waits) >= 5 else 0.0
        changed: dict[str, Any] = {n: nothing for n, value in nominal.host if isinstance(value, Estimate)}
        changed |= {"cpu_scale": Estimate(value=1.0), "crowded": Estimate(value=1.0)}
        changed["restart_s"] = nominal.host.restart_s
        changed["wake_s"] = Estimate(value=wake_s, samples=len(waits), source="runs")
        cores = max([int(w["cores"]) for w in self.workers], default=len(deployment.processes(topology)))
        host = nominal.host.model_copy(
            update={**changed, "host": "as recorded", "cores": cores, "timer_resolution_s": 0.0, "broker_clock_s": 0.0}
        )
        unsure = [one for one in self.found_means(types) if one.value > 0]
        residual = max([SURE, *((one.hi - one.lo) / 2 / one.value for one in unsure if one.samples >= FEW)])
        job_types = {name: _costs(topology.job_types[name].fan_out is not None, found) for name, found in types.items()}
        return nominal.model_copy(
            update={"host": host, "job_types": job_types, "residual": residual, "fitted_on": "as recorded",
                    "diagnostics": ("times as recorded, with all that host and queue cost in them",)}
        )  # fmt: skip

    def found_means(self, types: Mapping[str, TypeFound]) -> list[Found]:
        return [one for found in types.values() for one in found.found if one.what.endswith("mean (s)")]


def _costs(fan_out: bool, found: TypeFound) -> TypeProfile:
    """A type that costs nothing beyond its description, but for what its description cannot hold."""
    usual, nothing = nominal_type(fan_out), Estimate(value=0.0)
    update = {name: nothing for name, value in usual if isinstance(value, Estimate)}
    if fan_out:  # it looks its event and its cursor up, reads a page, and stores the cursor
        update |= {name: Estimate(value=found.other_s / 4, source="runs") for name in ("page_s", "flush_s")}
    return usual.model_copy(update=update)


def _names(given: Sequence[Any] | Any) -> dict[str, str]:
    """A name that a description can hold for each given one; those that can be held stay."""
    names: dict[str, str] = {}
    for old in sorted(map(str, given), key=lambda old: (not _HOLDS.fullmatch(old), old)):
        new = old
        if not _HOLDS.fullmatch(old):
            new = re.sub(r"[^A-Za-z0-9_.:-]+", "_", old)
            new = (new if new[:1].isalpha() else f"n{new}")[:60]
            while new in names.values():
                new = f"{new[:60]}-{len(names)}"
        names[old] = new
    return names


_HOLDS = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")


def _topic(starts: Iterable[str]) -> str:
    """The name of an entry: the job type that it starts, or a topic for several."""
    types = sorted(set(starts))
    return types[0] if len(types) == 1 else next(iter(_names(["-".join(types)]).values()))


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
