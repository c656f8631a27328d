"""The topics that ship with saqkit, and finding those that are meant."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean


class EventTopic(StrEnum):
    """The topics of the shipped systems: six of `voting`, fourteen of `school-erp`."""

    VOTE_CREATED = "vote.created"
    MODEL_PROGRESS_MILESTONE = "model.progress_milestone"
    MODEL_RANK_CHANGED = "model.rank_changed"
    REWARD_EARNED = "reward.earned"
    USER_REGISTERED = "user.registered"
    REFERRAL_MILESTONE = "referral.milestone"

    STUDENT_ENROLLED = "student:enrolled"
    STUDENT_WITHDRAWN = "student:withdrawn"
    CLASS_CREATED = "class:created"
    SUBJECT_ASSIGNED = "subject:assigned"
    ATTENDANCE_MARKED = "attendance:marked"
    ATTENDANCE_BATCH_MARKED = "attendance:batch_marked"
    ATTENDANCE_CORRECTED = "attendance:corrected"
    ATTENDANCE_REPORT_GENERATED = "attendance:report_generated"
    EXAM_CREATED = "exam:created"
    EXAM_RESULTS_PUBLISHED = "exam:results_published"
    GRADE_UPDATED = "grade:updated"
    TENANT_CREATED = "tenant:created"
    SYSTEM_ERROR_OCCURRED = "system:error_occurred"
    NOTIFICATION_SENT = "notification:sent"


_E = EventTopic

GROUPS: dict[str, tuple[EventTopic, ...]] = {
    "voting": (_E.VOTE_CREATED, _E.MODEL_PROGRESS_MILESTONE, _E.MODEL_RANK_CHANGED, _E.REWARD_EARNED,
               _E.USER_REGISTERED, _E.REFERRAL_MILESTONE),
    "academic": (_E.STUDENT_ENROLLED, _E.STUDENT_WITHDRAWN, _E.CLASS_CREATED, _E.SUBJECT_ASSIGNED),
    "attendance": (_E.ATTENDANCE_MARKED, _E.ATTENDANCE_BATCH_MARKED, _E.ATTENDANCE_CORRECTED,
                   _E.ATTENDANCE_REPORT_GENERATED),
    "examination": (_E.EXAM_CREATED, _E.EXAM_RESULTS_PUBLISHED, _E.GRADE_UPDATED),
    "system": (_E.TENANT_CREATED, _E.SYSTEM_ERROR_OCCURRED, _E.NOTIFICATION_SENT),
}  # fmt: skip
"""What the makers of the systems file their topics under."""

RECIPIENTS: dict[EventTopic, str] = {
    _E.VOTE_CREATED: "voter",
    _E.MODEL_PROGRESS_MILESTONE: "all subscribers",
    _E.MODEL_RANK_CHANGED: "all supporters",
    _E.REWARD_EARNED: "user",
    _E.USER_REGISTERED: "new user",
    _E.REFERRAL_MILESTONE: "user",
}
"""Whom an event of a topic of `voting` is told to by email."""


class KnownTopics(frozenset[str]):
    """The topics of a bus; `system:error_occurred`, which the bus itself publishes on, is always one of them."""

    def __new__(cls, names: Iterable[str]) -> KnownTopics:
        return super().__new__(cls, [*map(str, names), str(EventTopic.SYSTEM_ERROR_OCCURRED)])

    def require(self, name: str) -> str:
        """The topic of this name; `UsageError` if there is none."""
        if name not in self:
            raise UsageError(f'there is no topic "{name}" ({did_you_mean(str(name), self)})')
        return str(name)

    def meant(self, patterns: str | Iterable[str] | None) -> tuple[str, ...]:
        """The topics that names or patterns as `exam:*` mean, sorted; None: all. `UsageError` for one of no topic."""
        if patterns is None:
            return tuple(sorted(self))
        found: set[str] = set()
        several = isinstance(patterns, Iterable) and not isinstance(patterns, str)
        for pattern in map(str, patterns if several else [patterns]):
            matching = {name for name in self if fnmatchcase(name, pattern)}
            found |= matching or {self.require(pattern)}
        if not found:
            raise UsageError("no topic is named (give names, or patterns as exam:*)")
        return tuple(sorted(found))
