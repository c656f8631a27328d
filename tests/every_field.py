"""Every field of a description, found by reflection, and for each a change of it that both engines must show.

A row says: with `change` laid over `base`, `measure` of the attempts is `more` or `less`. The model runs every row. The
real half runs those without `real`, in this process; `real` names another test that shows the field acting there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from saqkit.spec.base import Part
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload

SEED = 3

# --- the fields


def _parts_in(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]
    for inner in get_args(annotation):
        yield from _parts_in(inner)


def _is_tag(found: FieldInfo) -> bool:
    """Whether it only says which kind of table this is: the field that holds the table is the one that acts."""
    return len(get_args(found.annotation)) == 1 and isinstance(found.default, str)


def fields() -> dict[str, FieldInfo]:
    """`Part.field` of every part that a topology, a deployment or a workload can hold."""
    parts: list[type[Part]] = [Topology, Deployment, Workload]
    for part in parts:
        for found in part.model_fields.values():
            parts += [inner for inner in _parts_in(found.annotation) if inner not in parts]
    return {
        f"{part.__name__}.{name}": found
        for part in parts
        for name, found in part.model_fields.items()
        if not _is_tag(found)
    }


def acts_in_real_only(found: FieldInfo) -> bool:
    extra = found.json_schema_extra
    return isinstance(extra, dict) and extra.get("acts_in") == "real"


FOR_READERS = {"Topology.name", "Topology.title", "Topology.story"}
"""Said to people (`saqkit show`), to no engine."""

# --- what is run

RETRY = {"max_attempts": 3, "backoff": "fixed", "delay_s": 0.1}
BASE: dict[str, Any] = {
    "name": "base",
    "title": "A small system",
    "story": "Each user gets a message.",
    "entry": [{"job_type": "announce"}],
    "queues": {"mail": {"concurrency": 2, "tick_s": 0.05, "lease_s": 1.0, "sweep_s": 0.5}, "other": {}},
    "job_types": {
        "announce": {"queue": "mail", "fan_out": {"to": "notify", "batch_size": 5}, "retry": RETRY},
        "notify": {"queue": "mail", "retry": RETRY, "per_user": {"database": "ledger", "provider": "email"}},
        "welcome": {"queue": "mail", "retry": RETRY, "per_user": {"database": "none", "provider": "email"}},
        "audit": {"queue": "mail"},
    },
    "providers": {
        "email": {"latency": {"kind": "constant", "mean_s": 0.01}},
        "slow": {"latency": {"kind": "constant", "mean_s": 0.1}},
    },
    "topics": {"made": {"starts": ["announce"]}, "greeted": {"starts": ["welcome"]}},
}


def described(changes: Mapping[str, Any]) -> tuple[Topology, Deployment, Workload]:
    """The small system with `changes` by path; those of deployment and workload begin with its name."""
    parts: list[Any] = []
    changes = deepcopy(dict(changes))  # a table that is laid in may be changed by a path below it
    for place, part in (
        ("deployment.", Deployment()), ("workload.", Workload.burst(20)), ("", Topology.parse(BASE))
    ):  # fmt: skip
        own = {path: value for path, value in changes.items() if path.startswith(place)}
        changes = {path: value for path, value in changes.items() if path not in own}
        parts.append(override(part, {path.removeprefix(place): value for path, value in own.items()}))
    deployment, workload, topology = parts
    return topology, deployment, workload


# --- what is measured

Measure = Callable[[pd.DataFrame], float]


def makespan(rows: pd.DataFrame) -> float:
    return float(rows["finished_at"].max())


def attempts(rows: pd.DataFrame) -> float:
    return len(rows)


def total(column: str) -> Measure:
    return lambda rows: float(rows[column].sum())


def mean(column: str) -> Measure:
    return lambda rows: float(rows[column].mean())


def typical(column: str) -> Measure:
    """The median: one attempt that a busy host has held up changes nothing."""
    return lambda rows: float(rows[column].median())


def distinct(column: str) -> Measure:
    return lambda rows: rows[column].nunique()


def outcomes(outcome: str) -> Measure:
    return lambda rows: int((rows["outcome"] == outcome).sum())


def rows_where(column: str, value: object) -> Measure:
    return lambda rows: int((rows[column] == value).sum())


def of_type(job_type: str) -> Measure:
    return rows_where("job_type", job_type)


def service(rows: pd.DataFrame) -> float:
    return float((rows["finished_at"] - rows["started_at"])[rows["users"] > 0].mean())


def spread_of_sends(rows: pd.DataFrame) -> float:
    return float(rows["provider_s"].std())


def at_once(rows: pd.DataFrame) -> float:
    return max(int(((rows["started_at"] <= at) & (rows["finished_at"] > at)).sum()) for at in rows["started_at"])


def place_in_line(value: str, column: str = "job_type") -> Measure:
    return lambda rows: float(rows["taken_at"].rank()[rows[column] == value].mean())


def later_ready(rows: pd.DataFrame) -> float:
    """Seconds from the end of an attempt to when the next one may begin."""
    ended = rows.groupby(["job", "attempt"])["finished_at"].max()
    again = rows[rows["attempt"] > 1]
    waits = [row.ready_at - ended[row.job, row.attempt - 1] for row in again.itertuples()]
    return sum(waits) / len(waits)


def when(outcome: str) -> Measure:
    return lambda rows: float(rows.loc[rows["outcome"] == outcome, "finished_at"].max())


# --- the rows


@dataclass(frozen=True)
class Row:
    """See this module's docstring. `measured`: providers of the profile, for the model alone."""

    change: Mapping[str, Any]
    measure: Measure
    direction: Literal["more", "less"]
    base: Mapping[str, Any] = field(default_factory=dict)
    real: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, before: pd.DataFrame, after: pd.DataFrame) -> bool:
        first, second = self.measure(before), self.measure(after)
        return second > first if self.direction == "more" else second < first


FAILING = {"providers.email.temporary_share": 1.0, "providers.email.latency.mean_s": 0.002}
BY_TOPIC = {"entry": [{"topic": "made"}]}
SINGLES = {"entry": [{"job_type": "welcome"}]}
TWICE = {"max_attempts": 2}
LIMITED = {"queues.mail.rate_limit": {"limit": 2, "period_s": 0.4}}
TENANTS = {
    "entry": [{"topic": name, "tenant": name, "share": 0.5} for name in ("north", "south")],
    "topics": {"north": {"starts": ["welcome"]}, "south": {"starts": ["welcome"]}},
    "workload.arrivals": {"kind": "recorded", "at_s": [0, 0.02], "entries": ["north", "south"], "users": [20, 4]},
    "providers.email.latency.mean_s": 0.04,
}
ONE_OF_A_TENANT = {**TENANTS, "queues.mail.running_limits": [{"key": "tenant", "limit": 1}]}
RATED = {"providers.email.rate": {"limit": 5, "period_s": 0.3}}
BREAKING = {
    "providers.email.temporary_share": 1.0,
    "providers.email.latency.mean_s": 0.04,
    "providers.email.breaker": {"failures": 2, "reset_s": 0.01},
    "job_types.notify.retry.max_attempts": 6,
}
LONG = {"workload.arrivals.users": 200, "providers.email.latency.mean_s": 0.02, "deployment.workers": 2}
KILLED = {**LONG, "workload.faults": [{"kind": "kill_worker", "at_s": 0.4}]}
OUT = {
    "workload.faults": [{"kind": "provider_outage", "at_s": 0.0, "duration_s": 0.3, "provider": "email"}],
    "job_types.notify.retry.max_attempts": 10,
}
AWAY = {**LONG, "workload.faults": [{"kind": "broker_restart", "at_s": 0.2, "down_s": 0.5}]}
TWO_QUEUES = {
    "job_types.announce.queue": "other",
    "providers.email.latency.mean_s": 0.05,
    "deployment.groups": [{"queues": ["mail"]}, {"queues": ["other"]}],
}
TWICE_REACHED = {
    "job_types.audit.per_user": {"database": "ledger", "provider": "slow"},
    "job_types.notify.follow_up": [{"to": "audit"}],
    "providers.slow.latency.mean_s": 0.01,
}
POISSON = {"workload.arrivals": {"kind": "poisson", "rate_per_s": 30.0, "duration_s": 0.3}, **SINGLES}
DAILY = {"workload.arrivals": {"kind": "profile", "users_per_day": 48, "hourly": [1] * 24}, **SINGLES}
TRACE = {"workload.arrivals": {"kind": "recorded", "at_s": [0.0, 0.1], "users": [2, 2]}, **SINGLES}
ENTRIES = {
    "workload.arrivals": {"kind": "recorded", "at_s": [n / 50 for n in range(12)]},
    "entry": [{"job_type": "welcome", "share": 0.1}, {"job_type": "audit", "share": 0.9}],
}
HELLO = {"name": "hello", "job_type": "welcome", "users": 2, "cron": "* * * * * *"}
FIRED = {  # each second of the seventh hour's first minute, and each second
    "schedules": [{"name": "nightly", "topic": "made", "users": 5, "cron": "0 7 * * * *"}, HELLO],
    "workload.arrivals": {
        "kind": "scheduled", "start": "2026-03-29T07:00:00", "duration_s": 0.9, "others": {"kind": "burst", "users": 1}
    },
}  # fmt: skip


def latency(**table: Any) -> dict[str, Any]:
    return {"providers.email.latency": table, **SINGLES}


SLOW = {"kind": "constant", "mean_s": 0.05}
MIXED = latency(kind="mixture", weights=[0.9, 0.1], components=[{"kind": "constant", "mean_s": 0.001}, SLOW])
LOW_MEDIAN = latency(kind="percentiles", p50_s=0.005, p99_s=0.2)
THINKING = {"kind": "closed_loop", "clients": 2, "think": {"kind": "constant", "mean_s": 0.1}, "duration_s": 0.8}
LOOP = {"workload.arrivals": THINKING, **SINGLES}


def fault(**changed: Any) -> dict[str, Any]:
    return {f"workload.faults.0.{name}": value for name, value in changed.items()}


MEASURE, FAULTS, MAIL = "tests/test_measure.py::", "tests/test_measure_faults.py::", "tests/test_mail.py::"
FIRING = "tests/worker/test_topology_schedules.py::"
MISSED = FIRING + "test_what_fired_while_nothing_ran_is_dealt_with_as_the_schedule_says"
LEASES = "tests/queue/test_leases.py::"
HOSTS = MEASURE + "test_a_wrong_description_is_refused_before_anything_starts"  # `measure` has one host
KILL = FAULTS + "test_what_a_killed_worker_held_is_recovered_and_nobody_is_counted_twice"
OUTAGE = FAULTS + "test_during_an_outage_every_send_fails_at_once_and_is_tried_again"
RESTART = FAULTS + "test_a_broker_that_is_away_for_a_while_loses_nobody"
BY_HOUR = "tests/spec/test_workload.py::test_a_profile_spreads_its_users_over_the_hours_by_weight"
GROUPS = MEASURE + "test_groups_follow_ups_and_two_queues"

ROWS: dict[str, Row] = {
    # topology
    "Topology.entry": Row({"entry": [{"job_type": "welcome"}]}, attempts, "more"),
    "Topology.queues": Row(
        {"queues": {**BASE["queues"], "mail": {"concurrency": 1}}}, at_once, "less",
        {"providers.email": BASE["providers"]["slow"]},
    ),
    "Topology.job_types": Row(
        {"job_types": {**BASE["job_types"], "notify": {**BASE["job_types"]["notify"], "follow_up": [{"to": "audit"}]}}},
        attempts, "more",
    ),
    "Topology.providers": Row({"providers": {**BASE["providers"], "email": BASE["providers"]["slow"]}},
                              total("provider_s"), "more"),
    "Topology.topics": Row({"topics": {"made": {"starts": ["announce", "welcome"]}}}, attempts, "more", BY_TOPIC),
    "Topic.starts": Row({"topics.made.starts": ["announce", "welcome"]}, attempts, "more", BY_TOPIC),
    "Entry.topic": Row({"entry.0.topic": "greeted"}, attempts, "more", BY_TOPIC),
    "Entry.job_type": Row({"entry.0.job_type": "welcome"}, attempts, "more"),
    "Entry.share": Row({"entry.0.share": 0.9, "entry.1.share": 0.1}, of_type("welcome"), "more", ENTRIES),
    "Entry.priority": Row({"entry.0.priority": "critical"}, mean("priority"), "less"),
    "Entry.tenant": Row({"entry.0.tenant": "north"}, rows_where("tenant", "north"), "more"),
    # schedules
    "Topology.schedules": Row({"schedules": [HELLO]}, attempts, "less", FIRED),
    "ScheduledEntry.topic": Row({"schedules.0.topic": "greeted"}, of_type("welcome"), "more", FIRED),
    "ScheduledEntry.job_type": Row({"schedules.1.job_type": "audit"}, of_type("audit"), "more", FIRED),
    "ScheduledEntry.cron": Row({"schedules.0.cron": "0 8 * * *"}, distinct("event"), "less", FIRED),
    "ScheduledEntry.zone": Row({"schedules.0.zone": "Europe/Berlin"}, distinct("event"), "less", FIRED),
    "ScheduledEntry.audience": Row({"schedules.1.audience": "none", "schedules.1.users": "none"}, of_type("welcome"),
                                   "less", FIRED),
    "ScheduledEntry.users": Row({"schedules.0.users": 9}, total("users_done"), "more", FIRED),
    "ScheduledEntry.priority": Row({"schedules.0.priority": "critical"}, mean("priority"), "less", FIRED),
    "ScheduledEntry.tenant": Row({"schedules.0.tenant": "north"}, rows_where("tenant", "north"), "more", FIRED),
    # queues
    "Queue.concurrency": Row({"queues.mail.concurrency": 1}, at_once, "less", {"providers.email.latency.mean_s": 0.05}),
    "Queue.rate_limit": Row(LIMITED, makespan, "more"),
    "RateLimit.limit": Row({"queues.mail.rate_limit.limit": 1}, makespan, "more", LIMITED),
    "RateLimit.period_s": Row({"queues.mail.rate_limit.period_s": 1.0}, makespan, "more", LIMITED),
    "RateLimit.unit": Row(
        {"queues.mail.rate_limit.unit": "users"}, makespan, "more",
        {"queues.mail.rate_limit": {"limit": 6, "period_s": 0.3}},
    ),
    "Queue.weights": Row(
        {"queues.mail.weights": {"critical": 1, "high": 1, "normal": 1, "low": 100}}, place_in_line("audit"), "less",
        {**BY_TOPIC, "topics.made.starts": ["welcome", "audit"], "queues.mail.concurrency": 1,
         "job_types.audit.priority": "low", "providers.email.latency.mean_s": 0.03},
    ),
    "Queue.fairness": Row({"queues.mail.fairness": "tenants"}, place_in_line("south", "tenant"), "less", TENANTS),
    "Queue.tenant_rate_limit": Row({"queues.mail.tenant_rate_limit": {"limit": 2, "period_s": 0.4}}, makespan, "more"),
    "Queue.running_limits": Row(
        {"queues.mail.running_limits": [{"key": "job_type", "limit": 1}]}, at_once, "less", TENANTS
    ),
    "RunningLimit.key": Row({"queues.mail.running_limits.0.key": "job_type"}, at_once, "less", ONE_OF_A_TENANT),
    "RunningLimit.limit": Row({"queues.mail.running_limits.0.limit": 2}, makespan, "less", ONE_OF_A_TENANT),
    "Queue.tick_s": Row({"queues.mail.tick_s": 3.0}, later_ready, "more", FAILING,
                        real="tests/queue/test_backoff_on_queue.py::test_three_attempts_use_two_delays"),
    "Queue.lease_s": Row({"queues.mail.lease_s": 6.0}, when("lost"), "more", KILLED,
                         real=LEASES + "test_what_a_killed_worker_held_is_queued_again_at_its_place"),
    "Queue.sweep_s": Row({"queues.mail.sweep_s": 8.0}, when("lost"), "more", KILLED,
                         real=LEASES + "test_what_a_killed_worker_held_is_queued_again_at_its_place"),
    # job types
    "JobType.queue": Row({"job_types.notify.queue": "other"}, rows_where("queue", "other"), "more"),
    "JobType.priority": Row(
        {"job_types.audit.priority": "critical"}, place_in_line("audit"), "less",
        {**BY_TOPIC, "topics.made.starts": ["welcome", "audit"], "queues.mail.concurrency": 1,
         "providers.email.latency.mean_s": 0.03},
    ),
    "JobType.work": Row(
        {"job_types.notify.work": "payment"}, of_type("audit"), "less",
        {"entry": [{"job_type": "notify"}], "job_types.notify.follow_up": [{"to": "audit"}],
         "providers.email.permanent_share": 0.5, "providers.email.channel": "sms"},
        real="tests/test_shop_checkout.py::test_a_measured_run_pays_an_order_for_each_arrival",
    ),
    "JobType.retry": Row({"job_types.notify.retry": {"max_attempts": 1}}, attempts, "less", FAILING),
    "JobType.timeout_s": Row(
        {"job_types.notify.timeout_s": 0.1}, rows_where("error", "TimeoutError"), "more",
        {"providers.email.latency.mean_s": 0.08, "job_types.notify.retry.max_attempts": 1},
    ),
    "JobType.cpu_us": Row({"job_types.notify.cpu_us": 40_000}, total("cpu_s"), "more"),
    "JobType.per_user": Row({"job_types.notify.per_user": {}}, total("provider_s"), "less"),
    "JobType.send_concurrency": Row(
        {"job_types.notify.send_concurrency": 5}, service, "less", {"providers.email.latency.mean_s": 0.06}
    ),
    "JobType.fan_out": Row({"job_types.announce.fan_out": "none"}, attempts, "more"),
    "JobType.follow_up": Row({"job_types.notify.follow_up": [{"to": "audit"}]}, attempts, "more"),
    "PerUser.cpu_us": Row({"job_types.notify.per_user.cpu_us": 10_000}, total("cpu_s"), "more"),
    "PerUser.database": Row({"job_types.welcome.per_user.database": "ledger"}, total("database_s"), "more", SINGLES),
    "PerUser.provider": Row({"job_types.notify.per_user.provider": "slow"}, total("provider_s"), "more"),
    "FanOut.to": Row({"job_types.announce.fan_out.to": "welcome"}, of_type("welcome"), "more"),
    "FanOut.batch_size": Row({"job_types.announce.fan_out.batch_size": 10}, attempts, "less"),
    "FanOut.page_size": Row({"job_types.announce.fan_out.page_size": 5}, distinct("queued_at"), "more"),
    "FanOut.on_complete": Row({"job_types.announce.fan_out.on_complete": "audit"}, of_type("audit"), "more"),
    "FanOut.on_success": Row({"job_types.announce.fan_out.on_success": "audit"}, of_type("audit"), "more"),
    "FanOut.on_death": Row({"job_types.announce.fan_out.on_death": "audit"}, of_type("audit"), "more", FAILING),
    "FollowUp.to": Row(
        {"job_types.notify.follow_up.0.to": "welcome"}, of_type("welcome"), "more",
        {"job_types.notify.follow_up": [{"to": "audit"}]},
    ),
    "Retry.max_attempts": Row({"job_types.notify.retry.max_attempts": 2}, attempts, "less", FAILING),
    "Retry.backoff": Row({"job_types.notify.retry.backoff": "exponential"}, later_ready, "more",
                         {**FAILING, "job_types.notify.retry.factor": 6.0}),
    "Retry.delay_s": Row({"job_types.notify.retry.delay_s": 0.5}, later_ready, "more", FAILING),
    "Retry.factor": Row({"job_types.notify.retry.factor": 8.0}, later_ready, "more",
                        {**FAILING, "job_types.notify.retry.backoff": "exponential"}),
    "Retry.delays_s": Row({"job_types.notify.retry.delays_s": [0.5]}, later_ready, "more",
                          {**FAILING, "job_types.notify.retry": {**TWICE, "backoff": "list", "delays_s": [0.05]}}),
    "Retry.cap_s": Row({"job_types.notify.retry.cap_s": 0.05}, later_ready, "less",
                       {**FAILING, "job_types.notify.retry": {**TWICE, "backoff": "fixed", "delay_s": 0.6}}),
    "Retry.jitter": Row({"job_types.notify.retry.jitter": "full"}, later_ready, "less",
                        {**FAILING, "job_types.notify.retry": {**TWICE, "backoff": "fixed", "delay_s": 0.8}}),
    # providers
    "Provider.kind": Row({"providers.email.kind": "smtp"}, total("provider_s"), "more",
                         measured={"email": {"latency": {"kind": "constant", "mean_s": 0.05}, "temporary_share": 0.0,
                                             "permanent_share": 0.0, "samples": 100}},
                         real="tests/test_provider_gates.py::test_emails_over_smtp_keep_the_rate"),
    "Provider.channel": Row({"providers.slow.channel": "sms"}, total("users_done"), "more", TWICE_REACHED),
    "Provider.latency": Row({"providers.email.latency": SLOW}, total("provider_s"), "more"),
    "Provider.temporary_share": Row({"providers.email.temporary_share": 0.5}, outcomes("retry"), "more"),
    "Provider.permanent_share": Row({"providers.email.permanent_share": 0.5}, total("users_failed"), "more"),
    "Provider.timeout_s": Row({"providers.email.timeout_s": 0.005}, outcomes("dead"), "more"),
    "Provider.rate": Row(RATED, makespan, "more"),
    "Provider.connections": Row({"providers.email.connections": 1}, total("provider_s"), "more",
                                {"queues.mail.concurrency": 4, "providers.email.latency.mean_s": 0.03}),
    "Provider.breaker": Row({"providers.email.breaker": {"failures": 2}}, total("provider_s"), "less",
                            {"providers.email.temporary_share": 1.0, "providers.email.latency.mean_s": 0.02}),
    "SendRate.limit": Row({"providers.email.rate.limit": 3}, makespan, "more", RATED),
    "SendRate.period_s": Row({"providers.email.rate.period_s": 0.8}, makespan, "more", RATED),
    "CircuitBreaker.failures": Row({"providers.email.breaker.failures": 10}, total("provider_s"), "more",
                                   {**BREAKING, "providers.email.breaker.reset_s": 30}),
    "CircuitBreaker.reset_s": Row({"providers.email.breaker.reset_s": 30}, total("provider_s"), "less", BREAKING),
    # distributions
    "Constant.mean_s": Row({"providers.email.latency.mean_s": 0.05}, typical("provider_s"), "more"),
    "Exponential.mean_s": Row({"providers.email.latency.mean_s": 0.06}, typical("provider_s"), "more",
                              latency(kind="exponential", mean_s=0.005)),
    "Lognormal.mean_s": Row({"providers.email.latency.mean_s": 0.06}, typical("provider_s"), "more",
                            latency(kind="lognormal", mean_s=0.005)),
    "Lognormal.cv": Row({"providers.email.latency.cv": 3.0}, spread_of_sends, "more",
                        latency(kind="lognormal", mean_s=0.08, cv=0.01)),
    "Gamma.mean_s": Row({"providers.email.latency.mean_s": 0.06}, typical("provider_s"), "more",
                        latency(kind="gamma", mean_s=0.005)),
    "Gamma.cv": Row({"providers.email.latency.cv": 2.0}, spread_of_sends, "more",
                    latency(kind="gamma", mean_s=0.08, cv=0.01)),
    "Empirical.values_s": Row({"providers.email.latency.values_s": [0.05, 0.09]}, total("provider_s"), "more",
                              latency(kind="empirical", values_s=[0.001, 0.005])),
    "Mixture.weights": Row({"providers.email.latency.weights": [0.1, 0.9]}, total("provider_s"), "more", MIXED),
    "Mixture.components": Row({"providers.email.latency.components": [SLOW, SLOW]}, total("provider_s"), "more", MIXED),
    "Percentiles.p50_s": Row({"providers.email.latency.p50_s": 0.1}, total("provider_s"), "more", LOW_MEDIAN),
    "Percentiles.p75_s": Row({"providers.email.latency.p75_s": 0.19}, total("provider_s"), "more", LOW_MEDIAN),
    "Percentiles.p90_s": Row({"providers.email.latency.p90_s": 0.19}, total("provider_s"), "more", LOW_MEDIAN),
    "Percentiles.p95_s": Row({"providers.email.latency.p95_s": 0.19}, total("provider_s"), "more", LOW_MEDIAN),
    "Percentiles.p99_s": Row({"providers.email.latency.p99_s": 0.01}, total("provider_s"), "less", LOW_MEDIAN),
    "Percentiles.max_s": Row({"providers.email.latency.max_s": 2.0}, total("provider_s"), "more",
                             latency(kind="percentiles", p50_s=0.01, max_s=0.011)),
    "Percentiles.mean_s": Row({"providers.email.latency.mean_s": 0.06}, total("provider_s"), "more",
                              latency(kind="percentiles", p50_s=0.01, mean_s=0.011)),
    # deployment
    "Deployment.hosts": Row({"deployment.hosts": 2}, distinct("host"), "more", real=HOSTS),
    "Deployment.network_round_trip_ms": Row({"deployment.network_round_trip_ms": 200}, makespan, "more",
                                            {"deployment.hosts": 2}, real=HOSTS),
    "Deployment.cores": Row({"deployment.cores": 1}, makespan, "more",
                            {**LONG, "job_types.notify.per_user.cpu_us": 5_000},
                            real=MEASURE + "test_a_deployment_may_keep_a_run_to_one_core"),
    "Deployment.workers": Row({"deployment.workers": 2}, distinct("worker"), "more", {"workload.arrivals.users": 200},
                              real=MEASURE + "test_the_same_seed_counts_the_same_on_another_deployment"),
    "Deployment.groups": Row({"deployment.groups": TWO_QUEUES["deployment.groups"]}, distinct("worker"), "more",
                             {"job_types.announce.queue": "other"}, real=GROUPS),
    "Group.queues": Row({"deployment.groups.1.queues": ["mail", "other"]}, at_once, "more", TWO_QUEUES, real=GROUPS),
    "Group.processes": Row({"deployment.groups.0.processes": 2}, at_once, "more", TWO_QUEUES,
                           real="tests/test_every_field_for_real.py::test_a_measured_run_of_groups_on_a_given_broker"),
    "Deployment.concurrency": Row({"deployment.concurrency": 1}, at_once, "less", {"providers.email.latency": SLOW}),
    # workload
    "Workload.arrivals": Row({"workload.arrivals": {"kind": "burst", "users": 40}}, total("users_done"), "more"),
    "Workload.faults": Row({"workload.faults": KILLED["workload.faults"]}, outcomes("lost"), "more", LONG, real=KILL),
    "Burst.users": Row({"workload.arrivals.users": 40}, total("users_done"), "more"),
    "Poisson.rate_per_s": Row({"workload.arrivals.rate_per_s": 100.0}, attempts, "more", POISSON),
    "Poisson.duration_s": Row({"workload.arrivals.duration_s": 1.0}, attempts, "more", POISSON),
    "Poisson.users_per_event": Row({"workload.arrivals.users_per_event": 4}, total("users_done"), "more", POISSON),
    "Profile.users_per_day": Row({"workload.arrivals.users_per_day": 200}, attempts, "more", DAILY, real=BY_HOUR),
    "Profile.hourly": Row({"workload.arrivals.hourly": [1] + [0] * 23}, makespan, "less", DAILY, real=BY_HOUR),
    "Profile.days": Row({"workload.arrivals.days": 3}, makespan, "more", DAILY, real=BY_HOUR),
    "Profile.users_per_event": Row({"workload.arrivals.users_per_event": 8}, distinct("event"), "less", DAILY,
                                   real=BY_HOUR),
    "Recorded.at_s": Row({"workload.arrivals.at_s": [0.0, 0.9]}, makespan, "more", TRACE),
    "Recorded.users": Row({"workload.arrivals.users": [2, 8]}, total("users_done"), "more", TRACE),
    "Recorded.entries": Row({"workload.arrivals.entries": ["welcome"] * 12}, of_type("welcome"), "more", ENTRIES),
    "ClosedLoop.clients": Row({"workload.arrivals.clients": 6}, attempts, "more", LOOP),
    "ClosedLoop.think": Row({"workload.arrivals.think": {"kind": "constant", "mean_s": 0.9}}, attempts, "less", LOOP),
    "ClosedLoop.duration_s": Row({"workload.arrivals.duration_s": 2.0}, attempts, "more", LOOP),
    "ClosedLoop.users_per_event": Row({"workload.arrivals.users_per_event": 5}, total("users_done"), "more", LOOP),
    "Scheduled.start": Row({"workload.arrivals.start": "2026-03-29T08:00:00"}, distinct("event"), "less", FIRED),
    "Scheduled.zone": Row({"workload.arrivals.zone": "Europe/Berlin"}, distinct("event"), "less", FIRED),
    "Scheduled.duration_s": Row({"workload.arrivals.duration_s": 1.4}, distinct("event"), "more", FIRED),
    "Scheduled.others": Row({"workload.arrivals.others.users": 30}, total("users_done"), "more", FIRED),
    "KillWorker.at_s": Row(fault(at_s=0.8), when("lost"), "more", KILLED, real=KILL),
    "KillWorker.worker": Row(fault(worker=1), lambda rows: rows_where("worker", "w1")(rows[rows["outcome"] == "lost"]),
                             "more", KILLED, real=KILL),
    "ProviderOutage.at_s": Row(fault(at_s=60.0), outcomes("retry"), "less", OUT, real=OUTAGE),
    "ProviderOutage.duration_s": Row(fault(duration_s=0.9), outcomes("retry"), "more", OUT, real=OUTAGE),
    "ProviderOutage.provider": Row(fault(provider="slow"), outcomes("retry"), "less", OUT, real=OUTAGE),
    "BrokerRestart.at_s": Row(fault(at_s=60.0), makespan, "less", AWAY, real=RESTART),
    "BrokerRestart.down_s": Row(fault(down_s=3.0), makespan, "more", AWAY, real=RESTART),
}  # fmt: skip
"""Of every field that acts in both engines."""

REAL_ONLY: dict[str, str] = {
    "ScheduledEntry.name": FIRING + "test_a_firing_is_an_event_as_described_and_named_after_its_schedule",
    "ScheduledEntry.title": FIRING + "test_a_firing_is_an_event_as_described_and_named_after_its_schedule",
    "ScheduledEntry.body": FIRING + "test_a_firing_is_an_event_as_described_and_named_after_its_schedule",
    "ScheduledEntry.missed": MISSED,
    "ScheduledEntry.late_s": MISSED,
    "ScheduledEntry.most_missed": MISSED,
    "Queue.done_retention_s": "tests/test_every_field_for_real.py::test_how_long_a_finished_job_can_be_looked_up",
    "Queue.dead_retention_s": "tests/queue/test_dead_letters.py::test_old_ones_are_forgotten_and_chosen_ones_purged",
    "Queue.dead_cap": "tests/queue/test_dead_letters.py::test_beyond_the_cap_the_oldest_go_and_are_counted",
    "Provider.url": FAULTS + "test_a_worker_that_cannot_start_ends_the_run_with_its_reason",
    "Provider.sender": MAIL + "test_a_message_id_depends_on_event_user_and_channel_only",
    "Deployment.broker": "tests/test_every_field_for_real.py::test_a_measured_run_of_groups_on_a_given_broker",
    "Deployment.database": HOSTS,
}
"""Of every field that acts in real runs only: the test that shows it."""
