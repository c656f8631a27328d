"""Random numbers that depend on *what* is drawn, never on *when*.

A draw is a hash of (seed, stream, event, user, attempt), so a real run and its simulation, or two runs with another
interleaving, give the same user the same provider latency and the same fate. The hash is the finaliser of SplitMix64
(Steele, Lea & Flood, 2014), applied once per key part.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Stream(IntEnum):
    """What a draw is for; each purpose has its own independent stream."""

    ARRIVAL = 1
    LATENCY = 2
    TEMPORARY = 3
    PERMANENT = 4
    JITTER = 5
    FINDING = 6


LOST_SHARE = 0.5
"""Of the temporary failures of a simulated provider that charges: so many are answers that were lost after the charge
was made, the others refusals."""


def uniform(seed: int, stream: Stream, event: int, user: int = 0, attempt: int = 0) -> float:
    """A number strictly between 0 and 1, the same for the same key in every process and engine."""
    state = int(seed) & _MASK
    for part in (stream, event, user, attempt):
        state = (state + _GAMMA + int(part) * _M1) & _MASK  # int: numpy's would overflow
        state = ((state ^ (state >> 30)) * _M1) & _MASK
        state = ((state ^ (state >> 27)) * _M2) & _MASK
        state ^= state >> 31
    return ((state >> 12) + 0.5) / (1 << 52)


def uniforms(
    seed: int, stream: Stream, event: ArrayLike, user: ArrayLike = 0, attempt: ArrayLike = 0
) -> NDArray[np.float64]:
    """`uniform` for arrays of keys, which broadcast against each other; bit for bit the same numbers."""
    import numpy as np

    state: Any = np.uint64(int(seed) & _MASK)
    gamma, m1, m2 = np.uint64(_GAMMA), np.uint64(_M1), np.uint64(_M2)
    with np.errstate(over="ignore"):
        for part in (int(stream), event, user, attempt):
            state = state + gamma + _words(part) * m1
            state = (state ^ (state >> np.uint64(30))) * m1
            state = (state ^ (state >> np.uint64(27))) * m2
            state = state ^ (state >> np.uint64(31))
    return np.asarray(((state >> np.uint64(12)).astype(np.float64) + 0.5) / float(1 << 52))


def _words(part: ArrayLike) -> NDArray[np.uint64]:
    """Whole numbers modulo 2^64, also those that no 64-bit type holds (numpy would make floats of them)."""
    import numpy as np

    values = np.asarray(part)
    if values.dtype.kind not in "iu":
        exact = np.asarray(part, dtype=object)
        return np.asarray([int(value) & _MASK for value in exact.flat], dtype=np.uint64).reshape(exact.shape)
    return values.astype(np.uint64)
