"""The retry policy that a table of attempts shows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saqkit.spec.backoff import Retry

Delays = Mapping[int, NDArray[np.float64]]
"""By number of the attempt that failed: seconds until the job was ready again."""
FEW = 10
"""With fewer delays jitter cannot be told from noise."""


def fit_retry(delays: Delays, max_attempts: int, tick_s: float | None) -> tuple[Retry, str]:
    """The policy, and why. `tick_s` is the grid on which delayed jobs wake, None if unknown.

    Delays on a known grid are rounded up by it, so that the least of some is the policy's own; without one, the median
    is. Delays that vary by more than grid and noise have jitter: `full` if they reach down to less than a third of the
    longest, else `equal`.
    """
    seen = {n: np.clip(x, 0, None) for n, x in sorted(delays.items()) if len(x)}
    if not seen:
        return Retry(max_attempts=max_attempts, backoff="fixed", delay_s=0), "nothing was tried again"
    grid, sample = tick_s or 0.0, sum(len(x) for x in seen.values())
    jitter, why = _jitter(seen, grid)
    bases = [_base(x, jitter, tick_s) for x in seen.values()]
    given: dict[str, Any] = {"max_attempts": max_attempts, "jitter": jitter}
    shown = ", ".join(f"{base:g}" for base in bases)
    if max(bases) - min(bases) <= max(0.05 * max(bases), 0.5 * grid, 0.01):
        chosen = float(f"{np.average(bases, weights=[len(x) for x in seen.values()]):.3g}")
        return Retry(**given, backoff="fixed", delay_s=chosen), f"fixed: {sample} delays of about {chosen:g} s{why}"
    ratios = [b / a for a, b in pairwise(bases) if a > 0]
    if len(ratios) == len(bases) - 1 >= 2 and max(ratios) <= 1.15 * min(ratios) and min(ratios) > 1.05:
        factor = float(f"{np.exp(np.mean(np.log(ratios))):.3g}")
        policy = Retry(**given, backoff="exponential", delay_s=bases[0], factor=factor)
        return policy, f"exponential: delays of {shown} s{why}"
    return Retry(**given, backoff="list", delays_s=tuple(bases)), f"list: delays of {shown} s{why}"


def _jitter(seen: Mapping[int, NDArray[np.float64]], grid: float) -> tuple[Literal["none", "full", "equal"], str]:
    many = {n: x for n, x in seen.items() if len(x) >= FEW}
    if not many:
        return "none", ", too few to tell jitter"
    x = max(many.values(), key=lambda x: float(np.median(x)))
    low, middle, high = np.quantile(x, (0.05, 0.5, 0.95))
    if high - low <= 1.1 * grid + 0.1 * middle + 0.02:
        return "none", ""
    return ("full", ", full jitter") if low < high / 3 else ("equal", ", equal jitter")


def _base(x: NDArray[np.float64], jitter: str, tick_s: float | None) -> float:
    if jitter != "none":  # uniform up to it: the longest of n, and a bit more
        value = float(x.max()) * (len(x) + 1) / len(x) - (tick_s or 0.0)
    elif tick_s is None:
        value = float(np.median(x))
    else:
        value = float(x.min()) if len(x) >= 5 else float(np.median(x)) - tick_s / 2
    return float(f"{max(0.0, value):.3g}")
