"""Addresses of brokers: which are of use, what answers there, and how to name one without its password."""

from __future__ import annotations

import difflib
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from saqkit.errors import BrokerError

__all__ = ["Address", "NO_REST", "TIMEOUT_S", "check", "identity", "info", "named", "parse", "pong_ms", "redact"]

TIMEOUT_S = 5.0
NO_REST = "an HTTP-only (REST) service cannot block on a key and keeps no scripts, which a queue needs"
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}


@dataclass(frozen=True)
class Address:
    """A broker's address, taken apart. `url` is what redis-py reads, with the first host in it."""

    scheme: str
    """redis, rediss or unix."""
    via: str
    """sentinel, cluster, or empty: the server itself."""
    hosts: tuple[tuple[str, int], ...]
    """Where to ask or connect; empty for a unix socket."""
    place: str
    """The hosts or the path, for messages."""
    service: str = ""
    """The name that sentinels know the primary by."""
    url: str = field(default="", repr=False)
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    """User name and password for the sentinels themselves."""

    @property
    def hostname(self) -> str | None:
        """The first host."""
        return self.hosts[0][0] if self.hosts else None


def redact(url: str) -> str:
    """The address without its passwords, fit for logs and errors. Badly formed addresses lose rather too much."""
    return re.sub(r"(?i)(password=)[^&\s]*", r"\1***", re.sub(r"://(?!/).*@", "://***@", url, flags=re.DOTALL))


def parse(url: str) -> Address:
    """The parts of a broker's address. Raises `BrokerError` with the reason if no client could use it."""
    shown = redact(url)
    scheme, colon, rest = url.partition("://")
    if scheme.lower() in ("http", "https"):
        raise BrokerError(f"{shown}: {NO_REST} (give its redis:// or rediss:// address)")
    if scheme not in _SCHEMES or not colon:
        near = difflib.get_close_matches(scheme.partition(":")[0], _SCHEMES, 1)
        hint = f"did you mean {near[0]}://?" if near else "use redis://, rediss:// or unix://"
        raise BrokerError(f"{shown}: not the address of a broker ({hint})")
    base, _, via = scheme.partition("+")
    try:
        if via:  # several hosts, of which any may be in brackets: newer Pythons refuse to split that
            before, _, query = rest.partition("#")[0].partition("?")
            netloc, slash, path = before.partition("/")
            path = slash + path
        else:
            _, netloc, path, query, _ = urlsplit(f"//{rest}")
    except ValueError:  # its text may quote the password
        raise BrokerError(f"{shown}: not the address of a broker (use redis://host:port/0)") from None
    if base == "unix":
        if not path.strip("/"):
            raise BrokerError(f"{shown}: the path of the socket is missing (use unix:///path/to/socket)")
        return Address(base, via, (), path, url=url)
    user, at, rest = netloc.rpartition("@")
    hosts = tuple(_host(place, _PORTS[via], shown) for place in (rest.split(",") if via else [rest]))
    service = ""
    if via == "sentinel":
        service, _, path = path.removeprefix("/").partition("/")
        if not service:
            raise BrokerError(f"{shown}: the service is missing (use {scheme}://host:26379,host:26379/SERVICE/0)")
        path = f"/{path}"
    if not re.fullmatch(r"(/\d*)?", path):
        raise BrokerError(f"{shown}: the database is not a number (use redis://host:port/0)")
    if via == "cluster" and path.strip("/0"):
        raise BrokerError(f"{shown}: a cluster has database 0 alone (leave {path} out)")
    places = ",".join(map(named, hosts))
    if not via:
        return Address(base, via, hosts, places, url=url)
    options = parse_qsl(query, keep_blank_values=True)
    theirs = {name.removeprefix("sentinel_"): value for name, value in options if name.startswith("sentinel_")}
    kept = urlencode([(name, value) for name, value in options if not name.startswith("sentinel_")])
    first = f"{base}://{user}{at}{named(hosts[0])}{path}" + (f"?{kept}" if kept else "")
    return Address(base, via, hosts, places, service, first, theirs)


def named(host: tuple[str, int]) -> str:
    """host:port, as in an address."""
    return f"[{host[0]}]:{host[1]}" if ":" in host[0] else f"{host[0]}:{host[1]}"


def _host(place: str, port: int, shown: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::(\d{0,5}))?", place)
    number = int(match[3] or port) if match else 0
    if match is None or not 0 < number < 65536:
        raise BrokerError(f"{shown}: the port is not a number from 1 to 65535 (a '/' in a password is %2F)")
    return match[1] or match[2] or "localhost", number


def info(url: str) -> dict[str, Any]:
    """What the server at `url` says of itself (INFO); any error of the client's passes through.

    Behind sentinels it is the primary, in a cluster the node that owns the first slot.
    """
    return _ask(_located(parse(url)))


def _located(address: Address) -> dict[str, Any]:
    """What a blocking connection to the server behind `address` is made with."""
    from saqkit.broker_places import place_of, settings

    options, place = settings(address, TIMEOUT_S), place_of(address, slot=0, timeout_s=TIMEOUT_S)
    if place is not None:
        options["host"], options["port"] = place.find()
    return options


def _ask(options: dict[str, Any]) -> dict[str, Any]:
    import redis

    with redis.Redis(connection_pool=redis.ConnectionPool(**{**options, "decode_responses": True})) as client:
        return dict(client.info())


def pong_ms(url: str) -> float:
    """How long a PING takes until its PONG, on an open connection; any error of the client's passes through."""
    import redis

    with redis.Redis(connection_pool=redis.ConnectionPool(**_located(parse(url)))) as client:
        client.ping()
        start = time.perf_counter()
        client.ping()
        return (time.perf_counter() - start) * 1000


def identity(info: dict[str, Any]) -> tuple[str, str]:
    """The server's name and version."""
    if "valkey_version" in info:  # its redis_version is that of the Redis it is compatible with
        return "valkey", str(info["valkey_version"])
    return str(info.get("server_name", "redis")), str(info.get("redis_version", "unknown"))


def check(url: str) -> dict[str, Any]:
    """Connect to `url` and say what is there: `name`, `version`, `maxmemory_policy`, `appendonly`, `maxclients`.

    `appendonly` is a bool, `maxclients` an int or None where the server does not tell. Waits at most 5 s an answer.
    Behind sentinels the primary is looked at, in a cluster the node that owns the first slot.
    Raises `BrokerError` if the address is of no use, or if nobody, somebody else or a closed door is found there.
    """
    import redis

    address, shown = parse(url), redact(url)
    place, scheme = address.place, url.partition("://")[0]
    try:
        options = _located(address)
        if address.via:
            place = named((options["host"], options["port"]))
        found = _ask(options)
    except redis.AuthenticationError as error:
        text = str(error).lower()
        if "without any password" in text:
            raise BrokerError(f"{place} has no password set, but {shown} gives one: leave it out") from error
        if "required" in text:
            raise BrokerError(f"{place} asks for a password (use {scheme}://:PASSWORD@{place})") from error
        raise BrokerError(f"{place} refuses the user name or password of {shown}") from error
    except redis.TimeoutError as error:
        raise BrokerError(f"{place} does not answer within {TIMEOUT_S:g} s: is it a Redis or Valkey server?") from error
    except redis.ConnectionError as error:
        reason = redact(" ".join(str(error).split()))
        if "refused" in reason.lower() or "No such file" in reason:
            raise BrokerError(f"{place} refuses the connection: no server listens there") from error
        raise BrokerError(f"{place} cannot be used as a broker: {reason}") from error
    except (redis.InvalidResponse, UnicodeDecodeError) as error:
        raise BrokerError(f"{place} answers, but not as a Redis or Valkey server does") from error
    except redis.RedisError as error:
        reason = redact(" ".join(str(error).split()))
        raise BrokerError(f"{place} does not let us look at it: {reason}") from error
    except (AttributeError, TypeError, ValueError):
        raise BrokerError(f"{shown}: an option after the '?' is unknown or has an impossible value") from None
    name, version = identity(found)
    return {
        "name": name,
        "version": version,
        "maxmemory_policy": str(found.get("maxmemory_policy", "unknown")),
        "appendonly": bool(int(found.get("aof_enabled", 0))),
        "maxclients": int(found["maxclients"]) if "maxclients" in found else None,
    }
