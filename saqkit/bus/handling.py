"""The event that is being handled: whatever its handler publishes or enqueues is caused by it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from saqkit.bus.envelope import Event
from saqkit.errors import UsageError

AFTER_ERROR = "after_error"
"""In a job's `meta`: an event of an error is among its causes, so that its own death is not told as another error."""


@dataclass(frozen=True)
class Handling:
    """A delivery whose handler runs; `delivery` is the key of the first one, also where it is replayed."""

    event: Event
    delivery: str
    after_error: bool
    _said: Counter[bytes] = field(default_factory=Counter)

    def fill_in(self, given: dict[str, Any]) -> None:
        """Say of an envelope that is to be published what follows from where it is published.

        `UsageError` for another tenant's.
        """
        caused = {"tenant": self.event.tenant, "institution": self.event.institution,
                  "correlation_id": self.event.correlation_id, "causation_id": self.event.id}  # fmt: skip
        for name, value in caused.items():
            given.setdefault(name, value)
        if self.event.tenant and given["tenant"] != self.event.tenant:
            raise UsageError(
                f'event {given["type"]}: is for tenant "{given["tenant"]}", but the event that is being handled is of '
                f'tenant "{self.event.tenant}" (a handler speaks for the tenant of its event)'
            )

    def id_of(self, event: Event) -> str:
        """The id of an event that this handler publishes, derived from the delivery and from what the event says.

        A handler that is tried again publishes the same events, in whatever order, and not others like them. Of equal
        ones each has its own id.
        """
        what = [event.type, event.tenant, event.institution, event.user, event.data]
        said = hashlib.sha256(json.dumps(what, sort_keys=True, separators=(",", ":")).encode()).digest()
        number = self._said[said]
        self._said[said] += 1
        return hashlib.sha256(f"{self.delivery}|{number}|".encode() + said).hexdigest()[:32]

    def trace(self) -> dict[str, Any]:
        """What the `meta` of jobs says that the handler enqueues."""
        return trace_of(self.event) | ({AFTER_ERROR: True} if self.after_error else {})


current: ContextVar[Handling | None] = ContextVar("saqkit_handling", default=None)


def trace_now() -> dict[str, Any]:
    """The same of the handler that runs here; nothing where none does."""
    handling = current.get()
    return handling.trace() if handling else {}


def trace_of(event: Event) -> dict[str, Any]:
    """The ids of an event as a job's `meta` has them, so that log lines and dead letters can name them."""
    ids = {"event_id": event.id, "correlation_id": event.correlation_id}
    return ids | ({"tenant": event.tenant} if event.tenant else {})
