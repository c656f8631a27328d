"""saqkit: a job-queue kit on SAQ and Redis whose capacity can be predicted and proved.

The names below are loaded when they are first used, so that `import saqkit` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saqkit.app.client import Client
    from saqkit.bus.bus import Bus
    from saqkit.bus.envelope import Event
    from saqkit.bus.topics import EventTopic
    from saqkit.judging_health import Thresholds
    from saqkit.measuring import measure
    from saqkit.operators import health, operate
    from saqkit.probing_queue import probe
    from saqkit.queue.batches import Batch
    from saqkit.queue.payload import Payload, PayloadKeys
    from saqkit.queue.queue import Queue
    from saqkit.queue.submitting import NewJob
    from saqkit.queue.timetable import Schedule
    from saqkit.queue.unique import Unique
    from saqkit.recorder.wrapping import record
    from saqkit.spec.deployment import Deployment
    from saqkit.spec.distributions import Percentiles
    from saqkit.spec.one_queue import one_queue
    from saqkit.spec.recorded import Recording, read_recording
    from saqkit.spec.runs import Run
    from saqkit.spec.topology import Topology, load, shipped
    from saqkit.spec.workload import Workload
    from saqkit.worker.for_saq import settings

_HOMES = {
    "Batch": "saqkit.queue.batches",
    "Bus": "saqkit.bus.bus",
    "Client": "saqkit.app.client",
    "Deployment": "saqkit.spec.deployment",
    "Event": "saqkit.bus.envelope",
    "EventTopic": "saqkit.bus.topics",
    "NewJob": "saqkit.queue.submitting",
    "Payload": "saqkit.queue.payload",
    "PayloadKeys": "saqkit.queue.payload",
    "Percentiles": "saqkit.spec.distributions",
    "Queue": "saqkit.queue.queue",
    "Recording": "saqkit.spec.recorded",
    "Run": "saqkit.spec.runs",
    "Schedule": "saqkit.queue.timetable",
    "Thresholds": "saqkit.judging_health",
    "Topology": "saqkit.spec.topology",
    "Unique": "saqkit.queue.unique",
    "Workload": "saqkit.spec.workload",
    "health": "saqkit.operators",
    "load": "saqkit.spec.topology",
    "measure": "saqkit.measuring",
    "one_queue": "saqkit.spec.one_queue",
    "operate": "saqkit.operators",
    "probe": "saqkit.probing_queue",
    "read_recording": "saqkit.spec.recorded",
    "record": "saqkit.recorder.wrapping",
    "settings": "saqkit.worker.for_saq",
    "shipped": "saqkit.spec.topology",
}

__all__ = [
    "Batch",
    "Bus",
    "Client",
    "Deployment",
    "Event",
    "EventTopic",
    "NewJob",
    "Payload",
    "PayloadKeys",
    "Percentiles",
    "Queue",
    "Recording",
    "Run",
    "Schedule",
    "Thresholds",
    "Topology",
    "Unique",
    "Workload",
    "health",
    "load",
    "measure",
    "one_queue",
    "operate",
    "probe",
    "read_recording",
    "record",
    "settings",
    "shipped",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saqkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
