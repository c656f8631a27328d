"""The queues of the run with all features on: what its workers, its operator and its judge have to agree on."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha1
from typing import Any
from zoneinfo import ZoneInfo

from saqkit.queue.payload import Payload, PayloadKeys
from saqkit.queue.timetable import Schedule
from saqkit.spec.topology import RateLimit, RunningLimit

PLAIN = "nobody-may-read-this-"
"""With this every text begins that is to be sealed."""
EACH, ALONE, ZONED = "each", "alone", "zoned"
ZONE = "Asia/Kathmandu"
"""Its schedule fires in this hour and the next three of that zone, none of which it is at that time in UTC."""
KEPT = {"keep_key_s": 3600}
"""In the `meta` of all jobs but those of the tenant `SWEPT`, so that nothing of them is cleaned before it is judged."""
TENANTS = ("big", "b", "c", "d", "e")
UNWANTED = "unwanted"
"""A tenant all of whose jobs are cancelled."""
SWEPT = "swept"
"""A tenant whose jobs are cleared and cleaned."""
PROVIDERS = {"work": "post", "parent": "post"}
"""By which provider functions send, as far as running limits go."""


def secret_of(key: str) -> str:
    """What is sealed in the job of a key."""
    return PLAIN + sha1(key.encode(), usedforsecurity=False).hexdigest()


def options(fires: bool) -> dict[str, Any]:
    """What a queue is built with. With `fires` it has schedules of each second, one without overlap, one in a zone."""
    about = {"ttl": 0, "retries": 3, "meta": {"tenant": "e", **KEPT}}
    hour = datetime.now(ZoneInfo(ZONE)).hour
    hours = ",".join(str((hour + n) % 24) for n in range(4))
    schedules = [
        Schedule(EACH, "work", "* * * * * *", kwargs={"ms": 5}, missed="all", properties=about),
        Schedule(ALONE, "work", "* * * * * *", kwargs={"ms": 700, "unique": ALONE}, overlap=False, priority="high",
                 properties={**about, "ttl": 0}),
        Schedule(ZONED, "work", f"* {hours} * * * *", ZONE, kwargs={"ms": 5}, missed="all", properties=about),
    ]  # fmt: skip
    return {
        "weights": {"critical": 8, "high": 4, "normal": 2, "low": 1},
        "fairness": "tenants",
        "rate_limit": RateLimit(limit=20, period_s=0.1),
        "tenant_rate_limit": RateLimit(limit=15, period_s=0.4),
        "running_limits": (
            RunningLimit(key="tenant", limit=4),
            RunningLimit(key="job_type", limit=8),
            RunningLimit(key="customer", limit=1),
            RunningLimit(key="provider", limit=9),
        ),
        "providers": PROVIDERS,
        "payload": Payload(encrypt={"work": ["secret"]}, keys=PayloadKeys({"k1": bytes(range(32))})),
        "schedules": schedules if fires else (),
    }


CHANGES: tuple[dict[str, Any] | None, ...] = (
    None,  # all as it was started with
    {"weights": {"critical": 1, "high": 1, "normal": 1, "low": 3}},
    {"weights": None},
    {"fairness": None},
    {"fairness": "tenants"},
    {"rate_limit": {"limit": 60, "period_s": 0.5}},
    {"rate_limit": {"limit": 500, "unit": "users"}},
    {"rate_limit": None},
    {"tenant_rate_limit": {"limit": 20, "period_s": 0.3}},
    {"tenant_rate_limit": {"limit": 50, "period_s": 0.4, "unit": "users"}},
    {"tenant_rate_limit": None},
    {"running_limits": [{"key": "tenant", "limit": 3}, {"key": "customer", "limit": 2}]},
    {"running_limits": [{"key": "job_type", "limit": 6}]},
    {"running_limits": [{"key": "provider", "limit": 3}]},
    {"running_limits": None},
)
"""What the operator changes in `Queue.configure` while workers run."""
