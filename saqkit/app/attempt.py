"""The books of one attempt: CPU of its own task, time spent waiting for provider and database, users served."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass
class Attempt:
    """What one execution of a job did; `facts` is handed to the queue, which records it as the attempt ends."""

    facts: dict[str, Any]
    sample_every: int = 0
    cpu_s: float = 0.0
    provider_s: float = 0.0
    database_s: float = 0.0
    steps: list[tuple[int, str, float, float]] = field(default_factory=list)

    def begin(self, users: int, started_at: float) -> None:
        """The attempt starts with `users` users still to serve."""
        self.facts.update(users=users, users_done=0, users_failed=0, started_at=started_at)

    def served(self, done: int = 0, failed: int = 0) -> None:
        """Count users who were newly served, or failed for good."""
        self.facts["users_done"] += done
        self.facts["users_failed"] += failed

    def close(self) -> None:
        """Put the times into the facts."""
        self.facts.update(
            cpu_s=round(self.cpu_s, 7), provider_s=round(self.provider_s, 6), database_s=round(self.database_s, 6)
        )

    def samples(self, user: int) -> bool:
        """Whether this user's steps are recorded."""
        return self.sample_every > 0 and user % self.sample_every == 0

    @contextmanager
    def database(self) -> Iterator[None]:
        """Time a database step of the whole job."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.database_s += took
            if self.sample_every:
                self.step(0, "database", took)

    def step(self, user: int, kind: str, took_s: float, waited_s: float = 0.0) -> None:
        """Record a step of a sampled user (0: of the whole job), and how long it waited before it began."""
        self.steps.append((user, kind, round(waited_s, 7), round(took_s, 7)))


class Stopwatch(Generic[T]):
    """Awaits something and adds the thread's CPU time of its own steps to `attempt`, not what ran in between."""

    def __init__(self, attempt: Attempt, work: Awaitable[T]) -> None:
        self._attempt, self._work = attempt, work

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        resume, value = steps.send, None
        while True:
            since = time.thread_time()
            try:
                waits_for = resume(value)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a StopIteration holds anything; here it is a T
            finally:
                self._attempt.cpu_s += time.thread_time() - since
            try:
                resume, value = steps.send, (yield waits_for)
            except BaseException as error:
                resume, value = steps.throw, error
