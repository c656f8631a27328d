"""What a worker writes down of an attempt that has ended."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from saq.job import Job

from saqkit.queue.leases import Claim

if TYPE_CHECKING:
    from saqkit.queue.holding import HeldJobs


def stored_body(queue: HeldJobs, job: Job, claim: Claim) -> bytes:
    """What is stored of the job: this must not fail, the work is done."""
    with suppress(Exception):
        return _serialized(queue, job)
    job.result = None if job.result is None else _described(job.result)
    with suppress(Exception):
        return _serialized(queue, job)
    stored = queue.deserialize(claim.body)  # the function has put something strange into its own job
    assert stored is not None
    job.meta, job.kwargs = stored.meta, stored.kwargs
    with suppress(Exception):
        return _serialized(queue, job)
    return claim.body


def writable(error: str | None) -> str | None:
    """An error's text; half a character, as in a file's name that is not UTF-8, is written as Python writes it."""
    return error and str(error).encode(errors="backslashreplace").decode()


def row_of(queue: HeldJobs, job: Job, claim: Claim) -> str:
    """What the attempts table needs and only the worker knows, as JSON (see `saqkit.worker.recording`)."""
    facts = {"started_at": job.started / 1000 + queue.clock_offset_s, **claim.facts}
    error = (job.error or "").strip().rsplit("\n", 1)[-1].split(":", 1)[0]
    known = {"function": job.function, "meta": job.meta, "error": error[:200], **facts}
    return json.dumps(known, default=_described)


def _serialized(queue: HeldJobs, job: Job) -> bytes:
    text = queue.serialize(job)
    return text.encode() if isinstance(text, str) else text


def _described(thing: Any) -> str:
    try:
        return repr(thing)
    except Exception as error:
        return f"<{type(thing).__name__} that has no text: {type(error).__name__}>"
