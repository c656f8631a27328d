"""What may stand in the fields of a job: refused where it is enqueued, made usable where others have stored it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from sys import float_info
from typing import Any

from saq.job import Job

from saqkit.errors import DescriptionError, UsageError
from saqkit.queue.job import DEFAULTS
from saqkit.spec.backoff import Retry

logger = logging.getLogger("saqkit")

_WHOLE = "attempts", "completed", "queued", "retries", "started", "touched", "ttl"
_SECONDS = "heartbeat", "progress", "retry_delay", "scheduled", "timeout"
_NONE_IS_ZERO = frozenset({"heartbeat", "retry_delay", "scheduled", "timeout"})
"""Where SAQ takes None for none; of the heartbeat and the timeout also False."""
_NUMBERS = [(name, DEFAULTS[name]) for name in (*_WHOLE, *_SECONDS)]
_USUAL = 2**62
_RIGHT = {
    "attempts": "give a whole number", "retries": "give a whole number: executions in all",
    "heartbeat": "give seconds, 0: none", "timeout": "give seconds, 0: none", "retry_delay": "give seconds",
    "ttl": "give seconds, 0: for ever, -1: not at all", "scheduled": "give Unix seconds", "progress": "give 0 to 1",
    "retry_backoff": "give true, false, or the longest delay in seconds", "kwargs": "give a table of arguments by name",
    "function": "give the function's name", "key": "give a text",
}  # fmt: skip


def refuse_odd_fields(job: Job) -> None:
    """Raise `UsageError` for a job with a field that is not of its kind: names job, field, value and what is right."""
    if (name := _first_odd(job.__dict__)) is not None:
        raise _odd(job, name, job.__dict__[name])


def refuse_odd_changes(job: Job, changes: Mapping[str, Any]) -> None:
    """`refuse_odd_fields`, of those fields that are about to be changed."""
    for name, value in changes.items():
        if not _may_be(name, value):
            raise _odd(job, name, value)


def refuse_odd_policy(job: Job) -> None:
    """Raise `UsageError` for a job whose own retry policy is none."""
    own = job.meta.get("retry_policy") if isinstance(job.meta, dict) else None
    if own is None or own == {}:
        return
    about = f"job {job.key} ({job.function}): its retry_policy"
    if not isinstance(own, dict):
        raise UsageError(f"{about} is {_short(own)} (give what Retry(...).to_dict() returns)")
    try:
        Retry.parse(own)
    except DescriptionError as error:
        raise UsageError(f"{about}: {error}") from error


def mend_fields(job: Job) -> None:
    """Make usable what others have stored: a number that is written as a text counts, else the field is as by default.

    Raises `TypeError` where it can be no job: its function has no name, or its arguments are no table.
    """
    if _first_odd(job.__dict__) is None:
        return
    for name in ("function", "kwargs"):
        if not _may_be(name, job.__dict__[name]):
            raise TypeError(f"its {name} is {_short(job.__dict__[name])}: {_RIGHT[name]}")
    for name in (*(name for name, _ in _NUMBERS), "retry_backoff"):
        value = job.__dict__[name]
        if value is DEFAULTS[name] or _may_be(name, value):
            continue
        mended: Any = DEFAULTS[name]
        if isinstance(value, str):
            with suppress(ValueError):
                number = float(value)
                number = int(number) if number.is_integer() else number
                mended = number if _may_be(name, number) else mended
        elif isinstance(value, bool):
            mended = int(value)
        job.__dict__[name] = mended
        logger.warning("job %s (%s): its %s is %s, %s counts", job.key, job.function, name, _short(value), mended)


def _first_odd(known: Mapping[str, Any]) -> str | None:
    # Of every job that is enqueued or taken: what nearly all fields are is told without a call.
    for name, default in _NUMBERS:
        value = known[name]
        usual = value is default or (type(value) is int and -_USUAL < value < _USUAL)
        if not usual and not _may_be(name, value):
            return name
    if known["retry_backoff"] is not False and not _may_be("retry_backoff", known["retry_backoff"]):
        return "retry_backoff"
    if type(known["kwargs"]) is not dict and not _may_be("kwargs", known["kwargs"]):
        return "kwargs"
    return None if type(known["function"]) is str or _may_be("function", known["function"]) else "function"


def _may_be(name: str, value: Any) -> bool:
    if name == "function":
        return isinstance(value, str)
    if name == "kwargs":
        return value is None or isinstance(value, Mapping)
    if name == "retry_backoff":
        return value is None or isinstance(value, bool) or _is_number(value)
    if name not in DEFAULTS or type(DEFAULTS[name]) not in (int, float) or name == "priority":
        return True
    return (
        _is_number(value)
        or (value is None and name in _NONE_IS_ZERO)
        or (value is False and name in ("heartbeat", "timeout"))
    )


def _is_number(value: Any) -> bool:
    finite = isinstance(value, int | float) and -float_info.max <= value <= float_info.max
    return finite and not isinstance(value, bool)


def _odd(job: Job, name: str, value: Any) -> UsageError:
    right = _RIGHT.get(name, "give Unix milliseconds")
    return UsageError(f"job {job.key} ({job.function}): its {name} is {_short(value)} ({right})")


def _short(value: Any) -> str:
    if isinstance(value, list | tuple | set | bytes):  # it may say what nobody may read
        return f"a {type(value).__name__}"
    try:
        text = repr(value)
    except Exception:  # whatever it says of itself
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
