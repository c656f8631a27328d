"""The file of an attendance report, CSV or PDF: it appears under its name when it is whole, and never before."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from saqkit.app.school.arguments import Reporting
from saqkit.app.store.attendance import STATUSES, PupilDays
from saqkit.errors import TemporaryFailure

__all__ = ["HEAD", "report_path", "write_report"]

HEAD = ("user", "name", *STATUSES, "days")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ROWS_A_PAGE = 42
_WIDTHS = (0.1, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1)


def report_path(folder: Path, tenant: str, key: str, wanted: Reporting) -> Path:
    """Where the report of a job is: in a folder of its tenant and institution, whatever their names are.

    The same job has the same file, however often it is done, and another job another one.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()[:10]
    name = f"attendance-{wanted.first}-{wanted.last}-{digest}.{wanted.format}"
    return folder / _as_folder(tenant) / _as_folder(wanted.institution) / name


def write_report(path: Path, tenant: str, wanted: Reporting, rows: Sequence[PupilDays]) -> None:
    """Write the report to a file beside `path`, and move it there. `TemporaryFailure` if that cannot be."""
    table = [_row(pupil) for pupil in rows]
    content = _csv(table) if wanted.format == "csv" else _pdf(tenant, wanted, table)
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            part = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        raise TemporaryFailure(f"{path}: the report cannot be written, {error.strerror} (SAQKIT_REPORTS is the folder)"
                               ) from error  # fmt: skip


def _row(pupil: PupilDays) -> list[str]:
    marks = [pupil.present, pupil.absent, pupil.late, pupil.excused]
    return [str(pupil.user), pupil.name, *map(str, marks), str(sum(marks))]


def _csv(table: Sequence[Sequence[str]]) -> bytes:
    target = io.StringIO(newline="")
    writer = csv.writer(target)
    writer.writerow(HEAD)
    for row in table:  # a name is nobody's formula, in whatever program this is opened
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in row])
    return target.getvalue().encode("utf-8", "replace")


def _pdf(tenant: str, wanted: Reporting, table: Sequence[Sequence[str]]) -> bytes:
    from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages  # takes half a second: only where it is asked
    from matplotlib.figure import Figure

    target = io.BytesIO()
    title = f"Attendance of {wanted.institution} ({tenant}), {wanted.first} to {wanted.last}"
    starts = range(0, max(len(table), 1), _ROWS_A_PAGE)
    with PdfPages(target) as pages:
        for number, start in enumerate(starts, 1):
            figure = Figure(figsize=(8.27, 11.69))  # A4, in inches
            FigureCanvasPdf(figure)
            figure.text(0.08, 0.95, title, fontsize=12, parse_math=False)
            figure.text(0.08, 0.04, f"{number} of {len(starts)}", fontsize=8)
            for line, row in enumerate([HEAD, *table[start : start + _ROWS_A_PAGE]]):
                left = 0.08
                for cell, width in zip(row, _WIDTHS, strict=True):
                    figure.text(left, 0.92 - line * 0.02, cell[:48], fontsize=9, parse_math=False,
                                fontweight="normal" if line else "bold")  # fmt: skip
                    left += width * 0.86
            pages.savefig(figure)
    return target.getvalue()


def _as_folder(name: str) -> str:
    """A name as that of one folder: no way leads out of it."""
    return quote(name, safe=" ").replace(".", "%2E")[:200]
