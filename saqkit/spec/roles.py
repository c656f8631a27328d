"""The roles that people have, and how an audience is said by them."""

from __future__ import annotations

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

ROLES = ("admin", "parent", "staff", "student", "subscriber", "supporter", "teacher")


def check_role(role: str) -> str:
    """`role`, if it is one; else `UsageError`."""
    if role not in ROLES:
        raise UsageError(f'"{role}" is no role: {did_you_mean(role, ROLES)}')
    return role


def roles_of(text: str) -> tuple[str, ...]:
    """The roles that a person types: `students,parents`; none for `all`. Raises `UsageError` for an unknown one."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"the audience is empty: all, or some of {', '.join(ROLES)}")
    return () if words == ["all"] else tuple(dict.fromkeys(check_role(singular(word)) for word in words))


def singular(word: str) -> str:
    """`students` as the role `student`."""
    return word.removesuffix("s") if word not in ROLES else word
