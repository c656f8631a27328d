"""`Bus`: publishing events on a queue, and delivering each to every subscriber as a job of its own.

Publishing enqueues one job, `events`. When it runs it puts the event into the history, looks who has subscribed, and
asks for the deliveries as follow-ups: they are queued in the step that makes it done, all of them or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saq.job import Job

from saqkit.bus.deaths import Deaths
from saqkit.bus.envelope import Event
from saqkit.bus.handling import AFTER_ERROR, Handling, current, trace_now, trace_of
from saqkit.bus.history import History, Moment, Replayed
from saqkit.bus.kept import Kept
from saqkit.bus.live import Live
from saqkit.bus.registry import Registry
from saqkit.bus.subscriptions import Filter, Subscription, words
from saqkit.bus.topics import EventTopic, KnownTopics
from saqkit.errors import UsageError
from saqkit.log_lines import bound
from saqkit.queue.job import new_job
from saqkit.queue.letter import ids_of
from saqkit.queue.live_jobs import Which, level_of
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.backoff import Retry
from saqkit.spec.topology import Priority

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("saqkit")

Handler = Callable[[dict[str, Any], Event], Awaitable[object]]

ROUTE = "events"
"""The job type that hands an event to its subscribers; the deliveries are `events:SUBSCRIBER`."""
ROUTING = Retry(max_attempts=12, delay_s=0.5, factor=2.0, cap_s=60.0)
"""Routing fails only with its broker: it is tried for some five minutes before it becomes a dead letter."""


@dataclass(frozen=True)
class Published:
    """An event that was published; not `new`: one of its id and tenant was before, and nothing has happened now."""

    event: Event
    new: bool

    def __bool__(self) -> bool:
        return self.new


class Bus:
    """Events on a queue.

    `topics`: those that there are (default: the shipped ones). `remember_s`: for so long after it was delivered an
    event that is published again is not delivered again (default a day); each delivery takes its body's size in the
    broker until then. `history_events`, `history_s`: how many past events are kept for replay, and how long (100,000,
    7 days; whichever ends first, to the next hundred or so).

    Every worker of the queue needs the same subscribers: it may get any delivery.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        topics: Iterable[str] = EventTopic,
        remember_s: float = 86_400.0,
        history_events: int = 100_000,
        history_s: float = 7 * 86_400.0,
    ) -> None:
        for name, value in [("remember_s", remember_s), ("history_events", history_events), ("history_s", history_s)]:
            if not 1 <= value < float("inf"):
                raise UsageError(f"bus of queue {queue.name}: {name} {value} (give 1 or more)")
        if type(history_events) is not int:
            raise UsageError(f"bus of queue {queue.name}: history_events {history_events} (give a whole number)")
        self.queue, self.topics, self.remember_s = queue, KnownTopics(topics), remember_s
        self._kept = Kept(queue, remember_s, history_events, history_s)
        self._registry = Registry(queue, self._kept)
        self._history = History(queue, self._kept.history_key)
        self._deaths = Deaths(self, self._kept)
        self._handlers: dict[str, tuple[Subscription, Handler]] = {}
        self._task: asyncio.Task[None] | None = None
        queue.policies = {**queue.policies, ROUTE: ROUTING}

    # --- subscribing -------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: str | Iterable[str],
        *,
        name: str | None = None,
        tenants: str | Iterable[str] | None = None,
        institutions: str | Iterable[str] | None = None,
        priority: int | str | None = None,
        timeout_s: float = 60.0,
        retry: Retry | None = None,
    ) -> Callable[[Handler], Handler]:
        """Decorate a coroutine function `handler(ctx, event)` that is to get the events of some topics.

        `topics`: names, or patterns as `exam:*`. `tenants`, `institutions`: only theirs. `name`: default that of the
        function. `priority` of the deliveries, default that of the event. Each has its own `timeout_s` and `retry`
        (default `Retry()`: 3 attempts, after 2 and 4 s). `UsageError` for an unknown topic, a name that is taken, or a
        function that is no coroutine function.
        """

        def decorate(handler: Handler) -> Handler:
            subscription = Subscription.parse(
                {
                    "name": name or getattr(handler, "__name__", ""),
                    "topics": self.topics.meant(topics),
                    "tenants": words(tenants),
                    "institutions": words(institutions),
                    "priority": None if priority is None else Priority(level_of(priority)),
                    "timeout_s": timeout_s,
                    "retry": retry or Retry(),
                },
                "subscriber",
            )
            if subscription.name in self._handlers:
                raise UsageError(f"subscriber {subscription.name}: there is one of that name (give a name of its own)")
            # B004 wants callable(), which does not tell whether it is a coroutine function.
            if not any(map(inspect.iscoroutinefunction, (handler, getattr(handler, "__call__", None)))):  # noqa: B004
                raise UsageError(f"subscriber {subscription.name}: is no coroutine function (write async def)")
            self._handlers[subscription.name] = subscription, handler
            self._registry.add(subscription)
            self.queue.policies = {**self.queue.policies, subscription.function: subscription.retry}
            return handler

        return decorate

    async def unsubscribe(self, name: str) -> int:
        """Deliver nothing more to a subscriber, also not what waits; returns how many deliveries were dropped.

        For all processes, until one is started whose program subscribes it. What runs ends, and is not tried again if
        it fails; what is queued nevertheless (a dead letter that is replayed) ends without its handler. It is counted
        from 0 when it comes back. `UsageError` if there never was one.
        """
        await self._registry.leave(name)
        dropped = (await self.queue.clear(Which(function=f"{ROUTE}:{name}"))).done
        await self._kept.forget_counts(name)
        return dropped

    async def subscriptions(self) -> dict[str, Subscription]:
        """Who is subscribed, in whatever process, by name."""
        return await self._registry.everybody()

    @property
    def here(self) -> dict[str, Subscription]:
        """Who is subscribed in this process, by name."""
        return {name: subscription for name, (subscription, _) in self._handlers.items()}

    # --- publishing --------------------------------------------------------------------------------------------------

    async def publish(
        self,
        event: str | Event,
        data: Mapping[str, Any] | None = None,
        *,
        tenant: str | None = None,
        institution: str | None = None,
        user: int | str | None = None,
        id: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        priority: int | str = "normal",
        after: Job | None = None,
    ) -> Published:
        """Publish an event, given whole or as its topic and what it says: it is on the queue when this returns.

        In a handler tenant, institution and correlation id are those of the event that is handled, and that is the
        cause, unless given. `after`: a job whose function runs in this process; then the event is published in the
        step that makes that job done, and not at all if the attempt fails (whether it is `new` is not known yet, and
        said to be so). `UsageError` for an unknown topic, `DescriptionError` for an envelope that cannot be.
        """
        said = {"tenant": tenant, "institution": institution, "user": user, "id": id,
                "correlation_id": correlation_id, "causation_id": causation_id}  # fmt: skip
        made = self._envelope(event, data, {name: value for name, value in said.items() if value is not None})
        job = self._routing(made, priority)
        if after is not None:
            await self.queue.follow_up(after, job)
            return Published(made, True)
        return Published(made, await self.queue.enqueue(job) is not None)

    async def publish_many(self, events: Iterable[Event], *, priority: int | str = "normal") -> list[Published]:
        """Publish whole events, 500 in a round trip."""
        made = [self._envelope(event, None, {}) for event in events]
        accepted = await self.queue.enqueue_many([self._routing(event, priority) for event in made])
        return [Published(event, new) for event, new in zip(made, accepted, strict=True)]

    async def broadcast(self, event: str | Event, data: Mapping[str, Any] | None = None, **envelope: Any) -> Event:
        """Show an event to the live views of this moment and to nobody else: it is no job, and not kept."""
        made = self._envelope(event, data, envelope)
        await self.queue.redis.publish(self._kept.channel, made.to_json())
        return made

    def trace(self) -> dict[str, Any]:
        """In a handler: what the `meta` of jobs that it enqueues itself should say of the event; else nothing."""
        return trace_now()

    def _envelope(self, event: str | Event, data: Mapping[str, Any] | None, said: dict[str, Any]) -> Event:
        handling = current.get()
        if isinstance(event, Event):
            if data is not None:
                raise UsageError(f"event {event.type}: is given whole, and data beside it (give one of them)")
            given = {name: getattr(event, name) for name in (*event.model_fields_set, "time")} | said
            if handling is None:
                given.setdefault("id", event.id)
        else:
            given = {"type": str(event), "data": {} if data is None else data, **said}
        self.topics.require(given["type"])
        if handling is not None:
            handling.fill_in(given)
        made = Event.parse(given, f"event {given['type']}")
        if handling is None or "id" in given:
            return made
        return Event.parse({**given, "id": handling.id_of(made)}, f"event {given['type']}")

    def _routing(self, event: Event, priority: int | str) -> Job:
        handling = current.get()
        after_error = handling is not None and handling.after_error
        return self._job(ROUTE, f"event:{event.tenant}|{event.id}", event, after_error,
                         priority=level_of(priority), retries=ROUTING.max_attempts, timeout=60)  # fmt: skip

    def _job(self, function: str, key: str, event: Event, after_error: bool, **properties: Any) -> Job:
        meta = {**trace_of(event), "topic": event.type, "keep_key_s": self.remember_s}
        if function != ROUTE:
            meta["subscriber"] = function.removeprefix(f"{ROUTE}:")
        if after_error or event.type == EventTopic.SYSTEM_ERROR_OCCURRED:
            meta[AFTER_ERROR] = True
        return new_job(function, {"key": key, "kwargs": {"envelope": event.to_dict()}, "meta": meta, **properties})

    # --- what workers run --------------------------------------------------------------------------------------------

    def functions(self) -> list[tuple[str, Callable[..., Awaitable[None]]]]:
        """(name, function) of the job types that workers of the queue need, SAQ's or ours."""
        return [(ROUTE, self._route), *((s.function, self._delivery(s, h)) for s, h in self._handlers.values())]

    async def start(self, ctx: dict[str, Any] | None = None) -> None:
        """Write down who subscribes here, and begin to tell of deaths. Fit for SAQ's `startup`.

        With the broker away it returns, and both happen when it is back.
        """
        self._registry.begin()
        with contextlib.suppress(*AWAY):  # the task goes on trying
            await self.register()
            await self._deaths.look()
        self._task = asyncio.create_task(self._deaths.run(), name="saqkit-bus")

    async def stop(self, ctx: dict[str, Any] | None = None) -> None:
        """End what `start` began. Fit for SAQ's `shutdown`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def watch(self, queue: Queue, *job_types: str) -> None:
        """Publish `system:error_occurred` also when a job of these types of `queue` becomes a dead letter."""
        if not job_types:
            raise UsageError(f"queue {queue.name}: no job type is named whose deaths are to be told")
        self._deaths.watch(queue, job_types)

    async def register(self) -> None:
        """Write down who subscribes here, if that is not done, or the broker has forgotten it."""
        await self._registry.reassert()

    async def _route(self, ctx: dict[str, Any], *, envelope: dict[str, Any]) -> None:
        job, event = ctx["job"], Event.parse(envelope, "event")
        await self._registry.write()
        stored = await self._kept.record(event, self._registry.pairs())
        after_error = bool(job.meta.get(AFTER_ERROR))
        admitted = [one for one in self._registry.learn(stored).values() if one.admits(event)]
        for subscription in admitted:
            await self.queue.follow_up(job, self._to(subscription, event, job.priority, after_error))
        with self._said_of(job, event):
            logger.info("event %s goes to %s", event.type, ", ".join(sorted(s.name for s in admitted)) or "nobody")

    def _to(
        self, subscription: Subscription, event: Event, priority: int, after_error: bool = False, replay: str = ""
    ) -> Job:
        job = self._job(subscription.function, subscription.key(event, replay), event, after_error,
                        priority=int(subscription.priority or priority), retries=subscription.retry.max_attempts,
                        timeout=subscription.timeout_s)  # fmt: skip
        if replay:
            job.meta["replay"] = replay
        return job

    def _said_of(self, job: Job, event: Event) -> AbstractContextManager[None]:
        """Within it, log lines have the ids of job and event."""
        return bound(job=job.key, attempt=job.attempts, queue=self.queue.name, tenant=event.tenant,
                     causation_id=event.causation_id, **ids_of(job.meta))  # fmt: skip

    def _delivery(self, subscription: Subscription, handler: Handler) -> Callable[..., Awaitable[None]]:
        async def deliver(ctx: dict[str, Any], *, envelope: dict[str, Any]) -> None:
            job, event = ctx["job"], Event.parse(envelope, "event")
            claim = self.queue.claim_of(job)
            again = claim is None or claim.attempt > 1 or claim.crashes > 0
            try:
                if await self._kept.is_over(job.key, subscription.name):  # then its process died, or it is released
                    return
            except AWAY:  # a first attempt has most probably not been handled; it is not to be lost by asking
                if again:
                    raise
            token = current.set(Handling(event, subscription.key(event), bool(job.meta.get(AFTER_ERROR))))
            try:
                with self._said_of(job, event):
                    await handler(ctx, event)
            finally:
                current.reset(token)
            try:
                await self._kept.handled(job.key, subscription.name, event)
            except AWAY as error:  # that it is not counted is no reason to do it twice
                logger.warning("delivery %s is done, but not counted: broker away (%s)", job.key, error)

        deliver.__qualname__ = deliver.__name__ = subscription.function
        return deliver

    # --- looking back, looking on ------------------------------------------------------------------------------------

    def history(
        self,
        topics: str | Iterable[str] | None = None,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        tenant: str | None = None,
        institution: str | None = None,
    ) -> AsyncIterator[Event]:
        """Past events in the order in which they were recorded, read in pages.

        Those whose `time` is from `since` to before `until`: epoch seconds, or datetimes with their zone.
        """
        return self._history.read(self._filter(topics, tenant, institution), since, until)

    async def replay(
        self,
        to: str,
        topics: str | Iterable[str] | None = None,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        tenant: str | None = None,
        institution: str | None = None,
        limit: int = 10_000,
        name: str = "",
    ) -> Replayed:
        """Deliver past events (see `history`) to one subscriber again, at most `limit`, the oldest first.

        It gets what it is subscribed to, and nothing else, at low priority unless it has one of its own. A replay of
        the same `name` that is repeated delivers nothing twice. `UsageError` if there is no such subscriber.
        """
        subscription = await self._registry.known(to)
        where = self._filter(topics, tenant, institution)
        return await self._history.replay(subscription, where, since, until, limit, name, self._to)

    def live(
        self,
        topics: str | Iterable[str] | None = None,
        *,
        tenant: str | None = None,
        institution: str | None = None,
    ) -> Live:
        """Events as they are routed or broadcast, for a view: `async for event in bus.live(...)`.

        Nothing is kept for it: it sees what happens while it listens. With `async with` it listens from the start of
        the block on.
        """
        return Live(self.queue.redis, self._kept.channel, self._filter(topics, tenant, institution))

    async def statistics(self, *, tenant: str | None = None) -> pd.DataFrame:
        """Deliveries by topic and subscriber: columns `saqkit.bus.counting.COLUMNS`. Of one tenant, or of all.

        Every job of the queue that has not ended is read, in pages, and so are the dead letters.
        """
        from saqkit.bus.counting import counted

        return await counted(self.queue, self._kept, await self.subscriptions(), tenant)

    def _filter(self, topics: str | Iterable[str] | None, tenant: str | None, institution: str | None) -> Filter:
        return Filter(topics=self.topics.meant(topics), tenants=words(tenant), institutions=words(institution))
