"""The clients of a closed loop: what they send next depends on how fast they were served."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from saqkit.spec.workload import Arrival, ClosedLoop, entry_of

if TYPE_CHECKING:
    from sim.engine.model import Model


class Clients:
    """They watch their events: one whose jobs have all ended lets its client think, and then send the next."""

    def __init__(self, model: Model, loop: ClosedLoop) -> None:
        self._model, self._loop = model, loop
        self._sent: dict[int, tuple[int, int]] = {}  # client and turn of each event under way
        self._open: dict[int, int] = {}  # its jobs that have not ended
        self._active = loop.clients

    def begin(self) -> None:
        """Each sends its first event."""
        for client in range(1, self._loop.clients + 1):
            self._send(client, 0)

    def opened(self, event: int, jobs: int) -> None:
        """So many jobs were added to an event."""
        self._open[event] = self._open.get(event, 0) + jobs

    def ended(self, event: int) -> None:
        """A job of an event has ended; with the last of all events nothing arrives any more."""
        self._open[event] -= 1
        if self._open[event]:
            return
        del self._open[event]
        if event not in self._sent:
            return  # one of its jobs was brought back after its end
        model, (client, turn) = self._model, self._sent.pop(event)
        at_s = self._loop.next_s(model.seed, client, turn, self._loop.known_s(model.env.now))
        if at_s is not None:
            model.later(at_s - model.env.now, partial(self._send, client, turn + 1))
            return
        self._active -= 1
        model.arriving = self._active > 0

    def _send(self, client: int, turn: int) -> None:
        model, event = self._model, self._loop.event(client, turn)
        self._sent[event] = client, turn
        entry = entry_of(model.topology, model.seed, event)
        model.admit(Arrival(event, model.env.now, self._loop.users_per_event, entry))
