"""How many processes and slots there were, how quickly a free one took a job, and where slots stood idle in vain."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from numpy.typing import NDArray

IDLE_S = 0.1
"""A job that has waited for so long beside a free slot waits for something else."""
TOUCH_S, TOUCH = 0.005, 0.1
"""Who began by so much before another's end, in seconds and as a share of the other's time, had its slot: the end is
written down when the broker has heard of it, and the slot may have gone on by then."""


def most_at_once(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> int:
    """How many of some intervals overlapped at most; one that ends as another begins does not overlap it."""
    times = np.concatenate([ends, starts])
    steps = np.concatenate([np.full(len(ends), -1), np.ones(len(starts), int)])
    order = np.lexsort((steps, times))
    return max(1, int(np.cumsum(steps[order]).max(initial=1)))


def slots_of(rows: pd.DataFrame) -> int:
    """Slots of each worker for the queue of `rows`: as many as any one of them used at once."""

    def used(part: pd.DataFrame) -> int:
        starts, ends = part["started_at"].to_numpy(float), part["finished_at"].to_numpy(float)
        return most_at_once(starts, ends - np.minimum(TOUCH_S, TOUCH * (ends - starts)))

    return max(used(part) for _, part in rows.groupby("worker"))


def processes_of(frame: pd.DataFrame) -> dict[tuple[str, ...], int]:
    """Worker processes by the queues that they served: as many as were at work at once, restarted ones being one."""
    groups: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for _, rows in frame.groupby("worker"):
        queues = tuple(sorted(rows["queue"].unique()))
        groups.setdefault(queues, []).append((rows["started_at"].min(), rows["finished_at"].max()))
    # Whoever happened to serve some of the queues only served those of somebody who served them all.
    largest = [queues for queues in groups if not any(set(queues) < set(other) for other in groups)]
    found: Counter[tuple[str, ...]] = Counter()
    for queues in largest:
        lives = [life for some, those in groups.items() if set(some) <= set(queues) for life in those]
        starts, ends = (np.array(times, float) for times in zip(*lives, strict=True))
        found[queues] = most_at_once(starts, ends)
    return dict(found)


def held_back(rows: pd.DataFrame, slots: int) -> int:
    """How many jobs of one queue were ready, with a slot of `slots` free, `IDLE_S` before they started."""
    started = rows["started_at"].to_numpy(float)
    before = started - IDLE_S
    running = np.searchsorted(np.sort(started), before, side="right") - np.searchsorted(
        np.sort(rows["finished_at"].to_numpy(float)), before, side="right"
    )
    return int(((rows["ready_at"].to_numpy(float) <= before) & (running < slots)).sum())


def waits_beside_free_slots(rows: pd.DataFrame, slots: int) -> NDArray[np.float64]:
    """Waits of the jobs of one queue for which, beside all who were before them, a slot was free; `slots` of all
    processes.
    """
    times = rows[["ready_at", "started_at", "finished_at"]].to_numpy(float)
    ready, started, finished = times[np.lexsort((times[:, 1], times[:, 0]))].T
    begun = np.searchsorted(np.sort(started), ready, side="left")
    running = begun - np.searchsorted(np.sort(finished), ready, side="right")
    ahead = np.maximum(0, np.arange(len(ready)) - begun)
    return np.asarray((started - ready)[running + ahead < slots])
