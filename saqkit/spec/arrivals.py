"""What arrives: at which times how many users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import takewhile
from math import floor
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from saqkit.errors import UsageError
from saqkit.spec.base import Part
from saqkit.spec.distributions import Distribution
from saqkit.spec.draws import Stream, uniform, uniforms

# The attempts table counts users in 32 bits.
Users = Annotated[int, Field(gt=0, le=2_000_000_000)]
LOOK_EVERY_S = 0.01
"""The clients of a closed loop learn at the next look, at most this later, that their event is drained."""


def _draws(seed: int) -> Iterator[float]:
    """The draws of one arrival after another: `uniform(seed, Stream.ARRIVAL, n)` for n = 0, 1, 2, … without end."""
    begin, size = 0, 16
    while True:
        yield from uniforms(seed, Stream.ARRIVAL, range(begin, begin + size)).tolist()
        begin, size = begin + size, min(2 * size, 1 << 16)


class Burst(Part):
    """`users` users at once: one event to all of them."""

    kind: Literal["burst"] = "burst"
    users: Users

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival."""
        yield 0.0, self.users


class Poisson(Part):
    """Events of `users_per_event` users at random, `rate_per_s` events a second on average, for `duration_s`."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: PositiveFloat
    duration_s: PositiveFloat
    users_per_event: Users = 1

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival; gaps are exponential."""
        from math import log

        at = 0.0
        for u in _draws(seed):
            if (at := at - log(u) / self.rate_per_s) >= self.duration_s:
                return
            yield at, self.users_per_event


class Profile(Part):
    """A daily pattern: `users_per_day`, spread over the hours by `hourly` (24 weights), for `days` days.

    Arrivals are a Poisson process whose rate is constant within an hour, of `users_per_event` users each.
    """

    kind: Literal["profile"] = "profile"
    users_per_day: PositiveInt
    hourly: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=24, max_length=24)]
    days: PositiveInt = 1
    users_per_event: Users = 1

    @model_validator(mode="after")
    def _some_weight(self) -> Profile:
        if sum(self.hourly) <= 0:
            raise ValueError("the 24 hourly weights must not all be 0")
        return self

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival, by inverting the cumulated rate."""
        from math import log

        total, per_day = sum(self.hourly), self.users_per_day / self.users_per_event
        work, done, hour = 0.0, 0.0, 0  # cumulated expected events: asked for, and up to the hour's start
        for u in _draws(seed):
            work -= log(u)
            while work > done + (here := per_day * self.hourly[hour % 24] / total):
                done, hour = done + here, hour + 1
                if hour >= 24 * self.days:
                    return
            yield (hour + (work - done) / here) * 3600, self.users_per_event


class Recorded(Part):
    """A recorded trace, or several bursts: at `at_s[i]` seconds `users[i]` users arrive, through `entries[i]`.

    Without `users` one each. `entries` are names of topics or job types of the topology's entries; of several entries
    with that name each takes its share. Without `entries` all entries take their shares.
    """

    kind: Literal["recorded"] = "recorded"
    at_s: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    users: tuple[Users, ...] = ()
    entries: tuple[str, ...] = ()

    @classmethod
    def from_csv(cls, path: str | Path) -> Recorded:
        """A trace from a CSV file with a line for each arrival, in any order.

        Columns: `at_s` (seconds) or `timestamp` (ISO 8601, or Unix seconds; the first becomes 0), and if they are there
        `users` and `entry`; others are ignored. Raises `DescriptionError` naming the file, the line and the column.
        """
        from saqkit.spec.arrivals_csv import read_arrivals

        return cls.parse(read_arrivals(Path(path)), str(path))

    @model_validator(mode="after")
    def _same_length(self) -> Recorded:
        for name, what in (("users", "numbers of users"), ("entries", "entries")):
            if (given := len(getattr(self, name))) and given != len(self.at_s):
                raise ValueError(f"{len(self.at_s)} times and {given} {what}: one for each time")
        return self

    def arrivals(self) -> list[tuple[float, int, str]]:
        """(seconds, users, entry or "") of each arrival, in order of time."""
        count = len(self.at_s)
        rows = zip(self.at_s, self.users or (1,) * count, self.entries or ("",) * count, strict=True)
        return sorted(rows, key=lambda row: row[0])

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of each arrival, in order of time."""
        yield from ((at_s, users) for at_s, users, _ in self.arrivals())


class ClosedLoop(Part):
    """`clients` clients: each sends an event, waits until all its jobs have ended, thinks, and sends the next one.

    All begin at once; nothing is sent at or after `duration_s`. An event's number follows from its client and turn, so
    that its draws are the same however fast the system is.
    """

    kind: Literal["closed_loop"] = "closed_loop"
    clients: Annotated[int, Field(gt=0, le=1_000_000)]
    think: Distribution
    duration_s: PositiveFloat
    users_per_event: Users = 1

    def times(self, seed: int) -> Iterator[tuple[float, int]]:
        """(seconds, users) of the first event of each client; when the others come depends on the system."""
        yield from ((0.0, self.users_per_event) for _ in range(self.clients))

    def event(self, client: int, turn: int) -> int:
        """The number of the event that `client` (from 1) sends in its `turn` (from 0)."""
        return turn * self.clients + client

    def next_s(self, seed: int, client: int, turn: int, known_s: float) -> float | None:
        """When `client`, who learns at `known_s` that the event of its `turn` is drained, sends the next, if at all."""
        at_s = known_s + self.think.quantile(uniform(seed, Stream.ARRIVAL, client, 2, turn))
        return at_s if at_s < self.duration_s else None

    @staticmethod
    def known_s(drained_s: float) -> float:
        """When a client learns of an event that is drained at `drained_s`: always later."""
        return (floor(drained_s / LOOK_EVERY_S + 1e-6) + 1) * LOOK_EVERY_S


class Scheduled(Part):
    """What the topology's schedules fire from `start` on, for `duration_s`; and what comes besides (`others`).

    `start` is a time on the clock of `zone`, unless it has an offset of its own.
    """

    kind: Literal["scheduled"] = "scheduled"
    start: datetime
    zone: str = "UTC"
    duration_s: Annotated[float, Field(gt=0, le=10 * 366 * 86_400)]
    others: Annotated[Burst | Poisson | Profile | Recorded, Field(discriminator="kind")] | None = None

    @field_validator("start")
    @classmethod
    def _in_this_age(cls, start: datetime) -> datetime:
        if not 2000 <= start.year <= 2200:
            raise ValueError("should be a time between the years 2000 and 2200, as 2026-03-29T00:00:00")
        return start

    @field_validator("zone")
    @classmethod
    def _exists(cls, zone: str) -> str:
        from saqkit.spec.cron_line import zone_of

        try:
            zone_of(zone)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return zone

    @property
    def started_at(self) -> float:
        """`start` in Unix seconds."""
        from saqkit.spec.cron_line import zone_of

        return (self.start if self.start.tzinfo else self.start.replace(tzinfo=zone_of(self.zone))).timestamp()

    def within(self, firings: Iterable[int]) -> Iterator[float]:
        """Of endless `firings` (Unix seconds) that begin no earlier than `start`: those within, in seconds from it."""
        return takewhile(lambda at_s: at_s < self.duration_s, (at - self.started_at for at in firings))


AnyArrivals = Burst | Poisson | Profile | Recorded | ClosedLoop | Scheduled
Arrivals = Annotated[AnyArrivals, Field(discriminator="kind")]
