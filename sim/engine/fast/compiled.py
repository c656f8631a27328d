"""The kernel as numba compiles it, where numba is installed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType
from typing import Any, get_type_hints

import numpy as np

from saqkit.spec.draws import uniform
from sim.engine.fast import heaps, kernel
from sim.engine.fast.sends import Sends
from sim.engine.fast.tables import Tables

FEW, MANY = 300_000, 10_000_000  # users that take Python about as long as numba takes to be imported, and to compile
JOB = 10  # a job takes Python as long as so many users of a batch
_users = 0
HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
HELPERS = (
    kernel._queue_write,
    kernel._begin_write,
    kernel._lend,
    kernel._lend_on,
    kernel._lend_it,
    kernel._beside,
    kernel._on_core,
    kernel._page_cpu_s,
    kernel._opens_at,
    kernel._join,
    kernel._idle,
    kernel._leave,
    kernel._wake,
    kernel._link,
    kernel._withdraw,
    heaps.rise,
    heaps.settle,
    heaps.push,
    heaps.pop,
    heaps.pushpop,
    heaps.replace,
)


@cache
def compiled() -> Any:
    """`kernel.simulate`, to be compiled (or loaded from numba's cache) at its first call; None without numba."""
    try:
        import numba
        from numba.extending import overload, register_jitable
    except ImportError:
        return None
    for helper in HELPERS:
        register_jitable(helper)

    # numba gives these functions their types: annotations of ours it could not read.
    @overload(kernel._ints)
    def _ints(count):  # type: ignore[no-untyped-def]  # numba infers them
        return lambda count: np.zeros(count, np.int64)

    @overload(kernel._floats)
    def _floats(count):  # type: ignore[no-untyped-def]  # numba infers them
        return lambda count: np.zeros(count, np.float64)

    # The generator's own arithmetic is Python's, without bounds; here words of 64 bits wrap around.
    @overload(uniform)
    def _uniform(seed, stream, event, user, attempt):  # type: ignore[no-untyped-def]  # numba infers them
        gamma, m1, m2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

        def words(seed, stream, event, user, attempt):  # type: ignore[no-untyped-def]  # numba infers them
            state = np.uint64(seed)
            for part in (stream, event, user, attempt):
                state = state + gamma + np.uint64(part) * m1
                state = (state ^ (state >> np.uint64(30))) * m1
                state = (state ^ (state >> np.uint64(27))) * m2
                state = state ^ (state >> np.uint64(31))
            return (np.float64(state >> np.uint64(12)) + 0.5) / np.float64(1 << 52)

        return words

    names = {"heappush": "push", "heappop": "pop", "heappushpop": "pushpop", "heapreplace": "replace"}
    heaps_of_its_own = {name: getattr(heaps, own) for name, own in names.items()}
    twin = FunctionType(kernel.simulate.__code__, {**vars(kernel), **heaps_of_its_own})
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(twin)
    except RuntimeError:  # neither beside the source nor in the user's own folder can anything be written
        return numba.njit(nogil=True, error_model="numpy")(twin)


def call(kernel: Any, tables: Any, sends: Sends) -> tuple[Any, ...]:
    """What the compiled kernel returns. Compiling it, if it is not yet, can be interrupted; running it cannot."""
    from numba import typeof

    type_of: Any = typeof  # numba has no annotations
    kernel.compile((type_of(tables), type_of(sends)))
    with deferred_signals():
        found: tuple[Any, ...] = kernel(tables, sends)
    return found


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let a Ctrl-C, or another signal that Python handles, act afterwards: what a handler raises while numba makes
    Python's objects crashes the process.
    """
    if threading.current_thread() is not threading.main_thread():  # it is no other thread that signals interrupt
        yield
        return
    came: list[int] = []
    # Whatever else a signal does (nothing, the system's own, a handler that is not Python's) it may do at once.
    before = {number: handler for number in HELD if callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in dict.fromkeys(came):
            signal.raise_signal(caught)


def pays(users: int, jobs: int) -> bool:
    """Whether to use `compiled` for a run of so many users and jobs, after all those of this process before.

    Few are simulated sooner than numba is imported, and not so few sooner than it compiles.
    """
    global _users
    _users += users + JOB * jobs
    kernel = compiled() if _users > FEW else None
    return kernel is not None and (_users > MANY or bool(kernel.signatures) or _cached(kernel))


@cache
def _cached(kernel: Any) -> bool:
    try:
        return bool(kernel._cache._cache_file._load_index())
    except (AttributeError, OSError):
        return False


def as_arrays(tables: Tables) -> Tables:
    """The tables as numba takes them: lists as arrays, the seed as a word of 64 bits."""
    hints = get_type_hints(Tables)
    fields: dict[str, Any] = {
        name: np.array(value, np.float64 if hints[name] == list[float] else np.int64) if type(value) is list else value
        for name, value in tables._asdict().items()
    }
    return Tables(**{**fields, "seed": np.uint64(tables.seed)})


def as_views(sends: Sends) -> Any:
    """The draws as Python reads them fastest: their elements are Python's own numbers."""
    latency, fate, next_place = sends
    return Sends(latency.tolist(), fate.tobytes(), memoryview(next_place))  # type: ignore[arg-type]  # read by index
