"""One message to one user, and what every provider of messages does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import localtime
from typing import Protocol

from saqkit.errors import PermanentFailure

__all__ = ["Email", "Provider", "address_of", "is_address", "message_id"]

_ADDRESS = re.compile(r"[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]{1,64}@[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]{1,255}")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Email:
    """One message to one user.

    `event`, `user` and `attempt` are the key of every draw about it; `message_id` is the same in every attempt (see
    `message_id()`), so that a receiver can tell a repeat. `sender` is an address, or a name with the address in <>.
    `correlation_id` is that of the event from which it follows, if any: the header `X-Correlation-ID`.
    """

    event: int
    user: int
    attempt: int
    to: str
    name: str
    subject: str
    text: str
    html: str | None
    message_id: str
    sender: str
    correlation_id: str = ""

    @property
    def is_ascii(self) -> bool:
        """Whether both addresses are plain ASCII, which every server takes."""
        return self.to.isascii() and address_of(self.sender).isascii()

    def check(self) -> None:
        """Raise `PermanentFailure` if it can never be sent: no address, or a header that would end its line."""
        for field in ("to", "name", "subject", "sender", "message_id", "correlation_id"):
            if _CONTROL.search(getattr(self, field)):
                raise PermanentFailure(f"{field} has a line break or control character: {getattr(self, field)[:80]!r}")
        if not is_address(self.to):
            raise PermanentFailure(f"{self.to[:80]!r} is no email address")

    def to_message(self) -> EmailMessage:
        """The message with its headers, fit for SMTP; raises `PermanentFailure` as `check` does."""
        self.check()
        message = EmailMessage(policy=(SMTP if self.is_ascii else SMTPUTF8).clone(cte_type="7bit"))
        try:
            message["From"] = self.sender
            username, _, domain = self.to.rpartition("@")
            message["To"] = Address(self.name, username, domain)
            message["Subject"] = self.subject
            message["Date"] = localtime()
            message["Message-ID"] = self.message_id
            message["Auto-Submitted"] = "auto-generated"  # RFC 3834: absence notices must not answer it
            if self.correlation_id:
                message["X-Correlation-ID"] = self.correlation_id
            message.set_content(self.text)
            if self.html is not None:
                message.add_alternative(self.html, subtype="html")
        except (ValueError, IndexError, UnicodeError) as error:  # IndexError: the header parser at some odd addresses
            raise PermanentFailure(f"no message can be made for {self.to[:80]!r}: {error}") from error
        return message


def message_id(event: int, user: int, channel: str = "email", *, sender: str) -> str:
    """The Message-ID of what `user` gets about `event`, the same in every attempt; its domain is the sender's."""
    return f"<e{event}.u{user}.{channel}@{address_of(sender).rpartition('@')[2] or 'localhost'}>"


def is_address(text: str) -> bool:
    """Whether `text` has the shape of one bare email address."""
    return _ADDRESS.fullmatch(text) is not None


def address_of(sender: str) -> str:
    """The bare address in `sender`, which may be `Name <address>`."""
    return sender.rpartition("<")[2].rstrip("> ").strip()


class Provider(Protocol):
    """Who delivers a message; one per worker process, used by many jobs at once. Its messages are from `sender`."""

    name: str
    sender: str

    async def send(self, email: Email) -> None:
        """Deliver `email`, or raise `TemporaryFailure` (worth another attempt) or `PermanentFailure` (never)."""

    async def close(self) -> None:
        """Let go of all connections."""
