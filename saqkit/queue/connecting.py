"""Clients for every kind of address, and their blocking twins.

A connection asks for its server whenever it connects: the primary that sentinels name, the node that owns the queue's
slot in a cluster, whatever DNS says of a plain address. A server which says that it no longer serves is let go of, and
the call fails like one to a server that is away: it is sent again, by then to another. A slot that is being moved (ASK,
TRYAGAIN) is waited for in the same way: half of a queue on either side is no queue.
"""

from __future__ import annotations

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
from redis import asyncio as aioredis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from saqkit.broker_address import named, parse, redact
from saqkit.broker_places import Cluster, Place, Sentinels, place_of
from saqkit.errors import BrokerError

_ELSEWHERE = (AskError, TryAgainError, ClusterDownError, ReadOnlyError)  # with MOVED and MASTERDOWN, their subclasses
_IN_WORDS = re.compile(r"(^|-)(READONLY|UNBLOCKED) ")  # within a script of Redis 6; to a call that a failover unblocks
_FINDING = ThreadPoolExecutor(4, "saqkit-finding")  # the loop's own may be full of functions that block
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # else who only listens never hears a host die


class Elsewhere(ConnectionError):
    """The server is there, but does not serve this queue now: it was replaced, or its slot has moved or is moving."""


_REFUSED = (Elsewhere,)
"""What redis-py itself tries a second time, at once, over the same connection made anew: nothing was done yet."""


def _serves_no_longer(error: ResponseError) -> bool:
    return isinstance(error, _ELSEWHERE) or _IN_WORDS.search(str(error)) is not None


def _elsewhere(error: ResponseError, connection: Any) -> Exception:
    if isinstance(error, MovedError) and connection.place is None:  # there is nobody to ask where to
        here = named((connection.host, connection.port))
        return BrokerError(f"{here} is one node of a cluster: give redis+cluster://{here} (or rediss+cluster://)")
    return Elsewhere(f"{type(error).__name__} {error}")


class _Following:
    """A connection of redis-py's asyncio half, that goes where the place says."""

    def __init__(self, *, place: Place | None = None, **options: Any) -> None:
        self.place = place
        super().__init__(**options)

    async def _connect(self) -> None:
        if self.place is not None:
            self.host, self.port = await asyncio.get_running_loop().run_in_executor(_FINDING, self.place.find)
        await super()._connect()  # type: ignore[misc]  # the mixed-in class has it

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]  # see above
        except ResponseError as error:
            if not _serves_no_longer(error):
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # see above
            raise _elsewhere(error, self) from error


class _BlockingFollowing:
    """The same of its blocking half."""

    def __init__(self, *, place: Place | None = None, **options: Any) -> None:
        self.place = place
        super().__init__(**options)

    def _connect(self) -> Any:
        if self.place is not None:
            self.host, self.port = self.place.find()
        return super()._connect()  # type: ignore[misc]  # the mixed-in class has it

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]  # see above
        except ResponseError as error:
            if not _serves_no_longer(error):
                raise
            self.disconnect()  # type: ignore[attr-defined]  # see above
            raise _elsewhere(error, self) from error


class FollowingConnection(_Following, aioredis.Connection):
    """Plain TCP."""


class FollowingSSLConnection(_Following, aioredis.SSLConnection):
    """TLS."""


class BlockingFollowingConnection(_BlockingFollowing, redis.Connection):
    """Plain TCP."""


class BlockingFollowingSSLConnection(_BlockingFollowing, redis.SSLConnection):
    """TLS."""


def client(url: str, key: str) -> aioredis.Redis:
    """A client of the server at `url` that has `key`; it connects with its first call.

    Raises `BrokerError` where the address is of no use (see `saqkit.broker_address.parse`).
    """
    address = parse(url)
    options: dict[str, Any] = {"socket_timeout": 15, "socket_connect_timeout": 5}
    if address.scheme != "unix":
        settings = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}
        options |= {"socket_keepalive": True, "socket_keepalive_options": settings}
    try:
        options |= parse_url(address.url)
        place = place_of(address, key_slot(key.encode()))
        following = {aioredis.Connection: FollowingConnection, aioredis.SSLConnection: FollowingSSLConnection}
        kind = options.pop("connection_class", aioredis.Connection)
        options["connection_class"] = following.get(kind, kind)
        options["retry"] = AsyncRetry(NoBackoff(), 1, _REFUSED)
        if place is not None:
            options["place"] = place
        pool = aioredis.ConnectionPool(**options)
        pool.make_connection()  # type: ignore[no-untyped-call]  # an option that does not exist is known only now
    except (AttributeError, TypeError, ValueError, redis.RedisError):
        raise BrokerError(f"{redact(url)}: an option after the '?' is unknown or has an impossible value") from None
    return _owning(pool)


def neighbour(client: aioredis.Redis, key: str) -> aioredis.Redis:
    """A client of the server that has `key`: `client` itself, but in a cluster a new one, which the caller closes."""
    pool = client.connection_pool
    place = pool.connection_kwargs.get("place")
    if not isinstance(place, Cluster):
        return client
    options = {**pool.connection_kwargs, "place": place.of(key_slot(key.encode()))}
    return _owning(aioredis.ConnectionPool(connection_class=pool.connection_class, **options))


def _owning(pool: aioredis.ConnectionPool) -> aioredis.Redis:
    """A client that closes its connections with itself."""
    client = aioredis.Redis(connection_pool=pool)
    client.auto_close_connection_pool = True
    return client


def queue_client(url: str, name: str) -> aioredis.Redis:
    """A client of the server at `url` that has the queue `name`."""
    if parse(url).via == "cluster" and (not name or name.startswith("}")):
        raise BrokerError(f"queue {name!r}: its keys would lie on several nodes of a cluster (begin with a letter)")
    return client(url, f"saq:{{{name}}}:")


_TWINS: dict[type, type] = {
    FollowingConnection: BlockingFollowingConnection,
    FollowingSSLConnection: BlockingFollowingSSLConnection,
    aioredis.Connection: redis.Connection,
    aioredis.SSLConnection: redis.SSLConnection,
    aioredis.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
_SAME = ("host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "place")


def blocking_twin(client: aioredis.Redis) -> redis.Redis:
    """A blocking client to the same server with the same identity, with one connection and short timeouts."""
    pool = client.connection_pool
    options, kind = _identity(pool), _TWINS.get(pool.connection_class)
    if isinstance(pool, SentinelConnectionPool) and pool.is_master:  # redis-py's own, handed over by the user
        asked = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
        hosts = [(one.connection_kwargs["host"], int(one.connection_kwargs["port"])) for one in asked]
        theirs = {**_identity(asked[0]), "connection_class": _TWINS[asked[0].connection_class]}
        options["place"] = Sentinels(hosts, theirs, pool.service_name)
        tls = issubclass(pool.connection_class, aioredis.SSLConnection)
        kind = BlockingFollowingSSLConnection if tls else BlockingFollowingConnection
    if kind is None:
        raise BrokerError(f"{pool.connection_class.__name__}: a queue needs a plain, TLS or unix-socket connection")
    options |= {"socket_timeout": 2.0, "socket_connect_timeout": 2.0, "retry": Retry(NoBackoff(), 1, _REFUSED)}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, max_connections=1, **options))


def _identity(pool: aioredis.ConnectionPool) -> dict[str, Any]:
    return {name: value for name, value in pool.connection_kwargs.items() if name in _SAME or name.startswith("ssl_")}
