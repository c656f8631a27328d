"""What a dead letter tells, and which ones are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CLASS = re.compile(r"[A-Za-z_][\w.]*")
_VARYING = (
    (re.compile(r"'[^']*'|\"[^\"]*\""), "'…'"),
    (re.compile(r"[\w.+-]+@[\w.-]+"), "…@…"),
    (re.compile(r"\b(?:0x[0-9a-fA-F]+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-f]{12,})\b"), "…"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "#"),
)


def tenant_of(meta: Mapping[str, Any] | None) -> str:
    """The tenant that a job's `meta` names, in the word that the queue knows it by; empty if none (see lines.lua)."""
    match meta.get("tenant") if isinstance(meta, Mapping) else None:
        case str(name):
            return name
        case bool(yes):
            return str(yes).lower()
        case int(number):
            return str(number)
        case float(number):
            return f"{number:.17g}"
    return ""


def ids_of(meta: object) -> dict[str, str]:
    """The ids of the event from which a job follows, as its `meta` names them: `event_id`, `correlation_id`."""
    named = meta if isinstance(meta, Mapping) else {}
    return {name: value for name in ("event_id", "correlation_id") if isinstance(value := named.get(name), str)}


class Addressed:
    """What the arguments and the `meta` of a job tell of whom it is for."""

    kwargs: dict[str, Any]
    meta: dict[str, Any]

    @property
    def tenant(self) -> str:
        """Whom the job belongs to: its `meta["tenant"]`, empty if none."""
        return tenant_of(self.meta)

    @property
    def users(self) -> int:
        """How many users it is for: the length of its argument `users`, 0 without one."""
        users = self.kwargs.get("users")
        return len(users) if isinstance(users, list | tuple) else 0


@dataclass(frozen=True)
class DeadLetter(Addressed):
    """A dead job: what it was, why it died (`error` is a stack trace or a reason), after how many attempts and crashes.

    `queued_at` (first enqueued), `started_at` (taken for its last attempt, by `worker`) and `died_at` are epoch seconds
    of the broker's clock. `key` and `died_at` together name one death. A body that nobody can read has function "".
    """

    key: str
    queue: str
    function: str
    kwargs: dict[str, Any]
    meta: dict[str, Any]
    priority: int
    error: str
    attempts: int
    crashes: int
    queued_at: float
    started_at: float
    died_at: float
    worker: str

    @property
    def reason(self) -> str:
        """The line of `error` that says what happened: of a stack trace the one with the exception."""
        return reason_of(self.error)

    @property
    def error_class(self) -> str:
        """The exception's class as the stack trace writes it, "poison", "unreadable", …; empty for a mere sentence."""
        head = self.reason.split(":", 1)[0].strip()
        return head if _CLASS.fullmatch(head) else ""

    @property
    def message(self) -> str:
        """The reason without its class, and without what varies: numbers, ids, addresses, quoted words."""
        text = self.reason.removeprefix(self.error_class).removeprefix(":").strip()
        for varying, sign in _VARYING:
            text = varying.sub(sign, text)
        return text[:200]


def reason_of(error: str) -> str:
    """The line of a stack trace that says what happened; of any other text the last line."""
    lines = error.strip().rpartition("Traceback (most recent call last):")[2].strip("\n").split("\n")
    said = [line for line in lines if line and not line[0].isspace()]
    return (said[0] if "Traceback (" in error and said else lines[-1]).strip()


@dataclass(frozen=True)
class Filter:
    """Which dead letters are meant: those to which all that is given applies. Without anything given: all.

    `error_class` is the class as a stack trace writes it, or its last part (`Timeout` for `smtplib.Timeout`); `text`
    stands somewhere in the error, in any case. They died from `since` to `until` (epoch seconds of the broker's clock),
    after at least `min_attempts` attempts.
    """

    function: str | None = None
    tenant: str | None = None
    error_class: str | None = None
    text: str | None = None
    since: float | None = None
    until: float | None = None
    min_attempts: int = 0

    def admits(self, letter: DeadLetter) -> bool:
        """Whether it applies to `letter`, but for the time, which is looked up instead."""
        return (
            self.function in (None, letter.function)
            and self.tenant in (None, letter.tenant)
            and self.error_class in (None, letter.error_class, letter.error_class.rsplit(".", 1)[-1])
            and (self.text is None or self.text.lower() in letter.error.lower())
            and letter.attempts >= self.min_attempts
        )
