"""saqkit: a job-queue kit on SAQ and Redis whose capacity can be predicted and proved.

The names below are loaded when they are first used, so that `import saqkit` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saqkit.measuring import measure
    from saqkit.probing_host import probe
    from saqkit.queue.queue import Queue
    from saqkit.spec.deployment import Deployment
    from saqkit.spec.runs import Run
    from saqkit.spec.topology import Topology, load, shipped
    from saqkit.spec.workload import Workload
    from saqkit.worker.for_saq import settings

_HOMES = {
    "Deployment": "saqkit.spec.deployment",
    "Queue": "saqkit.queue.queue",
    "Run": "saqkit.spec.runs",
    "Topology": "saqkit.spec.topology",
    "Workload": "saqkit.spec.workload",
    "load": "saqkit.spec.topology",
    "measure": "saqkit.measuring",
    "probe": "saqkit.probing_host",
    "settings": "saqkit.worker.for_saq",
    "shipped": "saqkit.spec.topology",
}

__all__ = [
    "Deployment",
    "Queue",
    "Run",
    "Topology",
    "Workload",
    "load",
    "measure",
    "probe",
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
