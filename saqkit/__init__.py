"""saqkit: a job-queue kit on SAQ and Redis whose capacity can be predicted and proved.

The names below are loaded when they are first used, so that `import saqkit` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saqkit.measuring import measure
    from saqkit.probing_queue import probe
    from saqkit.queue.queue import Queue
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
    "Deployment": "saqkit.spec.deployment",
    "Percentiles": "saqkit.spec.distributions",
    "Queue": "saqkit.queue.queue",
    "Recording": "saqkit.spec.recorded",
    "Run": "saqkit.spec.runs",
    "Topology": "saqkit.spec.topology",
    "Workload": "saqkit.spec.workload",
    "load": "saqkit.spec.topology",
    "measure": "saqkit.measuring",
    "one_queue": "saqkit.spec.one_queue",
    "probe": "saqkit.probing_queue",
    "read_recording": "saqkit.spec.recorded",
    "record": "saqkit.recorder.wrapping",
    "settings": "saqkit.worker.for_saq",
    "shipped": "saqkit.spec.topology",
}

__all__ = [
    "Deployment",
    "Percentiles",
    "Queue",
    "Recording",
    "Run",
    "Topology",
    "Workload",
    "load",
    "measure",
    "one_queue",
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
