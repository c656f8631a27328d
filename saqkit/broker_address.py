"""Addresses of brokers: which are of use, what answers there, and how to name one without its password."""

from __future__ import annotations

import difflib
import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

from saqkit.errors import BrokerError

__all__ = ["TIMEOUT_S", "check", "identity", "info", "parse", "redact"]

TIMEOUT_S = 5.0
_SCHEMES = ("redis", "rediss", "unix")


def redact(url: str) -> str:
    """The address without its passwords, fit for logs and errors. Badly formed addresses lose rather too much."""
    return re.sub(r"(?i)(password=)[^&\s]*", r"\1***", re.sub(r"://(?!/).*@", "://***@", url, flags=re.DOTALL))


def parse(url: str) -> SplitResult:
    """The parts of a broker's address. Raises `BrokerError` with the reason if no client could use it."""
    shown = redact(url)
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may quote the password, as may that of `port`
        raise BrokerError(f"{shown}: not the address of a broker (use redis://host:port/0)") from None
    if parts.scheme in ("http", "https"):
        reason = "an HTTP-only (REST) service cannot block on a key and keeps no scripts, which a queue needs"
        raise BrokerError(f"{shown}: {reason} (give its redis:// or rediss:// address)")
    if parts.scheme not in _SCHEMES or "://" not in url:
        near = difflib.get_close_matches(parts.scheme, _SCHEMES, 1)
        hint = f"did you mean {near[0]}://?" if near else "use redis://, rediss:// or unix://"
        raise BrokerError(f"{shown}: not the address of a broker ({hint})")
    try:
        usable = parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BrokerError(f"{shown}: the port is not a number from 1 to 65535 (a '/' in a password is %2F)")
    if parts.scheme == "unix" and not parts.path.strip("/"):
        raise BrokerError(f"{shown}: the path of the socket is missing (use unix:///path/to/socket)")
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise BrokerError(f"{shown}: the database is not a number (use redis://host:port/0)")
    return parts


def info(url: str) -> dict[str, Any]:
    """What the server at `url` says of itself (INFO); any error of the client's passes through."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    once = Retry(NoBackoff(), 0)
    with redis.Redis.from_url(
        url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=once, decode_responses=True
    ) as client:
        return dict(client.info())


def identity(info: dict[str, Any]) -> tuple[str, str]:
    """The server's name and version."""
    if "valkey_version" in info:  # its redis_version is that of the Redis it is compatible with
        return "valkey", str(info["valkey_version"])
    return str(info.get("server_name", "redis")), str(info.get("redis_version", "unknown"))


def check(url: str) -> dict[str, Any]:
    """Connect to `url` and say what is there: `name`, `version`, `maxmemory_policy`, `appendonly`, `maxclients`.

    `appendonly` is a bool, `maxclients` an int or None where the server does not tell. Waits at most 5 s an answer.
    Raises `BrokerError` if the address is of no use, or if nobody, somebody else or a closed door is found there.
    """
    import redis

    parts, shown = parse(url), redact(url)
    place = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    try:
        found = info(url)
    except redis.AuthenticationError as error:
        text = str(error).lower()
        if "without any password" in text:
            raise BrokerError(f"{place} has no password set, but {shown} gives one: leave it out") from error
        if "required" in text:
            raise BrokerError(f"{place} asks for a password (use {parts.scheme}://:PASSWORD@{place})") from error
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
