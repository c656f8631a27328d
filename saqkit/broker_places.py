"""Which server has a queue at this moment: the primary that sentinels name, or the node that owns a slot of a cluster.

It is asked anew for every connection. The asking is blocking, so that an event loop (in a thread beside it) and the
thread that renews leases share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, ConnectionError, RedisError
from redis.retry import Retry

from saqkit.broker_address import Address, named

__all__ = ["Cluster", "Place", "Sentinels", "place_of", "settings"]

Host = tuple[str, int]
_NOT_FOR_ASKING = ("host", "port", "db", "socket_timeout", "socket_connect_timeout")


def settings(address: Address, timeout_s: float) -> dict[str, Any]:
    """What a blocking connection of redis-py to `address` is made with; it tries once and waits at most so long."""
    once = Retry(NoBackoff(), 0)
    given: dict[str, Any] = parse_url(address.url)  # type: ignore[no-untyped-call]  # redis-py has no types here
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": once, **given}


class Place(ABC):
    """Finds one server by asking several others.

    Args:
        hosts: whom to ask, as (host, port)
        options: what a blocking connection of redis-py to them is made with, without host and port
    """

    def __init__(self, hosts: list[Host], options: Mapping[str, Any], timeout_s: float = 1.0) -> None:
        self._given = tuple(hosts)
        self._hosts = list(hosts)
        kept = {name: value for name, value in options.items() if name not in _NOT_FOR_ASKING}
        self._options = {**kept, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}

    def find(self) -> Host:
        """The server's host and port. Raises redis-py's `ConnectionError` if nobody knows it now."""
        # Who was asked first is asked last the next time: it may be the one whose answer is out of date.
        self._hosts = [*self._hosts[1:], *self._hosts[:1]]
        said: RedisError | None = None
        for host, port in self._hosts:
            pool = redis.ConnectionPool(host=host, port=port, **self._options)
            with redis.Redis(connection_pool=pool) as client:
                try:
                    found = self._ask(client, host)
                except AuthenticationError:
                    raise
                except (RedisError, OSError) as error:
                    said = said or (error if isinstance(error, RedisError) else ConnectionError(str(error)))
                    continue
                finally:
                    pool.disconnect()
            if found is not None:
                return found
            said = ConnectionError(f"{named((host, port))} does not know {self} (now)")
        assert said is not None
        raise said

    @abstractmethod
    def _ask(self, client: redis.Redis, host: str) -> Host | None: ...


class Sentinels(Place):
    """The primary that sentinels know by a name."""

    def __init__(self, hosts: list[Host], options: Mapping[str, Any], service: str, timeout_s: float = 1.0) -> None:
        super().__init__(hosts, options, timeout_s)
        self._service = service

    def __str__(self) -> str:
        return f"the primary of service {self._service!r}"

    def _ask(self, client: redis.Redis, host: str) -> Host | None:
        found: Any = client.execute_command(  # type: ignore[no-untyped-call]  # no types
            "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service
        )
        return (_text(found[0]), int(found[1])) if found else None


class Cluster(Place):
    """The node of a cluster that owns a slot. Once one answered, the nodes that it named are asked too."""

    def __init__(self, hosts: list[Host], options: Mapping[str, Any], slot: int, timeout_s: float = 1.0) -> None:
        super().__init__(hosts, options, timeout_s)
        self._slot = slot

    def of(self, slot: int) -> Cluster:
        """The same for another slot of this cluster."""
        return Cluster(list(self._hosts), self._options, slot, self._options["socket_timeout"])

    def __str__(self) -> str:
        return f"the node of slot {self._slot}"

    def _ask(self, client: redis.Redis, host: str) -> Host | None:
        # One that does not know its own address, or is told to leave it out, means the one it was asked at.
        def whom(node: list[Any]) -> Host:
            name = _text(node[0] or b"")
            return (host if name in ("", "?") else name, int(node[1]))

        ranges: Any = client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]  # no types there
        everybody = [whom(node) for _, _, *nodes in ranges for node in nodes]
        known = dict.fromkeys([*self._given, *everybody])
        self._hosts = [*(one for one in self._hosts if one in known), *(one for one in known if one not in self._hosts)]
        return next((whom(nodes[0]) for first, last, *nodes in ranges if first <= self._slot <= last), None)


def place_of(address: Address, slot: int, timeout_s: float = 1.0) -> Place | None:
    """Who finds the server behind `address` that has the keys of `slot`; None if the address itself names it."""
    if not address.via:
        return None
    options = settings(address, timeout_s)
    if address.via == "cluster":
        return Cluster(list(address.hosts), options, slot, timeout_s)
    theirs = {name: value for name, value in options.items() if name not in ("username", "password")}
    return Sentinels(list(address.hosts), theirs | address.credentials, address.service, timeout_s)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
