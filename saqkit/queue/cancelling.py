"""Not losing a cancellation."""

from __future__ import annotations

import asyncio


def heed_cancellation() -> None:
    """Raise `CancelledError` if this task has been cancelled, although the call it then waited for ended well.

    Before Python 3.12 `asyncio.wait_for`, through which redis-py sends, forgets a cancellation that comes in the moment
    in which the sending ends. A loop that calls the broker for ever would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
