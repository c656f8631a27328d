"""People from a CSV file: checked row by row, with the line and the reason of every bad one."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

from saqkit.app.store import Store, UserRow
from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean
from saqkit.spec.roles import ROLES, singular

COLUMNS = ("email", "name", "role", "tenant", "institution")
# The bad rows of a report; beyond them they are only counted. Whoever has more has given the wrong file.
REPORTED = 10_000
_DELIMITERS = ",;\t"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ADDRESS = re.compile(rf"[a-z0-9!#$%&'*+/=?^_`{{|}}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{{|}}~-]+)*@(?:{_LABEL}\.)+{_LABEL}")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: the line of the file where it begins, why, and the value that is wrong."""

    line: int
    reason: str
    value: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" + (f" ({self.value!r})" if self.value else "")


@dataclass(slots=True)
class ImportReport:
    """What an import did. `skipped` has the first 10,000 bad rows, `bad` counts all."""

    added: int = 0
    updated: int = 0
    bad: int = 0
    skipped: list[BadRow] = field(default_factory=list)

    def note(self, row: BadRow) -> None:
        self.bad += 1
        if len(self.skipped) < REPORTED:
            self.skipped.append(row)


class ImportRefused(UsageError):
    """The file has bad rows and nothing was written; `report.skipped` has the rows."""

    def __init__(self, path: str | Path, report: ImportReport) -> None:
        self.report = report
        rows = "1 bad row" if report.bad == 1 else f"{report.bad:,} bad rows, the first"
        super().__init__(f"{path}: nothing was imported because of {rows}: {report.skipped[0]}")


async def import_users(
    store: Store,
    path: str | Path,
    *,
    on_bad: Literal["skip", "refuse"] = "skip",
    progress: Callable[[float], object] | None = None,
) -> ImportReport:
    """Store the people of a CSV file; whoever is known by tenant and email is updated.

    The header names `email` and, if wanted, `name`, `role` (default student), `tenant` and `institution`; other columns
    are ignored. Without a column `institution` everybody stays at theirs; with an empty cell in it a person is of none.
    UTF-8, with or without a byte order mark; commas, semicolons or tabs. Addresses are stored in lower case.

    `on_bad`: `skip` leaves bad rows out; `refuse` reads the whole file first and raises `ImportRefused` before anything
    is written. Memory: some 80 bytes a person, to find those who are in the file twice. `progress` is called with the
    share of the work that is done (0 to 1). Raises `UsageError` if the file or its header cannot be used.
    """
    if on_bad not in ("skip", "refuse"):
        raise UsageError(f'on_bad is skip or refuse, not "{on_bad}"')
    tell = progress or (lambda share: None)
    report = ImportReport()
    if on_bad == "refuse":
        for row in _rows(path, lambda share: tell(share / 4)):
            if isinstance(row, BadRow):
                report.note(row)
        if report.bad:
            raise ImportRefused(path, report)

    good = 0

    def people() -> Iterator[UserRow]:
        nonlocal good
        for row in _rows(path, tell if on_bad == "skip" else lambda share: tell(1 / 4 + share * 3 / 4)):
            if isinstance(row, BadRow):
                report.note(row)
            else:
                good += 1
                yield row

    report.added = await store.add_users(people())
    report.updated = good - report.added
    return report


def _rows(path: str | Path, tell: Callable[[float], object]) -> Iterator[UserRow | BadRow]:
    try:
        raw = open(path, "rb")  # noqa: SIM115 (closed below; only opening may fail with this message)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    # Bytes that are not UTF-8 become surrogates, so that only their own row is bad.
    with raw, TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        size = Path(path).stat().st_size
        header = lines.readline()
        if not header.replace("\t", "").strip().isprintable():
            raise UsageError(f"{path}: line 1 is not text in UTF-8; save the file as CSV in UTF-8")
        delimiter = max(_DELIMITERS, key=header.count)
        try:
            columns = _columns(path, next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error as error:
            raise UsageError(f"{path}: line 1 is not CSV: {error}") from error
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        seen: set[int] = set()
        while True:
            line = reader.line_num + 2  # the header is not the reader's, and lines count from 1
            try:
                values = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield BadRow(line, f"is not CSV: {error}", "")
                continue
            if len(seen) % 5_000 == 0:
                tell(raw.tell() / size)
            if values:
                yield _row(line, columns, values, seen)
    tell(1.0)


def _columns(path: str | Path, header: list[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    if not any(names):
        raise UsageError(f"{path}: is empty; its first line names the columns: {','.join(COLUMNS)}")
    for name in names:
        if name in COLUMNS and names.count(name) > 1:
            raise UsageError(f'{path}: line 1: the column "{name}" is there twice')
        hint = did_you_mean(name, [column for column in COLUMNS if column not in names])
        if name not in COLUMNS and hint.startswith("did you mean"):
            raise UsageError(f'{path}: line 1: unknown column "{name}" ({hint})')
    if "email" not in names:
        shown = ", ".join(names)[:200]
        raise UsageError(f'{path}: line 1: there is no column "email" (columns: {shown})')
    return names


def _row(line: int, columns: list[str], values: list[str], seen: set[int]) -> UserRow | BadRow:
    if len(values) != len(columns):
        return BadRow(line, f"has {len(values)} columns, the header has {len(columns)}", "")
    cells = {name: value.strip() for name, value in zip(columns, values, strict=True)}
    email, name, tenant = cells["email"].lower(), cells.get("name", ""), cells.get("tenant", "")
    institution = cells.get("institution")
    role = singular(cells.get("role", "").lower() or "student")
    if not email:
        return BadRow(line, "the address is empty", "")
    for column in COLUMNS:
        if not (value := cells.get(column, "")).isprintable():
            reason = "has bytes that are not UTF-8" if _undecoded(value) else "has a line break or control character"
            return BadRow(line, f"{column} {reason}", value.encode("utf-8", "replace").decode())
    if not _ADDRESS.fullmatch(email) or len(email) > 254:
        return BadRow(line, "is not an email address", cells["email"])
    if role not in ROLES:
        return BadRow(line, f"is not a role: {did_you_mean(role, ROLES)}", cells["role"])
    if institution and not tenant:
        return BadRow(line, "has an institution and no tenant whose it is", institution)
    # Hashes instead of the strings: half the memory. Two of a million differ with 1 - 3e-8 probability.
    known = hash((tenant, email))
    if known in seen:
        return BadRow(line, "is in this file twice", cells["email"])
    seen.add(known)
    return UserRow(email=email, name=name, role=role, tenant=tenant, institution=institution)


def _undecoded(value: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in value)
