"""Work that is done by one task at a time."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod


class OneTask(ABC):
    """A task that is begun when there is something to do, and begun again when it has ended and there is more."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether it is under way."""
        return self._task is not None and not self._task.done()

    def begin(self) -> None:
        """Begin, unless it runs already."""
        if not self.runs:
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def over(self) -> None:
        """Wait until it has ended by itself."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Cancel it, and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def _run(self) -> None: ...
