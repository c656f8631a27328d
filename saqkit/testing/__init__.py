"""What a team tests its own jobs with: a real broker, a worker in the test's own process, time that can be moved.

| name | what it is for |
|---|---|
| `fresh_queue` | a queue nobody else uses, on a given broker or a private one, gone at the end |
| `drain`, `Drained`, `Attempt` | run what is queued in this process; what happened, in order |
| `advance` | let time pass for a queue |
| `enqueued`, `assert_enqueued` | what waits to be run |
| `delays` | how long a job will wait after each failure, jitter included |
| `RecordingProvider` | a provider of emails that keeps them, and fails when told to |
| `SmtpSink`, `Received` | a real SMTP server on this machine that keeps what it is sent (needs aiosmtpd) |

`pytest_plugins = ["saqkit.testing.plugin"]` gives fixtures; nothing here needs pytest. The names are loaded when they
are first used. `python -m saqkit.testing` is the SMTP server at the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saqkit.testing.draining import Attempt, Drained, drain
    from saqkit.testing.jitter import delays
    from saqkit.testing.queues import fresh_queue
    from saqkit.testing.recording_provider import RecordingProvider
    from saqkit.testing.smtp_sink import Received, SmtpSink
    from saqkit.testing.time_travel import advance
    from saqkit.testing.waiting_jobs import assert_enqueued, enqueued

_HOMES = {
    "Attempt": "draining",
    "Drained": "draining",
    "Received": "smtp_sink",
    "RecordingProvider": "recording_provider",
    "SmtpSink": "smtp_sink",
    "advance": "time_travel",
    "assert_enqueued": "waiting_jobs",
    "delays": "jitter",
    "drain": "draining",
    "enqueued": "waiting_jobs",
    "fresh_queue": "queues",
}

__all__ = [
    "Attempt",
    "Drained",
    "Received",
    "RecordingProvider",
    "SmtpSink",
    "advance",
    "assert_enqueued",
    "delays",
    "drain",
    "enqueued",
    "fresh_queue",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saqkit.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"saqkit.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
