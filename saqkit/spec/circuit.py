"""A circuit breaker as both engines have it: what fails again and again is left alone for a while, then tried once."""

from __future__ import annotations

from saqkit.spec.topology import CircuitBreaker


class Circuit:
    """The circuit to one provider in one worker process; times are seconds of one clock, whichever.

    Closed: sends pass, and `failures` temporary failures in a row open it. Open: every send is refused for `reset_s`.
    Then half-open: one send passes as a trial and the others are refused; its success closes the circuit, its failure
    opens it again (Nygard, Release It!, 2007). A permanent failure is an answer, so it counts as a success. A send that
    began before the circuit changed and ends after it says nothing.
    """

    def __init__(self, spec: CircuitBreaker) -> None:
        self._spec = spec
        self._in_a_row = self._changes = 0
        self._refuses_until_s: float | None = None
        self._trial = False

    @property
    def closed(self) -> bool:
        """Whether every send passes."""
        return self._refuses_until_s is None

    def refuses(self, now_s: float) -> bool:
        """Whether a send that would begin now is refused."""
        return self._refuses_until_s is not None and (self._trial or now_s < self._refuses_until_s)

    def begin(self) -> int:
        """A send begins that is not refused; `ended` wants the number that this returns."""
        self._trial = self._refuses_until_s is not None
        return self._changes

    def ended(self, number: int, now_s: float, failed: bool | None) -> None:
        """That send has ended: it `failed` temporarily, or not, or (None) was given up before anybody knew."""
        if number != self._changes:
            return
        if failed is None:
            self._trial = False
            return
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self._trial or self._in_a_row >= self._spec.failures:
            self._refuses_until_s = now_s + self._spec.reset_s if failed else None
            self._trial, self._in_a_row = False, 0
            self._changes += 1
