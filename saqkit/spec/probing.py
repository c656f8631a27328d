"""What a host's probe found: how fast this machine does the kit's fixed work, and how its timers and broker answer."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from saqkit.spec.base import Part

TURNS_PER_US = 40
"""Turns of the reference loop that count as one nominal microsecond: work is fixed, its duration tells the speed.

An ordinary core of the 2020s does 30 to 50 in a microsecond (CPython 3.11 to 3.13), so that `cpu_scale` is about 1.
"""


class QueueProbe(Part):
    """What the queue costs on a host, from short real runs of one worker process with ten slots.

    `busy` is a burst of jobs that do nothing, `slow` the same jobs one at a time, 20 ms apart, so that each finds a
    process asleep. `job_cpu_s` is the worker's CPU per job (take, run, finish), `broker_cpu_s` the server's,
    `round_trips` how often the server read from a client, per job; what an idle process and the run itself take by the
    second (`idle_cpu`, a share of a core) is taken off. `wake_s` is from enqueued to taken by a sleeping process,
    `database_write_s` one commit of 25 users' results, both medians.
    """

    busy_job_cpu_s: NonNegativeFloat
    slow_job_cpu_s: NonNegativeFloat
    busy_broker_cpu_s: NonNegativeFloat
    slow_broker_cpu_s: NonNegativeFloat
    busy_round_trips: NonNegativeFloat
    slow_round_trips: NonNegativeFloat
    idle_cpu: NonNegativeFloat
    wake_s: NonNegativeFloat
    database_write_s: NonNegativeFloat


class Probe(Part):
    """What `saqkit.probe()` measured; stored in every run, there without `queue`, which takes longer.

    `cpu_scale` is real CPU seconds per nominal second of the fixed work inside a saturated event loop;
    `cpu_scale_crowded` is the same in wall seconds with one such process on every core at once (above `cpu_scale`
    where cores share their speed). `timer_overshoot_s` is how late an idle event loop wakes from a timer, beyond
    rounding up to whole `timer_resolution_s`. Broker times are of one round trip of a small script by one client.
    `spread` is (largest - smallest) / mean of the repeats of `cpu_scale`; `other_load` the share of all cores that
    other processes took meanwhile: a probe with much of it tells little.
    """

    cores: PositiveInt
    cpu_scale: PositiveFloat
    cpu_scale_crowded: PositiveFloat
    timer_resolution_s: NonNegativeFloat
    timer_overshoot_s: NonNegativeFloat
    broker_round_trip_s: PositiveFloat
    broker_cpu_s: NonNegativeFloat
    client_cpu_s: NonNegativeFloat
    spread: NonNegativeFloat
    other_load: NonNegativeFloat = 0.0
    broker: str
    host: str
    python: str
    taken_on: str
    queue: QueueProbe | None = None
