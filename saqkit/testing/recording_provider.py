"""A provider of emails that keeps what it is given, for tests of what is sent to whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from saqkit.app.mail import Email
from saqkit.errors import PermanentFailure, TemporaryFailure

__all__ = ["RecordingProvider"]


class RecordingProvider:
    """Takes the place of a real provider in an `Application`; delivers nothing, at once.

    `refuse`: addresses that are refused for ever. `defer`: how many times an address is put off before it is served
    (`math.inf`: always). Both may be changed at any time. `sent` has what was accepted, `tried` everything that was
    handed over, in order.
    """

    def __init__(
        self,
        name: str = "email",
        *,
        sender: str = "no-reply@saqkit.example",
        refuse: Collection[str] = (),
        defer: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.sender = name, sender
        self.refuse, self.defer = set(refuse), dict(defer or {})
        self.sent: list[Email] = []
        self.tried: list[Email] = []
        self.closed = False
        self._failing = 0

    def fail_next(self, sends: int = 1) -> None:
        """Let the next so many sends fail temporarily, whoever they are to; 0 ends it."""
        self._failing = sends

    def sent_to(self, address: str) -> list[Email]:
        """What was accepted for an address."""
        return [email for email in self.sent if email.to == address]

    async def send(self, email: Email) -> None:
        """Keep `email`, or raise `TemporaryFailure` or `PermanentFailure` as was asked for."""
        self.tried.append(email)
        email.check()
        if email.to in self.refuse:
            raise PermanentFailure(f"{self.name}: 550 5.1.1 no such mailbox")
        if self._failing:
            self._failing -= 1
            raise TemporaryFailure(f"{self.name}: 421 4.3.2 out of service")
        if self.defer.get(email.to, 0) > 0:
            self.defer[email.to] -= 1
            raise TemporaryFailure(f"{self.name}: 451 4.2.1 mailbox busy, try again later")
        self.sent.append(email)

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed = True
