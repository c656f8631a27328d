"""Running something that a signal may end at any time, and that cleans up when it does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. The first signal cancels it, and it is given the time to clean up: later ones are ignored.

    After a signal n this ends with `SystemExit(128 + n)`. Signals that were ignored before (`nohup`) stay so.
    """
    caught: list[int] = []

    async def interruptible() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt(number: int) -> None:
            if not caught:
                caught.append(number)
                task.cancel()

        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, interrupt, number)
        return await work

    try:
        return asyncio.run(interruptible())
    finally:
        if caught:
            raise SystemExit(128 + caught[0]) from None
