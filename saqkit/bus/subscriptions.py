"""Who wants which events, and how they are delivered."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated

from pydantic import Field, PositiveFloat

from saqkit.bus.envelope import Event, Word
from saqkit.spec.backoff import Retry
from saqkit.spec.base import Part
from saqkit.spec.topology import Name, Priority


class Filter(Part):
    """Which events are meant: those of one of these topics, tenants and institutions; None: of any."""

    topics: tuple[Name, ...]
    tenants: tuple[Word, ...] | None = None
    institutions: tuple[Word, ...] | None = None

    def admits(self, event: Event) -> bool:
        """Whether `event` is meant."""
        return (
            event.type in self.topics
            and (self.tenants is None or event.tenant in self.tenants)
            and (self.institutions is None or event.institution in self.institutions)
        )


class Subscription(Filter):
    """What a subscriber wants, as it is written down in the broker for all processes.

    `priority` None: that of the event. `timeout_s` ends one attempt of a delivery; `retry` says how many there are.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
    priority: Priority | None = None
    timeout_s: PositiveFloat = Field(default=60.0, le=86_400)
    retry: Retry = Retry()

    @property
    def function(self) -> str:
        """The job type of its deliveries."""
        return f"events:{self.name}"

    def key(self, event: Event, replay: str = "") -> str:
        """The key of the job that delivers `event`; the same for the same event, but for each replay another."""
        return f"{self.function}:{event.tenant}|{event.id}" + (f"|{replay}" if replay else "")


def words(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """One or several words of a filter."""
    return None if given is None else (given,) if isinstance(given, str) else tuple(given)


@lru_cache(maxsize=1024)
def read(stored: bytes) -> Subscription:
    """What is written down of a subscription."""
    return Subscription.model_validate_json(stored)
