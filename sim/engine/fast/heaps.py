"""`heapq` for the compiled kernel, which takes half the time of numba's own: an entry's first two fields decide.

numba keeps what it compiled as long as `kernel.py` is the same: who changes this file (or `compiled.py`) empties the
cache, `__pycache__/*.nb?` beside it.
"""

from __future__ import annotations

from typing import Any


def push(heap: Any, entry: Any) -> None:
    """`heapq.heappush`."""
    heap.append(entry)
    time, number, place = entry[0], entry[1], len(heap) - 1
    while place > 0:
        parent = (place - 1) >> 1
        above = heap[parent]
        if time > above[0] or (time == above[0] and number > above[1]):
            break
        heap[place] = above
        place = parent
    heap[place] = entry


def pop(heap: Any) -> Any:
    """`heapq.heappop`."""
    last = heap.pop()
    if len(heap) == 0:
        return last
    top = heap[0]
    settle(heap, last)
    return top


def pushpop(heap: Any, entry: Any) -> Any:
    """`heapq.heappushpop`."""
    if len(heap) == 0:
        return entry
    top = heap[0]
    if entry[0] < top[0] or (entry[0] == top[0] and entry[1] < top[1]):
        return entry
    settle(heap, entry)
    return top


def settle(heap: Any, entry: Any) -> None:
    """Put `entry` in the place of the first one, and it sinks to where it belongs."""
    time, number, place, child, size = entry[0], entry[1], 0, 1, len(heap)
    while child < size:
        below = heap[child]
        if child + 1 < size:
            other = heap[child + 1]
            if other[0] < below[0] or (other[0] == below[0] and other[1] < below[1]):
                below = other
                child += 1
        if time < below[0] or (time == below[0] and number < below[1]):
            break
        heap[place] = below
        place = child
        child = 2 * place + 1
    heap[place] = entry
