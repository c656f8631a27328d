"""Is it well? What is judged of a system's queues, by which thresholds, and how bad it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.queue.counting import Statistics

WARNING, UNHEALTHY = "warning", "unhealthy"

NEVER = float("inf")


@dataclass(frozen=True)
class Thresholds:
    """From which number on a queue is worth a warning, and from which on it is unhealthy; `NEVER`: not for this reason.

    `dead`: dead letters there are now. `waiting`: jobs that could be taken. `oldest_s`: how long, in seconds, the one
    that waits longest could have been taken. `active_s`: for how long, in seconds, a job has been active since it was
    taken; such jobs are stuck, or their workers are stalled. The first two are what the makers of the systems alert on;
    600 s is twice what a job may take unless its type says otherwise (`timeout_s`): where types may take longer, give
    more. Raises `UsageError` for a pair that is not 0 < warning <= unhealthy.
    """

    dead: tuple[float, float] = (10, 100)
    waiting: tuple[float, float] = (100, 1000)
    oldest_s: tuple[float, float] = (300.0, 3600.0)
    active_s: tuple[float, float] = (600.0, 3600.0)

    def __post_init__(self) -> None:
        for name, (warning, unhealthy) in vars(self).items():
            if not 0 < warning <= unhealthy:
                raise UsageError(f"threshold {name}: {warning:g},{unhealthy:g} (give two numbers above 0, that of the "
                                 "warning first, and not the larger)")  # fmt: skip


DEFAULT = Thresholds()


@dataclass(frozen=True)
class Problem:
    """What is wrong: `level` warning or unhealthy, `what` (dead, waiting, oldest, active, workers, paused, broker,
    database, audit), `queue` (empty: not of one queue), and the reason in words.
    """  # fmt: skip

    level: str
    what: str
    queue: str
    text: str


@dataclass(frozen=True)
class Health:
    """The problems of a system, the worst first, and what was seen: of the broker, of each queue, of the database.

    `status`: "healthy" (no problem), "degraded" (warnings) or "unhealthy". `undelivered`: events that wait for the
    broker to take them, None if the database did not tell.
    """

    problems: list[Problem]
    broker: dict[str, Any] = field(default_factory=dict)
    queues: dict[str, Statistics] = field(default_factory=dict)
    undelivered: int | None = None

    @property
    def status(self) -> str:
        """healthy, degraded or unhealthy."""
        levels = {problem.level for problem in self.problems}
        return UNHEALTHY if UNHEALTHY in levels else "degraded" if levels else "healthy"


def judge(counted: Iterable[Statistics], thresholds: Thresholds = DEFAULT) -> list[Problem]:
    """What is wrong with queues, by their statistics; the worst first."""
    problems = [problem for one in counted for problem in _of_queue(one, thresholds)]
    return sorted(problems, key=lambda problem: problem.level != UNHEALTHY)


def _of_queue(one: Statistics, thresholds: Thresholds) -> Iterable[Problem]:
    measured = (
        ("dead", float(one.dead), thresholds.dead, f"{one.dead:,} dead letters"),
        ("waiting", float(one.waiting), thresholds.waiting, f"{one.waiting:,} waiting jobs"),
        ("oldest", one.oldest_s, thresholds.oldest_s, f"a job waits for {one.oldest_s:,.0f} s"),
    )
    for what, value, (warning, unhealthy), text in measured:
        if value >= warning:  # NaN, where none waits, is not
            level, bound = (UNHEALTHY, unhealthy) if value >= unhealthy else (WARNING, warning)
            yield Problem(level, what, one.queue, f"{text} ({level} from {bound:,g} on)")
    for level, bound in zip((UNHEALTHY, WARNING), reversed(thresholds.active_s), strict=True):
        if stuck := sum(age >= bound for age in one.active_s):
            jobs = f"{stuck:,} job{' has' if stuck == 1 else 's have'} been active for {bound:,g} s or more"
            text = f"{jobs}, the longest for {one.longest_active_s:,.0f} s: stuck, or the workers are stalled ({level})"
            yield Problem(level, "active", one.queue, text)
            break
    live = one.waiting + one.delayed + one.active
    if not one.workers:
        level, left = (UNHEALTHY, f"{live:,} jobs are left alone") if live else (WARNING, "it has no jobs")
        yield Problem(level, "workers", one.queue, f"no worker serves it, {left}")
    if one.paused is not None:
        said = ", ".join(filter(None, (one.paused.by and f"by {one.paused.by}", one.paused.reason)))
        yield Problem(WARNING, "paused", one.queue, f"is paused{said and f' ({said})'}")
