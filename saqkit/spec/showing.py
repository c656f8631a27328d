"""A topology as people read it: drawn as a tree, with its retry schedules and the bounds that follow from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from math import inf
from typing import Any, get_args
from zoneinfo import ZoneInfo

from pydantic import BaseModel

from saqkit.spec.base import Part
from saqkit.spec.choosing import longest_wait
from saqkit.spec.distributions import AnyDistribution
from saqkit.spec.topology import (
    Entry,
    JobType,
    Priority,
    Provider,
    Queue,
    RateLimit,
    RunningLimit,
    ScheduledEntry,
    Topology,
)

FIRINGS = 3
"""So many of a schedule's next firings are shown."""


def describe(topology: Topology, now: float | None = None) -> str:
    """The topology as plain text: its tree of jobs, queues, providers, bounds, and what acts in real runs only.

    `now`: after when the firings of its schedules are shown, in Unix seconds (default: now).
    """
    lines = [f"{topology.name}: {topology.title}" if topology.title else topology.name]
    lines += [topology.story] if topology.story else []
    lines += ["", "Jobs"]
    drawn: set[str] = set()
    for entry in topology.entry:
        lines += _indented(_entry_lines(topology, entry, f"entry: {entry.share * 100:.4g} % of the arrivals", drawn))
    for schedule in topology.schedules:
        lines += _indented(_entry_lines(topology, schedule.entry(), f"schedule {schedule.name}", drawn))
    arriving = {one.topic for one in topology.entry} | {one.topic for one in topology.schedules}
    for name in topology.topics:
        if name not in arriving:
            lines += _indented(_entry_lines(topology, Entry(topic=name), "(published by the application only)", drawn))
    for name in topology.job_types:
        if name not in drawn:
            lines += _indented(["(enqueued by the application only)", *_job_lines(topology, name, "└─ ", drawn)])
    lines += ["", "Queues"]
    for name, queue in topology.queues.items():
        limited = _limit_text(queue.rate_limit) if queue.rate_limit else "no rate limit"
        lines.append(f"  {name}: {queue.concurrency} slots in each worker process, {limited}")
        lines += [f"    {line}" for line in _taking_lines(queue)]
        lines.append(
            f"    tick {queue.tick_s:g} s, lease {queue.lease_s:g} s, sweep {queue.sweep_s:g} s: what a dead worker "
            f"held is queued again within {queue.lease_s + queue.sweep_s + 1:g} s"
        )
    if topology.providers:
        lines += ["", "Providers"]
        lines += [f"  {name}: {_provider_text(provider)}" for name, provider in topology.providers.items()]
    if topology.schedules:
        lines += ["", "Schedules"]
        lines += [f"  {_schedule_text(schedule, now)}" for schedule in topology.schedules]
    lines += ["", "Bounds that follow"]
    lines += [f"  {bound['text']}" for bound in bounds(topology)]
    lines += ["", "Acts in real runs only"]
    lines += [f"  {key}: {reason}" for key, reason in real_only(Topology)]
    return "\n".join(lines) + "\n"


def to_json(topology: Topology, now: float | None = None) -> dict[str, Any]:
    """The same as plain JSON types: `topology`, `schedules` (of retries) per job type, `firings` (the next ones) per
    schedule, `bounds`, and `real_only` (key: reason).
    """
    return {
        "topology": topology.to_dict(),
        "schedules": {
            name: {"delays_s": job.retry.schedule(), "unused_s": job.retry.unused(), "text": job.retry.describe()}
            for name, job in topology.job_types.items()
        },
        "firings": {one.name: [at.isoformat() for at in upcoming(one, FIRINGS, now)] for one in topology.schedules},
        "bounds": list(bounds(topology)),
        "real_only": dict(real_only(Topology)),
    }


def upcoming(schedule: ScheduledEntry, number: int, now: float | None = None) -> list[datetime]:
    """Its next firings after `now` (Unix seconds; default: now), in its zone."""
    zone, firings = ZoneInfo(schedule.zone), schedule.firings(time.time() if now is None else now)
    return [datetime.fromtimestamp(at, zone) for at in islice(firings, number)]


def _schedule_text(schedule: ScheduledEntry, now: float | None) -> str:
    what = "one job without users of each type" if schedule.audience is None else f"for {schedule.audience}"
    what += f" (in a model: {schedule.users:,} users)" if schedule.users else ""
    every = f"made up for, the latest {schedule.most_missed:,}"
    missed = {"skip": "left out", "once": "made up for once", "all": every}
    following = ", ".join(at.isoformat(" ") for at in upcoming(schedule, FIRINGS, now))
    return (
        f"{schedule.name}: {schedule.cron} {schedule.zone}, {what}; missed by more than {schedule.late_s:g} s: "
        f"{missed[schedule.missed]}; next: {following}"
    )


def _limit_text(limit: RateLimit) -> str:
    return f"at most {limit.limit:,} {limit.unit} in any {limit.period_s:g} s"


def _taking_lines(queue: Queue) -> Iterator[str]:
    if weights := queue.weights:
        shares = ", ".join(f"{level} {weight / sum(weights.values()):.1%}" for level, weight in weights.items())
        yield f"levels by weight, while all wait: {shares}"
    if queue.fairness == "tenants":
        yield "inside a level the tenants that wait take turns"
    if queue.tenant_rate_limit:
        yield f"of each tenant {_limit_text(queue.tenant_rate_limit)}"
    for running in queue.running_limits:
        yield f"at most {running.limit:,} jobs of one {running.key.replace('_', ' ')} run at once"


def users_per_job(topology: Topology) -> dict[str, int]:
    """The most users that a job of each type can have: its batch size, 1 if nothing batches, 0 if it fans out."""
    most = {name: 0 if job.fan_out else 1 for name, job in topology.job_types.items()}
    for _ in most:  # edges form no cycle, so as many rounds as there are job types settle every path
        for name, job in topology.job_types.items():
            if job.fan_out:
                most[job.fan_out.to] = max(most[job.fan_out.to], job.fan_out.batch_size)
            for edge in job.follow_up:
                most[edge.to] = max(most[edge.to], most[name])
    return most


def bounds(topology: Topology) -> Iterator[dict[str, Any]]:
    """What cannot be exceeded whatever the hardware: dicts of `at` (key), `users_per_s` (None if none), and `text`.

    A rate limit of jobs times the largest batch, of a queue and of a tenant; the jobs of one tenant, type, ... that may
    run at once, times the users that each serves at once, over the mean provider time of one user; how many jobs of
    other levels pass the first of a level that has weights, or that nothing bounds them where levels are strict; a
    provider's rate; and per worker process, a provider's connections and a job type's slots over the mean provider time
    of one user, and one event loop over the nominal CPU time of one user (a faster or slower host scales the latter).
    """
    most = users_per_job(topology)
    for name, queue in topology.queues.items():
        largest = max((most[job] for job, kind in topology.job_types.items() if kind.queue == name), default=0)
        for field, whose in (("rate_limit", ""), ("tenant_rate_limit", " of each tenant")):
            limit: RateLimit | None = getattr(queue, field)
            if limit and largest:
                rate, text = limit.limit / limit.period_s, ""
                if limit.unit == "jobs":
                    rate, text = rate * largest, f"{rate:,.4g} jobs/s × {largest:,} users a job = "
                yield _bound(f"queues.{name}.{field}", rate, f"queue {name}: {text}at most {rate:,.4g} users/s{whose}")
        for n, running in enumerate(queue.running_limits):
            yield from _running_bounds(topology, name, f"queues.{name}.running_limits.{n}", running, most)
        if not queue.weights:
            text = f"queue {name}: levels are strict, so low has no bound on its wait"
            text += " while more important jobs keep coming"
            yield _bound(f"queues.{name}.weights", None, text)
        for level in Priority if queue.weights else ():
            passed = longest_wait(queue.weights or {}, level)
            text = f"queue {name}: of other levels at most {passed:,} jobs are taken"
            text += f" while the first of level {level.name.lower()} waits and no limit holds it back"
            yield _bound(f"queues.{name}.weights.{level.name.lower()}", None, text)
    for name, provider in topology.providers.items():
        if sends := provider.rate:
            rate = sends.limit / sends.period_s
            text = f"provider {name}: at most {rate:,.4g} sends/s, over all processes"
            yield _bound(f"providers.{name}.rate", rate, text)
        if provider.connections and (mean := provider.latency.mean_s):
            rate = provider.connections / mean
            text = f"provider {name}: {provider.connections:,} connections ÷ {mean:.4g} s = at most {rate:,.4g} sends/s"
            yield _bound(f"providers.{name}.connections", rate, f"{text} per worker process")
    for name, job in topology.job_types.items():
        slots, at_once = topology.queues[job.queue].concurrency, job.send_concurrency
        if job.per_user.provider and (mean := topology.providers[job.per_user.provider].latency.mean_s):
            rate, text = slots * at_once / mean, f"{slots} slots" + (f" × {at_once} at once" if at_once > 1 else "")
            text = f"{name}: {text} ÷ {mean:.4g} s = at most {rate:,.4g} users/s per worker process"
            yield _bound(f"job_types.{name}.per_user.provider", rate, text)
            if (longest := -(-most[name] // at_once) * mean) > job.timeout_s:
                text = f"{name}: a job of {most[name]:,} users takes {longest:,.4g} s on average"
                text += f", but its timeout cancels it after {job.timeout_s:g} s"
                yield _bound(f"job_types.{name}.timeout_s", None, text)
        if job.per_user.cpu_us:
            rate, text = (
                1e6 / job.per_user.cpu_us,
                f"{name}: one event loop ÷ {job.per_user.cpu_us:g} µs of nominal CPU",
            )
            text += f" = at most {rate:,.4g} users/s per worker process"
            yield _bound(f"job_types.{name}.per_user.cpu_us", rate, text)


def _running_bounds(
    topology: Topology, queue: str, at: str, running: RunningLimit, most: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Of each value of a key; of a tenant by the quickest of its job types, none where one of them waits for nobody."""
    rates: dict[str, tuple[float, str]] = {}
    for name, job in topology.job_types.items():
        provider = job.per_user.provider
        if job.queue != queue or not most[name] or (running.key == "provider" and provider is None):
            continue
        mean_s = topology.providers[provider].latency.mean_s if provider is not None else 0.0
        at_once = min(job.send_concurrency, most[name])
        of = {"job_type": f"job type {name}", "provider": f"provider {provider}"}
        text = f"{running.limit:,} jobs" + (f" × {at_once} at once" if at_once > 1 else "") + f" ÷ {mean_s:.4g} s"
        found = running.limit * at_once / mean_s if mean_s else inf, text
        whose = of.get(running.key, f"each {running.key.replace('_', ' ')}")
        rates[whose] = max(rates.get(whose, found), found)
    for whose, (rate, text) in rates.items():
        if rate < inf:
            yield _bound(at, rate, f"queue {queue}: {text} = at most {rate:,.4g} users/s of {whose}")


def _bound(at: str, users_per_s: float | None, text: str) -> dict[str, Any]:
    return {"at": at, "users_per_s": users_per_s, "text": text}


def real_only(part: type[Part], at: str = "") -> Iterator[tuple[str, str]]:
    """(key, reason) of every field below `part` that cannot act in the model; `*` stands for any name."""
    for name, field in part.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("acts_in") == "real":
            yield f"{at}{name}", str(extra.get("reason", ""))
        for inner, star in _parts_in(field.annotation, ""):
            yield from real_only(inner, f"{at}{name}.{star}")


def _parts_in(annotation: Any, star: str) -> Iterator[tuple[type[Part], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, star  # type: ignore[misc]  # a class by then, which mypy cannot follow
    for inner in get_args(annotation):
        yield from _parts_in(inner, "*." if getattr(annotation, "__origin__", None) in (dict, list, tuple) else star)


def _entry_lines(topology: Topology, entry: Entry, head: str, drawn: set[str]) -> list[str]:
    priority = f", priority {Priority(entry.priority).name.lower()}" if entry.priority is not None else ""
    tenant = f", tenant {entry.tenant}" if entry.tenant else ""
    lines, pad = [f"{head}{priority}{tenant}"], ""
    if entry.topic is not None:
        lines, pad = [*lines, f"└─ topic {entry.topic}"], "   "
    starts = topology.starts(entry)
    for n, name in enumerate(starts):
        mark = "└─ " if n == len(starts) - 1 else "├─ "
        lines += [pad + line for line in _job_lines(topology, name, mark, drawn)]
    return lines


def _job_lines(topology: Topology, name: str, mark: str, drawn: set[str], how: str = "") -> list[str]:
    job = topology.job_types[name]
    if name in drawn:
        return [f"{mark}{how}{name} (drawn above)"]
    drawn.add(name)
    edges = [(job.fan_out.to, f"batches of {job.fan_out.batch_size:,} → ")] if job.fan_out else []
    edges += [(edge.to, "when done → ") for edge in job.follow_up]
    for field, when in (("on_complete", "all ended"), ("on_success", "all done"), ("on_death", "first dead")):
        if target := getattr(job.fan_out, field, None):
            edges.append((target, f"{when} → "))
    pad = ("│  " if mark.startswith("├") else "   ") + ("│  " if edges else "   ")
    lines = [f"{mark}{how}{name}  [queue {job.queue}, {Priority(job.priority).name.lower()}]"]
    lines += [f"{pad}{line}" for line in _work(job)]
    for n, (target, text) in enumerate(edges):
        inner = _job_lines(topology, target, "└─ " if n == len(edges) - 1 else "├─ ", drawn, text)
        lines += [pad[:3] + line for line in inner]
    return lines


def _work(job: JobType) -> list[str]:
    user = job.per_user
    does = [f"{job.cpu_us:g} µs CPU a job"] if job.cpu_us else []
    if job.fan_out:
        does.append(f"reads all users of the event, {job.fan_out.page_size:,} a page")
    else:
        each = [f"{user.cpu_us:g} µs CPU"] if user.cpu_us else []
        each += ["a row in the ledger"] if user.database == "ledger" else []
        each += [f"a message by provider {user.provider}"] if user.provider else []
        does.append(f"each user: {', '.join(each) or 'nothing'}; {job.send_concurrency} at once")
    return [*does, f"{job.retry.describe()}; timeout {job.timeout_s:g} s"]


def _provider_text(provider: Provider) -> str:
    latency: AnyDistribution = provider.latency
    text = (
        f"{provider.kind} {provider.channel}, {latency.kind} latency of mean {latency.mean_s * 1e3:.4g} ms and p95 "
        f"{latency.quantile(0.95) * 1e3:.4g} ms; {provider.temporary_share * 100:.4g} % of sends fail for "
        f"a while, {provider.permanent_share * 100:.4g} % for good; timeout {provider.timeout_s:g} s"
    )
    if rate := provider.rate:
        text += f"; at most {rate.limit:,} sends in any {rate.period_s:g} s"
    if provider.connections:
        text += f"; {provider.connections:,} at once in each worker process"
    if breaker := provider.breaker:
        text += f"; after {breaker.failures:,} failures in a row left alone for {breaker.reset_s:g} s"
    return text


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
