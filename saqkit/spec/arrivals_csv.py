"""Arrivals from a CSV file: a log of what came when."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from saqkit.errors import DescriptionError
from saqkit.spec.base import did_you_mean

_CLOCKS = ("at_s", "timestamp")
_MILLISECONDS = 1e11  # as seconds this is the year 5138


def read_arrivals(path: Path) -> dict[str, Any]:
    """The fields of `Recorded` from the columns `at_s` or `timestamp`, `users` and `entry` of a CSV file.

    Raises `DescriptionError` naming the file, the line and the column.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DescriptionError(f"cannot be read: {error.strerror}", source=str(path)) from error
    except UnicodeDecodeError as error:
        raise DescriptionError("is not UTF-8 text", source=str(path), hint="save the file as UTF-8") from error
    head = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=head.count))
    columns = [name.strip().lower() for name in next(reader, [])]
    clock = _clock(path, columns)
    texts: dict[str, list[str]] = {name: [] for name in (clock, "users", "entry") if name in columns}
    numbers: list[int] = []
    for row in reader:
        if not any(field.strip() for field in row):
            continue
        for name, found in texts.items():
            place = columns.index(name)
            if place >= len(row) or not row[place].strip():
                raise _wrong(path, reader.line_num, name, "is missing", "", "each arrival needs one")
            found.append(row[place].strip())
        numbers.append(reader.line_num)
    if not numbers:
        raise DescriptionError("has no arrivals below its head", source=str(path), hint="a line for each arrival")

    def each(name: str, read: Callable[[str], Any], right: str) -> list[Any]:
        values = []
        for line, text in zip(numbers, texts[name], strict=True):
            try:
                values.append(read(text))
            except ValueError:
                raise _wrong(path, line, name, f'"{text}" is wrong', text, right) from None
        return values

    fields: dict[str, Any] = {}
    if clock == "at_s":
        fields["at_s"] = each("at_s", _seconds, "seconds from 0")
    else:
        fields["at_s"] = _since_first(path, numbers, each("timestamp", _moment, "2026-03-01T08:30:00Z or Unix seconds"))
    if "users" in texts:
        fields["users"] = each("users", _count, "a whole number from 1")
    if "entry" in texts:
        fields["entries"] = texts["entry"]
    return fields


def _clock(path: Path, columns: list[str]) -> str:
    clocks = [name for name in _CLOCKS if name in columns]
    if len(clocks) == 2:
        raise DescriptionError("has two clocks, at_s and timestamp", source=str(path), key="line 1",
                               hint="keep one of them")  # fmt: skip
    if not clocks:
        near = next((hint for name in columns if (hint := did_you_mean(name, _CLOCKS)).startswith("did")), "")
        raise DescriptionError(f"has no column at_s or timestamp, only {', '.join(columns) or 'nothing'}",
                               source=str(path), key="line 1", hint=near or "say when each arrival was")  # fmt: skip
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise DescriptionError(f'has two columns "{twice}"', source=str(path), key="line 1", hint="keep one of them")
    return clocks[0]


def _wrong(path: Path, line: int, column: str, message: str, value: str, right: str) -> DescriptionError:
    return DescriptionError(message, source=str(path), key=f"line {line}, {column}", value=value, hint=right)


def _seconds(text: str) -> float:
    value = float(text)
    if not isfinite(value) or value < 0:
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _moment(text: str) -> tuple[str, float]:
    """(which clock, seconds) of a time stamp."""
    try:
        seconds = float(text)
    except ValueError:
        stamp = datetime.fromisoformat(text)
        if stamp.tzinfo is None:
            return "times without a zone", stamp.replace(tzinfo=UTC).timestamp()
        return "times with a zone", stamp.timestamp()
    if not abs(seconds) < _MILLISECONDS:  # also what is no number
        raise ValueError
    return "Unix seconds", seconds


def _since_first(path: Path, lines: list[int], moments: list[tuple[str, float]]) -> list[float]:
    first = moments[0][0]
    for line, (clock, _) in zip(lines, moments, strict=True):
        if clock != first:
            raise DescriptionError(f"has two clocks: {first} before, {clock} here", source=str(path),
                                   key=f"line {line}, timestamp", hint="keep to one of them")  # fmt: skip
    start = min(seconds for _, seconds in moments)
    return [seconds - start for _, seconds in moments]
