"""The model: the whole system, from an event's creation to the end of its last job.

Read it in this order: `Model` sets the parts up and lets events arrive; `Worker` takes jobs and finishes them, as a
worker process does; `Attempt` is one execution of a job. Everything that a process computes goes through its `Loop`,
everything shared through `Broker` and `Database`; every change of a job's state through `saqkit.spec.lifecycle`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import simpy

from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.lifecycle import Action, crashed
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Arrival, BrokerRestart, ClosedLoop, KillWorker, ProviderOutage, Workload
from sim.engine.attempt import Attempt
from sim.engine.batches import Batches
from sim.engine.choosing_line import line_of
from sim.engine.clients import Clients
from sim.engine.costs import Costs
from sim.engine.draws import Draws
from sim.engine.jobs import Job
from sim.engine.ledger import SharedLedger, shared_channels, ways
from sim.engine.outcome import Outcome, Record
from sim.engine.parts import Broker, Call, Database, Host
from sim.engine.providers import build_turns
from sim.engine.worker import Worker

ENQUEUE_CHUNK = 500  # jobs that the producer enqueues in one round trip


class Model:
    """One simulated run; `run` carries it out.

    `relieved` names a part of `costs.PARTS` with twice its capacity. Times are seconds since the first event. With
    `deadline_s` the run stops there and `Outcome.drained` says so.
    """

    enqueue_chunk = ENQUEUE_CHUNK

    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        workload: Workload,
        costs: Costs,
        seed: int,
        relieved: str = "",
        tick_phase_s: float = 0.0,
    ) -> None:
        deployment.check(topology)
        workload.check(topology, deployment)
        self.topology, self.deployment, self.workload = topology, deployment, workload
        self.costs, self.seed, self.relieved, self.tick_phase_s = costs, seed, relieved, tick_phase_s
        self.env = simpy.Environment()
        self.types = costs.types
        self.arrivals = list(workload.events(topology, seed))
        self.draws = Draws(seed, self.arrivals)
        self.clients = Clients(self, workload.arrivals) if isinstance(workload.arrivals, ClosedLoop) else None
        self.providers = {
            name: replace(provider, latency_scale=0.5) if relieved == "provider" else provider
            for name, provider in costs.providers.items()
        }
        served = self.processes()
        cores = (deployment.cores or costs.cores) * (2 if relieved == "cores" else 1)
        self.hosts = [Host(cores, costs.crowded, len(served)) for _ in range(deployment.hosts)]
        half = 0.5 if relieved == "broker" else 1.0
        self.broker = Broker(self.env, costs.broker_wire_s, costs.broker_cpu_s * half, costs.broker_job_cpu_s * half)
        self.database = Database(self.env, 0.5 if relieved == "database" else 1.0)
        self.network_s = deployment.network_round_trip_ms / 1e3
        self.lines = {}
        for name, queue in topology.queues.items():
            self.lines[name] = line_of(queue, tick_phase_s, relieved == "rate_limit")
        self.idle: dict[str, dict[Worker, None]] = {name: {} for name in topology.queues}
        self.outages: dict[str, list[tuple[float, float]]] = {}
        self.turns = build_turns(self)
        self.record = Record()
        self.ledger = SharedLedger(topology) if shared_channels(topology) else None
        self._ways = ways(topology)
        self.batches = Batches(self)
        self.open_jobs, self.arriving = 0, True
        self.drained = self.env.event()
        self.workers = [
            self.launch(host * len(served) + n, host, queues)
            for host in range(deployment.hosts)
            for n, queues in enumerate(served)
        ]
        for fault in workload.faults:
            self._prepare(fault)

    def processes(self) -> list[tuple[str, ...]]:
        """The queues that each process of a host serves."""
        return self.deployment.processes(self.topology)

    def launch(self, number: int, host: int, queues: Sequence[str]) -> Worker:
        """A worker process."""
        return Worker(self, number, host, queues)

    def slots(self, queue: str) -> int:
        """Slots of `queue` in each process."""
        return self.deployment.slots(self.topology, queue) * (2 if self.relieved == "slots" else 1)

    def run(self, deadline_s: float | None = None) -> Outcome:
        """Let everything arrive and drain."""
        self.env.process(self._arrive())
        until = self.drained if deadline_s is None else self.drained | self.env.timeout(deadline_s)
        self.env.run(until=until)
        return self.record.outcome(self)

    # Arrivals: the producer's side

    def _arrive(self) -> Generator[simpy.Event, Any, None]:
        if self.clients:
            self.clients.begin()
            return
        first_s = self.arrivals[0].at_s if self.arrivals else 0.0
        for arrival in self.arrivals:
            if (gap_s := arrival.at_s - first_s - self.env.now) > 0:
                yield self.env.timeout(gap_s)
            self.admit(arrival)
        self.arriving = False
        if not self.arrivals:
            self.drained.succeed()

    def admit(self, arrival: Arrival) -> None:
        """An event happens now."""
        self.env.process(self._announce(arrival))

    def _announce(self, arrival: Arrival) -> Generator[simpy.Event, Any, None]:
        """The event and its outbox row are written, then its jobs are enqueued, in chunks of one round trip."""
        event_at, users = self.env.now, range(1, arrival.users + 1)
        jobs: list[Job] = []
        for name in self.topology.starts(arrival.entry):
            whole = self.topology.job_types[name].fan_out or not users  # an event for nobody is one job of each type
            parts = [users] if whole else [users[n : n + 1] for n in range(len(users))]
            jobs += [
                self._job(name, arrival.event, event_at, part, arrival.entry.priority, arrival.entry.tenant, "")
                for part in parts
            ]
        self._opened(arrival.event, len(jobs))
        yield self.env.timeout(self.costs.announce_s)
        for n in range(0, len(jobs), self.enqueue_chunk):
            chunk = jobs[n : n + self.enqueue_chunk]
            yield self.env.timeout(self.costs.enqueue_s * len(chunk))
            enqueued = self.env.event()
            self.broker.call(partial(self._put, chunk), _succeed(enqueued), len(chunk), self.network_s)
            yield enqueued

    def _job(
        self,
        name: str,
        event: int,
        event_at: float,
        users: Sequence[int],
        priority: int | None,
        tenant: str,
        parent: str,
        callback: str = "",
    ) -> Job:
        job_type = self.topology.job_types[name]
        place = f"{event}" if job_type.fan_out or not len(users) else f"{event}-{users[0]}"
        if callback:
            place = f"{parent}-{callback}"  # one type can be called back for several reasons
        elif parent and self._ways[name] > 1:
            place = parent  # two ways lead to jobs of the same users: as in the real application they are two jobs
        level = int(job_type.priority if priority is None else priority)
        return Job(f"{name}-{place}", name, job_type, event, event_at, users, level, tenant, parent)

    def _put(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.lines[job.type.queue].put(job, self.env.now)
        for queue in dict.fromkeys(job.type.queue for job in jobs):
            self.wake(queue)

    def enqueue_children(self, parent: Job, to: str, parts: Sequence[Sequence[int]], callback: str = "") -> None:
        """Jobs of type `to` for each part of a job's users; a level or tenant given at the entry goes with them.

        `callback`: which of its batch's callbacks they are.
        """
        own = self.topology.job_types[parent.type_name].priority
        level = None if parent.priority == own else parent.priority
        jobs = [
            self._job(to, parent.event, parent.event_at, part, level, parent.tenant, parent.key, callback)
            for part in parts
        ]
        self._opened(parent.event, len(jobs))
        self.batches.joined(parent, parts)
        self._put(jobs)

    def wake(self, queue: str) -> None:
        """Jobs wait: of the processes that found none, the one that has waited longest asks again."""
        if worker := next(iter(self.idle[queue]), None):
            del self.idle[queue][worker]
            self.later(self.costs.wake_s, partial(worker.wake, queue))

    def later(self, delay_s: float, call: Call) -> None:
        """Call after `delay_s` of simulated time, whatever any loop is doing."""
        self.env.timeout(delay_s).callbacks.append(lambda _: call())

    # What ends an attempt

    def settle(self, attempt: Attempt) -> None:
        """The finishing script: the job goes where its attempt sends it, and the attempt's row is written."""
        job, now = attempt.job, self.env.now
        if job.holder is not attempt:
            return  # fenced: recovery was faster
        job.holder = None
        job.ended(attempt)
        attempt.worker.held.pop(job, None)
        if self.lines[job.type.queue].ended(job, now) and attempt.action != Action.RETRY:
            self.wake(job.type.queue)
        if attempt.action == Action.RETRY:
            u = uniform(self.seed, Stream.JITTER, job.event, job.first, job.attempt)
            self.record.add(attempt, now, "retry", len(attempt.refused))
            self.lines[job.type.queue].retry(job, now, job.type.retry.delay_after(job.attempt, u))
            self.wake(job.type.queue)  # somebody has to know when it is due
            job.attempt += 1
            if not job.type.fan_out:
                job.left = attempt.again
            return
        job.step(attempt.action)
        if attempt.action == Action.BURY:
            self.record.add(attempt, now, "dead", len(attempt.refused) + len(attempt.again))
        else:
            self.record.add(attempt, now, "done", len(attempt.refused))
            for edge in job.type.follow_up:
                self.enqueue_children(job, edge.to, job.followed())
        self.batches.ended(job, attempt.action == Action.BURY)
        self._close(job)

    def _opened(self, event: int, jobs: int) -> None:
        self.open_jobs += jobs
        if self.clients:
            self.clients.opened(event, jobs)

    def _close(self, job: Job) -> None:
        self.open_jobs -= 1
        if self.clients:
            self.clients.ended(job.event)
        if not self.open_jobs and not self.arriving and not self.drained.triggered:
            self.drained.succeed()

    # Faults

    def _prepare(self, fault: KillWorker | ProviderOutage | BrokerRestart) -> None:
        match fault:
            case ProviderOutage():
                self.outages.setdefault(fault.provider, []).append((fault.at_s, fault.at_s + fault.duration_s))
            case BrokerRestart():
                self.broker.down.append((fault.at_s, fault.at_s + fault.down_s))
                self.broker.down.sort()
            case KillWorker():
                self.later(fault.at_s, partial(self._kill, self.workers[fault.worker]))

    def _kill(self, worker: Worker) -> None:
        if not worker.loop.alive:
            return
        worker.kill()
        now = self.env.now
        for queue in worker.queues:
            every_s = self.topology.queues[queue].lease_s / 3  # a thread renews them from its first claim on
            renewed_at = now - (now - worker.renews_from) % every_s if now >= worker.renews_from else now
            held = [attempt for attempt in worker.held.values() if attempt.job.type.queue == queue]
            if held:
                last = max(renewed_at, *(attempt.taken_at for attempt in held))
                expires_s = last + self.topology.queues[queue].lease_s - now
                self.later(expires_s, partial(self._await_sweep, queue, held))
        self.later(self.costs.restart_s, worker.start)

    def _await_sweep(self, queue: str, held: list[Attempt]) -> None:
        """The leases of `held` are over; every process sweeps at its own moments, and one may have to start first."""
        now, every_s = self.env.now, self.topology.queues[queue].sweep_s
        alive = [worker for worker in self.workers if worker.loop.alive and queue in worker.queues]
        if alive:
            self.later(min((w.sweeps_from - now) % every_s for w in alive), partial(self._recover, queue, held))
        else:
            self.later(every_s / 100, partial(self._await_sweep, queue, held))

    def _recover(self, queue: str, held: list[Attempt]) -> None:
        """A sweep found expired leases: their jobs go back to their old places, all at once."""
        for attempt in reversed(held):
            job = attempt.job
            if job.holder is not attempt:
                continue  # its finish had been sent before the process died
            job.holder = None
            job.ended(attempt)
            job.crashes += 1
            durable = set(attempt.sent[: attempt.durable])
            gone = durable | set(attempt.refused)
            left = [user for user in attempt.users if user not in gone]
            action = crashed(job.crashes)
            attempt.sent, attempt.error = [*durable], "WorkerLost"
            poisoned = len(left) if action == Action.POISON and not job.type.fan_out else 0
            self.record.add(attempt, self.env.now, "lost", len(attempt.refused) + poisoned)
            if not job.type.fan_out:
                job.left = left
            if action == Action.RECOVER:
                self.lines[queue].put_back(job, self.env.now)
            else:
                job.step(action)
                self.lines[queue].ended(job, self.env.now)
                self.batches.ended(job, dead=True)
                self._close(job)
        self.wake(queue)


def _succeed(event: simpy.Event) -> Callable[[None], None]:
    def call(_: None) -> None:
        event.succeed()

    return call
