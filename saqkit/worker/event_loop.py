"""Which event loop a worker process runs on."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
from collections.abc import Callable

from saqkit.errors import UsageError

LOOPS = ("asyncio", "uvloop", "auto")


def loop_name(default: str = "auto") -> str:
    """`asyncio` or `uvloop`: what `SAQKIT_LOOP` says, else `default`; `auto` is uvloop where it is installed.

    Raises `UsageError` for another word, and for uvloop where it is not installed.
    """
    wanted = os.environ.get("SAQKIT_LOOP") or default
    if wanted not in LOOPS:
        raise UsageError(f'SAQKIT_LOOP: there is no event loop "{wanted}" (one of {", ".join(LOOPS)})')
    if wanted == "asyncio":
        return wanted
    if importlib.util.find_spec("uvloop") is not None:
        return "uvloop"
    if wanted == "uvloop":
        raise UsageError("SAQKIT_LOOP: uvloop is not installed (pip install uvloop, or say asyncio)")
    return "asyncio"


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What `asyncio.Runner` makes the loop of this name (see `loop_name`) with."""
    if name == "uvloop":
        made: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
        return made
    return asyncio.new_event_loop
