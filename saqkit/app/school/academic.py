"""The academic operations: which record each of them leaves, and which ones it needs to be there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select, text

from saqkit.app.tables import school_records, users
from saqkit.errors import UsageError

__all__ = ["OPERATIONS", "Operation", "record"]

Key = tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """Leaves a record of `kind`, named by the fields `named`; doing it again with other data changes that record.

    `fields` are its data; `user` among them has to be of the tenant. `needs`: kinds of records that have to be there,
    with the fields that name them. `state` is written beside the data.
    """

    kind: str
    named: Key
    fields: Key
    needs: Mapping[str, Key] = field(default_factory=dict)
    state: str = ""


_CLASS, _EXAM = {"class": ("class_name",)}, {"exam": ("exam",)}
OPERATIONS = {
    "create-class": Operation("class", ("class_name",), ("class_name",)),
    "enrol": Operation("enrolment", ("class_name", "user"), ("class_name", "user"), _CLASS, "enrolled"),
    "withdraw": Operation("enrolment", ("class_name", "user"), ("class_name", "user"),
                          {"enrolment": ("class_name", "user")}, "withdrawn"),
    "assign-subject": Operation("subject", ("class_name", "subject"), ("class_name", "subject", "user"), _CLASS),
    "create-exam": Operation("exam", ("exam",), ("exam", "subject", "day")),
    "grade": Operation("grade", ("exam", "user"), ("exam", "user", "grade"), _EXAM),
    "publish-results": Operation("results", ("exam",), ("exam",), _EXAM, "published"),
}  # fmt: skip


def record(
    connection: Connection,
    tenant: str,
    institution: str,
    operation: Operation,
    data: Mapping[str, str | int],
    at: float,
) -> None:
    """Leave the record of an operation, in a transaction of its caller.

    `UsageError` if its user is not of the tenant, or a record that it needs is not at this institution.
    """
    if (user := data.get("user")) is not None:
        ours = select(users.c.id).where(users.c.id == user, users.c.tenant == tenant)
        if connection.execute(ours).scalar() is None:
            raise UsageError(f'user {user} is not of tenant "{tenant}"')
    place = {"tenant": tenant, "institution": institution}
    for kind, named in operation.needs.items():
        needed = select(school_records.c.kind).filter_by(**place, kind=kind, **_identity(named, data))
        if connection.execute(needed).scalar() is None:
            words = ", ".join(str(data[name]) for name in named)
            raise UsageError(f'institution "{institution}" of tenant "{tenant}" has no {kind} "{words}"')
    said = json.dumps({**data, **({"state": operation.state} if operation.state else {})})
    values = {**place, "kind": operation.kind, **_identity(operation.named, data), "data": said, "at": at}
    connection.execute(_PUT, values)


def _identity(named: Sequence[str], data: Mapping[str, str | int]) -> dict[str, str | int]:
    """Name and user of a record; of several fields the name is a list, so that no two are mistaken for each other."""
    words = [str(data[name]) for name in named if name != "user"]
    name = words[0] if len(words) == 1 else json.dumps(words, ensure_ascii=False)
    return {"name": name, "user_id": data["user"] if "user" in named else 0}


_PUT = text(
    "INSERT INTO school_records (tenant, institution, kind, name, user_id, data, changed_at)"
    " VALUES (:tenant, :institution, :kind, :name, :user_id, :data, :at)"
    " ON CONFLICT (tenant, institution, kind, name, user_id)"
    " DO UPDATE SET data = excluded.data, changed_at = excluded.changed_at"
)
