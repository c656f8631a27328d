"""Who an event is for."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from saqkit.errors import UsageError
from saqkit.spec.roles import check_role, roles_of


@dataclass(frozen=True)
class Audience:
    """The active users with one of `roles`, of `tenant` and its `institution`, of the ids `users` or up to `first_n`;
    an empty or None field means all.

    `first_n` is for measured runs, whose users are numbered 1..N. `nobody`: none of them at all.
    """

    roles: tuple[str, ...] = ()
    tenant: str = ""
    first_n: int | None = None
    nobody: bool = False
    users: tuple[int, ...] = ()
    institution: str = ""

    def __post_init__(self) -> None:
        for role in self.roles:
            check_role(role)
        if self.first_n is not None and self.first_n < 1:
            raise UsageError(f"an audience of the first {self.first_n} users is empty: at least 1")
        if self.institution and not self.tenant:
            raise UsageError(f'institution "{self.institution}" is one of a tenant: name the tenant too')

    @classmethod
    def of(cls, text: str, tenant: str = "", institution: str = "") -> Self:
        """The audience that a person types: `students,parents`, or `all`. Raises `UsageError` for an unknown role."""
        return cls(roles_of(text), tenant, institution=institution)

    @classmethod
    def first(cls, number: int) -> Self:
        """Of a measured run's users the first so many; 0: nobody."""
        return cls(first_n=number) if number else cls(nobody=True)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        return cls(tuple(data["roles"]), data["tenant"], data["first_n"], data.get("nobody", False),
                   tuple(data.get("users", ())), data.get("institution", ""))  # fmt: skip
