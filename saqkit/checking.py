"""A test of every connection that an application needs: broker, database, email servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from saqkit import broker
from saqkit.errors import SaqkitError
from saqkit.operators import address, unsafe
from saqkit.spec.topology import Topology

__all__ = ["Check", "check_connections"]


@dataclass(frozen=True)
class Check:
    """How one connection is: `part` is broker, database, or a provider's medium (email, api or sms), and `text` says in
    one line what answered, or why not. With `part` links it is no connection, but where the links in emails lead.

    `took_ms`: until it had answered, connecting included. `warnings`: what works but puts jobs at risk.
    """

    part: str
    ok: bool
    took_ms: float
    text: str
    warnings: tuple[str, ...] = ()


Look = Callable[[], Awaitable[tuple[str, Sequence[str]]]]


async def check_connections(topology: Topology, redis: str | None = None) -> list[Check]:
    """Connect to the broker (`redis`, else the environment's, else the embedded one if it runs), the database and its
    replica, and every email server that `topology` needs, one after the other. What fails is told, not raised.

    Nothing is sent and no broker is started; a SQLite file that does not exist is made, with its tables.
    """
    from saqkit.app.emails.catalogue import EMAIL_TYPES
    from saqkit.app.mail import build_providers

    async def look_at_broker() -> tuple[str, Sequence[str]]:
        return await asyncio.to_thread(_broker, redis)

    checks = [await _timed("broker", look_at_broker), await _timed("database", _database)]
    if EMAIL_TYPES.keys() & topology.job_types.keys():
        checks.append(await _timed("links", _links))
    try:
        providers = build_providers(topology, 0)
    except SaqkitError as error:
        return [*checks, Check("email", False, 0.0, str(error))]
    for name, provider in providers.items():
        greet = getattr(provider, "greet", None)  # of those with a server

        async def look(name: str = name, greet: Callable[[], Awaitable[str]] | None = greet) -> tuple[str, list[str]]:
            return (await greet() if greet else f"{name}: {topology.providers[name].kind}, there is no server"), []

        checks.append(await _timed(topology.providers[name].medium, look))
        await provider.close()
    return checks


async def _timed(part: str, look: Look) -> Check:
    start = time.perf_counter()
    try:
        text, warnings = await look()
        ok = True
    except (SaqkitError, RedisError) as error:
        text, warnings, ok = broker.redact(" ".join(str(error).split())), (), False
    return Check(part, ok, round((time.perf_counter() - start) * 1000, 3), text, tuple(warnings))


def _broker(redis: str | None) -> tuple[str, list[str]]:
    from saqkit.broker_address import parse, pong_ms

    url = address(redis)
    server = broker.check(url)
    said = [f"{server['name']} {server['version']} at {parse(url).place}", f"PONG after {pong_ms(url):.2f} ms",
            f"memory policy {server['maxmemory_policy']}",
            "append-only file" if server["appendonly"] else "no append-only file"]  # fmt: skip
    return ", ".join(said), [problem.text for problem in unsafe(server)]


async def _database() -> tuple[str, list[str]]:
    from saqkit.app.database import Database
    from saqkit.app.location import database_url, replica_url

    database = await Database.open(database_url())
    try:
        also = ""
        if url := replica_url():
            replica = await Database.open_replica(url, database)
            await replica.close()
            also = f", replica at {replica.where}"
        version = await database.read(lambda connection: connection.dialect.server_version_info) or ()
        start = time.perf_counter()
        await database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar_one())
        took_ms = (time.perf_counter() - start) * 1000
    finally:
        await database.close()
    number = ".".join(map(str, version))
    return f"{database.dialect} {number} at {database.where}, a query takes {took_ms:.2f} ms{also}", []


async def _links() -> tuple[str, list[str]]:
    from saqkit.app.emails.links import Links

    return f"those in emails lead to {Links.from_environment().root}", []
