"""Who wants which events, and how they are delivered."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from saqkit.bus.envelope import Event, Line, Word
from saqkit.errors import SaqkitError
from saqkit.spec.backoff import Retry
from saqkit.spec.base import Part
from saqkit.spec.topology import Name, Priority

logger = logging.getLogger("saqkit")


class Filter(Part):
    """Which events are meant: those of one of these topics, tenants and institutions; None: of any."""

    topics: tuple[Name, ...]
    tenants: tuple[Word, ...] | None = None
    institutions: tuple[Line, ...] | None = None

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
    # _several has looked at it.
    return None if given is None else tuple(given) if _several(given) else (given,)  # type: ignore[return-value]


def _several(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str)


@lru_cache(maxsize=1024)
def read(stored: bytes) -> Subscription | None:
    """What is written down of a subscription, without what only a newer process knows; None if it cannot be read.

    That is logged once: nobody can deliver to it from here, and the others are to get their events.
    """
    try:
        said = _known(Subscription, json.loads(stored))
        if isinstance(said.get("retry"), dict):
            said["retry"] = _known(Retry, said["retry"])
        return Subscription.parse(said, "stored subscription")
    except (SaqkitError, AttributeError, TypeError, ValueError) as error:
        logger.error("subscription %.200r cannot be read, nothing is delivered to it (%s)", stored, error)
        return None


def _known(part: type[Part], said: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name in part.model_fields}
