"""Which jobs are alike, and for how long only one of them is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from saqkit.errors import UsageError


@dataclass(frozen=True)
class Unique:
    """Of jobs with the same `id` a queue accepts only one at a time.

    `until`: the id is taken until the job starts ("start": what is asked for while it runs is done once more), or until
    it has ended ("end", the default), or only for its time (None). `for_s`: at least so many seconds from when the job
    was accepted, however soon it ends. A dead letter does not keep its id.
    """

    id: str
    until: Literal["start", "end"] | None = "end"
    for_s: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise UsageError(f"unique: {self.id!r} says nothing (give a text that names the work, as report:7)")
        if self.until not in ("start", "end", None):
            raise UsageError(f'unique {self.id}: until "{self.until}" (use "start", "end" or None)')
        if not isfinite(self.for_s) or self.for_s < 0:
            raise UsageError(f"unique {self.id}: for_s {self.for_s} (give seconds, 0 or more)")
        if self.until is None and not self.for_s:
            raise UsageError(f"unique {self.id}: for no time at all (give for_s, or until)")

    def words(self, keep: object) -> str:
        """What `enqueue.lua` reads in the place of `keep`, which it has in front."""
        return f"{keep} {self.for_s:.6f} {(self.until or 'time')[0]} {self.id}"
