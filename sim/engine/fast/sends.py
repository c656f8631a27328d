"""The draws of sends for the kernel: latency and fate of every send that can happen, drawn before the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saqkit.spec.topology import Topology
from saqkit.spec.workload import Arrival
from sim.engine.costs import ProviderCosts
from sim.engine.draws import TEMPORARY, Draws
from sim.engine.fast.tables import providers_used

NOT_PLAIN = np.int8(TEMPORARY)  # the fate at place -1, of a lane that has no user yet: nothing to hurry past
CHUNK = 1 << 15  # of draws at a time: what stays in the processor's cache


class Sends(NamedTuple):
    """A place per send. `next_place` is that of the same user in the job's next attempt, -1 if not drawn."""

    latency: NDArray[np.float64]
    fate: NDArray[np.int8]
    next_place: NDArray[np.int32]


def deal(
    topology: Topology,
    providers: dict[str, ProviderCosts],
    arrivals: Sequence[Arrival],
    seed: int,
    everybody: bool = False,
    most: int = 0,
) -> Sends:
    """First sends of all users of all events, provider by provider, then the sends of retries, attempt by attempt.

    A user is sent to again after a temporary failure, which is known before the run; or, with `everybody`, in any case
    (a job may time out before it comes to them). Retries are drawn until there are `most` of them.
    """
    draws, names = Draws(seed, ()), providers_used(topology)
    paying = {job.per_user.provider for job in topology.job_types.values() if job.work == "payment"}
    sizes = np.array([arrival.users for arrival in arrivals], np.int64)
    starts, users = np.concatenate(([0], np.cumsum(sizes))), int(sizes.sum())
    latency, fate = np.empty(users * len(names)), np.empty(users * len(names), np.int8)
    later: list[tuple[NDArray[np.float64], NDArray[np.int8]]] = []
    links: list[tuple[NDArray[np.int64], int]] = []  # places, and where the same users' next places begin
    drawn = len(latency)

    def draw(name: str, who: NDArray[np.int64] | range, attempt: int) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        timeout_s = topology.providers[name].timeout_s
        again = draws.draw_again if attempt > 1 and name in paying else draws.draw
        if isinstance(who, range):
            event = np.searchsorted(starts, who.start, "right")
            if starts[event] >= who.stop:  # all of one event: its part of the key is hashed once
                numbers = np.arange(who.start + 1, who.stop + 1) - starts[event - 1]
                return draws.draw(providers[name], timeout_s, np.int64(event), numbers, attempt)
            who = np.arange(who.start, who.stop)
        events = np.searchsorted(starts, who, "right")
        return again(providers[name], timeout_s, events, who - starts[events - 1] + 1, attempt)

    for n, name in enumerate(names):
        first = users * n
        for start in range(0, users, CHUNK):
            who = range(start, min(start + CHUNK, users))
            here = slice(first + who.start, first + who.stop)
            latency[here], fate[here] = draw(name, who, 1)
    for n, name in enumerate(names):
        attempts = max(j.retry.max_attempts for j in topology.job_types.values() if j.per_user.provider == name)
        first, fates, people = users * n, fate[users * n : users * (n + 1)], None
        for attempt in range(2, attempts + 1):
            again = np.arange(len(fates)) if everybody else np.flatnonzero(fates == TEMPORARY)
            if not len(again) or drawn - len(latency) > max(most, users):
                break
            people = again if people is None else people[again]
            parts = [draw(name, people[k : k + CHUNK], attempt) for k in range(0, len(people), CHUNK)]
            links.append((again + first, drawn))
            later.append((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))
            first, fates, drawn = drawn, later[-1][1], drawn + len(people)
    next_place = np.full(drawn if links else 0, -1, np.int32)
    for places, begin in links:
        next_place[places] = np.arange(begin, begin + len(places))
    if later:
        latency = np.concatenate([latency, *(part[0] for part in later)])
        fate = np.concatenate([fate, *(part[1] for part in later)])
    return Sends(latency, np.append(fate, NOT_PLAIN), next_place)
