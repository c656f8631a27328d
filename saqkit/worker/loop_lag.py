"""How late the event loop of a worker is: code that blocks it holds up every job of its process."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

logger = logging.getLogger("saqkit")

EVERY_S = 0.5
"""How often the lag is measured."""
KEEP = 40
"""Measurements that the metric looks back on: 20 s, twice the time between two reports of a worker."""
WARN_S = 1.0
"""A longer lag is logged, with what ran meanwhile."""


class LoopLag:
    """Measures by how many seconds a timer of the loop is late, and says what held it up.

    `running` tells the names of the functions that run now; the longest lag of the last 20 s is written to
    `metadata["loop_lag_s"]`. While the loop is blocked a thread looks where it is: once the loop goes on, whoever
    blocked it may be gone.
    """

    def __init__(self, running: Callable[[], Iterable[str]], metadata: dict[str, Any]) -> None:
        self._running, self._metadata = running, metadata
        self._seen: deque[float] = deque([0.0], maxlen=KEEP)
        self._due = float("inf")
        self._found = ""
        self._thread = 0
        self._stop = threading.Event()

    async def run(self) -> None:
        """Measure for ever."""
        self._metadata["loop_lag_s"] = 0.0
        self._thread = threading.get_ident()
        threading.Thread(target=self._look, name="saqkit-lag", daemon=True).start()
        try:
            while True:
                self._due = time.monotonic() + EVERY_S
                await asyncio.sleep(EVERY_S)
                lag_s = max(0.0, time.monotonic() - self._due)
                self._seen.append(lag_s)
                self._metadata["loop_lag_s"] = round(max(self._seen), 4)
                found, self._found = self._found or self._names(), ""
                if lag_s > WARN_S:
                    logger.warning("the event loop was blocked for %.1f s: %s (use asyncio.to_thread)", lag_s, found)
        finally:
            self._stop.set()

    def _names(self) -> str:
        return f"running: {', '.join(sorted(set(self._running()))) or 'no job'}"

    def _look(self) -> None:
        while not self._stop.wait(EVERY_S):
            if time.monotonic() - self._due < WARN_S / 2 or self._found:
                continue
            frame = sys._current_frames().get(self._thread)
            place = traceback.extract_stack(frame, limit=1)[0] if frame is not None else None
            self._found = self._names() + (f", at {place.filename}:{place.lineno} in {place.name}" if place else "")
