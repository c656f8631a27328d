"""What stands before a provider in one worker process: a circuit breaker, its connections, its rate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext

from saqkit.app.mail.turns import Turns
from saqkit.errors import CircuitOpen, PermanentFailure
from saqkit.queue.queue import Queue
from saqkit.spec.circuit import Circuit
from saqkit.spec.topology import Provider as ProviderSpec
from saqkit.spec.topology import Topology

__all__ = ["Gate", "build_gates"]

logger = logging.getLogger("saqkit")


class Gate:
    """Lets sends to the provider `name` pass, each when it may begin.

    A send takes one of the connections, then waits for its turn in the rate, both first come, first served. The circuit
    is asked when it comes and again after each wait, so that nobody waits for a provider that is being left alone.
    `clock`: monotonic seconds.
    """

    def __init__(
        self, name: str, spec: ProviderSpec, queue: Queue, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self._clock, self._breaker = name, clock, spec.breaker
        self._circuit = Circuit(spec.breaker) if spec.breaker else None
        self._connections = asyncio.Semaphore(spec.connections) if spec.connections else nullcontext()
        self._turns = Turns(spec.rate, queue, name, clock) if spec.rate else None

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Wait until one send may begin, which must happen at once within; raises `CircuitOpen` if it may not."""
        self._ask_circuit()
        async with self._connections:
            self._ask_circuit()
            if self._turns is not None:
                turn = await self._turns.wait()
                try:
                    self._ask_circuit()
                except CircuitOpen:
                    self._turns.unused(turn)
                    raise
            if self._circuit is None:
                yield
                return
            number, failed = self._circuit.begin(), None
            try:
                yield
                failed = False
            except PermanentFailure:
                failed = False
                raise
            except Exception:
                failed = True
                raise
            finally:  # also when the attempt is cancelled: then nobody knows
                self._ended(self._circuit, number, failed)

    async def close(self) -> None:
        """Let nobody wait any more."""
        if self._turns is not None:
            await self._turns.close()

    def _ask_circuit(self) -> None:
        if self._circuit is not None and self._circuit.refuses(self._clock()):
            raise CircuitOpen(f"{self.name}: not tried, it failed too often in a row just now")

    def _ended(self, circuit: Circuit, number: int, failed: bool | None) -> None:
        before = circuit.closed
        circuit.ended(number, self._clock(), failed)
        if before == circuit.closed:
            return
        if before and self._breaker is not None:
            logger.warning("provider %s failed %d times in a row: left alone for %g s", self.name,
                           self._breaker.failures, self._breaker.reset_s)  # fmt: skip
        else:
            logger.warning("provider %s answers again", self.name)


def build_gates(topology: Topology, queues: Mapping[str, Queue]) -> dict[str, Gate]:
    """A gate for each provider that has a rate, a number of connections or a circuit breaker; none for the others.

    The windows of their rates lie beside the keys of the topology's entry queue.
    """
    queue = queues[topology.entry_queue]
    return {name: Gate(name, spec, queue) for name, spec in topology.providers.items() if spec.guarded}
