"""What a simulated run leaves behind: its attempts table, and how busy each part was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from saqkit.spec import trace
from sim.engine.costs import PARTS

if TYPE_CHECKING:
    from sim.engine.attempt import Attempt
    from sim.engine.model import Model

COLUMNS = tuple(name for name in trace.ATTEMPTS if name not in ("run", "replication"))


@dataclass(frozen=True)
class Outcome:
    """`drained` is false if the deadline came first; `utilisation` is a share of each part's capacity, `wakes`
    how often loops woke, each counted by how cold it was (see `Loop`), `threads_s` for how long database threads
    computed.
    """

    rows: Mapping[str, Any]
    utilisation: Mapping[str, float]
    drained: bool
    ended_at_s: float
    wakes: float
    threads_s: float

    def attempts(self, replication: int = 0, run: str = "predicted") -> pd.DataFrame:
        """The attempts table."""
        count = len(self.rows["attempt"])
        return trace.attempts_frame({"run": [run] * count, "replication": [replication] * count, **self.rows})

    def measures(self) -> dict[str, float]:
        """The measures of the run by name, see `saqkit.spec.trace.measures`."""
        return trace.measures(self.rows)


class Record:
    """Collects a row for each attempt that ends."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._slot_s = self._provider_s = self._lane_s = 0.0

    def add(self, attempt: Attempt, finished_at: float, outcome: str, users_failed: int) -> None:
        """`attempt` ended; its row in the order of `COLUMNS`."""
        job, fan_out = attempt.job, attempt.job.type.fan_out is not None
        if attempt.started_at == attempt.started_at:
            took_s = finished_at - attempt.started_at
            self._slot_s += took_s
            self._lane_s += took_s * max(1, min(job.type.send_concurrency, len(attempt.users)))
        self._provider_s += attempt.provider_s
        self._rows.append(
            (
                str(job.event),
                job.event_at,
                job.key,
                job.type_name,
                job.type.queue,
                job.parent,
                job.priority,
                job.tenant,
                job.attempt,
                job.crashes,
                0 if fan_out else len(attempt.users),
                0 if fan_out else len(attempt.sent),
                0 if fan_out else users_failed,
                job.queued_at,
                job.ready_at,
                attempt.taken_at,
                attempt.started_at,
                finished_at,
                outcome,
                attempt.worker.name,
                f"h{attempt.worker.host}",
                attempt.cpu_s,
                attempt.provider_s,
                attempt.database_s,
                attempt.error,
            )
        )

    def outcome(self, model: Model) -> Outcome:
        """The run so far."""
        slots = sum(model.slots(queue) for worker in model.workers for queue in worker.queues)
        utilisation = shares(
            span_s=model.env.now,
            slot_s=self._slot_s,
            slots=slots,
            loop_s=sum(worker.busy_s + worker.loop.busy_s for worker in model.workers),
            loops=len(model.workers),
            core_s=sum(host.core_s for host in model.hosts),
            cores=sum(host.cores for host in model.hosts),
            broker_s=model.broker.busy_s,
            database_s=model.database.busy_s,
            provider_s=self._provider_s,
            lane_s=self._lane_s,
            limits=[limit for line in model.lines.values() for limit in line.limits()],
            places=max(line.places_used(model.env.now or float("inf")) for line in model.lines.values()),
        )
        rows = dict(zip(COLUMNS, ([*column] for column in zip(*self._rows, strict=True)), strict=False))
        return Outcome(
            rows or {name: [] for name in COLUMNS},
            utilisation,
            model.drained.triggered,
            model.env.now,
            sum(worker.loop.wakes for worker in model.workers),
            sum(worker.lent_s + worker.loop.lent_s for worker in model.workers),
        )


def shares(
    *,
    span_s: float,
    slot_s: float,
    slots: int,
    loop_s: float,
    loops: int,
    core_s: float,
    cores: int,
    broker_s: float,
    database_s: float,
    provider_s: float,
    lane_s: float,
    limits: Sequence[tuple[float, int, float]],
    places: float = 0.0,
) -> dict[str, float]:
    """The share of each part's capacity that was used in `span_s`, at most 1.

    Seconds of work of all slots, loops, cores, the broker and the database writer; `provider_s` of `lane_s` that users
    were served in; per rate limit the weight admitted, the limit and its period (0: no limit), and the share
    of places used where fewest jobs may run at once.
    """
    span_s = span_s or float("inf")
    used = {
        "slots": slot_s / (slots * span_s),
        "loop": loop_s / (loops * span_s),
        "cores": core_s / (cores * span_s),
        "broker": broker_s / span_s,
        "database": database_s / span_s,
        "provider": provider_s / lane_s if lane_s else 0.0,
        "rate_limit": max([a * period_s / (n * (span_s + period_s)) for a, n, period_s in limits if n] + [places]),
    }
    return {part: min(1.0, used[part]) for part in PARTS}
