"""What a measured run shows of each cost: pure functions from its tables to samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.errors import DescriptionError, ProfileError
from saqkit.spec import trace
from saqkit.spec.draws import Stream, uniforms
from saqkit.spec.probing import Probe
from saqkit.spec.runs import Run
from saqkit.spec.workload import KillWorker
from sim.fit.profile import Profile
from sim.prediction import Scenario

WAITS = 5  # of an attempt besides those for its users: being taken, the database twice, being finished


def fingerprint(run: Run) -> str:
    """Sixteen hexadecimal digits that only this run has."""
    times = run.attempts[["queued_at", "started_at", "finished_at"]].to_numpy(float)
    return hashlib.sha256(repr((run.topology.name, run.seed)).encode() + times.tobytes()).hexdigest()[:16]


def tick_phase_s(run: Run) -> float:
    """Where the broker's tick stood at the run's first event, from the jobs that woke on it; 0 if none did."""
    later = run.attempts[(run.attempts["attempt"] > 1) & (run.attempts["crashes"] == 0)]
    for queue, rows in later.groupby("queue"):
        tick_s = run.topology.queues[str(queue)].tick_s
        return float(rows["ready_at"].iloc[0] % tick_s)
    return 0.0


@dataclass(frozen=True)
class Observed:
    """A run and its probe, with what can be read off them."""

    run: Run
    probe: Probe
    believed: Profile = field(default_factory=Profile.nominal)
    """What the host is taken to be, to count what only a simulation can."""

    @classmethod
    def of(cls, run: Run) -> Observed:
        """Check that `run` can be fitted; `ProfileError` with the reason if not."""
        if not run.probe:
            raise ProfileError(f"{run.name}: the run has no probe of its host; measure it again, or without --no-probe")
        if not (run.attempts["users_done"] > 0).any():
            raise ProfileError(f"{run.name}: no user was served in this run, so there is nothing to fit")
        try:
            return cls(run, Probe.parse(run.probe, f"{run.name}: probe"))
        except DescriptionError as error:
            raise ProfileError(str(error)) from error

    @cached_property
    def span_s(self) -> float:
        """Makespan in seconds."""
        return trace.makespan_s(self.run.attempts)

    @cached_property
    def processes_cpu_s(self) -> float:
        """CPU of all worker processes during the run, NaN if it was not recorded."""
        found = [worker.get("cpu_s") for worker in self.run.workers]
        return float(sum(x for x in found if x is not None)) if found and None not in found else float("nan")

    @cached_property
    def loops_cpu_s(self) -> float:
        """CPU of the event loops alone, without the threads of the database; of the processes if it is not known."""
        found = [worker.get("loop_cpu_s") for worker in self.run.workers]
        known = [float(x) for x in found if x is not None]
        return sum(known) if known and len(known) == len(found) else self.processes_cpu_s

    @property
    def loops_busy(self) -> float:
        """The share of the run for which the processes computed, NaN if it was not recorded."""
        return self.loops_cpu_s / (self.span_s * max(1, len(self.run.workers)))

    @cached_property
    def processes_s(self) -> float:
        """Seconds for which the worker processes were up, from ready to drained, all together."""
        return sum(self.span_s + max(0.0, -float(worker.get("ready_at") or 0.0)) for worker in self.run.workers)

    @cached_property
    def wakes(self) -> float:
        """How often loops woke from sleep, by how cold each was, as a simulation with the run's own draws counts."""
        run = self.run
        scenario = Scenario(run.topology, run.deployment, run.workload, self.believed, run.seed, same_draw=True)
        return scenario.run().wakes

    @cached_property
    def wakes_per_step(self) -> float:
        """Wakes for each thing that a loop waited for: 1 when little goes on, less when one wake serves many."""
        attempts = self.run.attempts
        return min(1.0, self.wakes / (float(attempts["users"].sum()) + WAITS * len(attempts)))

    @cached_property
    def slowdown(self) -> float:
        """How much longer CPU work took than on an idle host, because cores were shared."""
        cpu_s = self.processes_cpu_s
        busy = 0.0 if cpu_s != cpu_s else min(1.0, cpu_s / (self.span_s * self.probe.cores))
        return 1 + (max(1.0, self.probe.cpu_scale_crowded / self.probe.cpu_scale) - 1) * busy

    def attempts_of(self, job_type: str) -> pd.DataFrame:
        """Attempts that ran to an end of their own."""
        frame = self.run.attempts
        ended = frame["outcome"].isin(["done", "retry", "dead"]) & (frame["error"] != "TimeoutError")
        return frame[(frame["job_type"] == job_type) & ended & frame["started_at"].notna()]

    def described_cpu_s(self, job_type: str, users: NDArray[np.float64]) -> NDArray[np.float64]:
        """Nominal CPU seconds that the description gives an attempt of `users` users."""
        spec = self.run.topology.job_types[job_type]
        return 1e-6 * (spec.cpu_us + (0.0 if spec.fan_out else spec.per_user.cpu_us) * users)

    def database_steps(self, job_type: str) -> pd.DataFrame:
        """Steps of whole jobs: `users`, `place` from the start (0, 1, …) and `back` from the end (0 = last),
        `took_s`.
        """
        steps = self.run.steps
        steps = steps[(steps["step"] == "database") & (steps["user"] == 0)].copy()
        groups = steps.groupby(["job", "attempt"], sort=False)
        steps["place"] = groups.cumcount()
        steps["back"] = groups.cumcount(ascending=False)
        known = self.attempts_of(job_type)[["job", "attempt", "users"]]
        joined: pd.DataFrame = steps.merge(known, on=["job", "attempt"])
        return joined[["users", "place", "back", "took_s"]]

    def provider_steps(self, provider: str) -> pd.DataFrame:
        """Sampled sends to `provider`: `drawn_s` (what the draws say, NaN if it is not simulated) and `took_s`."""
        topology = self.run.topology
        types = [name for name, job in topology.job_types.items() if job.per_user.provider == provider]
        steps = self.run.steps[self.run.steps["step"] == "provider"]
        frame = self.run.attempts
        known = frame[frame["job_type"].isin(types)][["job", "attempt", "event"]]
        joined: pd.DataFrame = steps.merge(known, on=["job", "attempt"])
        joined["drawn_s"] = np.nan
        spec = topology.providers[provider]
        if spec.kind == "simulated" and len(joined):
            events = pd.to_numeric(joined["event"], errors="coerce").fillna(0).to_numpy(np.int64)
            u = uniforms(self.run.seed, Stream.LATENCY, events, joined["user"].to_numpy(), joined["attempt"].to_numpy())
            joined["drawn_s"] = np.minimum(spec.latency.quantiles(u), spec.timeout_s)
        return joined[["drawn_s", "took_s"]]

    def timer_lateness_s(self) -> NDArray[np.float64]:
        """How late sends came back, beyond their drawn latency; empty if loops were too busy to show the timer."""
        if self.loops_busy > 0.3:
            return np.empty(0)
        late = [s["took_s"] - s["drawn_s"] for s in map(self.provider_steps, self.run.topology.providers)]
        joined = np.concatenate([x.to_numpy(float) for x in late]) if late else np.empty(0)
        return np.asarray(joined[joined > -0.001])  # far below: refused at once during an outage

    def first_jobs(self) -> pd.DataFrame:
        """The job that each event enqueued first."""
        frame = self.run.attempts
        roots = frame[(frame["parent"] == "") & (frame["attempt"] == 1) & (frame["crashes"] == 0)]
        return roots.sort_values("queued_at").groupby("event", sort=False).head(1)

    def wakes_s(self) -> NDArray[np.float64]:
        """From enqueued to taken, of first jobs that found the system empty."""
        first, frame = self.first_jobs(), self.run.attempts
        begun = np.sort(frame["ready_at"].to_numpy(float))
        ended = np.sort(frame["finished_at"].to_numpy(float))
        at = first["ready_at"].to_numpy(float)
        idle = np.searchsorted(begun, at, side="left") == np.searchsorted(ended, at, side="left")
        return np.asarray((first["taken_at"] - first["ready_at"]).to_numpy(float)[idle])

    def announcing_s(self) -> NDArray[np.float64]:
        """From an event to its first enqueued job."""
        first = self.first_jobs()
        return np.asarray((first["queued_at"] - first["event_at"]).to_numpy(float))

    def enqueueing_s(self) -> NDArray[np.float64]:
        """Seconds per job while the producer enqueued many jobs of one event."""
        roots = self.run.attempts[(self.run.attempts["parent"] == "") & (self.run.attempts["attempt"] == 1)]
        spans = roots.groupby("event")["queued_at"].agg(["min", "max", "size"])
        spans = spans[(spans["size"] >= 100) & (spans["max"] > spans["min"])]
        return np.asarray(((spans["max"] - spans["min"]) / spans["size"]).to_numpy(float))

    def restarts_s(self) -> list[float]:
        """From each kill to the new process' being ready."""
        kills = sorted(fault.at_s for fault in self.run.workload.faults if isinstance(fault, KillWorker))
        ready = sorted(float(w["ready_at"]) for w in self.run.workers if w.get("ready_at") is not None)
        return [min(later) - at for at in kills if (later := [x for x in ready if at < x < at + 60])]
