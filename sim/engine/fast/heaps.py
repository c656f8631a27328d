"""`heapq` for the compiled kernel, which takes half the time of numba's own: an entry's first two fields decide.

numba keeps what it compiled as long as `kernel.py` is the same: who changes this file (or `compiled.py`) empties the
cache, `__pycache__/*.nb?` beside it.
"""

from __future__ import annotations

from typing import Any


def push(heap: Any, entry: Any) -> None:
    """`heapq.heappush`."""
    heap.append(entry)
    rise(heap, entry, len(heap) - 1)


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


def replace(heap: Any, entry: Any) -> Any:
    """`heapq.heapreplace`."""
    top = heap[0]
    settle(heap, entry)
    return top


def settle(heap: Any, entry: Any) -> None:
    """Put `entry` in the place of the first one, and it sinks to where it belongs.

    As in `heapq` the place sinks to the end and `entry` rises from there, which is mostly where it belongs: the smaller
    child is found without a branch, of which the processor could not guess the way.
    """
    place, child, size = 0, 1, len(heap)
    while child < size:
        if child + 1 < size:
            left, right = heap[child][0], heap[child + 1][0]
            if left == right:
                child += heap[child + 1][1] < heap[child][1]
            else:
                child += right < left
        heap[place] = heap[child]
        place = child
        child = 2 * place + 1
    rise(heap, entry, place)


def rise(heap: Any, entry: Any, place: int) -> None:
    """Put `entry` in `place`, which is free, or above it."""
    time, number = entry[0], entry[1]
    while place > 0:
        parent = (place - 1) >> 1
        above = heap[parent]
        if time > above[0] or (time == above[0] and number > above[1]):
            break
        heap[place] = above
        place = parent
    heap[place] = entry
