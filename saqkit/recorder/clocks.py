"""How far this process's clock is from the one that all processes of a recording share: the broker's."""

from __future__ import annotations

import asyncio
import time
from typing import Any

SAMPLES = 5
PATIENCE_S = 2.0


async def clock_offset(queue: Any) -> tuple[float, float] | None:
    """Seconds to add to `time.time()` to get the broker's clock, and the round trip that tells them; None if unknown.

    The broker's clock is `TIME` of Redis, or `clock_timestamp()` of PostgreSQL. Of some questions the one that was
    answered quickest counts, and its answer is taken to be of the middle of its round trip (Cristian, 1989).
    """
    found: list[tuple[float, float]] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(SAMPLES):
                asked, began = time.time(), time.perf_counter()
                answer = await _now(queue)
                if answer is None:
                    return None
                took = time.perf_counter() - began
                found.append((took, answer - (asked + took / 2)))
    except Exception:  # whatever ails the broker, recording goes on
        pass
    if not found:
        return None
    took, offset = min(found)
    return offset, took


async def _now(queue: Any) -> float | None:
    if hasattr(queue, "redis"):
        seconds, micros = await queue.redis.time()
        return float(int(seconds) + int(micros) / 1e6)
    if hasattr(queue, "pool"):
        async with queue.pool.connection() as connection:
            cursor = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
            return float((await cursor.fetchone())[0])
    return None
