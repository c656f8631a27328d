"""What the environment says of a topology that is to be served: slots of its queues, and how often jobs are tried.

Only what serves or announces for real heeds it (`saqkit worker`, `saq saqkit.settings`, `saqkit announce`, `checkout`,
`saqkit check`). What is measured, predicted, planned or shown depends on the description alone.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from saqkit.errors import DescriptionError
from saqkit.spec.backoff import LONGEST_DELAY_S
from saqkit.spec.base import did_you_mean
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology

__all__ = ["variable_of", "with_environment"]

logger = logging.getLogger("saqkit")

_SLOTS = "_QUEUE_CONCURRENCY"


def variable_of(queue: str) -> str:
    """The variable that gives the slots of `queue`: `EMAIL_QUEUE_CONCURRENCY` those of `email`."""
    return re.sub(r"[^A-Z0-9]", "_", queue.upper()) + _SLOTS


def with_environment(topology: Topology, environ: Mapping[str, str] = os.environ) -> Topology:
    """`topology` with what `environ` says. A variable that is empty counts as unset.

    `EMAIL_QUEUE_CONCURRENCY` is the number of slots per process of the queue `email`, and so on for every queue; one
    for a queue that does not exist is warned of. `JOB_MAX_RETRIES` (executions in all, as BullMQ's `attempts`) and
    `JOB_RETRY_DELAY` (ms before the first retry) hold for job types that do not say it themselves. To be called with a
    topology as it was loaded: one that was changed says everything. Raises `DescriptionError`.
    """
    changes = dict(_slots(topology, environ))
    attempts = _whole("JOB_MAX_RETRIES", environ.get("JOB_MAX_RETRIES", ""), 1, 10_000, "executions in all")
    delay_ms = _whole("JOB_RETRY_DELAY", environ.get("JOB_RETRY_DELAY", ""), 0, int(LONGEST_DELAY_S * 1000),
                      "milliseconds")  # fmt: skip
    for name, job in topology.job_types.items():
        says = job.retry.model_fields_set if "retry" in job.model_fields_set else set[str]()
        if attempts is not None and "max_attempts" not in says:
            changes[f"job_types.{name}.retry.max_attempts"] = attempts
        if delay_ms is not None and says.isdisjoint({"delay_s", "delays_s"}):
            changes[f"job_types.{name}.retry.delay_s"] = delay_ms / 1000
    return override(topology, changes, "environment") if changes else topology


def _slots(topology: Topology, environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    known = {variable_of(name) for name in topology.queues}
    for name in topology.queues:
        variable = variable_of(name)
        if slots := _whole(variable, environ.get(variable, ""), 1, 100_000, "slots per worker process"):
            yield f"queues.{name}.concurrency", slots
    for variable in sorted(environ):
        if variable.endswith(_SLOTS) and variable not in known:
            hint = did_you_mean(variable, known)
            logger.warning("%s is for no queue of topology %s (%s)", variable, topology.name, hint)


def _whole(variable: str, text: str, least: int, most: int, what: str) -> int | None:
    if not text.strip():
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text.strip()) or not least <= int(text) <= most:
        raise DescriptionError(f'"{text}" is not a whole number from {least} to {most}', source=variable, value=text,
                               hint=what)  # fmt: skip
    return int(text)
