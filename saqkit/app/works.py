"""What a job does other than sending messages: the function of each `work` that a job type of a topology can name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saq.job import Job

from saqkit.app.attempt import Attempt
from saqkit.app.courses.codes import clean
from saqkit.app.courses.enrolling import complete
from saqkit.app.courses.reporting import report
from saqkit.app.courses.syncing import pull_courses
from saqkit.app.shop.checking import check
from saqkit.app.shop.payments import pay
from saqkit.app.store import EventRow
from saqkit.spec.topology import JobType

if TYPE_CHECKING:
    from saqkit.app.handlers import Application


@dataclass(frozen=True)
class Task:
    """One attempt: of which job type (`name`), for which event and users, and the books that it keeps."""

    name: str
    spec: JobType
    job: Job
    event: EventRow
    users: list[int]
    attempt: Attempt


WORKS: Mapping[str, Callable[[Application, Task], Awaitable[list[int]]]] = {
    "payment": pay,
    "payment-check": check,
    "enrolment": complete,
    "sync-courses": pull_courses,
    "clean-codes": clean,
    "report": report,
}
"""Each counts users as served or failed in the books, raises what makes the attempt fail, and returns for which users
the job is to be followed by others."""
