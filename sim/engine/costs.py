"""What one simulated run is charged: the numbers that a description does not hold and a profile does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saqkit.spec.distributions import AnyDistribution

PARTS = ("slots", "loop", "cores", "broker", "database", "provider", "rate_limit")
"""What can be a bottleneck, and what can be relieved."""


@dataclass(frozen=True)
class TypeCosts:
    """What a job type costs beyond its description, in seconds on the profile's host.

    `job_cpu_s` and `user_cpu_s` are spent on the event loop, beside the described work; a fan-out's users cost
    `user_cpu_s` each, its pages `page_cpu_s` and the batches that it enqueues `batch_cpu_s`. `open_*` is the
    transaction at the start of a batch, `flush_*` the commit that its end waits for, `page_s` and `page_user_s` reading
    a page in a fan-out, or an event; each a fixed part and a part per user.
    """

    job_cpu_s: float
    user_cpu_s: float
    page_cpu_s: float
    batch_cpu_s: float
    open_s: float
    open_user_s: float
    flush_s: float
    flush_user_s: float
    page_s: float
    page_user_s: float


@dataclass(frozen=True)
class ProviderCosts:
    """A provider as it is modelled: as described, or as measured where it is not simulated."""

    latency: AnyDistribution
    temporary_share: float
    permanent_share: float
    latency_scale: float = 1.0


@dataclass(frozen=True)
class Costs:
    """Everything that one simulated run is charged; CPU times hold on an otherwise idle core.

    `crowded` is how much longer CPU work takes when every core is busy. `queue_cpu_s` is what taking and finishing
    one job costs the loop, `client_cpu_s` one call to the broker, `handing_s` one transaction of the database, which
    a thread carries out, and `cold_s` what a loop that was asleep spends on waking up. Threads and loop share one
    interpreter, for which a thread waits `switch_s` at most (0: they need not wait for each other). Blocking calls
    with a timeout end on the broker's own clock of `broker_clock_s`. `wake_s` is from a job's arrival to the answer
    of an idle process' blocking call, `announce_s` from an event to its first enqueueing call, `enqueue_s` the
    producer's time for one more job.
    """

    cores: int
    cpu_scale: float
    crowded: float
    timer_resolution_s: float
    timer_overshoot_s: float
    broker_wire_s: float
    broker_cpu_s: float
    broker_job_cpu_s: float
    client_cpu_s: float
    cold_s: float
    broker_clock_s: float
    queue_cpu_s: float
    wake_s: float
    announce_s: float
    enqueue_s: float
    restart_s: float
    handing_s: float
    switch_s: float
    types: Mapping[str, TypeCosts]
    providers: Mapping[str, ProviderCosts]
