"""How often a job is executed and how long it waits between executions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from saqkit.spec.base import Part

LONGEST_DELAY_S = 7 * 86_400.0
"""A week: a delay beyond it is a mistake, not a plan."""


class Retry(Part):
    """A retry policy: at most `max_attempts` executions, and the delay before each but the first.

    After execution n fails, the job waits: `fixed`: delay_s; `exponential`: delay_s · factor^(n-1); `list`:
    delays_s[n-1] (its last entry again where it is too short). `cap_s` bounds it, and a week does in any case; then
    `jitter` `none` keeps it, `full` draws from 0 to it, `equal` from half of it to it (names of Brooker, AWS, 2015).
    The queue's tick rounds the wake-up up.
    """

    max_attempts: PositiveInt = Field(default=3, le=10_000, description="executions in all: 3 use two delays")
    backoff: Literal["fixed", "exponential", "list"] = "exponential"
    delay_s: NonNegativeFloat = 2.0
    factor: PositiveFloat = 2.0
    delays_s: tuple[NonNegativeFloat, ...] = ()
    cap_s: PositiveFloat | None = None
    jitter: Literal["none", "full", "equal"] = "none"

    @model_validator(mode="after")
    def _list_has_delays(self) -> Retry:
        if self.backoff == "list" and not self.delays_s:
            raise ValueError('backoff = "list" needs its delays: delays_s = [5, 25], for instance')
        if self.delays_s and self.backoff != "list":
            raise ValueError(f'delays_s goes with backoff = "list", not "{self.backoff}": or say delays_s = []')
        return self

    def base_delay_s(self, failed: int) -> float:
        """Seconds to wait after execution number `failed` (from 1) failed, before jitter."""
        if self.backoff == "list":
            delay = self.delays_s[min(failed, len(self.delays_s)) - 1]
        elif self.backoff == "fixed":
            delay = self.delay_s
        else:
            try:
                delay = self.delay_s * self.factor ** (failed - 1)
            except OverflowError:
                delay = float("inf") if self.delay_s else 0.0
        return min(delay, self.cap_s or LONGEST_DELAY_S, LONGEST_DELAY_S)

    def delay_after(self, failed: int, u: float = 0.5) -> float:
        """Seconds to wait after execution number `failed` failed; `u` (0 < u < 1) is the draw for the jitter."""
        delay = self.base_delay_s(failed)
        if self.jitter == "full":
            return delay * u
        return delay * (0.5 + u / 2) if self.jitter == "equal" else delay

    def schedule(self) -> list[float]:
        """The delays before jitter that can be used: `max_attempts` - 1 of them, in seconds."""
        return [self.base_delay_s(n) for n in range(1, self.max_attempts)]

    def unused(self) -> list[float]:
        """Listed delays that `max_attempts` never reaches."""
        return list(self.delays_s[self.max_attempts - 1 :])

    def describe(self) -> str:
        """One line for people: attempts, delays, jitter, and what is unused."""
        text = f"{self.max_attempts} attempt{'s' if self.max_attempts > 1 else ''}"
        if delays := self.schedule():
            shown = ", ".join(f"{d:g} s" for d in delays[:6]) + (" …" if len(delays) > 6 else "")
            text += f", delays {shown}" + ("" if self.jitter == "none" else f", {self.jitter} jitter")
        if unused := self.unused():
            text += f" (listed but never used: {', '.join(f'{d:g} s' for d in unused)})"
        return text
