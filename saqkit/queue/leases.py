"""Renewing leases from a thread of its own, so that code which blocks the event loop does not lose its jobs."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio as aioredis
from saq.job import Job
from saq.utils import now as now_ms

from saqkit.queue import fault_sites
from saqkit.queue.connecting import blocking_twin
from saqkit.queue.scripts_of_queue import AWAY, digest, refusals, source
from saqkit.spec.interpreter import SWITCH_S

logger = logging.getLogger("saqkit")


@dataclass(eq=False)
class Claim:
    """A job that this process holds: its fencing token, when it was taken, what the worker learned of the attempt."""

    key: str
    token: bytes
    attempt: int
    crashes: int
    priority: int
    taken_at: float
    job: Job
    body: bytes
    recorded: bool = False
    until: float = float("inf")
    facts: dict[str, Any] = field(default_factory=dict)
    followers: list[tuple[Any, ...]] = field(default_factory=list)
    """Jobs that are to be queued when this attempt is done; see `saqkit.queue.following`."""
    lost: bool = False
    counts: bool = True
    """Whether its end is counted when the server knows; else whoever ends it counts."""
    said: asyncio.Future[int] | None = None
    """The answer to the transition that ends it: there is only one."""

    def overdue(self, by_s: float = 0.0) -> bool:
        """Whether the job's heartbeat has been missing, for more than `by_s` seconds."""
        job = self.job
        try:
            return bool(job.heartbeat) and now_ms() > max(job.touched, job.started) + 1000 * (job.heartbeat + by_s)
        except TypeError:  # its function has put something there that is no number
            return False


class LeaseKeeper:
    """A daemon thread that renews the leases of the claims it is told of, every third of a lease.

    A claim is renewed up to its `until` (monotonic seconds: the job's timeout), so that a job which hangs is recovered.
    While it has none it speaks for the process all the same, unless `is_heard`: a server that hears nobody takes itself
    for having been away, and recovers nothing (see `contact` in `scripts/keys.lua`).

    So that the thread has its turn beside a loop which never sleeps, the process' switch interval is set to `SWITCH_S`,
    and stays so when this is closed: other queues of the process may need it.
    """

    def __init__(
        self, client: aioredis.Redis, keys: list[str], lease_s: float, is_heard: Callable[[], bool] = lambda: True
    ) -> None:
        self._is_heard = is_heard
        self._client = blocking_twin(client)
        self._keys, self._lease_s = keys, lease_s
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, claim: Claim) -> None:
        """Start renewing a claim."""
        with self._lock:
            self._claims.add(claim)
        if self._thread is None:
            sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
            self._thread = threading.Thread(target=self._run, name="saqkit-leases", daemon=True)
            self._thread.start()

    def discard(self, claim: Claim) -> None:
        """Stop renewing a claim."""
        with self._lock:
            self._claims.discard(claim)

    def held(self) -> list[Claim]:
        """The claims that are being renewed."""
        with self._lock:
            return list(self._claims)

    def close(self) -> None:
        """Stop the thread and close its connection."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._client.close()

    def _run(self) -> None:
        away = False
        while not self._stop.wait(self._lease_s / 3 if not away else min(0.5, self._lease_s / 3)):
            now = time.monotonic()
            held = self.held()
            if not held and self._is_heard():
                continue
            args: list[str | bytes] = [str(self._lease_s)]
            try:
                # Those that hang are given up, but the server still has to hear that this process lives (`contact`).
                claims = [claim for claim in held if claim.until > now and not claim.overdue(by_s=self._lease_s)]
                for claim in claims:
                    args += (claim.key, claim.token)
                said = self._call(args)
                away = False
            except AWAY as error:
                if not away:
                    logger.warning("leases: broker away (%s), trying again", error)
                away = True
                continue
            except Exception:  # whatever it is, the thread must go on: without it every job of this process is lost
                logger.exception("leases could not be renewed")
                continue
            for claim, answer in zip(claims, said, strict=True):
                if not answer:
                    claim.lost = True
                    self.discard(claim)

    def _call(self, args: list[str | bytes]) -> Any:
        if fault_sites.armed:
            fault_sites.armed.at("renew.before")
        with refusals():
            try:
                said = self._client.evalsha(digest("renew"), len(self._keys), *self._keys, *args)
            except redis.exceptions.NoScriptError:
                said = self._client.eval(source("renew"), len(self._keys), *self._keys, *args)
        if fault_sites.armed:
            fault_sites.armed.at("renew.after")
        return said
