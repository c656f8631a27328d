"""A job as this queue hands it out: SAQ's `Job`, quicker to write down and to read."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from saq.job import Job, Status

_FIELDS = [(field.name, field.default) for field in dataclasses.fields(Job)]
DEFAULTS = {name: None if default is dataclasses.MISSING else default for name, default in _FIELDS}
_STATUS = {str(status.value): status for status in Status}
_IN_SHORT = {name for name, _ in _FIELDS} - Job._EXCLUDE_NON_FULL


compact = json.JSONEncoder(separators=(",", ":")).encode
"""How bodies are written by default: SAQ's JSON without blanks, an eighth shorter for a list of ids."""


class QueuedJob(Job):
    """SAQ's job; its `abort_id` is a key of its own queue, and two attempts that a process holds are not one.

    SAQ's worker looks up what it runs by the job: the end of an attempt must not forget the next, which may have begun.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job) or self.key != other.key:
            return False
        ours, theirs = self.__dict__.get("claim"), other.__dict__.get("claim")
        return ours is theirs or ours is None or theirs is None

    __hash__ = Job.__hash__

    @property
    def abort_id(self) -> str:
        return str(self.get_queue().namespace(f"aborted:{self.key}"))  # type: ignore[attr-defined]  # ours

    def to_dict(self) -> dict[str, Any]:
        return self._shown(as_dict(self))

    def info(self, full: bool = False) -> str:
        if not full and not logging.getLogger("saq").isEnabledFor(logging.INFO):
            return f"Job<function: {self.function}, key: {self.key}>"  # SAQ's worker asks for it, and logs nothing
        told = self._shown(as_dict(self))
        if "status" in told:
            told["status"] = told["status"].name.lower()
        return f"Job<{', '.join(f'{k}: {v}' for k, v in told.items() if full or k in _IN_SHORT)}>"

    def _shown(self, told: dict[str, Any]) -> dict[str, Any]:
        hides = getattr(self.queue, "shown", None)
        if told.get("kwargs") and hides is not None:
            told["kwargs"] = hides(self)
        return told


def as_dict(job: Job) -> dict[str, Any]:
    """What is stored of a job: its fields that are not as by default, as SAQ's `to_dict`."""
    values, told = job.__dict__, {}
    for name, default in _FIELDS:
        value = values[name]
        if value is not default and not _same(value, default):
            told[name] = value
    if "queue" in told:
        told["queue"] = told["queue"].name
    if not told.get("meta"):
        told.pop("meta", None)
    return told


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value == default)
    except ValueError:  # an array
        return False


def new_job(function: str, given: Mapping[str, Any]) -> QueuedJob:
    """A job of what SAQ's `enqueue` is given: properties of the job, and else arguments of the function."""
    job = QueuedJob.__new__(QueuedJob)
    job.__dict__.update(DEFAULTS, meta={}, function=function)
    change(job, given)
    if job.key is None:
        job.key = token_hex(16)
    return job


def change(job: Job, given: Mapping[str, Any]) -> None:
    """Change a job as SAQ's `enqueue` is told to: its properties, or its arguments, all of them at once."""
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        if name in DEFAULTS:
            job.__dict__[name] = value
        else:
            arguments[name] = value
    if arguments:
        job.kwargs = {**(given.get("kwargs") or {}), **arguments}


def from_dict(stored: Mapping[str, Any], queue: Any) -> QueuedJob:
    """The job of what is stored of it. Raises `TypeError` where that is no job."""
    if unknown := stored.keys() - DEFAULTS.keys():
        raise TypeError(f"a job has no {', '.join(sorted(unknown))}")
    if "function" not in stored or "key" not in stored:
        raise TypeError("a job needs a function and a key")
    job = QueuedJob.__new__(QueuedJob)
    job.__dict__.update(DEFAULTS, meta={})
    job.__dict__.update(stored, queue=queue)
    if type(job.status) is str:
        job.status = _STATUS[job.status]
    return job
