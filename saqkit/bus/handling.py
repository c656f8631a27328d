"""The event that is being handled: whatever its handler publishes or enqueues is caused by it."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from saqkit.bus.envelope import Event
from saqkit.errors import UsageError

AFTER_ERROR = "after_error"
"""In a job's `meta`: an event of an error is among its causes, so that its own death is not told as another error."""


@dataclass(frozen=True)
class Handling:
    """A delivery whose handler runs."""

    event: Event
    delivery: str
    after_error: bool
    _number: Any = field(default_factory=count)

    def fill_in(self, given: dict[str, Any]) -> None:
        """Say of an envelope that is to be published what follows from where it is published.

        Its id is derived from the delivery and the number of events that this attempt has published before, so that a
        handler which is tried again publishes the same events, not others like them. `UsageError` for another tenant's.
        """
        digest = hashlib.sha256(f"{self.delivery}|{given['type']}|{next(self._number)}".encode())
        caused = {"tenant": self.event.tenant, "institution": self.event.institution, "id": digest.hexdigest()[:32],
                  "correlation_id": self.event.correlation_id, "causation_id": self.event.id}  # fmt: skip
        for name, value in caused.items():
            given.setdefault(name, value)
        if self.event.tenant and given["tenant"] != self.event.tenant:
            raise UsageError(
                f'event {given["type"]}: is for tenant "{given["tenant"]}", but the event that is being handled is of '
                f'tenant "{self.event.tenant}" (a handler speaks for the tenant of its event)'
            )

    def trace(self) -> dict[str, Any]:
        """What the `meta` of jobs says that the handler enqueues."""
        return trace_of(self.event) | ({AFTER_ERROR: True} if self.after_error else {})


current: ContextVar[Handling | None] = ContextVar("saqkit_handling", default=None)


def trace_of(event: Event) -> dict[str, Any]:
    """The ids of an event as a job's `meta` has them, so that log lines and dead letters can name them."""
    ids = {"event_id": event.id, "correlation_id": event.correlation_id}
    return ids | ({"tenant": event.tenant} if event.tenant else {})
