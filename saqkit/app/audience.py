"""Who an event is for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

ROLES = ("admin", "parent", "staff", "student", "subscriber", "supporter", "teacher")


@dataclass(frozen=True)
class Audience:
    """The active users with one of `roles`, of `tenant`, with ids up to `first_n`; an empty or None field means all.

    `first_n` is for measured runs, whose users are numbered 1..N.
    """

    roles: tuple[str, ...] = ()
    tenant: str = ""
    first_n: int | None = None

    def __post_init__(self) -> None:
        for role in self.roles:
            if role not in ROLES:
                raise UsageError(f'"{role}" is no role: {did_you_mean(role, ROLES)}')
        if self.first_n is not None and self.first_n < 1:
            raise UsageError(f"an audience of the first {self.first_n} users is empty: at least 1")

    @classmethod
    def of(cls, text: str, tenant: str = "") -> Self:
        """The audience that a person types: `students,parents`, or `all`. Raises `UsageError` for an unknown role."""
        words = [word.strip().lower() for word in text.split(",") if word.strip()]
        if not words:
            raise UsageError(f"the audience is empty: all, or some of {', '.join(ROLES)}")
        if words == ["all"]:
            return cls(tenant=tenant)
        return cls(roles=tuple(dict.fromkeys(singular(word) for word in words)), tenant=tenant)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        return cls(roles=tuple(data["roles"]), tenant=data["tenant"], first_n=data["first_n"])


def singular(word: str) -> str:
    """`students` as the role `student`."""
    return word.removesuffix("s") if word not in ROLES else word
