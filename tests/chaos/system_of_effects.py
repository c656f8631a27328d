"""The reference application under faults: `saqkit worker` as its users start it, a mail server, a broker, a database.

Workers, their launcher, the broker and the database are killed or restarted as a seed says; who is told what is read
from the mail server and from the ledger, which know nothing of each other.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import psutil
from redis.exceptions import RedisError
from servers_to_restart import Restarted
from sqlalchemy import text

import saqkit
from saqkit.app.announcing import Announcer
from saqkit.app.store import Store
from saqkit.broker import PrivateBroker
from saqkit.errors import StoreError
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.overriding import override, parse_assignment
from saqkit.spec.topology import load
from saqkit.testing import SmtpSink

T = TypeVar("T")

PROCESSES, SLOTS = 2, 5
FLUSH_S = 0.1  # the ledger's
_MORTAL = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()  # it ends with the tests, killed or not
PATIENCE_S = 0.5  # so long it is waited for while slots go on sending
PAUSE_S = 2.0  # the longest between two tries to write it, also when the database is back


@dataclass(frozen=True)
class Sent:
    """One row of the ledger."""

    event: int
    user: int
    channel: str
    status: str
    message_id: str
    error: str


@dataclass
class Faults:
    """What was done, and when: Unix seconds of each kill, and from when to when the database was away."""

    kills: list[float] = field(default_factory=list)
    launchers: int = 0
    brokers: int = 0
    away: list[tuple[float, float]] = field(default_factory=list)

    def may_repeat(self, accepted_at: list[float]) -> int:
        """How many emails may be repeated: of each kill those that were sent before their line was in the ledger.

        That are the sends of the last 100 ms, and, where the database takes no lines (it is away, or a machine that
        others use is slow), of half a second more: of the time before the kill, or before the database went away if a
        process may not have written again by then. And one under way in each slot. The mail server does not know who
        sent what, so those of the other process are counted as well.
        """
        allowed = 0
        for kill in self.kills:
            since = kill - FLUSH_S - PATIENCE_S
            for began, ended in self.away:
                if began < kill < ended + PAUSE_S + PATIENCE_S:
                    since = min(since, began - FLUSH_S - PATIENCE_S)
            allowed += sum(since < at <= kill for at in accepted_at) + SLOTS
        return allowed


class System:
    """A topology's store, queues and announcer, as a web application has them, and its workers."""

    def __init__(
        self, name: str, settings: tuple[str, ...], url: str, database: Restarted, store: Store, sink: SmtpSink,
        folder: Path,
    ) -> None:  # fmt: skip
        self.topology = override(load(name), [parse_assignment(text) for text in settings])
        self.url, self.database, self.store, self.sink, self.folder = url, database, store, sink, folder
        self.queues: dict[str, Queue] = build_queues(self.topology, url)
        self.announcer = Announcer(self.topology, store, self.queues)
        self.charges = folder / "charges.db"
        self.faults = Faults()
        self.settings = [part for text in settings for part in ("--set", text)]
        self._name = name
        self._launcher: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    # --- workers -----------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What its commands find in their environment."""
        root = str(Path(saqkit.__file__).parents[1])  # the very code that this process tests
        ours = {"SAQKIT_DATABASE_URL": self.database.url, "SAQKIT_SMTP_URL": self.sink.url, "REDIS_URL": self.url}
        return {**os.environ, **ours, "SAQKIT_CHARGES": str(self.charges), "PYTHONPATH": root}

    def tend(self) -> None:
        """Start the command anew if it has ended, as a service manager does."""
        if self._launcher is None or self._launcher.poll() is not None:
            with (self.folder / "workers.log").open("ab") as log:
                self._launcher = subprocess.Popen(
                    [*_MORTAL, sys.executable, "-m", "saqkit", "worker", self._name, "--processes", str(PROCESSES),
                     "--concurrency", str(SLOTS), "--statistics", "0", "--grace", "5", *self.settings],
                    env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        self._seen.update(self._workers())

    def _workers(self) -> list[psutil.Process]:
        assert self._launcher is not None
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._launcher.pid).children()
        return []

    def kill_worker(self, draws: Random) -> None:
        """SIGKILL one of the worker processes."""
        if workers := self._workers():
            self._seen.update(workers)
            with suppress(psutil.NoSuchProcess):
                draws.choice(workers).kill()
                self.faults.kills.append(time.time())

    def kill_launcher(self) -> None:
        """SIGKILL the command itself: its processes are to stop by themselves."""
        assert self._launcher is not None
        self._seen.update(self._workers())
        self._launcher.kill()
        self._launcher.wait()
        self.faults.launchers += 1

    async def stop(self) -> None:
        """SIGTERM to the command; then nobody is left, whoever was started by whom."""
        if self._launcher is not None:
            with suppress(ProcessLookupError):
                self._launcher.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._launcher.wait, 30)
            except subprocess.TimeoutExpired:
                self._launcher.kill()
                self._launcher.wait()
        for process in self._seen:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    # --- faults ------------------------------------------------------------------------------------------------------

    async def storm(self, seed: int, strikes: tuple[str, ...], server: PrivateBroker) -> None:
        """Do the strikes in the order and at the times that `seed` draws, each amid emails."""
        draws = Random(seed)
        for strike in draws.sample(strikes, len(strikes)):
            await self._amid_emails()
            await asyncio.sleep(draws.uniform(0.1, 0.5))
            if strike == "worker":
                self.kill_worker(draws)
            elif strike == "launcher":
                self.kill_launcher()
            elif strike == "broker":
                await asyncio.to_thread(server.restart, draws.uniform(0.1, 0.5))
                self.faults.brokers += 1
            else:
                began, down_s = time.time(), draws.uniform(0.2, 0.6)
                restart = asyncio.create_task(asyncio.to_thread(self.database.restart, down_s))
                if strike == "database and worker":  # who has no ledger must not go on sending, and then be killed
                    await asyncio.sleep(draws.uniform(0, down_s))
                    self.kill_worker(draws)
                await restart
                self.faults.away.append((began, time.time()))
            self.tend()

    async def _amid_emails(self) -> None:
        """Wait until emails are sent; in vain where nobody is left to be told."""
        until, seen = time.monotonic() + 8.0, len(self.sink.messages)
        while len(self.sink.messages) < seen + 2 and time.monotonic() < until:
            self.tend()
            await asyncio.sleep(0.02)

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again and again while broker or database are away, as a web application's users do."""
        async with asyncio.timeout(60):
            while True:
                with suppress(StoreError, RedisError, *AWAY):
                    return await ask()
                await asyncio.sleep(0.05)

    async def drained(self, within_s: float = 60.0) -> None:
        """Wait until no event is on its way into the broker and no job is left; dead letters stay."""

        async def over() -> bool:
            if await self.store.undelivered():
                return False
            for queue in self.queues.values():
                if await queue.count("incomplete") or await queue.redis.zcard(queue.namespace("outgoing")):
                    return False
            return True

        try:
            async with asyncio.timeout(within_s):
                while not await self.insist(over):
                    self.tend()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            words = (self.folder / "workers.log").read_text(errors="replace")[-4000:]
            raise AssertionError(
                f"not drained {within_s} s after the last fault; the workers' log ends:\n{words}"
            ) from None

    async def replay(self) -> int:
        """An operator replays all dead letters, by the command; returns how many there were."""
        if not sum([await queue.redis.zcard(queue.namespace("dead")) for queue in self.queues.values()]):
            return 0
        command = [sys.executable, "-m", "saqkit", "dlq", "replay", "--all", "--topology", self._name, "--json"]
        done = await asyncio.to_thread(
            subprocess.run, command, env=self.environment, check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["found"])

    # --- what has come of it -----------------------------------------------------------------------------------------

    async def ledger(self) -> list[Sent]:
        query = text("SELECT event_id, user_id, channel, status, message_id, error FROM notifications")
        rows = await self.store.database.read(lambda connection: connection.execute(query).all())
        return [Sent(*row) for row in rows]

    async def leases_lost(self) -> int:
        """How often a job was taken back from a process that did not renew its lease."""
        lost = 0
        for queue in self.queues.values():
            lost += int(await queue.redis.hget(queue.namespace("counts"), "lost") or 0)  # type: ignore[misc]
        return lost

    async def audit_of_emails(self, wanted: set[tuple[int, int]], tell: Callable[[dict[str, Any]], None]) -> None:
        """Everybody of `wanted`, pairs of event and user, has one row and one Message-ID; repeats stay within C6."""
        rows = [row for row in await self.ledger() if row.channel == "email" and row.status == "sent"]
        ids = Counter(message.message_id for message in self.sink.messages)
        repeats = len(self.sink.messages) - len(ids)
        lost = wanted - {(row.event, row.user) for row in rows}
        row = {
            "accepted": len(wanted), "done": len(rows), "lost": len(lost), "messages": len(self.sink.messages),
            "repeated": repeats, "allowed": self.faults.may_repeat([one.at_unix for one in self.sink.messages]),
            "kills": len(self.faults.kills), "launchers": self.faults.launchers, "broker": self.faults.brokers,
            "database": len(self.faults.away), "leases lost": await self.leases_lost(),
        }  # fmt: skip
        tell(row)
        assert lost == set()
        assert Counter((row.event, row.user) for row in rows) == Counter(wanted), "rows = recipients"
        assert {row.message_id for row in rows} == set(ids), "rows = distinct Message-IDs"
        assert len(ids) == len(wanted)
        to = {message.message_id: message.recipients for message in self.sink.messages}
        assert to == {row.message_id: (f"user{row.user}@users.example",) for row in rows}, "each to the right person"
        assert row["leases lost"] <= SLOTS * len(self.queues) * row["kills"], "a living process has lost its lease"
        assert repeats <= row["allowed"]


@asynccontextmanager
async def system(
    name: str, settings: tuple[str, ...], server: PrivateBroker, database: Restarted, folder: Path, users: int,
    **of_sink: Any,
) -> AsyncIterator[System]:  # fmt: skip
    """A system with so many users, whose workers run; the mail server takes 3 ms for a message."""
    async with AsyncExitStack() as stack:
        url = (await asyncio.to_thread(server.start)).url
        sink = stack.enter_context(SmtpSink(on_message=lambda _: time.sleep(0.003), **of_sink))
        store = await stack.enter_async_context(await Store.open(database.url))
        await store.add_numbered_users(users)
        made = System(name, settings, url, database, store, sink, folder)
        for queue in made.queues.values():
            stack.push_async_callback(queue.disconnect)
        stack.push_async_callback(made.stop)
        made.tend()
        yield made
