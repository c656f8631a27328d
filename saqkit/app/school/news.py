"""The events of a school's jobs: each is saved in the transaction of what it tells, and so is published once.

An id is derived from the job, the topic and the user. Whoever does a job again finds it done and saves nothing. Whoever
dies after the commit has left the outbox rows for the relay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from saqkit.app.event_bus import save_published
from saqkit.app.school.arguments import Academic, Marking, Reporting
from saqkit.app.store.attendance import Changes
from saqkit.app.tables import school_records, users
from saqkit.bus.envelope import Event
from saqkit.bus.topics import EventTopic

__all__ = ["News", "TOPICS", "correlation_of"]

TOPICS = {
    "create-class": EventTopic.CLASS_CREATED,
    "enrol": EventTopic.STUDENT_ENROLLED,
    "withdraw": EventTopic.STUDENT_WITHDRAWN,
    "assign-subject": EventTopic.SUBJECT_ASSIGNED,
    "create-exam": EventTopic.EXAM_CREATED,
    "grade": EventTopic.GRADE_UPDATED,
    "publish-results": EventTopic.EXAM_RESULTS_PUBLISHED,
}
"""The topic of each academic operation."""
_LONGEST_NAME = 200


@dataclass(frozen=True)
class News:
    """The events of one operation of a tenant at an institution; those of other topics than `topics` are left out.

    `key` is the operation's, `at` its time. `saved`: what has been saved, by the number of its row.
    """

    topics: frozenset[str]
    tenant: str
    institution: str
    key: str
    at: float
    correlation_id: str
    causation_id: str = ""
    saved: dict[int, Event] = field(default_factory=dict)

    def of_marks(self, connection: Connection, wanted: Marking, changes: Changes) -> None:
        """Each mark that is new or another now; one that was the same before is no news."""
        day, names = wanted.day.isoformat(), self._names(connection, (*changes.new, *changes.corrected))
        for topic, whose in ((EventTopic.ATTENDANCE_MARKED, changes.new),
                             (EventTopic.ATTENDANCE_CORRECTED, changes.corrected)):  # fmt: skip
            for user in whose:
                data = {"student": names[user], "status": wanted.marks[user], "day": day}
                self._save(connection, topic, data, user)

    def of_bulk(self, connection: Connection, result: Mapping[str, Any]) -> None:
        """A bulk mark that has come to its end."""
        self._save(connection, EventTopic.ATTENDANCE_BATCH_MARKED, result)

    def of_report(self, connection: Connection, wanted: Reporting, name: str) -> None:
        """A report, by the name of its file."""
        data = {"report": name, "first": wanted.first.isoformat(), "last": wanted.last.isoformat(),
                "format": wanted.format}  # fmt: skip
        self._save(connection, EventTopic.ATTENDANCE_REPORT_GENERATED, data)

    def of_academic(self, connection: Connection, wanted: Academic) -> None:
        """An academic operation; of somebody it also tells the name, and of a grade the subject."""
        data = {name: value for name, value in wanted.data.items() if name != "user"}
        user = wanted.data.get("user", "")
        if isinstance(user, int):
            role = "teacher" if wanted.name == "assign-subject" else "student"
            data[role] = self._names(connection, [user])[user]
        if wanted.name == "grade":
            place = {"tenant": self.tenant, "institution": self.institution, "name": wanted.data["exam"]}
            exam = select(school_records.c.data).filter_by(**place, kind="exam", user_id=0)
            data["subject"] = json.loads(connection.execute(exam).scalar_one())["subject"]
        self._save(connection, TOPICS[wanted.name], data, user)

    def _save(self, connection: Connection, topic: EventTopic, data: Mapping[str, Any], user: int | str = "") -> None:
        if topic not in self.topics:
            return
        event = Event.parse({
            "type": topic.value, "data": dict(data), "tenant": self.tenant, "institution": self.institution,
            "user": user, "id": _digest(self.tenant, self.key, topic, str(user)), "time": self.at,
            "correlation_id": self.correlation_id, "causation_id": self.causation_id,
        }, f"event {topic}")  # fmt: skip
        if (row := save_published(connection, event)) is not None:
            self.saved[row] = event

    def _names(self, connection: Connection, whose: Iterable[int]) -> dict[int, str]:
        """How they are called; who has no name, or is of another tenant, is told by number."""
        wanted = list(whose)
        ours = select(users.c.id, users.c.name).where(users.c.id.in_(wanted), users.c.tenant == self.tenant)
        known = {user: str(name).strip()[:_LONGEST_NAME] for user, name in connection.execute(ours)}
        return {user: known.get(user) or f"user {user}" for user in wanted}


def correlation_of(tenant: str, key: str) -> str:
    """What joins the events of a job to which nobody has given an id."""
    return _digest(tenant, key)


def _digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
