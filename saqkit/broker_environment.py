"""Which broker the environment names: by one address, or by host, port, password and database apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import quote

from saqkit.broker_address import NO_REST, named
from saqkit.errors import BrokerError

__all__ = ["named_broker"]

_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def named_broker(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address that `environ` names, None if it names no broker. A variable that is empty counts as unset.

    `REDIS_URL` comes first; the others are not looked at beside it. Else `REDIS_HOST` with `REDIS_PORT` (6379),
    `REDIS_PASSWORD` and `REDIS_DB` (0). Raises `BrokerError` where these make no address, where only a REST service is
    named (`UPSTASH_REDIS_REST_URL`), and with `REDIS_ENABLED=false`.
    """
    switch = environ.get("REDIS_ENABLED", "").strip().lower()
    if switch in _NO:
        raise BrokerError("REDIS_ENABLED=false: no broker may be used (set it to true, leave it out, or name a broker "
                          "with --redis)")  # fmt: skip
    if switch and switch not in _YES:
        raise BrokerError(f"REDIS_ENABLED: {_shown(switch)} is neither true nor false")
    if url := environ.get("REDIS_URL"):
        return url
    host, port = environ.get("REDIS_HOST", ""), environ.get("REDIS_PORT", "")
    password, database = environ.get("REDIS_PASSWORD", ""), environ.get("REDIS_DB", "")
    if host:
        return _address(host, port, password, database)
    # Kubernetes sets a REDIS_PORT of this kind in every container beside a service called redis.
    given = {"REDIS_PORT": port if "://" not in port else "", "REDIS_PASSWORD": password, "REDIS_DB": database}
    for name in (name for name, value in given.items() if value):
        raise BrokerError(f"{name} is set, but REDIS_HOST is not (set REDIS_HOST=localhost, or REDIS_URL)")
    if environ.get("UPSTASH_REDIS_REST_URL"):
        advice = "put the rediss:// address of the same database into REDIS_URL"
        raise BrokerError(f"UPSTASH_REDIS_REST_URL: {NO_REST} ({advice})")
    return None


def _address(host: str, port: str, password: str, database: str) -> str:
    if any(sign in host for sign in "/@?# ") or host.count(":") == 1:
        advice = "a port goes into REDIS_PORT, a whole address into REDIS_URL"
        raise BrokerError(f"REDIS_HOST: is not the name of a host ({advice})")  # not shown: it may hold a password
    if "://" in port:
        raise BrokerError(f"REDIS_PORT: {_shown(port)} is not a number from 1 to 65535 (Kubernetes sets it where "
                          "a service is called redis: say enableServiceLinks: false, or set REDIS_URL)")  # fmt: skip
    door = f":{quote(password, safe='')}@" if password else ""
    place = named((host.strip("[]"), _whole("REDIS_PORT", port or "6379", range(1, 65536))))
    return f"redis://{door}{place}/{_whole('REDIS_DB', database or '0', range(100_000))}"


def _whole(name: str, text: str, allowed: range) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) not in allowed:
        raise BrokerError(f"{name}: {_shown(text)} is not a whole number from {allowed[0]} to {allowed[-1]}")
    return int(text)


def _shown(text: str) -> str:
    """A wrong value, quoted unless it looks like an address, which may hold a password."""
    return "an address" if "://" in text or "@" in text else repr(text)
