"""A progress bar for work that takes a while: on a terminal and in a notebook, and none when the output is piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

Told = Callable[[int, int], None]
"""Called as `told(done, of)`."""

PATIENCE_S = 2.0  # what is done by then needs no bar, and leaves no trace in a notebook
EVERY_S = 0.5
WIDTH = 30


@contextmanager
def bar(title: str) -> Iterator[Told]:
    """`told(done, of)` to be called as work goes on; the bar is gone at the end, and a notebook shows none before two
    seconds.
    """
    if display := _notebook():
        with _in_notebook(title, display) as told:
            yield told
    elif sys.stderr.isatty():
        with _on_terminal(title) as told:
            yield told
    else:
        yield lambda done, of: None


def _notebook() -> Callable[..., Any] | None:
    """IPython's `display` where this process is a notebook's kernel."""
    shell, display = sys.modules.get("IPython"), sys.modules.get("IPython.display")
    if "ipykernel" not in sys.modules or shell is None or display is None:
        return None
    return display.display if getattr(shell.get_ipython(), "kernel", None) else None


@contextmanager
def _in_notebook(title: str, display: Callable[..., Any]) -> Iterator[Told]:
    began = shown_at = monotonic()
    handle: Any = None

    def told(done: int, of: int) -> None:
        nonlocal handle, shown_at
        now = monotonic()
        if now - began < PATIENCE_S or now - shown_at < EVERY_S:
            return
        shown_at, line = now, {"text/plain": text(title, done, of, now - began)}
        if handle is None:
            handle = display(line, raw=True, display_id=True)
        else:
            handle.update(line, raw=True)

    try:
        yield told
    finally:
        if handle is not None:
            handle.update({"text/plain": ""}, raw=True)


@contextmanager
def _on_terminal(title: str) -> Iterator[Told]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def text(title: str, done: int, of: int, since_s: float) -> str:
    """The bar in one line: how far, and how long the rest takes at this pace."""
    filled = WIDTH * done // max(1, of)
    left_s = round(since_s * (of - done) / done) if done else 0
    rest = f", about {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02} left" if done else ""
    return f"{title} {'█' * filled}{'░' * (WIDTH - filled)} {done:,} of {of:,}{rest}"
