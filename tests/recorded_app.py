"""An ordinary SAQ application, as tests start it in a process of its own: `python -m saq recorded_app.settings`.

The only line that is not ordinary is the last one.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import saqkit

FOLDER = Path(os.environ.get("APP_FOLDER", "recording"))


def make_queue() -> Any:
    """The queue that the environment asks for."""
    url, kind = os.environ["APP_URL"], os.environ["APP_QUEUE"]
    if kind == "ours":
        return saqkit.Queue.from_url(url, name="app", lease_s=1.0, sweep_s=0.5)
    if kind == "postgres":
        from saq.queue.postgres import PostgresQueue

        return PostgresQueue.from_url(url, name="app")
    from redis import asyncio as aioredis
    from saq.queue.redis import RedisQueue

    return RedisQueue(aioredis.from_url(url), name="app")


async def work(ctx: dict[str, Any], *, seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)
    return ctx["greeting"]


async def burn(ctx: dict[str, Any], *, seconds: float) -> None:
    _burn(seconds)
    await asyncio.sleep(0.05)


def burn_in_thread(ctx: dict[str, Any], *, seconds: float) -> None:
    _burn(seconds)
    time.sleep(0.05)


def _burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def fails_once(ctx: dict[str, Any]) -> None:
    if ctx["job"].attempts == 1:
        raise ValueError("not yet")


async def fails(ctx: dict[str, Any]) -> None:
    raise LookupError("never")


async def parent(ctx: dict[str, Any], *, children: int) -> None:
    for n in range(children):
        await ctx["worker"].queue.enqueue("work", key=f"child-{n}")


async def startup(ctx: dict[str, Any]) -> None:
    ctx["greeting"], ctx["seen"] = "hello", []


async def before_process(ctx: dict[str, Any]) -> None:
    ctx["seen"].append("before")


async def after_process(ctx: dict[str, Any]) -> None:
    ctx["seen"].append("after")


async def shutdown(ctx: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    counts = f"{ctx['seen'].count('before')} {ctx['seen'].count('after')}"
    FOLDER.joinpath("hooks.txt").write_text(counts, encoding="utf-8")


def settings() -> dict[str, Any]:
    """Settings of SAQ's worker."""
    return {
        "queue": make_queue(),
        "functions": [work, burn, burn_in_thread, fails_once, fails, ("renamed", parent)],
        "concurrency": 4,
        "startup": startup,
        "shutdown": [shutdown],
        "before_process": before_process,
        "after_process": [after_process],
        "timers": {"schedule": 1, "sweep": int(os.environ.get("APP_SWEEP_S", "60")), "abort": 1},
    }


settings = saqkit.record(settings, to=FOLDER)
