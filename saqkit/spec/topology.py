"""What exists: queues, job types, retries, limits, edges, topics and providers. Pure data, read from TOML."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import IntEnum
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from saqkit.errors import DescriptionError, UsageError
from saqkit.spec.arrivals import Users
from saqkit.spec.backoff import Retry
from saqkit.spec.base import Part, acts_in_real, did_you_mean
from saqkit.spec.distributions import Distribution, Lognormal
from saqkit.spec.roles import roles_of

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]{0,63}$")]
Share = Annotated[float, Field(ge=0, le=1)]
SHIPPED = Path(__file__).parent.parent / "topologies"
CALLBACKS = ("on_complete", "on_success", "on_death")
MEDIA = ("api", "email", "sms")


class Priority(IntEnum):
    """The four levels; a lower number goes first."""

    CRITICAL = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4


def _priority(value: object) -> object:
    if isinstance(value, str):
        if value.upper() not in Priority.__members__:
            names = [p.name.lower() for p in Priority]
            raise ValueError(f'there is no priority "{value}" ({did_you_mean(value, names)})')
        return Priority[value.upper()]
    return value


Level = Annotated[Priority, BeforeValidator(_priority), PlainSerializer(lambda p: p.name.lower(), return_type=str)]


Most = Annotated[int, Field(gt=0, le=1_000_000_000)]
"""A limit: beyond a thousand million it would be none, and the queue's scripts could not write it down exactly."""


class RateLimit(Part):
    """In any window of `period_s` at most `limit` jobs (or users) are taken from the queue, over all processes.

    A job of more users than the limit waits for an empty window and then blocks users ÷ limit periods. With unit
    `users`, a job without users (a fan-out) weighs 1.
    """

    limit: Most
    period_s: PositiveFloat = 1.0
    unit: Literal["jobs", "users"] = "jobs"


class RunningLimit(Part):
    """At most `limit` jobs of one value of `key` run at once, over all processes.

    `key` is `tenant`, `job_type`, `provider` (that of the job type), or the name of an argument of the jobs or else of
    an entry of their `meta`; its values are texts, numbers and booleans. A job without such a value is not limited,
    but jobs without a tenant are those of the tenant "".
    """

    key: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    limit: Most

    @field_validator("key")
    @classmethod
    def _not_nearly(cls, key: str) -> str:
        known = ("tenant", "job_type", "provider")
        near = get_close_matches(key.lower(), known, n=1, cutoff=0.85)
        if key in ("function", "queue", "users") or (near and key not in known):
            meant = {"function": "job_type", "queue": "job_type", "users": "tenant"}.get(key, *near)
            raise ValueError(f'there is no key "{key}" (did you mean "{meant}"?)')
        return key


class Taking(Part):
    """What decides which waiting job is taken next (`saqkit.spec.choosing` has the exact rules)."""

    rate_limit: RateLimit | None = None
    weights: dict[str, PositiveFloat] | None = Field(
        default=None,
        description="of each level: its share of what is taken while all levels wait; none: strictly by priority",
    )
    fairness: Literal["none", "tenants"] = Field(
        default="none",
        description="tenants: inside a level the tenants that wait take turns",
    )
    tenant_rate_limit: RateLimit | None = Field(
        default=None,
        description='a rate limit for each tenant of the queue; jobs without one are those of the tenant ""',
    )
    running_limits: tuple[RunningLimit, ...] = ()

    @field_validator("weights")
    @classmethod
    def _of_all_levels(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        names = [level.name.lower() for level in Priority]
        for name in weights or ():
            if name not in names:
                raise ValueError(f'there is no priority "{name}" ({did_you_mean(name, names)})')
        if weights is not None and (missing := [name for name in names if name not in weights]):
            raise ValueError(f"the weight of {' and '.join(missing)} is missing: each of the four levels needs one")
        for name, weight in (weights or {}).items():
            if not 1e-6 <= weight <= 1e6:  # beyond, sums of shares are not exact enough for each level to have its turn
                raise ValueError(f"the weight of {name} should be between 0.000001 and 1,000,000")
        return weights and {name: weights[name] for name in names}

    @field_validator("running_limits")
    @classmethod
    def _one_for_a_key(cls, limits: tuple[RunningLimit, ...]) -> tuple[RunningLimit, ...]:
        keys = [limit.key for limit in limits]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f'there are two limits for "{twice[0]}": give one')
        return limits


class Queue(Taking):
    """A queue: jobs wait here in order of priority, first in first out in a level, unless `Taking` says otherwise."""

    concurrency: PositiveInt = Field(default=10, description="slots in each worker process")
    tick_s: PositiveFloat = Field(default=0.2, description="delayed jobs and retries wake on this grid")
    lease_s: PositiveFloat = Field(default=5.0, description="a claim expires this long after its last renewal")
    sweep_s: PositiveFloat = Field(default=5.0, description="how often expired claims are looked for")
    done_retention_s: NonNegativeFloat = Field(
        default=600.0,
        description="how long a finished job can be looked up",
        json_schema_extra=acts_in_real("a finished job takes no part in any later attempt"),
    )
    dead_retention_s: PositiveFloat = Field(
        default=7 * 86_400.0,
        description="how long dead letters are kept",
        json_schema_extra=acts_in_real("a dead letter takes no part in any later attempt"),
    )
    dead_cap: NonNegativeInt = Field(
        default=100_000,
        description="at most so many dead letters are kept, the oldest go first; 0: no limit",
        json_schema_extra=acts_in_real("a dead letter takes no part in any later attempt"),
    )


class PerUser(Part):
    """What serving one user takes: CPU, then its share of the database work, then the provider."""

    cpu_us: NonNegativeFloat = Field(default=0.0, description="work in nominal µs: a fixed number of loop turns")
    database: Literal["none", "ledger"] = Field(
        default="ledger", description="ledger: one notification row per user and its result"
    )
    provider: Name | None = None


class FanOut(Part):
    """This job type finds the users of its event and enqueues jobs of at most `batch_size` users of type `to`."""

    to: Name
    batch_size: PositiveInt = 100
    page_size: PositiveInt = Field(default=1000, description="users read per database page")
    on_complete: Name | None = Field(
        default=None, description="a job type: one job, without users, when all of these jobs have ended, however"
    )
    on_success: Name | None = Field(default=None, description="the same, when all of these jobs are done")
    on_death: Name | None = Field(default=None, description="the same, when the first of them becomes a dead letter")

    @property
    def calls_back(self) -> bool:
        """Whether anything is to happen when its jobs have ended."""
        return bool(self.on_complete or self.on_success or self.on_death)


class FollowUp(Part):
    """When a job of this type is done, a job of type `to` is enqueued for the same users."""

    to: Name


Work = Literal["messages", "payment", "payment-check", "enrolment", "reminders", "clean-codes", "report",
               "sync-courses", "sync-profiles", "sync-enrolments"]  # fmt: skip
FOR_NOBODY = ("payment-check", "clean-codes", "report", "sync-courses")
"""The work of job types whose jobs serve no users."""


class JobType(Part):
    """A kind of job: where it queues, how it is retried, and what it does."""

    queue: Name
    priority: Level = Priority.NORMAL
    retry: Retry = Retry()
    timeout_s: PositiveFloat = 300.0
    cpu_us: NonNegativeFloat = Field(default=0.0, description="work per job in nominal µs, besides the users'")
    per_user: PerUser = PerUser(database="none")
    work: Work = Field(
        default="messages",
        description="what serving a user is: a message, charging an order (nothing follows one that is declined),"
        " completing an enrolment, asking another system for a profile or enrolments (sync-…); reminders: the fan-out"
        " finds those who are due; the others serve nobody: payment-check asks for lost answers, sync-courses,"
        " clean-codes, report",
    )
    send_concurrency: PositiveInt = Field(default=1, description="users of one job served at once")
    fan_out: FanOut | None = None
    follow_up: tuple[FollowUp, ...] = ()

    @model_validator(mode="after")
    def _fans_out_or_serves(self) -> JobType:
        served = {"work": "messages", "per_user": PerUser(database="none"), "send_concurrency": 1, "follow_up": ()}
        if self.work == "reminders":
            if not self.fan_out:
                raise ValueError('work = "reminders" finds out who is due: say fan_out = { to = "NAME" }')
            del served["work"]
        if self.fan_out and (wrong := [name for name, unset in served.items() if getattr(self, name) != unset]):
            raise ValueError(f'{wrong[0]} means nothing beside fan_out: it belongs to "{self.fan_out.to}", whose jobs '
                             "have users")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _pays_by_a_provider(self) -> JobType:
        if self.work == "enrolment" and self.per_user.database == "none":
            raise ValueError('work = "enrolment" needs where it is written down who was served: say per_user = '
                             '{ database = "ledger" }')  # fmt: skip
        if self.work in ("sync-profiles", "sync-enrolments") and self.per_user.provider is None:
            raise ValueError(f'work = "{self.work}" needs how the other system is asked: say per_user = '
                             '{ provider = "NAME", database = "ledger" }')  # fmt: skip
        if self.work == "payment" and (self.per_user.provider is None or self.per_user.database == "none"):
            raise ValueError('work = "payment" needs who charges, and where that is written down: say per_user = '
                             '{ provider = "NAME", database = "ledger" }')  # fmt: skip
        return self

    @model_validator(mode="after")
    def _checks_for_nobody(self) -> JobType:
        served = {"per_user": PerUser(database="none"), "send_concurrency": 1}
        wrong = [name for name, unset in served.items() if getattr(self, name) != unset]
        if self.work in FOR_NOBODY and wrong:
            raise ValueError(f'{wrong[0]} means nothing beside work = "{self.work}", whose jobs serve no users: '
                             "leave it out")  # fmt: skip
        return self

    def edges(self) -> Iterator[tuple[str, str]]:
        """(key, target job type) of every edge that leaves this job type."""
        if self.fan_out:
            yield "fan_out.to", self.fan_out.to
            for name in CALLBACKS:
                if target := getattr(self.fan_out, name):
                    yield f"fan_out.{name}", target
        for n, edge in enumerate(self.follow_up):
            yield f"follow_up.{n}.to", edge.to


class SendRate(Part):
    """In any window of `period_s` at most `limit` sends begin, over all processes of all hosts; others wait their turn.

    What is counted are sends, first ones and repeated ones alike, whatever becomes of them.
    """

    limit: PositiveInt
    period_s: PositiveFloat = 1.0


class CircuitBreaker(Part):
    """After `failures` temporary failures in a row a worker process sends nothing for `reset_s`, then tries once.

    Meanwhile its sends fail at once, temporarily. If the trial fails too, it waits for `reset_s` again.
    """

    failures: PositiveInt = 5
    reset_s: PositiveFloat = 30.0


def _channel(channel: str) -> str:
    medium, dot, purpose = channel.partition(".")
    if medium not in MEDIA:
        raise ValueError(f'there is no channel "{medium}" ({did_you_mean(medium, MEDIA)})')
    if dot and not re.fullmatch(r"[a-z0-9-]{1,40}", purpose):
        raise ValueError(f'channel "{channel}": what follows the dot has small letters, digits or -, as email.welcome')
    return channel


class Provider(Part):
    """Who delivers a message: `simulated` (latency and failures drawn here) or `smtp` (a real server).

    Failures are shares of sends: a temporary one is worth another attempt of the job, a permanent one is recorded and
    never repeated. For `smtp` the model uses `latency` and the shares too, unless the profile has measured ones.

    A send waits for one of its process' `connections`, then for its turn in the `rate`, both first come, first served.
    """

    kind: Literal["simulated", "smtp"] = "simulated"
    channel: Annotated[str, AfterValidator(_channel)] = Field(
        default="email",
        description="email, sms or api (a call to another system); after a dot, which of several messages: of an event "
        "the ledger lets each user be reached once by each channel",
    )
    latency: Distribution = Lognormal(mean_s=0.075, cv=0.5)
    temporary_share: Share = 0.0
    permanent_share: Share = 0.0
    url: str | None = Field(default=None, json_schema_extra=acts_in_real("an address has no duration"))
    sender: str = Field(
        default="no-reply@saqkit.example", json_schema_extra=acts_in_real("a sender's name has no duration")
    )
    timeout_s: PositiveFloat = Field(default=30.0, description="a send that takes longer is a temporary failure")
    rate: SendRate | None = Field(default=None, description="sends per period over all processes; others wait")
    connections: PositiveInt | None = Field(
        default=None, description="sends at once in each worker process; others wait, first in first out; none: any"
    )
    breaker: CircuitBreaker | None = Field(default=None, description="one circuit in each worker process")

    @property
    def medium(self) -> str:
        """The channel without which of several messages: `email`, `sms` or `api`."""
        return self.channel.partition(".")[0]

    @property
    def guarded(self) -> bool:
        """Whether anything stands between a user's turn and the send."""
        return bool(self.rate or self.connections or self.breaker)


class Topic(Part):
    """An event topic: what an event on it starts."""

    starts: tuple[Name, ...] = Field(min_length=1)


class Entry(Part):
    """What arriving users become: an event on a topic, or a job type, with its share of the arrivals."""

    topic: Name | None = None
    job_type: Name | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    priority: Level | None = Field(default=None, description="overrides the job type's own")
    tenant: str = ""

    @model_validator(mode="after")
    def _one_target(self) -> Entry:
        if (self.topic is None) == (self.job_type is None):
            raise ValueError("an entry names exactly one of topic and job_type")
        return self


_MISSED = acts_in_real("nothing is missed in a run, where somebody always looks")


class ScheduledEntry(Part):
    """Whenever a cron line fires an event comes in, as if somebody had announced it then.

    It starts the job types of a topic, or one job type, for the users of its `audience`. An event for nobody (`none`)
    starts one job without users of each of them. `cron` and `zone`: see `saqkit.spec.cron_line.CronLine`.
    """

    name: Name = Field(json_schema_extra=acts_in_real("a name has no duration"))
    topic: Name | None = None
    job_type: Name | None = None
    cron: str
    zone: str = "UTC"
    audience: str | None = Field(default="all", description="roles with commas between them, or all; none: nobody")
    users: Users | None = Field(
        default=None, description="how many the audience are, for a run or a model; workers look into the database"
    )
    priority: Level | None = Field(default=None, description="overrides the job type's own")
    tenant: str = Field(default="", description="whom the jobs belong to, and the audience too")
    title: str = Field(
        default="",
        description="of the event, the subject of its emails; empty: the name",
        json_schema_extra=acts_in_real("a title has no duration"),
    )
    body: str = Field(
        default="",
        description="of the event, the text of its emails; empty: the title",
        json_schema_extra=acts_in_real("a text has no duration"),
    )
    missed: Literal["skip", "once", "all"] = Field(
        default="once",
        description="what becomes of firings that nobody dealt with in time: nothing, the latest of them, or each",
        json_schema_extra=_MISSED,
    )
    late_s: PositiveFloat = Field(
        default=60.0, description="a firing that is later than this is missed", json_schema_extra=_MISSED
    )
    most_missed: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=100, description="of `all` the latest so many", json_schema_extra=_MISSED
    )

    @field_validator("cron")
    @classmethod
    def _fires(cls, cron: str) -> str:
        from saqkit.spec.cron_line import CronLine

        return _usable(cron, CronLine)

    @field_validator("zone")
    @classmethod
    def _exists(cls, zone: str) -> str:
        from saqkit.spec.cron_line import zone_of

        return _usable(zone, zone_of)

    @field_validator("audience")
    @classmethod
    def _has_roles(cls, audience: str | None) -> str | None:
        return audience if audience is None else _usable(audience, roles_of)

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str) -> str:
        if "\n" in title or "\r" in title:
            raise ValueError("has a line break; it becomes the subject of an email: one line")
        return title

    @model_validator(mode="after")
    def _one_target(self) -> ScheduledEntry:
        if (self.topic is None) == (self.job_type is None):
            raise ValueError("a schedule names exactly one of topic and job_type")
        if self.audience is None and self.users is not None:
            raise ValueError(f'users = {self.users}, but audience = "none": nobody (leave one of them out)')
        return self

    def entry(self) -> Entry:
        """Through what its events come in."""
        return Entry(topic=self.topic, job_type=self.job_type, priority=self.priority, tenant=self.tenant)

    def firings(self, after: float) -> Iterator[int]:
        """The times later than `after` at which it fires, without end; all in Unix seconds."""
        from saqkit.spec.cron_line import CronLine

        line = CronLine(self.cron, self.zone)
        while True:
            after = line.next(after)
            yield int(after)


def _usable(text: str, make: Callable[[str], object]) -> str:
    try:
        make(text)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return text


class Topology(Part):
    """What exists, validated as a whole: every name that is used is defined, and no edge leads back."""

    name: Name
    title: str = ""
    story: str = ""
    entry: tuple[Entry, ...] = Field(min_length=1)
    queues: dict[Name, Queue] = Field(min_length=1)
    job_types: dict[Name, JobType] = Field(min_length=1)
    providers: dict[Name, Provider] = Field(default={})
    topics: dict[Name, Topic] = Field(default={})
    schedules: tuple[ScheduledEntry, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Topology:
        for name, job in self.job_types.items():
            at = f"job_types.{name}"
            _known(f"{at}.queue", "queue", job.queue, self.queues)
            if job.per_user.provider is not None:
                _known(f"{at}.per_user.provider", "provider", job.per_user.provider, self.providers)
                paid_by = self.providers[job.per_user.provider]
                if job.work == "payment" and paid_by.medium == "email":
                    raise DescriptionError(f'"{name}" charges by it, and it sends email', value=paid_by.channel,
                                           key=f"providers.{job.per_user.provider}.channel",
                                           hint='channel = "api.payment", for instance')  # fmt: skip
            for key, target in job.edges():
                _known(f"{at}.{key}", "job type", target, self.job_types)
                if self.job_types[target].fan_out:
                    raise DescriptionError(f'"{target}" fans out to all users of the event again', key=f"{at}.{key}",
                                           value=target, hint="name a job type without fan_out")  # fmt: skip
        for name, topic in self.topics.items():
            for n, started in enumerate(topic.starts):
                _known(f"topics.{name}.starts.{n}", "job type", started, self.job_types)
        for n, entry in enumerate(self.entry):
            if entry.topic is not None:
                _known(f"entry.{n}.topic", "topic", entry.topic, self.topics)
            else:
                _known(f"entry.{n}.job_type", "job type", str(entry.job_type), self.job_types)
        if abs((total := sum(entry.share for entry in self.entry)) - 1) > 1e-6:
            raise DescriptionError(f"the shares add up to {total:g}, not to 1", key="entry", value=total)
        self._check_schedules()
        self._refuse_cycles()
        self._refuse_equal_keys()
        self._refuse_limits_on_users_of_nobody()
        return self

    def _check_schedules(self) -> None:
        names = [schedule.name for schedule in self.schedules]
        for n, schedule in enumerate(self.schedules):
            at = f"schedules.{n}"
            if schedule.name in names[:n]:
                raise DescriptionError(f'two schedules are called "{schedule.name}"', key=f"{at}.name",
                                       value=schedule.name, hint="give each a name of its own")  # fmt: skip
            if schedule.topic is not None:
                _known(f"{at}.topic", "topic", schedule.topic, self.topics)
            else:
                _known(f"{at}.job_type", "job type", str(schedule.job_type), self.job_types)
            for name in self.starts(schedule.entry()):
                if schedule.audience is None and self.job_types[name].fan_out:
                    raise DescriptionError(f'"{name}" fans out to the users of the event, and there is nobody',
                                           key=f"{at}.audience", value="none", hint="say all, or roles")  # fmt: skip

    def _refuse_cycles(self) -> None:
        graph = {name: [target for _, target in job.edges()] for name, job in self.job_types.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            path = list(reversed(error.args[1]))
            key = next(key for key, target in self.job_types[path[0]].edges() if target == path[1])
            raise DescriptionError(f"the edges form a cycle: {' -> '.join(path)}", key=f"job_types.{path[0]}.{key}",
                                   value=path[1], hint="no job may lead to its own type") from error  # fmt: skip

    def _refuse_equal_keys(self) -> None:
        """A job's key is its type, its event and its place among the users: made twice, the later job is dropped."""
        types = self.job_types
        made = {
            f"topics.{name}.starts": [edge.to if (edge := types[one].fan_out) else one for one in topic.starts]
            for name, topic in self.topics.items()
        }
        made |= {f"job_types.{name}.follow_up": [edge.to for edge in job.follow_up] for name, job in types.items()}
        for key, targets in made.items():
            for n, target in enumerate(targets):
                if target in targets[:n]:
                    message = f'leads to jobs of "{target}" a second time: they would have the same keys and be dropped'
                    raise DescriptionError(message, key=f"{key}.{n}", value=target,
                                           hint="let it lead to a job type of its own")  # fmt: skip

    def _refuse_limits_on_users_of_nobody(self) -> None:
        edges = [(job, key, target) for job in self.job_types.values() for key, target in job.edges()]
        back = {target for job, key, target in edges if job.fan_out and key != "fan_out.to"}
        back -= {target for job, key, target in edges if not job.fan_out or key == "fan_out.to"}
        back -= {started for entry in self.entry for started in self.starts(entry)}
        for name, queue in self.queues.items():
            jobs = [job for job in self.job_types.values() if job.queue == name]
            without = [one for key, one in self.job_types.items() if one.queue == name and (one.fan_out or key in back)]
            for field in ("rate_limit", "tenant_rate_limit"):
                limit: RateLimit | None = getattr(queue, field)
                if limit is not None and limit.unit == "users" and len(without) == len(jobs):
                    raise DescriptionError("limits users, but no job of this queue has any", value="users",
                                           key=f"queues.{name}.{field}.unit", hint='say unit = "jobs"')  # fmt: skip
            for n, running in enumerate(queue.running_limits):
                if running.key == "provider" and not any(job.per_user.provider for job in jobs):
                    raise DescriptionError("no job of this queue sends by a provider", value="provider",
                                           key=f"queues.{name}.running_limits.{n}.key",
                                           hint="limit job_type or tenant")  # fmt: skip

    def starts(self, entry: Entry) -> tuple[str, ...]:
        """The job types that an arrival through `entry` starts."""
        return self.topics[entry.topic].starts if entry.topic is not None else (str(entry.job_type),)

    @property
    def entry_queue(self) -> str:
        """The queue of the first job type that arriving users become."""
        return self.job_types[self.starts(self.entry[0])[0]].queue

    def with_batch_size(self, batch_size: int) -> Topology:
        """The same topology with every fan-out edge in batches of `batch_size` users."""
        data = self.to_dict()
        for job in data["job_types"].values():
            if job["fan_out"]:
                job["fan_out"]["batch_size"] = batch_size
        return Topology.parse(data, self.name)


def _known(key: str, kind: str, name: str, defined: Mapping[str, Any]) -> None:
    if name not in defined:
        raise DescriptionError(f'there is no {kind} "{name}"', key=key, value=name, hint=did_you_mean(name, defined))


def shipped() -> list[str]:
    """Names of the topologies that ship with saqkit."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(name_or_path: str | Path) -> Topology:
    """A shipped topology by name, or any TOML file by path.

    Raises `DescriptionError` if there is no such name or file, or if the file is wrong (file, key, value, bound).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        return Topology.from_toml(text)
    if text not in shipped():
        hint = f"{did_you_mean(text, shipped())}; or give the path of a TOML file"
        raise DescriptionError(f'no shipped topology is called "{text}"', value=text, hint=hint)
    return Topology.from_toml(SHIPPED / f"{text}.toml")
