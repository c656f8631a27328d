"""What both engines take for a send's turn where a provider's rate is limited over all processes.

Turns are given out in the order of asking, each at a time from which on its send may begin. A turn stays in the window
for the period and its process' `Slack`, so that even of sends which begin that late no window of one period sees more
than the limit. A send that would begin later still gives its turn back and asks for another.
"""

from __future__ import annotations

MOST_AT_ONCE = 100
"""A process asks for at most so many turns in one call: one for each send that waits by then."""

_LEAST_S = 0.005
_LEAST_SHARE = 0.01


class Slack:
    """How long after its turn a send of one process may begin: `seconds`, at least 5 ms and 1 % of the period.

    Slack costs the provider's rate as much, since the limit holds for each period and slack; a turn that is missed
    costs its send a place in line. So a process takes a quarter more with each turn that it misses, and a little less
    with each that it keeps: one whose loop is always late finds its measure, and one that was late once comes back.
    """

    def __init__(self, period_s: float) -> None:
        self.seconds = self._least_s = max(_LEAST_S, _LEAST_SHARE * period_s)

    def kept(self) -> None:
        """A send began in time."""
        self.seconds = max(self._least_s, 0.995 * self.seconds)

    def missed(self, late_s: float) -> None:
        """A send would have begun `late_s` after its turn; several that are late together are so for one reason."""
        self.seconds = max(self.seconds, 1.25 * min(self.seconds, late_s))
