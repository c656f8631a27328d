"""The report of a platform's week: for each course who has a place, as a CSV file."""

from __future__ import annotations

import asyncio
import csv
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from saqkit.app.database import Database
from saqkit.app.location import reports_folder
from saqkit.app.store import EventRow
from saqkit.app.tables import courses, enrolments
from saqkit.app.work import burn

if TYPE_CHECKING:
    from saqkit.app.handlers import Application
    from saqkit.app.works import Task

logger = logging.getLogger("saqkit")

WEEK_S = 7 * 86_400.0
COLUMNS = ("course", "title", "enrolled", "enrolled_this_week", "pending")


async def report(application: Application, task: Task) -> list[int]:
    """The job that writes the report of its event's tenant. Who does it again writes the same file once more."""
    burn(task.spec.cpu_us)
    database = application.store.database
    with task.attempt.database():
        rows = await week_of(database, task.event)
    path = reports_folder(database, application.environ) / report_name(task.event)
    await asyncio.to_thread(_write, path, rows)
    logger.info("job %s: report of %d courses written to %s", task.job.key, len(rows), path)
    return task.users


async def week_of(database: Database, event: EventRow) -> Sequence[Sequence[Any]]:
    """The rows of a report in the columns `COLUMNS`, by id of the course; the week ends when the event was made."""
    completed, ends = enrolments.c.state == "completed", event.created_at
    this_week = enrolments.c.completed_at.between(ends - WEEK_S, ends)
    counts = (
        func.count(enrolments.c.id).filter(completed),
        func.count(enrolments.c.id).filter(completed, this_week),
        func.count(enrolments.c.id).filter(enrolments.c.state == "pending"),
    )
    joined = courses.outerjoin(enrolments, enrolments.c.course_id == courses.c.id)
    found = select(courses.c.id, courses.c.title, *counts).select_from(joined).where(courses.c.tenant == event.tenant)
    by_course = found.group_by(courses.c.id, courses.c.title).order_by(courses.c.id)
    rows = await database.read(lambda connection: connection.execute(by_course).all())
    return [tuple(row) for row in rows]


def report_name(event: EventRow) -> str:
    """One file for each event, by day (UTC)."""
    day = datetime.fromtimestamp(event.created_at, UTC).date()
    return f"courses-{day.isoformat()}-{event.id}.csv"


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Nobody ever sees half a report: it is written aside, and then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        # A title is somebody else's text, and a spreadsheet takes one that begins so for a formula.
        writer.writerows([row[0], f"'{row[1]}" if row[1][:1] in "=+-@\t" else row[1], *row[2:]] for row in rows)
    part.replace(path)
