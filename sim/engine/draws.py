"""The draws of one simulated run: the same numbers, by the same keys, that the real engine uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saqkit.spec.draws import LOST_SHARE, Stream, uniforms
from saqkit.spec.workload import Arrival
from sim.engine.costs import ProviderCosts

SENT, TEMPORARY, PERMANENT = 0, 1, 2


class Draws:
    """Provider latencies and fates, drawn for all users of all events at once where they are sure to be needed."""

    def __init__(self, seed: int, arrivals: Sequence[Arrival]) -> None:
        self.seed = seed
        counts = np.array([arrival.users for arrival in arrivals], dtype=np.int64)
        self._start = np.concatenate(([0], np.cumsum(counts)))
        self._events = np.repeat(np.array([arrival.event for arrival in arrivals], dtype=np.int64), counts)
        self._users = np.arange(1, len(self._events) + 1) - np.repeat(self._start[:-1], counts)
        self._first: dict[str, tuple[NDArray[np.float64], NDArray[np.int8]]] = {}

    def sends(
        self,
        name: str,
        provider: ProviderCosts,
        timeout_s: float,
        event: int,
        users: Sequence[int],
        attempt: int,
        pays: bool = False,
    ) -> tuple[list[float], list[int]]:
        """Latency in seconds and fate (`SENT`, `TEMPORARY`, `PERMANENT`) of one send to each of `users`.

        `pays`: it is a charge, so that another attempt first asks for that of an earlier one.
        """
        if attempt > 1 or event >= len(self._start):  # nobody knew of the event beforehand
            draw = self.draw_again if pays and attempt > 1 else self.draw
            latency, fate = draw(provider, timeout_s, np.int64(event), np.asarray(users, np.int64), attempt)
            return latency.tolist(), fate.tolist()
        if name not in self._first:
            self._first[name] = self.draw(provider, timeout_s, self._events, self._users, 1)
        latency, fate = self._first[name]
        start = int(self._start[event - 1])
        if isinstance(users, range):
            place = slice(start + users.start - 1, start + users.stop - 1)
            return latency[place].tolist(), fate[place].tolist()
        places = np.asarray(users) + (start - 1)
        return latency[places].tolist(), fate[places].tolist()

    def draw(
        self,
        provider: ProviderCosts,
        timeout_s: float,
        events: NDArray[np.int64] | np.int64,
        users: NDArray[np.int64],
        attempt: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """Latency and fate of attempt number `attempt` at each of `users`."""
        latency = provider.latency.quantiles(uniforms(self.seed, Stream.LATENCY, events, users, attempt))
        latency = latency * provider.latency_scale
        fate = np.zeros(len(users), np.int8)
        if provider.permanent_share:
            fate[uniforms(self.seed, Stream.PERMANENT, events, users) < provider.permanent_share] = PERMANENT
        if provider.temporary_share:
            late = uniforms(self.seed, Stream.TEMPORARY, events, users, attempt) < provider.temporary_share
            fate[late] = TEMPORARY
        fate[latency > timeout_s] = TEMPORARY
        return np.minimum(latency, timeout_s), fate

    def draw_again(
        self,
        provider: ProviderCosts,
        timeout_s: float,
        events: NDArray[np.int64] | np.int64,
        users: NDArray[np.int64],
        attempt: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """The same of a charge whose answer an earlier attempt did not get: the provider is first asked whether it was
        made, and only if not it is made now, as `saqkit.app.shop.payment_provider` does it.
        """
        made = self._charged(provider, events, users, 1)
        for number in range(2, attempt):
            told = self._asking_s(provider, events, users, number) <= timeout_s
            made |= told & self._charged(provider, events, users, number)
        asking = self._asking_s(provider, events, users, attempt)
        latency, fate = self.draw(provider, timeout_s, events, users, attempt)
        found = self._fates(provider, events, users)
        late = asking > timeout_s
        fate = np.where(late, TEMPORARY, np.where(made, found, fate)).astype(np.int8)
        return np.minimum(asking, timeout_s) + np.where(late | made, 0.0, latency), fate

    def _asking_s(
        self, provider: ProviderCosts, events: NDArray[np.int64] | np.int64, users: NDArray[np.int64], attempt: int
    ) -> NDArray[np.float64]:
        """How long the provider takes to say whether it has made a charge."""
        drawn = provider.latency.quantiles(uniforms(self.seed, Stream.FINDING, events, users, attempt))
        return np.asarray(drawn * provider.latency_scale)

    def _charged(
        self, provider: ProviderCosts, events: NDArray[np.int64] | np.int64, users: NDArray[np.int64], attempt: int
    ) -> NDArray[np.bool_]:
        """Whether a charge was made by an attempt that came to ask for it: unless the provider said "later"."""
        trouble = uniforms(self.seed, Stream.TEMPORARY, events, users, attempt)
        share = provider.temporary_share
        return (trouble < share * LOST_SHARE) | (trouble >= share)

    def _fates(
        self, provider: ProviderCosts, events: NDArray[np.int64] | np.int64, users: NDArray[np.int64]
    ) -> NDArray[np.int8]:
        declined = uniforms(self.seed, Stream.PERMANENT, events, users) < provider.permanent_share
        return np.where(declined, PERMANENT, SENT).astype(np.int8)
