"""The kit's fixed work: CPU that is given in turns, not in time, so that its duration tells the machine's speed."""

from __future__ import annotations

from saqkit.spec.probing import TURNS_PER_US

__all__ = ["burn"]


def burn(nominal_us: float) -> None:
    """Do `nominal_us` nominal microseconds of work: `TURNS_PER_US` turns each of one loop, whatever they take here.

    How many real seconds a nominal one takes on a host is its `Probe.cpu_scale`. It blocks the thread and the event
    loop, as a job's own Python code does.
    """
    value = 0.0
    for _ in range(round(nominal_us * TURNS_PER_US)):
        value += 1.0
