"""One process's file of a recording: rows are gathered, and appended a batch at a time."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger("saqkit")

BATCH = 512
"""Rows that are gathered at most: the memory that recording takes is bounded by them."""
FLUSH_US = 1_000_000
"""Rows wait at most this long; a process that is killed loses no more than them."""
HEARTBEAT_US = 30_000_000
"""How often a process says that it lives while a job runs in it."""

Row = tuple[Any, ...]


class Journal:
    """A file in `folder` that this process alone appends to; it is made when there is something to write.

    A line is a JSON list: `["r", written at (Unix µs), CPU seconds of the process, rows]`. A line that is cut off,
    because the machine went down in the middle of it, is left out by readers. Nothing here ever raises into the
    application: what cannot be written is dropped, and said once. After `most_bytes` nothing more is written.
    """

    def __init__(self, folder: Path, facts: Callable[[], dict[str, Any]], most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self.running: Callable[[], list[Row]] = list
        """What else a batch should hold: rows of attempts that began and have not ended."""
        self.lives: Callable[[], bool] = bool
        """Whether an attempt runs."""
        self.flushed: Callable[[int], None] = lambda at: None
        self._facts = facts
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def _forget(self) -> None:
        """This process has written nothing yet (after a fork: its parent's rows are its parent's)."""
        self._rows: list[Row] = []
        self._file, self._written, self._dropped, self._said = -1, 0, 0, False
        self._due: float = inf
        self._timer = cast("asyncio.TimerHandle | None", None)

    def add(self, row: Row, at: int) -> None:
        """Gather a row; `at` is the time in Unix microseconds."""
        self._rows.append(row)
        if len(self._rows) >= BATCH or at >= self._due:
            self.flush()
        elif at + FLUSH_US < self._due:
            self._arm(at, FLUSH_US)

    def flush(self) -> None:
        """Append what was gathered; without rows: a sign of life."""
        at, (rows, self._rows) = time.time_ns() // 1000, (self._rows, [])
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = inf, None
        rows += self.running()
        if rows or self._file >= 0:
            self._write(["r", at, time.process_time(), rows], len(rows))
        self.flushed(at)
        if self.lives():
            self._arm(at, HEARTBEAT_US)

    def close(self) -> None:
        """Append what is left, and that this process ended in order."""
        if self._rows:
            self.flush()
        if self._file >= 0:
            self._write(["x", time.time_ns() // 1000, time.process_time()])
            if self._file >= 0:
                os.close(self._file)
        self._file = -1

    def _arm(self, at: int, delay_us: int) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # no loop runs here: the next row, or the end of the process, will do
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(delay_us / 1e6, self.flush)
        self._due = at + delay_us

    def _write(self, line: list[Any], rows: int = 0) -> None:
        try:
            if self._written > self.most_bytes:
                raise OSError(f"{self.most_bytes >> 20} MB are written, as many as allowed")
            if self._file < 0:
                self._open()
            self._append(line)
        except Exception as error:
            self._dropped += rows
            if not self._said:
                self._said = True
                logger.warning("recording to %s: not written from here on: %s", self.folder, error)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = self._facts()
        name = f"{facts['host']}-{os.getpid()}-{time.time_ns():x}.jsonl"
        self._file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._append(["h", time.time_ns() // 1000, facts])
        logger.info("recording to %s", self.folder / name)

    def _append(self, line: list[Any]) -> None:
        text = (json.dumps(line, separators=(",", ":"), default=str) + "\n").encode()
        self._written += os.write(self._file, text)
