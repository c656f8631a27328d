"""The simulated provider: latency and failures drawn by key, so that the model can draw the same ones."""

from __future__ import annotations

import asyncio
import time

from saqkit.app.mail.message import Email
from saqkit.errors import PermanentFailure, TemporaryFailure
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Provider as ProviderSpec

__all__ = ["Simulated"]


class Simulated:
    """Waits as long as a provider would, then delivers nothing or fails, as its description and the seed say.

    The latency and a temporary failure depend on (seed, event, user, attempt); a permanent failure on (seed, event,
    user), since a bad address stays bad. `outages` may grow at any time: pairs of (start, end) in Unix seconds; a
    send that begins in one fails temporarily at once.
    """

    def __init__(
        self, name: str, spec: ProviderSpec, seed: int, outages: list[tuple[float, float]] | None = None
    ) -> None:
        self.name, self.sender = name, spec.sender
        self.outages: list[tuple[float, float]] = [] if outages is None else outages
        self.spec, self.seed = spec, seed

    async def send(self, email: Email) -> None:
        """Wait for the drawn latency; raise what is drawn for this user and attempt."""
        email.check()
        spec, seed, event, user, attempt = self.spec, self.seed, email.event, email.user, email.attempt
        if self.outages:
            now = time.time()
            if any(start <= now < end for start, end in self.outages):
                raise TemporaryFailure(f"{self.name}: the provider is out of service")
        latency_s = spec.latency.quantile(uniform(seed, Stream.LATENCY, event, user, attempt))
        if latency_s > spec.timeout_s:
            await asyncio.sleep(spec.timeout_s)
            raise TemporaryFailure(f"{self.name}: no answer within {spec.timeout_s:g} s")
        await asyncio.sleep(latency_s)
        if spec.temporary_share and uniform(seed, Stream.TEMPORARY, event, user, attempt) < spec.temporary_share:
            raise TemporaryFailure(f"{self.name}: 451 4.3.0 try again later (simulated)")
        if spec.permanent_share and uniform(seed, Stream.PERMANENT, event, user) < spec.permanent_share:
            raise PermanentFailure(f"{self.name}: 550 5.1.1 no such mailbox (simulated)")

    async def close(self) -> None:
        """Nothing to let go of."""
