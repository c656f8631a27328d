"""Payment providers: what one is, and the simulated one, whose answers are lost as a real one's are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from saqkit.app.database import Database
from saqkit.app.location import state_folder
from saqkit.app.mail import Provider, Simulated
from saqkit.app.shop.charges import Charge, Charges
from saqkit.app.shop.orders import Order
from saqkit.errors import DescriptionError, TemporaryFailure
from saqkit.spec.draws import LOST_SHARE, Stream, uniform
from saqkit.spec.topology import Topology


class PaymentProvider(Protocol):
    """Charges orders, each by its `charge_key`: whatever is asked for a second time by one key is one charge.

    Both raise `TemporaryFailure` where there is no answer; then the charge may have been made or not. Of whatever else
    they raise nothing is known either: only a charge that is not `paid` declines an order.
    """

    async def charge(self, order: Order, attempt: int) -> Charge:
        """Charge an order, in the `attempt`-th attempt of its job; paid or declined."""
        ...

    async def find(self, order: Order, number: int) -> Charge | None:
        """The charge of an order, None if none was made; `number` tells one asking from another."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class SimulatedPayments:
    """A provider whose latency, declines and failures are drawn as those of a simulated email provider are.

    `temporary_share`: half of these failures are refusals ("later"), half are charges that are made and whose answer is
    lost, at once or because it takes longer than `timeout_s`. `permanent_share`: declined, which depends on the event
    and the user only. What it is asked for it does from then on, whether whoever asked lives or not.
    """

    def __init__(self, drawn: Simulated, charges: Charges) -> None:
        self.name, self.charges = drawn.name, charges
        self._drawn = drawn

    async def charge(self, order: Order, attempt: int) -> Charge:
        """See `PaymentProvider`."""
        drawn, key = self._drawn, (order.event_id, order.user_id)
        began, latency_s = time.time(), self._latency_s(Stream.LATENCY, order, attempt)
        trouble, share = uniform(drawn.seed, Stream.TEMPORARY, *key, attempt), drawn.spec.temporary_share
        if share * LOST_SHARE <= trouble < share:
            await self._answer(began, latency_s)
            raise TemporaryFailure(f"{self.name}: 503 try again later (simulated)")
        declined = uniform(drawn.seed, Stream.PERMANENT, *key) < drawn.spec.permanent_share
        reason = "declined: insufficient funds (simulated)" if declined else ""
        charge = Charge(order.charge_key, f"ch_{order.charge_key[:16]}", order.money, not declined, reason)
        entry = await self.charges.enter(charge, began + latency_s)
        await self._answer(began, max(latency_s, entry.made_at - began))
        if trouble < share * LOST_SHARE:
            raise TemporaryFailure(f"{self.name}: the connection broke before the answer (simulated)")
        return entry.charge

    async def find(self, order: Order, number: int) -> Charge | None:
        """See `PaymentProvider`; asking takes as long as charging would, drawn apart: a slow charge is found soon."""
        await self._answer(time.time(), self._latency_s(Stream.FINDING, order, number))
        return await self.charges.find(order.charge_key, time.time())

    async def close(self) -> None:
        """Close the books."""
        await self.charges.close()

    def _latency_s(self, stream: Stream, order: Order, number: int) -> float:
        drawn, now = self._drawn, time.time()
        if any(start <= now < end for start, end in drawn.outages):
            raise TemporaryFailure(f"{self.name}: the provider is out of service")
        draw = uniform(drawn.seed, stream, order.event_id, order.user_id, number)
        return drawn.spec.latency.quantile(draw)

    async def _answer(self, began: float, latency_s: float) -> None:
        """Wait for an answer that comes so long after `began`, as long as anybody would."""
        timeout_s = self._drawn.spec.timeout_s
        await asyncio.sleep(max(0.0, began + min(latency_s, timeout_s) - time.time()))
        if latency_s > timeout_s:
            raise TemporaryFailure(f"{self.name}: no answer within {timeout_s:g} s")


def charges_path(database: Database, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the simulated provider has its books: `SAQKIT_CHARGES`, beside the SQLite file, or in the state folder."""
    if given := environ.get("SAQKIT_CHARGES"):
        return Path(given)
    return Path(f"{database.where}.charges") if database.dialect == "sqlite" else state_folder() / "charges.db"


def build_payments(
    topology: Topology,
    database: Database,
    providers: Mapping[str, Provider],
    environ: Mapping[str, str] = os.environ,
) -> dict[str, PaymentProvider]:
    """A payment provider for each one that a job type with `work = "payment"` names; `environ`: see `charges_path`."""
    found: dict[str, PaymentProvider] = {}
    for job_type in topology.job_types.values():
        name = job_type.per_user.provider
        if job_type.work != "payment" or name is None or name in found:
            continue
        drawn = providers[name]
        if not isinstance(drawn, Simulated):
            raise DescriptionError("takes no payments", key=f"providers.{name}", hint="only simulated ones do")
        found[name] = SimulatedPayments(drawn, Charges(charges_path(database, environ)))
    return found
