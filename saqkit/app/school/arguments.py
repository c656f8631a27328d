"""What the jobs of a school are told, checked where they are enqueued, and again by the worker that does them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, cast

from saqkit.app.school.academic import OPERATIONS, Operation
from saqkit.app.store.attendance import STATUSES, Status
from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

__all__ = ["Academic", "Format", "MOST_IN_BULK", "MOST_MARKS", "Marking", "Reporting"]

Format = Literal["csv", "pdf"]
FORMATS = ("csv", "pdf")
MOST_MARKS = 100
"""In one job that is one transaction: a class, not a school."""
MOST_IN_BULK = 5_000
"""In one job: its arguments are some 20 bytes a pupil."""
LONGEST_DAYS = 366
LONGEST_TEXT = 200
_LARGEST_ID = 2**31 - 1
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Marking:
    """Marks (status by user id) of one day at an institution; `by` is who has made them."""

    institution: str
    by: str
    day: date
    marks: Mapping[int, Status]

    @classmethod
    def parse(cls, given: Mapping[str, Any], most: int) -> Marking:
        """Of a job's arguments, where `marks` are pairs; `UsageError` says what of them cannot be."""
        _names(given, ("institution", "by", "day", "marks"))
        pairs = given["marks"]
        if not isinstance(pairs, list | tuple) or not 0 < len(pairs) <= most:
            raise UsageError(f"marks: give 1 to {most:,} pairs of a pupil's id and a status")
        marks: dict[int, Status] = {}
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise UsageError(f"marks: {pair!r} is no pair of a pupil's id and a status")
            user, status = user_id(pair[0], "marks"), pair[1]
            if status not in STATUSES:
                raise UsageError(f'marks: "{status}" (user {user}) is no mark: {did_you_mean(str(status), STATUSES)}')
            if user in marks:
                raise UsageError(f"marks: user {user} is marked twice")
            marks[user] = cast("Status", status)
        return cls(text(given, "institution"), text(given, "by"), day_of(given["day"], "day"), marks)

    def kwargs(self) -> dict[str, Any]:
        """The job's arguments: ids only."""
        marks = [[user, status] for user, status in sorted(self.marks.items())]
        return {"institution": self.institution, "by": self.by, "day": self.day.isoformat(), "marks": marks}


@dataclass(frozen=True)
class Reporting:
    """The attendance of an institution from `first` to `last`, both included, as a file of `format`."""

    institution: str
    by: str
    first: date
    last: date
    format: Format

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Reporting:
        """Of a job's arguments; `UsageError` says what of them cannot be."""
        _names(given, ("institution", "by", "first", "last", "format"))
        first, last, how = day_of(given["first"], "first"), day_of(given["last"], "last"), given["format"]
        if not 0 <= (last - first).days < LONGEST_DAYS:
            raise UsageError(f"a report from {first} to {last}: give 1 to {LONGEST_DAYS} days, the first of them first")
        if how not in FORMATS:
            raise UsageError(f'format: "{how}" is none: {did_you_mean(str(how), FORMATS)}')
        return cls(text(given, "institution"), text(given, "by"), first, last, cast("Format", how))

    def kwargs(self) -> dict[str, Any]:
        """The job's arguments."""
        days = {"first": self.first.isoformat(), "last": self.last.isoformat()}
        return {"institution": self.institution, "by": self.by, **days, "format": self.format}


@dataclass(frozen=True)
class Academic:
    """An academic operation (`name` is one of `academic.OPERATIONS`) with its `data`."""

    institution: str
    by: str
    name: str
    data: Mapping[str, str | int]

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Academic:
        """Of a job's arguments; `UsageError` says what of them cannot be."""
        _names(given, ("institution", "by", "operation", "data"))
        name, data = given["operation"], given["data"]
        if name not in OPERATIONS:
            raise UsageError(f'operation: there is no "{name}" ({did_you_mean(str(name), OPERATIONS)})')
        if not isinstance(data, Mapping):
            raise UsageError(f"{name}: data is no table of names and values")
        _names(data, OPERATIONS[name].fields, f"{name}: ")
        said: dict[str, str | int] = {}
        for field in OPERATIONS[name].fields:
            if field == "user":
                said[field] = user_id(data[field], f"{name}: user")
            elif field == "day":
                said[field] = day_of(data[field], f"{name}: day").isoformat()
            else:
                said[field] = text(data, field, f"{name}: ")
        return cls(text(given, "institution"), text(given, "by"), name, said)

    @property
    def operation(self) -> Operation:
        """What it does."""
        return OPERATIONS[self.name]

    def kwargs(self) -> dict[str, Any]:
        """The job's arguments."""
        return {"institution": self.institution, "by": self.by, "operation": self.name, "data": dict(self.data)}


def text(given: Mapping[str, Any], name: str, where: str = "") -> str:
    """One line of 1 to 200 characters."""
    value = given[name]
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > LONGEST_TEXT:
        raise UsageError(f"{where}{name}: {str(value)[:40]!r} (give one line of 1 to {LONGEST_TEXT} characters)")
    return value


def user_id(value: object, where: str) -> int:
    """The id of a user."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST_ID:
        raise UsageError(f"{where}: {str(value)[:40]!r} is no id of a user (give a whole number from 1)")
    return value


def day_of(value: object, where: str) -> date:
    """A day, given as one or as YYYY-MM-DD."""
    if type(value) is date:
        return value
    try:
        if isinstance(value, str) and _DAY.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise UsageError(f"{where}: {str(value)[:40]!r} is no day (give YYYY-MM-DD)")


def _names(given: Mapping[str, Any], wanted: Collection[str], where: str = "") -> None:
    if missing := [name for name in wanted if name not in given]:
        raise UsageError(f"{where}{missing[0]} is missing (give {', '.join(wanted)})")
    if unknown := [name for name in given if name not in wanted]:
        raise UsageError(f"{where}there is no {unknown[0]} ({did_you_mean(str(unknown[0]), wanted)})")
