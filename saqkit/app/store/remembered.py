"""A small read cache of one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """The last `bound` values that were kept, each for `keep_s` seconds of `clock`. Only what was found is to be kept:
    what does not exist may do so a moment later.
    """

    def __init__(self, bound: int = 100, keep_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._bound, self._keep_s, self._clock = bound, keep_s, clock
        self._kept: dict[Key, tuple[Value, float]] = {}

    def keep(self, key: Key, value: Value) -> None:
        self._kept.pop(key, None)  # a dict is in the order of insertion: the oldest is first
        self._kept[key] = value, self._clock() + self._keep_s
        if len(self._kept) > self._bound:
            del self._kept[next(iter(self._kept))]

    def get(self, key: Key) -> Value | None:
        value, until = self._kept.get(key, (None, 0.0))
        return value if self._clock() < until else None
