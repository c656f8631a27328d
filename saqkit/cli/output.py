"""What the commands show: JSON, plain tables of at most 100 columns, and a progress bar on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

Tell = Callable[..., None]
"""Called as `tell(done, of, what)`: how far the work is; `of` 0 and `what` empty mean unknown and unchanged."""


def emit(data: Any) -> None:
    """Print `data` as JSON; what is not a number (a percentile of nobody) is null."""
    said = json.dumps(_plain(data), indent=2, allow_nan=False, ensure_ascii=False)
    click.echo(said.encode(errors="backslashreplace").decode())  # half a character is an escape, also in JSON


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An aligned table with a line under its head: text to the left, numbers to the right."""
    cells = [[number(cell) if isinstance(cell, int | float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [bool(rows) and isinstance(row, int | float) for row in (rows[0] if rows else columns)]

    def line(row: Sequence[str]) -> str:
        aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(columns), "  ".join("-" * width for width in widths), *map(line, cells)])


def number(value: float) -> str:
    """A number as people read it: thousands apart, four digits that matter, a dash where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value != value:
        return "-"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 1e-3 else f"{value:.2g}"


@contextmanager
def bar(title: str, as_json: bool) -> Iterator[Tell]:
    """A progress bar on standard error while it is a terminal and people read the output; nothing otherwise."""
    if as_json or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console, ours = Console(stderr=True), sys.stdout.isatty()  # what is printed into a file stays there
    with Progress(*columns, console=console, transient=True, redirect_stdout=ours) as progress:
        task = progress.add_task(title, total=None)

        def tell(done: int, of: int = 0, what: str = "") -> None:
            progress.update(task, completed=done, total=of or None, description=what or title)

        yield tell
