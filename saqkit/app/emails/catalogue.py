"""Which types of email there are, and what a job of each tells: ids and small values, never whole objects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from saqkit.app.mail.message import is_address
from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

__all__ = ["EMAIL_TYPES", "EmailType", "Value", "checked_data", "checked_recipient", "email_type"]

Value = str | int | float | bool
LONGEST = 2_000
"""Characters of one value: a signed token fits in, a document does not."""
ID_BITS = 63
"""Of the ids that a database holds."""
OPTIONAL = ("first_name",)
"""What every type may be told besides; the worker knows it of somebody who is named by an id."""
_NOT_ONE_LINE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True)
class EmailType:
    """One type of email: the `fields` that its templates need, and which of them nobody may read (`secret`).

    The job type that sends it bears its name. Its templates are `templates/NAME.txt`, which sets the subject too, and
    `templates/NAME.html`.
    """

    name: str
    fields: tuple[str, ...]
    secret: tuple[str, ...] = ()


EMAIL_TYPES = {
    one.name: one
    for one in (
        EmailType("verification-code", ("code",), secret=("code",)),
        EmailType("password-reset", ("token",), secret=("token",)),
        EmailType("welcome", ("course",)),
        EmailType("payment-receipt", ("payment", "course")),
        EmailType("vote-confirmation", ("model", "model_name", "votes")),
        EmailType("progress-update", ("model", "model_name", "percent")),
        EmailType("rank-update", ("model", "model_name", "rank", "previous_rank")),
        EmailType("reward-delivery", ("reward", "reward_name")),
        EmailType("referral-join", ("friend",)),
        EmailType("referral-milestone", ("referrals",)),
        EmailType("tell-parents", ("news",)),
        EmailType("tell-staff", ("news",)),
    )
}


def email_type(name: str) -> EmailType:
    """The type of that name; raises `UsageError` if there is none."""
    if name not in EMAIL_TYPES:
        raise UsageError(f'there is no email type "{_short(name)}" ({did_you_mean(str(name), EMAIL_TYPES)})')
    return EMAIL_TYPES[name]


def checked_data(kind: EmailType, data: Mapping[str, Value]) -> dict[str, Value]:
    """What a job of `kind` is told; raises `UsageError` where something is missing, unknown, blank, or no small value.

    A text is one line: it may become part of a subject.
    """
    about, known = f"email {kind.name}", (*kind.fields, *OPTIONAL)
    for name in data:
        if name not in known:
            raise UsageError(f'{about}: takes no "{_short(name)}" ({did_you_mean(str(name), known)})')
    if missing := [name for name in kind.fields if name not in data]:
        raise UsageError(f"{about}: {' and '.join(missing)} missing (it takes {', '.join(known)})")
    for name, value in data.items():
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(
                f"{about}: {name} is a {type(value).__name__}, no small value (pass a text, a number, an id)"
            )
        if isinstance(value, str) and len(value) > LONGEST:
            raise UsageError(
                f"{about}: {name} has {len(value):,} characters, at most {LONGEST:,} are taken (pass an id)"
            )
        if isinstance(value, str) and _NOT_ONE_LINE.search(value):
            raise UsageError(f"{about}: {name} has a line break or control character (pass one line)")
        if isinstance(value, str) and name in kind.fields and not value.strip():
            raise UsageError(f"{about}: {name} is blank (pass what the email is to say)")
    return dict(data)


def checked_recipient(kind: EmailType, to: str | int) -> str | int:
    """An address, or the id of a user whom the worker looks up; raises `UsageError` for anything else."""
    if isinstance(to, str):
        if not is_address(to):
            raise UsageError(f"email {kind.name}: {_short(to)!r} is no email address (such as ann@school.example)")
    elif isinstance(to, int) and to.bit_length() > ID_BITS:
        raise UsageError(f"email {kind.name}: a number of {to.bit_length()} bits is nobody (give the id of a user)")
    elif isinstance(to, bool) or not isinstance(to, int) or to < 1:
        raise UsageError(f"email {kind.name}: {_short(to)!r} is nobody (give an address, or the id of a user)")
    return to


def _short(given: object) -> str:
    return str(given)[:80]
