"""What stands before a provider: its rate over all processes, and in each process its connections and its circuit."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from saqkit.spec.circuit import Circuit
from saqkit.spec.topology import Provider, SendRate
from saqkit.spec.turns import MOST_AT_ONCE, Slack
from sim.engine.draws import TEMPORARY
from sim.engine.parts import Call

if TYPE_CHECKING:
    from sim.engine.attempt import Attempt
    from sim.engine.model import Model
    from sim.engine.worker import Worker


class Turns:
    """The turns of a provider's rate, as the broker keeps them: when each leaves the window, and its number."""

    def __init__(self, rate: SendRate) -> None:
        self.rate = rate
        self._leaving: list[tuple[float, int]] = []
        self._number = 0

    def reserve(self, now_s: float, slack_s: float, many: int, unused: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Number of, and seconds until, each of the next `many` turns, which may be used `slack_s` after they come.

        Turns that nobody took are given back: `unused`.
        """
        turns, limit = [], self.rate.limit
        if unused:
            self._leaving = [turn for turn in self._leaving if turn[1] not in unused]
        leaving = self._leaving
        del leaving[: bisect_right(leaving, (now_s, self._number))]
        for _ in range(many):
            turn_s = max(now_s, leaving[-limit][0]) if len(leaving) >= limit else now_s
            self._number += 1
            insort(leaving, (turn_s + slack_s + self.rate.period_s, self._number))
            turns.append((self._number, turn_s - now_s))
        return turns


@dataclass(eq=False, slots=True)
class Send:
    """A send to the user in place `n` of an attempt; `claim` and `go_on` are its lane's.

    `number` is what its `Circuit` wants to know, `turn` what it has to give back if it does not begin.
    """

    attempt: Attempt
    n: int
    claim: Callable[[], float]
    go_on: Call
    number: int = -1
    turn: int = 0


class Gate:
    """Lets the sends of one worker process to one provider pass, each when it may begin.

    A send takes a connection, then waits for its turn in the rate, both first come, first served. The circuit is asked
    when it comes and again after each wait.
    """

    def __init__(self, worker: Worker, name: str, spec: Provider, turns: Turns | None) -> None:
        self._model, self._loop, self._turns = worker.model, worker.loop, turns
        self._outages = worker.model.outages.setdefault(name, [])
        self._circuit = Circuit(spec.breaker) if spec.breaker else None
        self._free = (spec.connections or 0) * (2 if worker.model.relieved == "provider" else 1)
        self._limited = spec.connections is not None
        self._waiting: deque[Send] = deque()
        self._connected: dict[Send, None] = {}
        self._slack = Slack(turns.rate.period_s) if turns else Slack(0.0)
        self._asking: list[Send] = []
        self._unused: list[int] = []
        self._asks = False

    def arrive(self, send: Send) -> None:
        """A user's turn has come: they are sent to as soon as the gate is open."""
        if self._refuses():
            self._fail(send)
        elif self._limited and not self._free:
            self._waiting.append(send)
        else:
            self._free -= self._limited
            self._connect(send)

    def withdraw(self, attempt: Attempt) -> None:
        """An attempt was cancelled: its sends wait no longer, and those under way are given up."""
        self._waiting = deque(send for send in self._waiting if send.attempt is not attempt)
        for send in [send for send in self._connected if send.attempt is attempt]:
            if send.turn:
                self._unused.append(send.turn)
            self._release(send, None)

    def _connect(self, send: Send) -> None:
        self._connected[send] = None
        if send.attempt.over:
            self._release(send, None)
        elif self._refuses():
            self._refuse(send)
        elif self._turns is None:
            self._begin(send)
        else:
            self._ask(send)

    def _ask(self, send: Send) -> None:
        """Ask for a turn; all that wait while a call is under way share the next one."""
        self._asking.append(send)
        if not self._asks:
            self._asks = True
            self._loop.soon(self._model.costs.client_cpu_s, self._call)

    def _call(self) -> None:
        model, turns, slack_s, sent_at = self._model, self._turns, self._slack.seconds, self._model.env.now
        assert turns is not None
        asking = [send for send in self._asking if not send.attempt.over]
        sends, self._asking = asking[:MOST_AT_ONCE], asking[MOST_AT_ONCE:]
        if not sends:
            self._asks = False
            return

        unused, self._unused = self._unused, []

        def script() -> list[tuple[int, float]]:
            return turns.reserve(model.env.now, slack_s, len(sends), unused)

        def reply(given: list[tuple[int, float]]) -> None:
            if self._loop.alive:
                self._loop.soon(0.0, partial(self._reserved, sends, given, sent_at, slack_s))

        model.broker.call(script, reply, 0, model.network_s)

    def _reserved(self, sends: list[Send], given: list[tuple[int, float]], sent_at: float, slack_s: float) -> None:
        now = self._model.env.now
        for send, (turn, wait_s) in zip(sends, given, strict=True):
            send.turn = turn
            if send.attempt.over:
                self._unused.append(send.turn)
                continue
            take = partial(self._take_turn, send, sent_at + wait_s, slack_s)
            if wait_s > 0:
                self._loop.at(now + wait_s, 0.0, take, send.attempt)
            else:
                self._loop.soon(0.0, take)
        self._asks = bool(self._asking)
        if self._asks:
            self._loop.soon(self._model.costs.client_cpu_s, self._call)

    def _take_turn(self, send: Send, from_s: float, slack_s: float) -> None:
        """The turn has come, unless the loop comes to it too late: then the send needs another one."""
        if send not in self._connected:
            return
        if (late_s := self._model.env.now - from_s) > slack_s:
            self._slack.missed(late_s)
            self._unused.append(send.turn)
            self._ask(send)
            return
        self._slack.kept()
        if self._refuses():
            self._unused.append(send.turn)
            self._refuse(send)
        else:
            send.turn = 0
            self._begin(send)

    def _begin(self, send: Send) -> None:
        now, attempt = self._model.env.now, send.attempt
        latency_s = attempt.latency[send.n]
        for from_s, to_s in self._outages:
            if from_s <= now < to_s:  # refused at once
                latency_s, attempt.fate[send.n] = 0.0, TEMPORARY
        if self._circuit is not None:
            send.number = self._circuit.begin()
        claim = partial(self._claim, send)
        if latency_s > 0:
            self._loop.at(now + latency_s, claim, send.go_on, attempt)
        else:
            self._loop.soon(claim, send.go_on)

    def _claim(self, send: Send) -> float:
        """The loop comes back to a send that has ended, and goes on with the lane's next user."""
        if send in self._connected:
            self._release(send, send.attempt.fate[send.n] == TEMPORARY)
        return send.claim()

    def _refuse(self, send: Send) -> None:
        self._release(send, None)
        self._fail(send)

    def _fail(self, send: Send) -> None:
        send.attempt.fate[send.n] = TEMPORARY
        self._loop.soon(send.claim, send.go_on)

    def _release(self, send: Send, failed: bool | None) -> None:
        """A send has `failed` or not, or was given up; its connection goes to the next that waits."""
        del self._connected[send]
        if self._circuit is not None and send.number >= 0:
            self._circuit.ended(send.number, self._model.env.now, failed)
        if self._waiting:
            self._loop.soon(0.0, partial(self._connect, self._waiting.popleft()))
        else:
            self._free += self._limited

    def _refuses(self) -> bool:
        return self._circuit is not None and self._circuit.refuses(self._model.env.now)


def build_turns(model: Model) -> dict[str, Turns]:
    """The turns of each provider with a rate; with the provider relieved, twice as many."""
    turns = {}
    for name, spec in model.topology.providers.items():
        if (rate := spec.rate) is not None:
            if model.relieved == "provider":
                rate = rate.model_copy(update={"limit": 2 * rate.limit})
            turns[name] = Turns(rate)
    return turns


def build_gates(worker: Worker) -> dict[str, Gate]:
    """A gate for each provider that has a rate, a number of connections or a circuit breaker; none for the others."""
    model = worker.model
    return {
        name: Gate(worker, name, spec, model.turns.get(name))
        for name, spec in model.topology.providers.items()
        if spec.guarded
    }
