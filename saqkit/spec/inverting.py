"""Where a rising function passes zero: distributions that have no formula for their quantile are inverted by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WITHIN = 1e-13
"""How near the place is found; convergence is quadratic, so that a smooth function's is nearer by far."""
_MOST_STEPS = 200
_NEXT_TO_ZERO = 1e-150  # counts as above, so that of a level stretch at zero the left end is found


def rising_root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where `f` passes zero between `low` and `high`, by Ridders' method (1979); an end if it does not pass there."""
    f_low, f_high = f(low) or _NEXT_TO_ZERO, f(high)
    if f_low >= 0:
        return low
    if f_high <= 0:
        return high
    last = math.inf
    for _ in range(_MOST_STEPS):
        middle, half = (low + high) / 2, (high - low) / 2
        f_middle = f(middle) or _NEXT_TO_ZERO
        place = middle - half * (f_middle / math.sqrt(f_middle * f_middle - f_low * f_high))
        f_place = f(place) or _NEXT_TO_ZERO
        if abs(place - last) <= WITHIN or half <= WITHIN:
            return place
        last = place
        for at, found in sorted(((middle, f_middle), (place, f_place))):
            if found >= 0:
                high, f_high = at, found
                break
            low, f_low = at, found
    return place


def rising_roots(
    f: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`rising_root` for many functions at once, by the same steps; `f` gets places, and of which functions."""
    import numpy as np

    def value(at: NDArray[np.float64], of: NDArray[np.int64]) -> NDArray[np.float64]:
        found = f(at, of)
        return np.where(found == 0, _NEXT_TO_ZERO, found)

    of = np.arange(len(low))
    f_low, f_high = value(low, of), f(high, of)
    result = np.where(f_low >= 0, low, high)
    passes = (f_low < 0) & (f_high > 0)
    of, low, high, f_low, f_high = of[passes], low[passes], high[passes], f_low[passes], f_high[passes]
    last = np.full(len(of), np.inf)
    for _ in range(_MOST_STEPS):
        if not len(of):
            break
        middle, half = (low + high) / 2, (high - low) / 2
        f_middle = value(middle, of)
        place = middle - half * (f_middle / np.sqrt(f_middle * f_middle - f_low * f_high))
        f_place = value(place, of)
        result[of] = place
        goes_on = (np.abs(place - last) > WITHIN) & (half > WITHIN)
        swap = middle > place
        left, f_left = np.where(swap, place, middle), np.where(swap, f_place, f_middle)
        right, f_right = np.where(swap, middle, place), np.where(swap, f_middle, f_place)
        before, within = f_left >= 0, f_right >= 0
        low, f_low = (
            np.where(before, low, np.where(within, left, right)),
            np.where(before, f_low, np.where(within, f_left, f_right)),
        )
        high, f_high = (
            np.where(before, left, np.where(within, right, high)),
            np.where(before, f_left, np.where(within, f_right, f_high)),
        )
        of, last, low, high = of[goes_on], place[goes_on], low[goes_on], high[goes_on]
        f_low, f_high = f_low[goes_on], f_high[goes_on]
    return result
