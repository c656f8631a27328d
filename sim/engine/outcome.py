"""What a simulated run leaves behind: its attempts table, and how busy each part was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from saqkit.spec import trace
from sim.engine.costs import PARTS

if TYPE_CHECKING:
    from sim.engine.attempt import Attempt
    from sim.engine.model import Model
    from sim.engine.parts import Window

COLUMNS = tuple(name for name in trace.ATTEMPTS if name not in ("run", "replication"))


@dataclass(frozen=True)
class Outcome:
    """`drained` is false if the deadline came first; `utilisation` is a share of each part's capacity, `wakes` of
    loops.
    """

    rows: Mapping[str, list[Any]]
    utilisation: Mapping[str, float]
    drained: bool
    ended_at_s: float
    wakes: int

    def attempts(self, replication: int = 0, run: str = "predicted") -> pd.DataFrame:
        """The attempts table."""
        count = len(self.rows["job"])
        return trace.attempts_frame({"run": [run] * count, "replication": [replication] * count, **self.rows})


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
        span_s = model.env.now or float("inf")
        slots = sum(model.slots(queue) for worker in model.workers for queue in worker.queues)
        windows = [line.window for line in model.lines.values() if line.window]
        shares = {
            "slots": self._slot_s / (slots * span_s),
            "loop": sum(worker.busy_s + worker.loop.busy_s for worker in model.workers) / (len(model.workers) * span_s),
            "cores": sum(host.core_s for host in model.hosts) / (sum(host.cores for host in model.hosts) * span_s),
            "broker": model.broker.busy_s / span_s,
            "database": model.database.busy_s / span_s,
            "provider": self._provider_s / self._lane_s if self._lane_s else 0.0,
            "rate_limit": max((_admitted_share(window, span_s) for window in windows), default=0.0),
        }
        rows = dict(zip(COLUMNS, ([*column] for column in zip(*self._rows, strict=True)), strict=False))
        return Outcome(
            rows or {name: [] for name in COLUMNS},
            {part: min(1.0, shares[part]) for part in PARTS},
            model.drained.triggered,
            model.env.now,
            sum(worker.loop.wakes for worker in model.workers),
        )


def _admitted_share(window: Window, span_s: float) -> float:
    limit = window.limit
    return window.admitted * limit.period_s / (limit.limit * (span_s + limit.period_s))
