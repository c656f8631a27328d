"""The clients of a closed loop in a measured run: each waits until its event is drained before it sends the next."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from saqkit.producing import Producer
from saqkit.queue.cancelling import heed_cancellation
from saqkit.spec.lifecycle import POISON_CRASHES
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Arrival, ClosedLoop, entry_of
from saqkit.worker.recording import Row


class Watch:
    """Tells from the recorded attempts, in whatever order they come, when an event is drained.

    What a job leads to is known when it is done: a fan-out to its batches, an edge to one job more. A job that is seen
    before the one that led to it is owed until then. An event whose fan-out died is taken to be drained: how many
    batches it had enqueued is not known.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._users: dict[str, int] = {}
        self._left: dict[str, Counter[str]] = {}

    def expect(self, arrival: Arrival) -> None:
        """An event is sent."""
        self._users[str(arrival.event)] = arrival.users
        self._left[str(arrival.event)] = left = Counter[str]()
        for name in self._topology.starts(arrival.entry):
            left[name] += 1 if self._topology.job_types[name].fan_out else arrival.users

    def see(self, rows: Sequence[Row]) -> list[int]:
        """Attempts have ended: the events that are drained by that."""
        drained = []
        for row in rows:
            event, outcome = row["event"], row["outcome"]
            poisoned = outcome == "lost" and row["crashes"] >= POISON_CRASHES
            if event not in self._left or not (poisoned or outcome in ("done", "dead", "cancelled")):
                continue
            left, spec = self._left[event], self._topology.job_types[row["job_type"]]
            left[row["job_type"]] -= 1
            if outcome == "done":
                for edge in spec.follow_up:
                    left[edge.to] += 1
                if spec.fan_out:
                    left[spec.fan_out.to] += -(-self._users[event] // spec.fan_out.batch_size)
            if (spec.fan_out and outcome != "done") or not any(left.values()):
                drained.append(int(event))
                del self._left[event], self._users[event]
        return drained


class Clients:
    """All clients of one run. They look for what is drained every 10 ms, as those of the model do."""

    def __init__(self, loop: ClosedLoop, topology: Topology, seed: int, producer: Producer) -> None:
        self._loop, self._topology, self._seed, self._producer = loop, topology, seed, producer
        self._watch = Watch(topology)
        self._sent: dict[int, tuple[int, int]] = {}
        self._due: list[tuple[float, int, int]] = [(0.0, client, 0) for client in range(1, loop.clients + 1)]

    async def send(self, started_at: float, read: Callable[[], Awaitable[Sequence[Row]]]) -> None:
        """Send events until the loop's time is over or nobody sends any more; `read` brings new attempts.

        Whose event is not drained by then sends no other one. `started_at` in Unix seconds.
        """
        taking_in = asyncio.create_task(self._producer.take_in(), name="saqkit-producer")
        try:
            while (self._due or self._sent) and not taking_in.done():
                heed_cancellation()
                now_s = time.time() - started_at
                if now_s >= self._loop.duration_s:
                    break
                self._let_happen(now_s)
                next_s = min([due[0] for due in self._due], default=self._loop.duration_s)
                looks_s = self._loop.known_s(now_s) if self._sent else next_s
                await asyncio.sleep(min(looks_s, next_s, self._loop.duration_s) + started_at - time.time())
                if self._sent:
                    self._learn(self._watch.see(await read()), time.time() - started_at)
            self._producer.close()
            await taking_in
        finally:
            taking_in.cancel()
            await asyncio.wait([taking_in])

    def _let_happen(self, now_s: float) -> None:
        due = sorted(one for one in self._due if one[0] <= now_s)
        self._due = [one for one in self._due if one[0] > now_s]
        for _, client, turn in due:
            event = self._loop.event(client, turn)
            entry = entry_of(self._topology, self._seed, event)
            arrival = Arrival(event, now_s, self._loop.users_per_event, entry)
            self._sent[event] = client, turn
            self._watch.expect(arrival)
            self._producer.happens(arrival)

    def _learn(self, drained: Sequence[int], now_s: float) -> None:
        for event in drained:
            client, turn = self._sent.pop(event)
            next_s = self._loop.next_s(self._seed, client, turn, now_s)
            if next_s is not None:
                self._due.append((next_s, client, turn + 1))
